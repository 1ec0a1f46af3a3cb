"""A folder, zip or tar of tile images: what their names say of their places, and a Slide that hands them out."""

import csv
import io
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from tiling.codecs import decode_patch
from wsi.errors import SlideError, TileError
from wsi.geometry import Level, Region
from wsi.slide import SlideInfo

IMAGES, ARCHIVES = (".png", ".jpg", ".jpeg"), (".zip", ".tar")
TABLE = "coords.csv"
_END = r"\.(?:png|jpe?g)$"
# name → pattern of x, y and, if it is there, the side at level 0; the first that fits all names counts
PATTERNS = {
    "slidestream": re.compile(rf"_x(-?\d+)_y(-?\d+)_s(\d+){_END}", re.IGNORECASE),
    "stamp": re.compile(rf"^tile_\((-?[\d.]+), (-?[\d.]+)\){_END}", re.IGNORECASE),  # in µm
    "trident": re.compile(rf"^\d+_x(-?\d+)_y(-?\d+){_END}", re.IGNORECASE),
    "x_y": re.compile(rf"(?:^|[_-])x?(\d+)[_-]y?(\d+){_END}", re.IGNORECASE),
}


@dataclass(frozen=True)
class Places:
    """Where tiles lie.

    by       coords.csv, or the pattern of their names
    xy       float (n, 2), top-left corners, as they are said; µm for stamp, level-0 pixels for the others
    span_px  side in level-0 pixels, mpp of the patch: None where it is not said
    """

    by: str
    xy: NDArray[np.float64]
    span_px: int | None = None
    mpp: float | None = None


class Pictures:
    """The tile images in a folder or archive, in the natural order of their names. Reads are thread-safe."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: ZipFile | tarfile.TarFile | None = None
        self._turn = threading.Lock()
        try:
            if path.suffix == ".zip":
                self._archive = ZipFile(path)
            elif path.suffix == ".tar":
                self._archive = tarfile.open(path)  # noqa: SIM115 - open for as long as this object
        except (OSError, BadZipFile, tarfile.TarError) as error:
            raise SlideError(path, f"it cannot be read ({error})", "copy it again") from None
        every = self._names()
        self.names = sorted((name for name in every if is_image(name)), key=_natural)
        self.has_table = TABLE in every

    def _names(self) -> list[str]:
        if isinstance(self._archive, ZipFile):
            return self._archive.namelist()
        if isinstance(self._archive, tarfile.TarFile):
            return self._archive.getnames()
        return [entry.name for entry in self.path.iterdir() if entry.is_file()]

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises TileError where they cannot be read."""
        try:
            if self._archive is None:
                return (self.path / name).read_bytes()
            with self._turn:
                if isinstance(self._archive, ZipFile):
                    return self._archive.read(name)
                member = self._archive.extractfile(name)
                return member.read() if member is not None else b""
        except (OSError, BadZipFile, tarfile.TarError) as error:
            raise TileError(self.path / name, f"it cannot be read ({error})", "copy it again") from None

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every image by its header, (0, 0) where there is none."""
        from PIL import Image, UnidentifiedImageError

        found = []
        for name in self.names:
            try:
                with Image.open(io.BytesIO(self.read(name))) as image:
                    found.append(image.size)
            except (UnidentifiedImageError, OSError, TileError):
                found.append((0, 0))
        return found

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGES and not Path(name).name.startswith(".")


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Key by which tile2 comes before tile10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def find_places(pictures: Pictures) -> Places | None:
    """The places that coords.csv or the names say; None where not all of them do, or two are the same."""
    if pictures.has_table:
        return _from_table(pictures)
    for by, pattern in PATTERNS.items():
        found = [pattern.search(Path(name).name) for name in pictures.names]
        said = [match.groups() for match in found if match is not None]
        if not said or len(said) < len(found):
            continue
        xy = np.array([[float(one[0]), float(one[1])] for one in said])
        if by == "x_y" and len(xy) > 1 and not np.ptp(xy, axis=0).all():
            continue  # a number that all tiles share is no place
        sides = {one[2] for one in said} if by == "slidestream" else set()
        if len(sides) <= 1 and len(np.unique(xy, axis=0)) == len(xy):
            return Places(by, xy, int(sides.pop()) if sides else None)
    return None


def _from_table(pictures: Pictures) -> Places:
    try:
        rows = list(csv.DictReader(io.StringIO(pictures.read(TABLE).decode("utf-8-sig"), newline="")))
        table = {row["file"]: row for row in rows}
        chosen = [table[Path(name).name] for name in pictures.names]
        xy = np.array([[float(row["x"]), float(row["y"])] for row in chosen]).reshape(-1, 2)
        spans, scales = {int(row["span_px"]) for row in chosen}, {float(row["mpp"]) for row in chosen}
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        problem = f"it does not say where each of the tiles lies ({type(error).__name__}: {error})"
        raise SlideError(pictures.path / TABLE, problem, "export again, or take it away to go by names") from None
    one = len(spans) == len(scales) == 1 and len(np.unique(xy, axis=0)) == len(xy)
    if not one:
        raise SlideError(pictures.path / TABLE, "tiles of several sizes, or two in one place", "export again")
    return Places(TABLE, xy, spans.pop(), scales.pop())


class PictureSlide:
    """Tile images as a Slide. A tile is handed out as it is, by its corner; the whole is a mosaic of them.

    xy       int64 (n, 2), corners in level-0 pixels, one for each of `names`
    span_px  the tiles' side there, at least their own `tile_px`; mpp: µm per pixel of a tile
    """

    def __init__(self, pictures: Pictures, names: Sequence[str], xy: NDArray[np.int64], span_px: int, mpp: float):
        self._pictures, self.corners, self.span_px = pictures, xy, span_px
        self._names = {(x, y): name for (x, y), name in zip(xy.tolist(), names, strict=True)}
        with_jpeg = all(Path(name).suffix.lower() != ".png" for name in names)
        tile_px = _side(pictures, names)
        scale, base = span_px / tile_px, mpp * tile_px / span_px
        width, height = (xy.max(axis=0) + span_px).tolist()
        levels = [Level(width, height, 1.0, base)]
        if scale > 1:
            levels.append(Level(max(1, round(width / scale)), max(1, round(height / scale)), scale, mpp))
        self.levels, self.tile_px = tuple(levels), tile_px
        codec = "jpeg" if with_jpeg else "png"
        self.info = SlideInfo(
            "tiles", "a folder of tile images", "tiles", base, "user", codec=codec, tile_px=(tile_px, tile_px)
        )

    @property
    def path(self) -> Path | str:
        return self._pictures.path

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """The mosaic, white where there is no tile."""
        import cv2

        scale = self.levels[level].downsample
        rows, cols = region.shape_at(scale)
        canvas, side = np.full((rows, cols, 3), 255, np.uint8), max(1, round(self.span_px / scale))
        near = (self.corners < [region.x + region.width, region.y + region.height]) & (
            self.corners + self.span_px > [region.x, region.y]
        )
        for x, y in self.corners[near.all(axis=1)].tolist():
            pixels = self._decode(self._names[x, y])
            if side != self.tile_px:
                pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
            left, top = round((x - region.x) / scale), round((y - region.y) / scale)
            part = canvas[max(0, top) : top + side, max(0, left) : left + side]
            start_y, start_x = max(0, -top), max(0, -left)
            part[...] = pixels[start_y : start_y + part.shape[0], start_x : start_x + part.shape[1]]
        return canvas

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        ok = np.zeros(len(xy), np.bool_)
        for number, (x, y) in enumerate(xy.tolist()):
            try:
                out[number] = self._decode(self._names[x, y])
            except TileError:
                continue
            ok[number] = True
        return ok

    def native_jpegs(self, xy: NDArray[np.int64], side: int, level: int) -> Iterator[bytes | None] | None:
        """The JPEG files as they are."""
        if self.info.codec != "jpeg":
            return None
        return (self._bytes(self._names[x, y]) for x, y in xy.tolist())

    def _bytes(self, name: str) -> bytes | None:
        try:
            return self._pictures.read(name)
        except TileError:
            return None

    def _decode(self, name: str) -> NDArray[np.uint8]:
        import cv2

        data, pixels = self._pictures.read(name), np.empty((self.tile_px, self.tile_px, 3), np.uint8)
        try:
            if Path(name).suffix.lower() != ".png":
                decode_patch(data, pixels)
                return pixels
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is None or image.shape != pixels.shape:
                raise ValueError(f"it holds no {self.tile_px} x {self.tile_px} px")
        except (ValueError, cv2.error) as error:
            raise TileError(self._pictures.path / name, f"it cannot be decoded ({error})", "copy it again") from None
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def associated(self, name: str) -> NDArray[np.uint8]:
        raise KeyError(name)

    def icc_profile(self) -> bytes:
        return b""

    def close(self) -> None:
        self._pictures.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _side(pictures: Pictures, names: Sequence[str]) -> int:
    from PIL import Image

    with Image.open(io.BytesIO(pictures.read(names[0]))) as image:
        return int(image.size[0])
