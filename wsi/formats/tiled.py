"""A slide whose levels are grids of stored tiles (TIFF, DICOM, OME-Zarr), read by plan: each tile is decoded once.

A format brings its tiles (`TileLevel`) and its facts (`SlideInfo`); what reading means is the same for all, and here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import TileError
from ..geometry import Level, Region, shape_to_read
from ..slide import SlideInfo
from .file_check import COPY_AGAIN
from .tilewise import (
    Decode,
    DecodeOnce,
    Grid,
    Plan,
    Take,
    count_uses,
    fill_patches,
    plan_pieces,
    stream_patches,
)

_SMALLEST_PX = 256  # longer side: no cheap level is offered below it


class TileLevel(Protocol):
    """One stored level of a slide, as its format keeps it. Thread-safe.

    grid     its size and its tiles', in its own pixels; tiles are numbered in raster order
    factors  reductions that `decode` makes cheaper than decoding all and averaging: of 2, 4 and 8; () for none.
             Tile width and height are multiples of each. A level whose reduced pixels are no likeness of averaged
             ones has an attribute `overview`, True
    """

    grid: Grid
    factors: tuple[int, ...]

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        """One whole tile as RGB into `into`, C-contiguous uint8 (tile_height / factor, tile_width / factor, 3).

        A tile that the format leaves out by design (unscanned glass) is white. Raises BadTile where the stored bytes
        are missing or cannot be decoded.
        """
        ...

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        """Say that these tiles will be decoded next; a remote file fetches them in few requests."""
        ...

    def jpeg(self, tile: int) -> bytes | None:
        """The stored tile as a JPEG file of its own, with nothing re-encoded; None where it is no JPEG or missing."""
        ...


class View(NamedTuple):
    """A level as it is offered: a stored one (factor 1), or one that decoding makes from it."""

    stored: TileLevel
    factor: int
    grid: Grid

    def decode(self, tile: int, into: NDArray[np.uint8]) -> None:
        """The tile in this level's pixels."""
        self.stored.decode(tile, into, self.factor)
        if self.factor == 1:
            return
        # A last pixel partly outside the picture is made from what pads the tile: its neighbour takes its place.
        row, column = divmod(tile, self.grid.columns)
        whole = self.stored.grid.height // self.factor - row * self.grid.tile_height
        if 0 < whole < len(into) and whole < self.grid.height - row * self.grid.tile_height:
            into[whole] = into[whole - 1]
        whole = self.stored.grid.width // self.factor - column * self.grid.tile_width
        if 0 < whole < into.shape[1] and whole < self.grid.width - column * self.grid.tile_width:
            into[:, whole] = into[:, whole - 1]


class TiledSlide:
    """Base of the readers that know their tiles. Reads are thread-safe."""

    def __init__(self, path: Path | str, info: SlideInfo, stored: Sequence[TileLevel]):
        self.path = path
        self.info = info
        self._views = tuple(_views(stored))
        base = self._views[0].grid
        self.levels = tuple(_level(view, base, info.mpp) for view in self._views)

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """See Slide.read. The region's corner is rounded to whole pixels of the level."""
        rows, cols = shape_to_read(region, self.levels, level)
        out = np.empty((1, rows, cols, 3), np.uint8)
        _, faults = self._fill(np.array([[region.x, region.y]], np.int64), level, out)
        if faults:
            tile, reason = faults[0]
            row, column = divmod(tile, self._views[level].grid.columns)
            first = f"row {row}, column {column} of level {level}: {reason}"
            raise TileError(self.path, f"{len(faults)} stored tiles cannot be decoded, first {first}", COPY_AGAIN)
        return out[0]

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many. Each stored tile is read and decoded once per call."""
        ok, _ = self._fill(xy, level, out)
        return ok

    def read_each(self, xy: NDArray[np.int64], side: int, level: int, take: Take) -> NDArray[np.bool_]:
        """See resample.PatchStream."""
        plan, view = self._plan(xy, level, (side, side)), self._views[level]
        ok, _ = stream_patches(plan, view.grid, view.decode, (side, side), take)
        return ok

    def in_batches(
        self, batches: Sequence[NDArray[np.int64]], side: int, level: int, limit_bytes: int
    ) -> "BatchReader":
        """See resample.BatchSource."""
        view, downsample = self._views[level], self.levels[level].downsample
        uses = count_uses((_corners(xy, downsample) for xy in batches), (side, side), view.grid)
        return BatchReader(self, DecodeOnce(view.decode, uses, limit_bytes))

    def native_jpegs(self, xy: NDArray[np.int64], side: int, level: int) -> Iterator[bytes | None] | None:
        """The stored JPEG tiles of patches that are exactly tiles of a stored level, without decoding them.

        xy     int64 (n, 2), corners in level-0 pixels; side in the level's pixels
        Returns one JPEG file a patch (None for a patch whose tile is missing), or None if the level keeps no JPEG
        tiles of that side, or a corner lies between tiles.
        """
        view = self._views[level]
        grid = view.grid
        corners = _corners(xy, self.levels[level].downsample)
        whole = (corners % [grid.tile_width, grid.tile_height] == 0).all()
        if view.factor != 1 or (grid.tile_width, grid.tile_height) != (side, side) or not whole:
            return None
        if self.info.codec != "jpeg":
            return None
        tiles = corners[:, 1] // side * grid.columns + corners[:, 0] // side
        view.stored.prefetch(tiles)
        return map(view.stored.jpeg, tiles.tolist())

    def bytes_under(self, xy: NDArray[np.int64], side: int, level: int) -> int | None:
        """Bytes of the file that reading square patches takes, those of a stored tile once; None if nobody can tell.

        xy  int64 (n, 2), corners in level-0 pixels; side in the level's pixels
        """
        view = self._views[level]
        stored_bytes = getattr(view.stored, "stored_bytes", None)
        if stored_bytes is None:
            return None
        uses = count_uses([_corners(xy, self.levels[level].downsample)], (side, side), view.grid)
        return int(stored_bytes(np.flatnonzero(uses)))

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        raise KeyError(name)

    def icc_profile(self) -> bytes:
        """See Slide.icc_profile; a format that keeps profiles says so in its class."""
        return b""

    def close(self) -> None:
        """Release the file; the format's class does it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(
        self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8], decode: Decode | None = None
    ) -> tuple[NDArray[np.bool_], list[tuple[int, str]]]:
        rows, cols = out.shape[1:3]
        plan, view = self._plan(xy, level, (rows, cols)), self._views[level]
        return fill_patches(plan, view.grid, decode or view.decode, out)

    def _plan(self, xy: NDArray[np.int64], level: int, shape: tuple[int, int]) -> Plan:
        plan = plan_pieces(_corners(xy, self.levels[level].downsample), shape, self._views[level].grid)
        self._views[level].stored.prefetch(plan.tiles)
        return plan


class BatchReader:
    """Reads the batches that it was made for, each once, and decodes no tile twice although batches share some."""

    def __init__(self, slide: TiledSlide, decode: Decode):
        self.levels = slide.levels
        self._slide, self._decode = slide, decode

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many."""
        ok, _ = self._slide._fill(xy, level, out, self._decode)
        return ok

    def read_each(self, xy: NDArray[np.int64], side: int, level: int, take: Take) -> NDArray[np.bool_]:
        """See resample.PatchStream."""
        slide = self._slide
        plan, grid = slide._plan(xy, level, (side, side)), slide._views[level].grid
        ok, _ = stream_patches(plan, grid, self._decode, (side, side), take)
        return ok


def _corners(xy: NDArray[np.int64], downsample: float) -> NDArray[np.int64]:
    """Corners in the level's pixels."""
    return np.rint(xy / downsample).astype(np.int64)


def _views(stored: Sequence[TileLevel]) -> Iterator[View]:
    """The stored levels, finest first, with the cheap ones that fill the gaps between them."""
    base = stored[0].grid
    for number, level in enumerate(stored):
        grid = level.grid
        yield View(level, 1, grid)
        following = base.width / stored[number + 1].grid.width if number + 1 < len(stored) else np.inf
        for factor in level.factors:
            small = max(grid.width, grid.height) // factor < _SMALLEST_PX
            if not small and factor * base.width / grid.width < 0.95 * following:
                yield View(level, factor, grid.reduced(factor))


def _level(view: View, base: Grid, mpp: float | None) -> Level:
    grid = view.stored.grid
    # Philips states it; else as OpenSlide defines it.
    stated: float | None = getattr(view.stored, "downsample", None)
    overview = view.factor > 1 and getattr(view.stored, "overview", False)
    downsample = (stated or (base.width / grid.width + base.height / grid.height) / 2) * view.factor
    scale = None if mpp is None else mpp * downsample
    return Level(view.grid.width, view.grid.height, downsample, scale, view.factor == 1, overview)
