"""Parts of a slide: what one unit of work leaves for whoever joins them."""

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

PARTS = ".parts"  # folder of slides that are half done, beside those that are done: it holds few
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


def part_tiles(tile_px: int, wanted: int, row_bytes: int = 1) -> int:
    """Tiles in a part: about as many as are wanted, fewer where what is kept of each in memory is large.

    A whole number of the batches that are read: so that the same patches meet in the model's batches however a slide
    is cut, and embeddings are the same to the last bit whether a run was killed or not; and so that a part's pixels are
    whole shards.
    """
    batch = batch_tiles(tile_px)
    return max(1, round(min(wanted, _PART_BYTES // row_bytes) / batch)) * batch


def write_part(path: Path, rows: Rows) -> None:
    """The file appears when it is whole; its zip format has a checksum of each array."""
    _save(path, vectors=rows.vectors, ok=rows.ok, stain_problem=np.array(rows.stain_problem))


def read_part(path: Path) -> Rows:
    """Raises StoreError where it is damaged; it is removed then, so that the next run makes it again."""
    arrays = _load(path, "vectors", "ok", "stain_problem")
    return Rows(arrays["vectors"], arrays["ok"], str(arrays["stain_problem"]))


def write_ok(path: Path, ok: NDArray[np.bool_]) -> None:
    """Of a part whose pixels are written, bool (n,): which tiles could be read. It appears when it is whole."""
    _save(path, ok=ok)


def read_ok(path: Path) -> NDArray[np.bool_]:
    """Raises as `read_part`."""
    ok: NDArray[np.bool_] = _load(path, "ok")["ok"]
    return ok


def damaged_part(path: Path, why: object) -> StoreError:
    """The error of a part that cannot be used; it is removed, so that the next run makes it again."""
    path.unlink(missing_ok=True)
    return StoreError(path, f"this part of a slide is damaged ({why})", "run again: it is made anew")


def _save(path: Path, **arrays: Any) -> None:
    with appear_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()  # what the disk says is no damage
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (BadZipFile, ValueError, KeyError, EOFError, RuntimeError, OSError) as error:
        raise damaged_part(path, error) from error


def clear_parts(folder: Path) -> None:
    """Remove what is left of other parts of the slide: `folder` is .parts/<fingerprint>-<size>-<slide_id>."""
    slide_id = folder.name.split("-", 2)[2]
    for other in folder.parent.glob(f"*-*-{slide_id}"):
        if other != folder and other.name.split("-", 2)[2] == slide_id:
            rmtree(other, ignore_errors=True)
