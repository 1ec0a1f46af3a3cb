"""Decide which tiles a slide gets: arithmetic on values, without reading a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level
from wsi.resample import pick_level

from .regions import Regions
from .spec import TileSpec
from .tissue import Tissue

BLOCK = 16  # tiles are listed in blocks of 16 x 16 places
ROUNDING = 1e-9  # shares come from sums in double precision: a tile full of tissue may be this much short of 1


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one slide.

    spec     what was asked
    level    pyramid level the tiles are read from
    span_px  side of a tile in level-0 pixels
    mpp      µm per patch pixel as it comes out (span_px is whole, so it may differ from the spec by < 0.5 / span_px)
    xy       int64 (n, 2), top-left corners in level-0 pixels, in blocks of 16 x 16 places: neighbours in the list are
             neighbours on the slide, so a batch or a shard touches few of the file's compressed tiles
    tissue   float32 (n,), share of each tile that is tissue
    found    tiles there were before `spec.max_tiles` drew from them; None where all were kept
    """

    spec: TileSpec
    level: int
    span_px: int
    mpp: float
    xy: NDArray[np.int64]
    tissue: NDArray[np.float32]
    found: int | None = None

    def __len__(self) -> int:
        return len(self.xy)


def plan_grid(levels: Sequence[Level], spec: TileSpec, tissue: Tissue, regions: Regions | None = None) -> TileGrid:
    """All tiles that lie wholly on the slide, with `spec.min_tissue` tissue and `regions.min_share` in the regions.

    With `spec.max_tiles`, so many of them, drawn uniformly without replacement by `spec.seed`.
    Raises SlideError without mpp, SpecError when the slide is coarser than `spec.mpp` (up-sampling invents detail).
    """
    base = levels[0]
    level, scale = _level_and_scale(levels, spec)
    assert base.mpp is not None  # pick_level refuses a slide without scale
    span_px = round(spec.tile_px * scale)
    stride = max(1, round(spec.stride * scale))
    columns, rows = tile_origins(base.width, span_px, stride), tile_origins(base.height, span_px, stride)
    share = _lattice_fraction(tissue.mask, columns / tissue.scale, rows / tissue.scale, span_px / tissue.scale)
    # without min_tissue every tile counts; otherwise a tile of bare glass never does
    keep = share >= spec.min_tissue - ROUNDING
    if regions is not None:
        keep &= regions.share(columns, rows, span_px) >= regions.min_share - ROUNDING
    places = np.argwhere(keep)[:, ::-1]  # (column, row), row by row
    found = len(places)
    if spec.max_tiles is not None and found > spec.max_tiles:
        places = places[draw(found, spec.max_tiles, spec.seed)]
    places = places[block_order(places)]
    column, row = places.T
    xy = np.column_stack((columns[column], rows[row]))
    mpp = base.mpp * span_px / spec.tile_px
    capped = found if len(places) < found else None
    return TileGrid(spec, level, span_px, mpp, xy, share[row, column].astype(np.float32), capped)


def plan_scales(grid: TileGrid, levels: Sequence[Level], mpps: Sequence[float]) -> list[TileGrid]:
    """For each µm per pixel, the grid with the same tiles in the same order, about the same centres.

    For embedding a place at several scales, as 20x with 5x: row i of every grid is the same place. Corners are whole,
    so centres agree exactly where both spans are even or both odd, and else to half a level-0 pixel. A tile of a
    coarser grid may reach over the slide's edge, also to negative coordinates: it is kept, and white there.
    `tissue` is that of the given grid's tiles. Raises what `plan_grid` raises.
    """
    found = []
    for mpp in mpps:
        stride = max(1, round(grid.spec.stride * grid.spec.mpp / mpp))  # the same distance on the slide
        spec = replace(grid.spec, mpp=mpp, stride_px=stride)
        level, scale = _level_and_scale(levels, spec)
        span_px = round(spec.tile_px * scale)
        xy = grid.xy + (grid.span_px - span_px) // 2
        real = grid.mpp * span_px / grid.span_px
        found.append(TileGrid(spec, level, span_px, real, xy, grid.tissue, grid.found))
    return found


def _level_and_scale(levels: Sequence[Level], spec: TileSpec) -> tuple[int, float]:
    """(level to read from, level-0 pixels per patch pixel)."""
    index = pick_level(levels, spec.mpp, spec.tolerance, spec.cheap_levels)
    base, level = levels[0], levels[index]
    assert base.mpp is not None  # pick_level refuses a slide without scale
    assert level.mpp is not None
    exact = abs(level.mpp / spec.mpp - 1) <= spec.tolerance
    return index, level.downsample if exact else spec.mpp / base.mpp


def tile_origins(extent: int, span: int, stride: int) -> NDArray[np.int64]:
    """Left edges of the tiles that lie wholly inside `extent`; the ragged edge is dropped."""
    return np.arange(0, max(0, extent - span + 1), stride, dtype=np.int64)


def draw(count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Which `size` of `count` things, ascending: a uniform sample without replacement.

    From the raw bits of PCG64, which numpy keeps the same on every machine and in every version; its methods for
    sampling may change.
    """
    lots = np.random.PCG64(seed).random_raw(count)
    return np.sort(np.argsort(lots, kind="stable")[:size])


def tissue_fraction(mask: NDArray[np.bool_], xy: NDArray[np.int64], span_px: int, scale: float) -> NDArray[np.float64]:
    """Share of tissue under each tile, exactly: a mask pixel that is partly under a tile counts by that part.

    mask  (rows, cols), True is tissue; one mask pixel covers `scale` level-0 pixels; outside of it there is none
    xy    (n, 2), tile top-left corners in level-0 pixels; span_px is the tile's side there
    Returns (n,) in [0, 1].
    """
    total = _integral(mask)
    side = span_px / scale
    left, top = (xy / scale).T
    x = [_between(edge, mask.shape[1]) for edge in (left, left + side)]
    y = [_between(edge, mask.shape[0]) for edge in (top, top + side)]

    def area(vertical: int, across: int) -> NDArray[np.float64]:
        """Tissue between the mask's corner and an edge of each tile; the table is linear between its entries."""
        (y0, v), (x0, u) = y[vertical], x[across]
        upper = total[y0, x0] * (1 - u) + total[y0, x0 + 1] * u
        return upper * (1 - v) + (total[y0 + 1, x0] * (1 - u) + total[y0 + 1, x0 + 1] * u) * v

    return np.clip((area(1, 1) - area(0, 1) - area(1, 0) + area(0, 0)) / side**2, 0, 1)


def _lattice_fraction(
    mask: NDArray[np.bool_], left: NDArray[np.float64], top: NDArray[np.float64], side: float
) -> NDArray[np.float64]:
    """`tissue_fraction` of all tiles at (left[i], top[j]), in mask pixels: (rows, columns)."""
    total = _integral(mask)
    y, v = _between(np.concatenate((top, top + side)), mask.shape[0])
    x, u = _between(np.concatenate((left, left + side)), mask.shape[1])
    bands = total[y] * (1 - v)[:, None] + total[y + 1] * v[:, None]
    bands = bands[len(top) :] - bands[: len(top)]
    sums = bands[:, x] * (1 - u) + bands[:, x + 1] * u
    return np.clip((sums[:, len(left) :] - sums[:, : len(left)]) / side**2, 0, 1)


def _integral(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Summed-area table of a mask, int32 (rows + 1, cols + 1): any box in four look-ups."""
    import cv2

    return cv2.integral(np.ascontiguousarray(mask).view(np.uint8))


def _between(edges: NDArray[np.float64], extent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(entry of the table before each edge, part of the way to the next)."""
    inside = np.clip(edges, 0, extent)
    before = np.minimum(inside.astype(np.int64), extent - 1)
    return before, inside - before


def block_order(places: NDArray[np.int64], block: int = BLOCK) -> NDArray[np.int64]:
    """Order that visits places (n, 2) as (column, row) block by block, row by row within a block."""
    column, row = places.T
    across = int(column.max(initial=0)) // block + 1
    blocks = row // block * across + column // block
    return np.argsort((blocks * block + row % block) * block + column % block, kind="stable")
