"""Tiles as an image of a few pixels each: what rasters and contours are made from, never a canvas of level 0."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .colour import NO_DATA, colour_table, colours_of
from .heatmap import Heatmap

BACKGROUND, SCORED, FAILED = 0, 1, 2
FINEST = 16  # cells along a tile's side at most, where tiles overlap by an odd step
_STRIPE_PX = 4


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """A heatmap on a lattice of square cells.

    mean    float32 (rows, cols), mean score of the tiles over a cell, weighted by how much of it each covers; NaN where
            no tile has a score
    state   uint8 (rows, cols): BACKGROUND, SCORED or FAILED, which is a cell that only unreadable tiles cover
    origin  (x, y) of the first cell's corner in level-0 pixels
    cell_px side of a cell in level-0 pixels
    """

    mean: NDArray[np.float32]
    state: NDArray[np.uint8]
    origin: tuple[int, int]
    cell_px: int

    def at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(mean, state) at the places x (cols,) and y (rows,) in level-0 pixels: each of shape (rows, cols)."""
        col = np.floor((x - self.origin[0]) / self.cell_px).astype(np.int64)
        row = np.floor((y - self.origin[1]) / self.cell_px).astype(np.int64)
        in_x, in_y = (col >= 0) & (col < self.mean.shape[1]), (row >= 0) & (row < self.mean.shape[0])
        mean = np.full((len(y), len(x)), np.nan, np.float32)
        state = np.full((len(y), len(x)), BACKGROUND, np.uint8)
        inside = np.ix_(np.flatnonzero(in_y), np.flatnonzero(in_x))
        cells = np.ix_(row[in_y], col[in_x])
        mean[inside], state[inside] = self.mean[cells], self.state[cells]
        return mean, state


def tile_raster(heatmap: Heatmap) -> Raster:
    """Lay the tiles of a heatmap on the coarsest lattice that their corners lie on.

    A cell is then wholly inside or outside of any tile, and means are exact. Where tiles overlap by so odd a step that
    this takes more than FINEST cells a side, cells are a FINEST of the side, and what a tile covers of them counts.
    """
    places = np.concatenate([heatmap.xy, heatmap.failed_xy])
    if not len(places):
        return Raster(np.full((1, 1), np.nan, np.float32), np.zeros((1, 1), np.uint8), (0, 0), heatmap.span_px)
    origin = places.min(axis=0)
    cell = int(np.gcd.reduce(np.append((places - origin).ravel(), heatmap.span_px)))
    cell = max(cell, math.ceil(heatmap.span_px / FINEST))
    cols, rows = (int(-(-side // cell)) for side in (places.max(axis=0) + heatmap.span_px - origin))
    shape = rows, cols
    total, weight = _laid(heatmap.xy - origin, heatmap.scores, heatmap.span_px, cell, shape)
    lost = _laid(heatmap.failed_xy - origin, np.zeros(len(heatmap.failed_xy)), heatmap.span_px, cell, shape)[1]
    half = 0.5 * cell * cell  # edges between cells are rounded, as those between pixels are
    scored = weight > half * (1 - 1e-9)
    mean = np.divide(total, weight, out=np.full(shape, np.nan), where=scored).astype(np.float32)
    state = np.where(scored, SCORED, np.where(lost > half * (1 - 1e-9), FAILED, BACKGROUND)).astype(np.uint8)
    return Raster(mean, state, (int(origin[0]), int(origin[1])), cell)


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """The colours of a raster's cells, framed by one cell of background: made once, looked up for every tile drawn.

    rgb    uint8 (rows + 2, cols + 2, 3), white where there is no tile; the darker grey of the stripes for FAILED
    state  uint8 (rows + 2, cols + 2)
    """

    raster: Raster
    rgb: NDArray[np.uint8]
    state: NDArray[np.uint8]

    def paint(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
        """RGB (rows, cols, 3) at the places x and y in level-0 pixels; "no data" is striped."""
        raster, limit = self.raster, self.state.shape
        col, row = (
            np.clip(np.floor((along - start) / raster.cell_px).astype(np.int64) + 1, 0, limit[1 - axis] - 1)
            for axis, (along, start) in enumerate(zip((x, y), raster.origin, strict=True))
        )
        out = self.rgb.take(row, axis=0).take(col, axis=1)
        failed = self.state.take(row, axis=0).take(col, axis=1) == FAILED
        if failed.any():
            pale = (np.arange(len(y))[:, None] + np.arange(len(x))) // _STRIPE_PX % 2 == 1
            out[failed & pale] += 60
        return out


def palette(raster: Raster, display: tuple[float, float]) -> Palette:
    """Colours of the cells over `display`; what lies beyond it has the colour of the nearer end."""
    state = np.pad(raster.state, 1, constant_values=BACKGROUND)
    rgb = np.full((*state.shape, 3), 255, np.uint8)
    rgb[state == SCORED] = colours_of(raster.mean[raster.state == SCORED], display, colour_table())
    rgb[state == FAILED] = NO_DATA
    return Palette(raster, rgb, state)


def _laid(
    places: NDArray[np.int64], values: NDArray, span: int, cell: int, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sum of value × area, sum of area) of the tiles over each cell, areas in square level-0 pixels."""
    total, weight = np.zeros(shape[0] * shape[1]), np.zeros(shape[0] * shape[1])
    first = places // cell
    steps = range(-(-span // cell) + (1 if (places % cell).any() or span % cell else 0))
    sides = [[_covered(places[:, axis], first[:, axis] + step, span, cell) for step in steps] for axis in (0, 1)]
    for down in steps:
        for right in steps:
            area = sides[0][right] * sides[1][down]
            on = area > 0
            if not on.any():
                continue
            cells = (first[on, 1] + down) * shape[1] + first[on, 0] + right
            weight += np.bincount(cells, area[on], len(weight))
            total += np.bincount(cells, area[on] * values[on], len(total))
    return total.reshape(shape), weight.reshape(shape)


def _covered(start: NDArray[np.int64], cells: NDArray[np.int64], span: int, cell: int) -> NDArray[np.float64]:
    """How many pixels of each cell a tile from `start` covers along one side."""
    low, high = np.maximum(start, cells * cell), np.minimum(start + span, (cells + 1) * cell)
    return np.maximum(high - low, 0).astype(np.float64)
