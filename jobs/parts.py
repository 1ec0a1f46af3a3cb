"""Parts of a slide's embeddings: what one unit of work leaves for whoever joins them."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from shutil import rmtree
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tiling.stream import batch_tiles
from wsi.errors import StoreError
from wsi.publish import appear_file

_PART_BYTES = 64 << 20  # that a part holds in memory


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a slide's embeddings.

    vectors        (n, views, *row_shape), zero where `ok` bool (n,) is False
    stain_problem  why the slide keeps its colours, "" where it does not or was not asked to change them
    """

    vectors: NDArray[Any]
    ok: NDArray[np.bool_]
    stain_problem: str = ""


def part_tiles(tile_px: int, wanted: int, row_bytes: int) -> int:
    """Tiles in a part: about as many as are wanted, fewer where their embeddings are large.

    A whole number of the batches that are read: so that the same patches meet in the model's batches however a slide
    is cut, and embeddings are the same to the last bit whether a run was killed or not.
    """
    batch = batch_tiles(tile_px)
    return max(1, round(min(wanted, _PART_BYTES // row_bytes) / batch)) * batch


def write_part(path: Path, rows: Rows) -> None:
    """The file appears when it is whole; its zip format has a checksum of each array."""
    with appear_file(path) as draft, draft.open("wb") as file:
        np.savez(file, vectors=rows.vectors, ok=rows.ok, stain_problem=np.array(rows.stain_problem))


def read_part(path: Path) -> Rows:
    """Raises StoreError where it is damaged; it is removed then, so that the next run makes it again."""
    content = path.read_bytes()
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return Rows(arrays["vectors"], arrays["ok"], str(arrays["stain_problem"]))
    except (BadZipFile, ValueError, KeyError, EOFError, RuntimeError, OSError) as error:  # OSError: a place before it
        path.unlink(missing_ok=True)
        raise StoreError(path, f"this part of a slide is damaged ({error})", "run again: it is made anew") from error


def parts_folder(result: Path, mark: str, size: int) -> Path:
    """Where parts of so many tiles are kept until the slide's `result` with this fingerprint is made of them."""
    return result.parent / ".parts" / result.stem / f"{mark}-{size}"


def clear_parts(result: Path) -> None:
    """Remove all parts of a slide whose result is there, whatever their size and fingerprint."""
    rmtree(result.parent / ".parts" / result.stem, ignore_errors=True)
