"""Decide which tiles a slide gets: arithmetic on values, without reading a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level
from wsi.resample import pick_level

from .spec import TileSpec
from .tissue import Tissue

BLOCK = 16  # tiles are listed in blocks of 16 x 16 places


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
    """

    spec: TileSpec
    level: int
    span_px: int
    mpp: float
    xy: NDArray[np.int64]
    tissue: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.xy)


def plan_grid(levels: Sequence[Level], spec: TileSpec, tissue: Tissue) -> TileGrid:
    """All tiles that lie wholly on the slide and hold at least `spec.min_tissue` tissue.

    Raises SlideError without mpp, SpecError when the slide is coarser than `spec.mpp` (up-sampling invents detail).
    """
    base = levels[0]
    level = pick_level(levels, spec.mpp, spec.tolerance)
    read = levels[level]
    assert base.mpp is not None  # pick_level refuses a slide without scale
    assert read.mpp is not None
    exact = abs(read.mpp / spec.mpp - 1) <= spec.tolerance
    patch_scale = read.downsample if exact else spec.mpp / base.mpp  # level-0 px per patch px
    span_px = round(spec.tile_px * patch_scale)
    stride = max(1, round(spec.stride * patch_scale))
    columns, rows = tile_origins(base.width, span_px, stride), tile_origins(base.height, span_px, stride)
    xy = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    share = tissue_fraction(tissue.mask, xy, span_px, tissue.scale)
    # without min_tissue every tile counts; otherwise a tile of bare glass never does
    xy, share = xy[share >= spec.min_tissue], share[share >= spec.min_tissue]
    order = block_order(xy // stride)
    mpp = base.mpp * span_px / spec.tile_px
    return TileGrid(spec, level, span_px, mpp, np.ascontiguousarray(xy[order]), share[order].astype(np.float32))


def tile_origins(extent: int, span: int, stride: int) -> NDArray[np.int64]:
    """Left edges of the tiles that lie wholly inside `extent`; the ragged edge is dropped."""
    return np.arange(0, max(0, extent - span + 1), stride, dtype=np.int64)


def tissue_fraction(mask: NDArray[np.bool_], xy: NDArray[np.int64], span_px: int, scale: float) -> NDArray[np.float64]:
    """Share of tissue under each tile.

    mask  (rows, cols), True is tissue; one mask pixel covers `scale` level-0 pixels
    xy    (n, 2), tile top-left corners in level-0 pixels; span_px is the tile's side there
    Returns (n,) in [0, 1].
    """
    total = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # summed-area table: any box in four look-ups
    limit = np.array(mask.shape[::-1])
    x0, y0 = np.clip(np.floor(xy / scale), 0, limit - 1).astype(int).T
    x1, y1 = np.clip(np.ceil((xy + span_px) / scale), 1, limit).astype(int).T
    return (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]) / ((x1 - x0) * (y1 - y0))


def block_order(places: NDArray[np.int64], block: int = BLOCK) -> NDArray[np.int64]:
    """Order that visits places (n, 2) as (column, row) block by block, row by row within a block."""
    column, row = places.T
    return np.lexsort((column, row, column // block, row // block))
