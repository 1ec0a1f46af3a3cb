"""Tiled and striped TIFF (Aperio SVS, generic pyramids, OME-TIFF, Philips, BigTIFF), read without a slide library.

Four to five times OpenSlide's patches per core: no cache, no RGBA, no tile decoded twice in a batch.
"""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError, TileError
from ..slide import SlideInfo
from ..source import ByteSource, is_url, open_source
from . import tiff_directory as tags
from .codecs import JPEG, YCBCR, decoder_for
from .file_check import COPY_AGAIN
from .jpeg import JpegDecoder, size_of
from .jpeg2000 import Jpeg2000Decoder
from .match import Match
from .scale import Scale, as_objective, resolution_to_mpp, stated_scale
from .stored_tile import read_stored
from .tiff_structure import Pyramid, read_pyramid
from .tiff_tiles import TiledLevel, read_tiles, unreadable
from .tiled import TiledSlide
from .tilewise import BadTile, Grid

_MAX_ASSOCIATED_PX = 100_000_000


class TiffLevel:
    """The tiles of one image of a TIFF file; see tiled.TileLevel."""

    def __init__(self, source: ByteSource, tiles: TiledLevel):
        self.grid = Grid(tiles.width, tiles.height, tiles.tile_width, tiles.tile_height, tiles.columns)
        self._decoder = decoder_for(tiles.pixels)
        self.overview = isinstance(self._decoder, Jpeg2000Decoder)
        whole = () if tiles.is_striped else self._decoder.factors
        self.factors = tuple(f for f in whole if tiles.tile_width % f == 0 and tiles.tile_height % f == 0)
        self._source, self._tiles = source, tiles
        self._of_plane = tiles.offsets.size // tiles.pixels.planes

    @property
    def downsample(self) -> float | None:
        """Level-0 pixels per pixel where the file states it, else the sizes say it."""
        return self._tiles.downsample

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        if self._tiles.white_gaps and not self._tiles.counts[tile] and not self._tiles.offsets[tile]:
            into[...] = 255
            return
        rows = self._tiles.rows_of(tile)
        parts = [self._stored(tile + plane * self._of_plane) for plane in range(self._tiles.pixels.planes)]
        if rows == self._tiles.tile_height:
            self._decoder.decode(parts, into, factor)
            return
        try:
            self._decoder.decode(parts, into[:rows])
        except BadTile:
            self._decoder.decode(parts, into)  # some writers fill the last strip up to the rows of the others
        into[rows:] = 255

    def stored_bytes(self, tiles: NDArray[np.int64]) -> int:
        """What these tiles take in the file."""
        return int(self._tiles.counts[self._parts(tiles)].clip(0).sum())

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        parts = self._parts(tiles)
        ranges = zip(self._tiles.offsets[parts].tolist(), self._tiles.counts[parts].tolist(), strict=True)
        self._source.prefetch([(offset, count) for offset, count in ranges if count > 0])

    def jpeg(self, tile: int) -> bytes | None:
        pixels = self._tiles.pixels
        if pixels.compression != JPEG or pixels.samples != 3 or self._tiles.is_striped:
            return None
        try:
            return JpegDecoder(pixels.tables, pixels.photometric == YCBCR).whole(self._stored(tile))
        except BadTile:
            return None

    def _parts(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        return (tiles[:, None] + np.arange(self._tiles.pixels.planes) * self._of_plane).ravel()

    def _stored(self, part: int) -> bytes:
        return read_stored(self._source, int(self._tiles.offsets[part]), int(self._tiles.counts[part]))


# who is asked whether it takes a file, and does, opens it next: its structure need not be read twice. One a thread
_kept = threading.local()


def _state(path: Path | str) -> tuple[object, ...] | None:
    """What is another when a file is; None for a URL."""
    if is_url(path):
        return None
    status = os.stat(path)
    return str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _taken(path: Path | str) -> Pyramid | None:
    """The structure that this thread read last, if it is of this file as it is now; it is given once."""
    state, pyramid = getattr(_kept, "last", (None, None))
    _kept.last = None, None
    return pyramid if state is not None and state == _state(path) else None


class TiffSlide(TiledSlide):
    """An open TIFF. Reads are thread-safe: they share a file and nothing else."""

    def __init__(self, path: Path | str, why: str, override: Scale | None = None):
        with ExitStack() as until_open:
            self._source = open_source(path)
            until_open.callback(self._source.close)
            pyramid = _taken(path) or read_pyramid(self._source)
            if isinstance(pyramid, str):
                raise SlideError(path, f"no TIFF that is read as RGB ({pyramid})", "open it with open_slide")
            stored = [TiffLevel(self._source, tiles) for tiles in pyramid.levels]
            super().__init__(path, _describe(pyramid, why, override), stored)
            self._pyramid = pyramid
            until_open.pop_all()

    @staticmethod
    def matches(path: Path | str) -> Match:
        pyramid = read_pyramid(path)
        if isinstance(pyramid, str):
            return Match(False, pyramid)
        _kept.last = _state(path), pyramid
        kind = "striped" if pyramid.levels[0].is_striped else "tiled"
        codec = {"jpeg": "JPEG", "jpeg2000": "JPEG 2000"}.get(pyramid.codec, pyramid.codec)
        return Match(True, f"{kind} {codec} TIFF ({pyramid.vendor})")

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        try:
            if name in self._pyramid.embedded:
                return _decode_jpeg(self._pyramid.embedded[name])
            directory = self._pyramid.directories[self._pyramid.associated[name]]
            reason = unreadable(directory)
            if reason is not None:
                raise BadTile(reason)
            return _decode_whole(self._source, read_tiles(self._source, directory))
        except (BadTile, SlideError) as error:
            reason = error.problem if isinstance(error, SlideError) else str(error)
            raise TileError(self.path, f"its {name} image cannot be decoded: {reason}", COPY_AGAIN) from error

    def icc_profile(self) -> bytes:
        """See Slide.icc_profile."""
        base = self._pyramid.base
        offset = base.places.get(tags.ICC_PROFILE)
        return b"" if offset is None else self._source.read_at(offset, base.sizes[tags.ICC_PROFILE])

    def close(self) -> None:
        self._source.close()


def _decode_whole(source: ByteSource, tiles: TiledLevel) -> NDArray[np.uint8]:
    """A small image as RGB. Raises BadTile if any part of it cannot be decoded, or it is not small."""
    if tiles.width * tiles.height > _MAX_ASSOCIATED_PX:
        raise BadTile(f"it claims {tiles.width:,} x {tiles.height:,} px")
    level, rows = TiffLevel(source, tiles), -(-tiles.height // tiles.tile_height)
    level.prefetch(np.arange(rows * tiles.columns))
    pixels = np.empty((tiles.height, tiles.width, 3), np.uint8)
    scratch = np.empty((tiles.tile_height, tiles.tile_width, 3), np.uint8)
    for tile in range(rows * tiles.columns):
        top, left = tile // tiles.columns * tiles.tile_height, tile % tiles.columns * tiles.tile_width
        level.decode(tile, scratch)
        part = pixels[top : top + tiles.tile_height, left : left + tiles.tile_width]
        part[...] = scratch[: part.shape[0], : part.shape[1]]
    return pixels


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """A JPEG file kept in the metadata, as RGB."""
    width, height = size_of(data)
    if width * height > _MAX_ASSOCIATED_PX:
        raise BadTile(f"it claims {width:,} x {height:,} px")
    pixels = np.empty((height, width, 3), np.uint8)
    JpegDecoder(b"", True).decode(data, pixels)
    return pixels


def _describe(pyramid: Pyramid, why: str, override: Scale | None) -> SlideInfo:
    base, level, stated = pyramid.base, pyramid.levels[0], pyramid.stated
    objective = as_objective(stated.objective)
    scale = override or _stated_scale(pyramid, objective)
    return SlideInfo(
        reader="tiff",
        why=why,
        vendor=pyramid.vendor,
        mpp=scale.mpp,
        mpp_source=scale.source,
        mpp_problem=scale.problem,
        objective=objective,
        scanner=stated.scanner or base.text(tags.MODEL).strip() or None,
        codec=pyramid.codec,
        tile_px=None if level.is_striped else (level.tile_width, level.tile_height),
        associated=tuple(sorted({*pyramid.associated, *pyramid.embedded})),
        icc_bytes=base.sizes.get(tags.ICC_PROFILE, 0),
    )


def _stated_scale(pyramid: Pyramid, objective: float | None) -> Scale:
    """The vendor's text before the TIFF tags, which many writers fill with a screen's resolution."""
    if pyramid.stated.mpp != (None, None):
        return stated_scale(*pyramid.stated.mpp, pyramid.stated.source, objective)
    base = pyramid.base
    unit = base.number(tags.RESOLUTION_UNIT)
    x, y = (resolution_to_mpp(base.rational(tag), unit) for tag in (tags.X_RESOLUTION, tags.Y_RESOLUTION))
    return stated_scale(x, y, "tiff", objective)
