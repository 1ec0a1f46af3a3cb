"""Patches as files, for tools that want files: a folder of PNG or JPEG, or a tar of samples as WebDataset reads it."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.publish import appear, appear_file

from .codecs import encode_patch
from .patches import PatchStore

KINDS = ("png", "jpg", "tar")
_COLUMNS = ("slide_id", "x", "y", "span_px", "mpp", "tissue")
_AT_ONCE = 256  # patches encoded before they are written


@dataclass(frozen=True)
class Exported:
    """What came of an export: the folder or tar file, the patches in it, and the tiles left out (unreadable)."""

    path: Path
    written: int
    skipped: int


def export_patches(store: PatchStore, out: Path, kind: str, threads: int = 2) -> Exported:
    """Write the readable patches of a store as files, replacing an older export only when this one is whole.

    png  out/<slide_id>/<slide_id>_x…_y…_s….png, x, y and side in level-0 pixels, with coords.csv beside them
    jpg  the same as JPEG: the stored file where the store keeps JPEG (native: the slide's own, nothing lost), else
         encoded at quality 90
    tar  out/<slide_id>.tar: for each patch the image (the stored JPEG, else PNG) and its place as JSON, under one key
    Raises SpecError for another kind, StoreError where the store holds no pixels or damaged ones.
    """
    if kind not in KINDS:
        raise SpecError("export", f"{kind!r} is unknown", f"choose one of {', '.join(KINDS)}")
    kept = store.shards.codec
    suffix = kind if kind != "tar" else "jpg" if kept == "jpeg" else "png"
    ok = store.array("ok")
    numbers = np.flatnonzero(ok).tolist()
    with ThreadPoolExecutor(threads, "export") as pool:
        encoded = _encoded(store, suffix, numbers, pool)
        if kind == "tar":
            path = out / f"{store.slide_id}.tar"
            with appear_file(path) as draft:
                _write_tar(draft, suffix, zip(_places(store, numbers), encoded, strict=True))
        else:
            path = out / store.slide_id
            with appear(path) as draft:
                _write_folder(draft, suffix, zip(_places(store, numbers), encoded, strict=True))
    return Exported(path, len(numbers), len(ok) - len(numbers))


def _encoded(store: PatchStore, suffix: str, numbers: list[int], pool: Executor) -> Iterator[bytes]:
    for start in range(0, len(numbers), _AT_ONCE):
        yield from pool.map(partial(_encode, store, suffix), numbers[start : start + _AT_ONCE])


def _encode(store: PatchStore, suffix: str, number: int) -> bytes:
    """One patch as a file: the stored one, where it is a JPEG and JPEG is wanted."""
    stored = store.shards.chunk(number) if suffix == "jpg" and store.shards.codec == "jpeg" else None
    if stored is not None:
        return stored
    pixels = store.read_at([number])[0]
    return encode_patch(pixels) if suffix == "jpg" else _png(pixels)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    import cv2

    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # stained tissue hardly gets smaller with more effort
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), fast)
    assert done
    return data.tobytes()


def _places(store: PatchStore, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Where each patch lies: name, slide_id, x, y and span_px in level-0 pixels, mpp of the patch, share of tissue."""
    grid, slide_id = store.grid, store.slide_id
    for number in numbers:
        x, y = grid.xy[number].tolist()
        yield {
            "name": f"{slide_id}_x{x}_y{y}_s{grid.span_px}",
            "slide_id": slide_id,
            "x": x,
            "y": y,
            "span_px": grid.span_px,
            "mpp": round(grid.mpp, 6),
            "tissue": round(float(grid.tissue[number]), 4),
        }


def _write_folder(folder: Path, suffix: str, samples: Iterable[tuple[dict[str, Any], bytes]]) -> None:
    with (folder / "coords.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, ("file", *_COLUMNS), extrasaction="ignore")
        table.writeheader()
        for place, data in samples:
            file = f"{place['name']}.{suffix}"
            (folder / file).write_bytes(data)
            table.writerow({"file": file, **place})


def _write_tar(path: Path, suffix: str, samples: Iterable[tuple[dict[str, Any], bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for place, data in samples:
            key = place["name"].replace(".", "_")  # WebDataset ends a sample's key at the first dot
            content = json.dumps({column: place[column] for column in _COLUMNS}).encode()
            for name, part in ((f"{key}.{suffix}", data), (f"{key}.json", content)):
                entry = tarfile.TarInfo(name)
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
