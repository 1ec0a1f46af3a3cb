"""Everything that OpenSlide reads, with its two habits mended: latched errors and transparent pixels."""

from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray

from ..errors import SlideError, TileError
from ..geometry import Level, Region, shape_to_read
from ..slide import SlideInfo
from ..source import open_source
from .file_check import COPY_AGAIN, check_file
from .match import Match
from .scale import Scale, as_objective, stated_scale
from .tiff_directory import is_tiff, read_directories
from .tiff_structure import first_codec
from .tiff_tiles import check_sense, read_all

_MPP_SOURCE = {"dicom": "dicom", "generic-tiff": "tiff"}  # all others state it in the vendor's own words

# Formats that by design keep nothing of glass that was not scanned, or of gaps between scanned areas: what OpenSlide
# leaves transparent there is background. In all others it is a tile of no bytes, which is missing.
_SPARSE = {"dicom", "leica", "mirax", "philips", "sakura", "ventana", "zeiss"}

# Model names only: serial numbers and operators' names stay in the file.
_SCANNER_KEYS = (
    "dicom.ManufacturerModelName",
    "leica.device-model",
    "ventana.ScannerModel",
    "philips.DICOM_MANUFACTURERS_MODEL_NAME",
    "aperio.ScannerType",
    "tiff.Model",
)


class OpenSlideSlide:
    """A slide open in OpenSlide. Reads are thread-safe.

    After one bad tile every later read on an OpenSlide handle fails, so a failed read is repeated on a fresh handle,
    which then replaces the latched one.
    """

    def __init__(self, path: Path, why: str, override: Scale | None = None):
        self.path = path
        self._lock = Lock()
        self._handle: openslide.OpenSlide | None = _open(path)
        try:
            self.info = _describe(self._handle, path, why, override)
            self.levels = _levels(self._handle, self.info.mpp)
        except openslide.OpenSlideError as error:
            raise SlideError(path, f"OpenSlide: {error}", COPY_AGAIN) from None

    @staticmethod
    def matches(path: Path) -> Match:
        try:
            vendor = openslide.OpenSlide.detect_format(str(path))
        except openslide.OpenSlideError as error:
            return Match(False, f"OpenSlide: {error}")
        if vendor is None:
            return Match(False, "not a format that OpenSlide knows")
        _check_structure(path)
        return Match(True, f"OpenSlide reads {vendor}")

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """See Slide.read. The region's corner is rounded to whole pixels of the level."""
        rows, cols = shape_to_read(region, self.levels, level)
        rgba = self._read_rgba(self._snap(region.x, region.y, level), level, (rows, cols))
        if self._lacks_pixels(rgba, region.x, region.y, level):
            where = f"level {level} at ({region.x}, {region.y})"
            raise TileError(self.path, f"{where}: the file holds no bytes for some of its tiles", COPY_AGAIN)
        return _on_white(rgba)

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many; patch by patch."""
        ok = np.ones(len(xy), np.bool_)
        for number, (x, y) in enumerate(xy.tolist()):
            try:
                rgba = self._read_rgba(self._snap(x, y, level), level, out.shape[1:3])
            except TileError:
                ok[number] = False
                continue
            out[number] = _on_white(rgba)
            ok[number] = not self._lacks_pixels(rgba, x, y, level)
        return ok

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        if name not in self.info.associated:
            raise KeyError(name)
        handle = _open(self.path)  # its own handle: an image that cannot be decoded must not latch the slide's
        try:
            return np.asarray(handle.associated_images[name].convert("RGB"))
        except openslide.OpenSlideError as error:
            raise TileError(self.path, f"its {name} image cannot be decoded: {error}", COPY_AGAIN) from None
        finally:
            handle.close()

    def icc_profile(self) -> bytes:
        """See Slide.icc_profile."""
        handle = self._handle
        profile = None if handle is None else handle.color_profile
        return b"" if profile is None else profile.tobytes()

    def close(self) -> None:
        self._handle = None  # a read in another thread still holds it; it is closed with its last user

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _snap(self, x: int, y: int, level: int) -> tuple[int, int]:
        """The level-0 point of the nearest whole pixel of the level: OpenSlide interpolates in between."""
        scale = self.levels[level].downsample
        return round(round(x / scale) * scale), round(round(y / scale) * scale)

    def _lacks_pixels(self, rgba: NDArray[np.uint8], x: int, y: int, level: int) -> bool:
        """Whether pixels inside the slide are missing from the file, of a patch whose corner is the level-0 (x, y)."""
        missing = rgba[..., 3] == 0
        if self.info.vendor in _SPARSE or not missing.any():
            return False
        size, scale = self.levels[level], self.levels[level].downsample
        left, top = round(x / scale), round(y / scale)
        inside = missing[max(0, -top) : max(0, size.height - top), max(0, -left) : max(0, size.width - left)]
        return bool(inside.any())

    def _read_rgba(self, corner: tuple[int, int], level: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 (rows, cols, 4) at a level-0 corner. Raises TileError when a fresh handle fails, too."""
        handle = self._handle
        if handle is None:
            raise ValueError(f"{self.path}: the slide is closed")
        size = shape[1], shape[0]
        try:
            return np.asarray(handle.read_region(corner, level, size))
        except openslide.OpenSlideError:
            # Another thread's bad tile may have latched the handle: only a handle of our own tells.
            fresh = _open(self.path)
        try:
            pixels = np.asarray(fresh.read_region(corner, level, size))
        except openslide.OpenSlideError as error:
            fresh.close()
            fresh = _open(self.path)
            raise TileError(self.path, f"level {level} at {corner} cannot be decoded: {error}", COPY_AGAIN) from None
        finally:
            self._replace(handle, fresh)
        return pixels

    def _replace(self, latched: openslide.OpenSlide, fresh: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is latched:  # else another thread has done it, or the slide was closed meanwhile
                self._handle = fresh


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (rows, cols, 4), not premultiplied → RGB over white."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint16)
    return ((rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _check_structure(path: Path) -> None:
    """Of a file that is a TIFF: all of its directories, tiles and strips lie inside it, and tags do not contradict each
    other. Raises SlideError.

    OpenSlide reads a truncated file as far as it goes, and finds out tile by tile.
    """
    source = open_source(path)
    try:
        if is_tiff(source):
            chain = read_directories(source)
            for directory in read_all(source, next(chain), list(chain)):
                if directory.is_tiled:
                    check_sense(source, directory)
    finally:
        source.close()


def _open(path: Path) -> openslide.OpenSlide:
    check_file(path)  # to OpenSlide a file that has vanished is one of unknown format
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        remedy = f"{COPY_AGAIN}; if they agree, convert it to a tiled pyramidal TIFF"
        raise SlideError(path, f"OpenSlide knows this format but cannot open the file: {error}", remedy) from None


def _levels(handle: openslide.OpenSlide, mpp: float | None) -> tuple[Level, ...]:
    return tuple(
        Level(width, height, downsample, None if mpp is None else mpp * downsample)
        for (width, height), downsample in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    )


def _describe(handle: openslide.OpenSlide, path: Path, why: str, override: Scale | None) -> SlideInfo:
    stated = handle.properties
    vendor = stated.get("openslide.vendor", "unknown")
    objective = as_objective(stated.get("openslide.objective-power"))
    across, down = stated.get("openslide.mpp-x"), stated.get("openslide.mpp-y")
    scale = override or stated_scale(across, down, _MPP_SOURCE.get(vendor, "vendor"), objective)
    tile = stated.get("openslide.level[0].tile-width"), stated.get("openslide.level[0].tile-height")
    return SlideInfo(
        reader="openslide",
        why=why,
        vendor=vendor,
        mpp=scale.mpp,
        mpp_source=scale.source,
        mpp_problem=scale.problem,
        objective=objective,
        scanner=next((stated[key] for key in _SCANNER_KEYS if stated.get(key)), None),
        codec=first_codec(path),
        tile_px=(int(tile[0]), int(tile[1])) if tile[0] and tile[1] else None,
        associated=tuple(sorted(handle.associated_images)),
        icc_bytes=int(stated.get("openslide.icc-size", 0)),
    )
