"""Tiled JPEG TIFF (Aperio SVS, generic pyramidal TIFF, BigTIFF), read tile by tile without a slide library.

Four to five times OpenSlide's patches per core: no cache, no RGBA, no tile decoded twice in a batch.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError, TileError
from ..slide import SlideInfo
from ..source import ByteSource, open_source
from . import tiff_directory as tags
from .file_check import COPY_AGAIN
from .jpeg import JpegDecoder
from .match import Match
from .scale import Scale, as_objective, resolution_to_mpp, stated_scale
from .tiff_directory import Directory
from .tiff_structure import Pyramid, TiledLevel, read_pyramid
from .tiled import TiledSlide
from .tilewise import BadTile, Grid

_MAX_ASSOCIATED_PX = 100_000_000


class TiffLevel:
    """The tiles of one level of a TIFF file; see tiled.TileLevel."""

    def __init__(self, source: ByteSource, tiles: TiledLevel):
        self.grid = Grid.of(tiles.width, tiles.height, tiles.tile_width, tiles.tile_height)
        self.factors = tuple(f for f in (2, 4, 8) if tiles.tile_width % f == 0 and tiles.tile_height % f == 0)
        self._source, self._tiles = source, tiles
        self._decoder = JpegDecoder(tiles.jpeg_tables, tiles.is_ycbcr)

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        self._decoder.decode(self._stored(tile), into, factor)

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        ranges = zip(self._tiles.offsets[tiles].tolist(), self._tiles.counts[tiles].tolist(), strict=True)
        self._source.prefetch([(offset, count) for offset, count in ranges if count])

    def jpeg(self, tile: int) -> bytes | None:
        try:
            return self._decoder.whole(self._stored(tile))
        except BadTile:
            return None

    def _stored(self, tile: int) -> bytes:
        count = int(self._tiles.counts[tile])
        data = self._source.read_at(int(self._tiles.offsets[tile]), count) if count else b""
        if len(data) != count:
            raise BadTile(f"the file ends {count - len(data):,} bytes too early")
        return data


class TiffSlide(TiledSlide):
    """An open tiled TIFF. Reads are thread-safe: they share a file descriptor and nothing else."""

    def __init__(self, path: Path, why: str, override: Scale | None = None):
        pyramid = read_pyramid(path)
        if isinstance(pyramid, str):
            raise SlideError(path, f"not a tiled JPEG TIFF ({pyramid})", "open it with open_slide")
        self._source = open_source(path)
        stored = [TiffLevel(self._source, tiles) for tiles in pyramid.levels]
        super().__init__(path, _describe(pyramid, why, override), stored)
        self._associated = pyramid.associated

    @staticmethod
    def matches(path: Path) -> Match:
        pyramid = read_pyramid(path)
        if isinstance(pyramid, str):
            return Match(False, pyramid)
        return Match(True, f"tiled JPEG TIFF ({pyramid.vendor})")

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
        self._source.close()


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
