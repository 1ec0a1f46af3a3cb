"""Tiled JPEG TIFF (Aperio SVS, generic pyramidal TIFF, BigTIFF), read tile by tile without a slide library.

Four to five times OpenSlide's patches per core: no cache, no RGBA, no tile decoded twice in a batch.
"""

import os
import re
import threading
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError, TileError
from ..geometry import Level, Region
from ..slide import SlideInfo
from . import tiff_directory as tags
from .file_check import COPY_AGAIN
from .jpeg import BadTile, JpegDecoder
from .match import Match
from .scale import Scale, as_objective, resolution_to_mpp, stated_scale
from .tiff_directory import Directory
from .tiff_structure import Pyramid, read_pyramid
from .tilewise import Grid, Plan, Take, fill_patches, plan_pieces, stream_patches

_MAX_ASSOCIATED_PX = 100_000_000


class TiffSlide:
    """An open tiled JPEG TIFF. Reads are thread-safe: they share a file descriptor and nothing else."""

    def __init__(self, path: Path, why: str, override: Scale | None = None):
        pyramid = read_pyramid(path)
        if isinstance(pyramid, str):
            raise SlideError(path, f"not a tiled JPEG TIFF ({pyramid})", "open it with open_slide")
        self.path = path
        self.info = _describe(pyramid, why, override)
        self.levels = _levels(pyramid, self.info.mpp)
        self._tiles = pyramid.levels
        self._grids = tuple(Grid(t.width, t.height, t.tile_width, t.tile_height) for t in pyramid.levels)
        self._decoders = tuple(JpegDecoder(tiles.jpeg_tables, tiles.is_ycbcr) for tiles in pyramid.levels)
        self._associated = pyramid.associated
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        self._turn = threading.Lock()  # only where the system has no read at an offset

    @staticmethod
    def matches(path: Path) -> Match:
        pyramid = read_pyramid(path)
        if isinstance(pyramid, str):
            return Match(False, pyramid)
        return Match(True, f"tiled JPEG TIFF ({pyramid.vendor})")

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """See Slide.read. The region's corner is rounded to whole pixels of the level."""
        rows, cols = region.shape_at(self.levels[level].downsample)
        out = np.empty((1, rows, cols, 3), np.uint8)
        _, faults = self._fill(np.array([[region.x, region.y]], np.int64), level, out)
        if faults:
            tile, reason = faults[0]
            row, column = divmod(tile, self._tiles[level].columns)
            first = f"row {row}, column {column} of level {level}: {reason}"
            raise TileError(self.path, f"{len(faults)} stored tiles cannot be decoded, first {first}", COPY_AGAIN)
        return out[0]

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many. Each stored tile is read and decoded once per call."""
        ok, _ = self._fill(xy, level, out)
        return ok

    def read_each(self, xy: NDArray[np.int64], side: int, level: int, take: Take) -> NDArray[np.bool_]:
        """See resample.PatchStream."""
        plan = self._plan(xy, level, (side, side))
        ok, _ = stream_patches(plan, self._grids[level], partial(self._decode, level), (side, side), take)
        return ok

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        import tifffile

        index = self._associated[name]
        try:
            with tifffile.TiffFile(self.path) as file:
                page = file.pages[index]
                rows, cols = page.shape[:2]
                if rows * cols > _MAX_ASSOCIATED_PX:
                    raise ValueError(f"it claims {cols:,} x {rows:,} px")
                pixels = np.asarray(page.asarray(), np.uint8)
        except (ValueError, RuntimeError) as error:  # tifffile's and the codecs' own classes derive from these
            raise TileError(self.path, f"its {name} image cannot be decoded: {error}", COPY_AGAIN) from error
        return pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _fill(
        self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]
    ) -> tuple[NDArray[np.bool_], list[tuple[int, str]]]:
        rows, cols = out.shape[1:3]
        plan = self._plan(xy, level, (rows, cols))
        return fill_patches(plan, self._grids[level], partial(self._decode, level), out)

    def _plan(self, xy: NDArray[np.int64], level: int, shape: tuple[int, int]) -> Plan:
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: the slide is closed")
        corners = np.rint(xy / self.levels[level].downsample).astype(np.int64)
        return plan_pieces(corners, shape, self._grids[level])

    def _decode(self, level: int, tile: int, into: NDArray[np.uint8]) -> None:
        tiles = self._tiles[level]
        count = int(tiles.counts[tile])
        data = self._bytes(count, int(tiles.offsets[tile])) if count else b""
        if len(data) != count:
            raise BadTile(f"the file ends {count - len(data):,} bytes too early")
        self._decoders[level].decode(data, into)

    def _bytes(self, count: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._turn:  # Windows
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)


def _levels(pyramid: Pyramid, mpp: float | None) -> tuple[Level, ...]:
    base = pyramid.levels[0]
    levels = []
    for tiles in pyramid.levels:
        downsample = (base.width / tiles.width + base.height / tiles.height) / 2  # as OpenSlide defines it
        levels.append(Level(tiles.width, tiles.height, downsample, None if mpp is None else mpp * downsample))
    return tuple(levels)


def _describe(pyramid: Pyramid, why: str, override: Scale | None) -> SlideInfo:
    base = pyramid.base
    stated = aperio_properties(base.text(tags.DESCRIPTION)) if pyramid.vendor == "aperio" else {}
    objective = as_objective(stated.get("AppMag"))
    scale = override or _stated_scale(base, stated.get("MPP"), objective)
    level = pyramid.levels[0]
    return SlideInfo(
        reader="tiff",
        why=why,
        vendor=pyramid.vendor,
        mpp=scale.mpp,
        mpp_source=scale.source,
        mpp_problem=scale.problem,
        objective=objective,
        scanner=stated.get("ScannerType") or base.text(tags.MODEL).strip() or None,
        codec=pyramid.codec,
        tile_px=(level.tile_width, level.tile_height),
        associated=tuple(sorted(pyramid.associated)),
        icc_bytes=base.sizes.get(tags.ICC_PROFILE, 0),
    )


def _stated_scale(base: Directory, vendor_mpp: str | None, objective: float | None) -> Scale:
    """The vendor's text before the TIFF tags, which many writers fill with a screen's resolution."""
    if vendor_mpp is not None:
        return stated_scale(vendor_mpp, None, "vendor", objective)
    unit = base.number(tags.RESOLUTION_UNIT)
    x, y = (resolution_to_mpp(base.rational(tag), unit) for tag in (tags.X_RESOLUTION, tags.Y_RESOLUTION))
    return stated_scale(x, y, "tiff", objective)


def aperio_properties(description: str) -> dict[str, str]:
    """`key = value` pairs of an Aperio ImageDescription; a later pair replaces an earlier one, as in OpenSlide."""
    pairs = (re.split(r"\s*=\s*", part, maxsplit=1) for part in description.split("|")[1:])
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
