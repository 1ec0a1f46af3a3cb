"""Labelled tile pictures to fine-tune on: a table beside a folder or archive of them."""

import csv
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from mil.finetune import Cohort
from tiling.codecs import decode_patch
from wsi.errors import ManifestError, TileError

_JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class TileTable:
    """Rows of a table: `paths` below the folder or in the zip, with a label and a group each; `split` where it has that
    column."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    split: tuple[str, ...] | None = None


def read_tile_table(path: Path) -> TileTable:
    """A CSV with the columns path, label, group (who the tile is of: a patient, else a slide) and perhaps split.

    Raises ManifestError for a table that lacks a column or a value, or names a tile twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"it cannot be read ({error})", "give a CSV file in UTF-8") from error
    if not rows:
        raise ManifestError(path, "it lists no tiles", "add a line a tile: path,label,group")
    columns = list(rows[0])
    for name in ("path", "label", "group"):
        if name not in columns:
            problem = f"the column {name!r} is missing (it has {', '.join(map(str, columns))})"
            remedy = "it needs path, label and group; group is the patient, so that none is on both sides of a split"
            raise ManifestError(path, problem, remedy)
    needed = ("path", "label", "group", *(["split"] if "split" in columns else []))
    for number, row in enumerate(rows, start=2):
        if empty := [name for name in needed if not (row[name] or "").strip()]:
            raise ManifestError(f"{path}, line {number}", f"{empty[0]} is empty", "fill it in, or leave the tile out")
    cells = {name: tuple(row[name].strip() for row in rows) for name in needed}
    if len(set(cells["path"])) < len(rows):
        seen: set[str] = set()
        twice = next(one for one in cells["path"] if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise ManifestError(path, f"{twice} stands there twice", "keep one line of it")
    return TileTable(cells["path"], cells["label"], cells["group"], cells.get("split"))


def tiles_cohort(table: TileTable, pictures: "TilePictures") -> Cohort:
    """The table's tiles as a cohort; classes in the order of their names."""
    classes = tuple(sorted(set(table.labels)))
    truth = np.array([classes.index(label) for label in table.labels], np.int64)
    return Cohort(classes, truth, table.groups, table.paths, pictures.read, len(truth), pictures.tile_px)


class TilePictures:
    """Tile pictures of one size in a folder or a zip, decoded when they are asked for. Thread-safe.

    Raises ManifestError where one is not there, TileError, when it is read, where it is damaged or of another size.
    """

    def __init__(self, place: Path, paths: Sequence[str]):
        self.place, self.paths, self._turn = place, tuple(paths), threading.Lock()
        self._zip: ZipFile | None = None
        if place.is_file():
            try:
                self._zip = ZipFile(place)
            except (OSError, BadZipFile) as error:
                raise ManifestError(
                    place, f"it is no zip that can be read ({error})", "give a folder or a zip"
                ) from None
            there = set(self._zip.namelist())
            absent = [name for name in paths if name not in there]
        else:
            absent = [name for name in paths if not (place / name).is_file()]
        if absent:
            problem = f"{len(absent)} of {len(paths)} tiles are not in it, such as {absent[0]}"
            raise ManifestError(place, problem, "name the folder or zip that the paths are in with --images")
        self.tile_px = self._decode(paths[0]).shape[0]

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of these rows of the table: uint8 (k, t, t, 3)."""
        return np.stack([self._decode(self.paths[number], self.tile_px) for number in numbers.tolist()])

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def _decode(self, name: str, side: int | None = None) -> NDArray[np.uint8]:
        """A picture, RGB: uint8 (side, side, 3); of any side where that is None."""
        import cv2
        from PIL import Image, UnidentifiedImageError

        try:
            data = self._bytes(name)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
            if width != height or (side is not None and width != side):
                wanted = "square" if side is None else f"of {side} px, as the first is"
                raise TileError(self.place / name, f"it has {width} x {height} px and is not {wanted}", "cut it anew")
            pixels = np.empty((height, width, 3), np.uint8)
            if Path(name).suffix.lower() in _JPEG:
                decode_patch(data, pixels)
                return pixels
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if found is None:
                raise ValueError("it holds no picture")
            return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)
        except (OSError, ValueError, BadZipFile, UnidentifiedImageError, cv2.error) as error:
            problem = f"it cannot be decoded ({type(error).__name__}: {error})"
            raise TileError(self.place / name, problem, "copy it again, or leave it out of the table") from None

    def _bytes(self, name: str) -> bytes:
        if self._zip is None:
            return (self.place / name).read_bytes()
        with self._turn:
            return self._zip.read(name)
