"""Plan which stored tiles a batch of patches needs, decode each once, and lay its pixels into every patch it touches.

Whole-slide readers that answer patch by patch decode a tile again for each patch that overlaps it (two to four times
for patches that do not fit the tile grid). Here the batch is planned at once, as integer arithmetic on arrays.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[int, NDArray[np.uint8]], None]  # (tile index, buffer of the tile's size): raises BadTile
Take = Callable[[int, NDArray[np.uint8]], None]  # (patch index, its pixels, valid during the call only)


class BadTile(ValueError):
    """Bytes that are no whole image of the tile's size. A decoder's reason, for the caller to report."""


class Grid(NamedTuple):
    """A level and its tiles, in the level's pixels; `columns` tiles lie side by side."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    columns: int

    @classmethod
    def of(cls, width: int, height: int, tile_width: int, tile_height: int) -> "Grid":
        return cls(width, height, tile_width, tile_height, -(-width // tile_width))

    def reduced(self, factor: int) -> "Grid":
        """The same tiles, each made smaller `factor` times.

        A last pixel that lies partly outside the level counts, too, unless its tile has no whole pixel.
        """
        width = _reduced(self.width, self.tile_width, factor)
        height = _reduced(self.height, self.tile_height, factor)
        return Grid(width, height, self.tile_width // factor, self.tile_height // factor, self.columns)


def _reduced(extent: int, tile: int, factor: int) -> int:
    in_last = extent % tile or tile
    return -(-extent // factor) if in_last >= factor else extent // factor


class Plan(NamedTuple):
    """Pieces of pixels to move, grouped by tile.

    tiles    int64 (m,), index of each tile needed, row by row
    bounds   int64 (m + 1,): pieces of tile i are pieces[bounds[i]:bounds[i + 1]]
    pieces   int64 (p, 7): patch, then in the patch top, bottom, left, right, then in the tile top, left
    partial  bool (n,): the patch reaches beyond the slide
    """

    tiles: NDArray[np.int64]
    bounds: NDArray[np.int64]
    pieces: NDArray[np.int64]
    partial: NDArray[np.bool_]


class Cover(NamedTuple):
    """Which tiles patches touch, all int64 (n,): edges of their part inside the level (x1, y1 are exclusive), the first
    tile's column and row, and how many tiles across and down (0 for a patch wholly outside)."""

    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    x1: NDArray[np.int64]
    y1: NDArray[np.int64]
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    across: NDArray[np.int64]
    down: NDArray[np.int64]

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(patch, column, row) of every pair of a patch and a tile that it touches."""
        count = self.across * self.down
        patch = np.repeat(np.arange(len(count)), count)
        within = np.arange(len(patch)) - np.repeat(np.cumsum(count) - count, count)
        across = self.across[patch]
        return patch, self.column[patch] + within % across, self.row[patch] + within // across


def cover(corners: NDArray[np.int64], shape: tuple[int, int], grid: Grid) -> Cover:
    """Of patches of `shape` (rows, cols) whose top-left (x, y) in the level's pixels are `corners`, int64 (n, 2)."""
    x0, y0 = np.maximum(corners[:, 0], 0), np.maximum(corners[:, 1], 0)
    x1 = np.minimum(corners[:, 0] + shape[1], grid.width)
    y1 = np.minimum(corners[:, 1] + shape[0], grid.height)
    column, row = x0 // grid.tile_width, y0 // grid.tile_height
    inside = (x1 > x0) & (y1 > y0)
    across = np.where(inside, (x1 - 1) // grid.tile_width - column + 1, 0)
    down = np.where(inside, (y1 - 1) // grid.tile_height - row + 1, 0)
    return Cover(x0, y0, x1, y1, column, row, across, down)


def plan_pieces(corners: NDArray[np.int64], shape: tuple[int, int], grid: Grid) -> Plan:
    """Plan patches of `shape` (rows, cols) whose top-left (x, y) in the level's pixels are `corners`, int64 (n, 2)."""
    left, top = corners[:, 0], corners[:, 1]
    part = cover(corners, shape, grid)
    partial = (part.x0 != left) | (part.y0 != top) | (part.x1 != left + shape[1]) | (part.y1 != top + shape[0])
    patch, column, row = part.places()
    tile_x, tile_y = column * grid.tile_width, row * grid.tile_height
    cut_x0, cut_y0 = np.maximum(part.x0[patch], tile_x), np.maximum(part.y0[patch], tile_y)
    cut_x1 = np.minimum(part.x1[patch], tile_x + grid.tile_width)
    cut_y1 = np.minimum(part.y1[patch], tile_y + grid.tile_height)
    at_x, at_y = left[patch], top[patch]
    pieces = np.stack(
        [patch, cut_y0 - at_y, cut_y1 - at_y, cut_x0 - at_x, cut_x1 - at_x, cut_y0 - tile_y, cut_x0 - tile_x], axis=1
    )
    tile = row * grid.columns + column
    order = np.argsort(tile, kind="stable")
    tiles, starts = np.unique(tile[order], return_index=True)
    return Plan(tiles, np.append(starts, len(patch)), pieces[order], partial)


def count_uses(batches: Iterable[NDArray[np.int64]], shape: tuple[int, int], grid: Grid) -> NDArray[np.int64]:
    """In how many batches of patches each tile of the grid is needed: int64 (tiles,). `batches`: corners, (n, 2)."""
    rows = -(-grid.height // grid.tile_height)
    uses = np.zeros(grid.columns * max(1, rows), np.int64)
    for corners in batches:
        _, column, row = cover(corners, shape, grid).places()
        uses[np.unique(row * grid.columns + column)] += 1
    return uses


class DecodeOnce:
    """A `Decode` that keeps the tiles which several batches need, from the first that decodes one to the last.

    Neighbouring batches share the tiles under their common border; with overlapping patches that is a fifth of all.
    Thread-safe: of two threads that want one tile, one decodes and the other waits.

    uses         per tile, the number of batches that will ask for it (`count_uses`)
    limit_bytes  of tiles kept at once; beyond it, tiles are decoded again instead
    """

    def __init__(self, decode: Decode, uses: NDArray[np.int64], limit_bytes: int):
        self._decode = decode
        self._left = uses.tolist()
        self._shared = (uses > 1).tobytes()
        self._kept: dict[int, Future[NDArray[np.uint8]]] = {}
        self._room = limit_bytes
        self._turn = threading.Lock()

    def __call__(self, tile: int, into: NDArray[np.uint8]) -> None:
        if not self._shared[tile]:
            self._decode(tile, into)
            return
        with self._turn:
            kept = self._kept.get(tile)
            self._left[tile] -= 1
            last = self._left[tile] <= 0
            if kept is not None and last:
                del self._kept[tile]
                self._room += into.nbytes
            fresh: Future[NDArray[np.uint8]] | None = None
            if kept is None and not last and self._room >= into.nbytes:
                fresh = self._kept[tile] = Future()
                self._room -= into.nbytes
        if kept is not None:
            into[...] = kept.result()
            return
        try:
            self._decode(tile, into)
            if fresh is not None:
                fresh.set_result(into.copy())
        finally:
            if fresh is not None and not fresh.done():  # whatever it was, the others that wait for the tile must know
                fresh.set_exception(sys.exc_info()[1])


def fill_patches(
    plan: Plan, grid: Grid, decode: Decode, out: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], list[tuple[int, str]]]:
    """Carry out a plan: out uint8 (n, rows, cols, 3), white beyond the slide.

    Returns ok, bool (n,), and the tiles that could not be decoded, each with its reason. Live memory is one tile.
    """
    out[plan.partial] = 255
    ok = np.ones(len(out), np.bool_)
    faults: list[tuple[int, str]] = []
    scratch = np.empty((grid.tile_height, grid.tile_width, 3), np.uint8)
    whole = [0, grid.tile_height, 0, grid.tile_width, 0, 0]
    in_place = out.shape[1:] == scratch.shape and out[:1].flags.c_contiguous  # the decoder knows no strides
    bounds, pieces = plan.bounds.tolist(), plan.pieces.tolist()
    for number, tile in enumerate(plan.tiles.tolist()):
        moves = pieces[bounds[number] : bounds[number + 1]]
        direct = in_place and len(moves) == 1 and moves[0][1:] == whole
        try:
            decode(tile, out[moves[0][0]] if direct else scratch)
        except BadTile as fault:
            faults.append((tile, str(fault)))
            ok[[move[0] for move in moves]] = False
            continue
        if direct:
            continue
        for patch, y0, y1, x0, x1, tile_y, tile_x in moves:
            out[patch, y0:y1, x0:x1] = scratch[tile_y : tile_y + y1 - y0, tile_x : tile_x + x1 - x0]
    return ok, faults


def stream_patches(
    plan: Plan, grid: Grid, decode: Decode, shape: tuple[int, int], take: Take
) -> tuple[NDArray[np.bool_], list[tuple[int, str]]]:
    """Carry out a plan and hand over each patch of `shape` (rows, cols) as soon as its last tile is in.

    For patches that are used at once and not kept, such as those to be made smaller: while hot in the cache, and
    without memory for the whole batch (live are the patches of about one row of tiles). Patches of bad tiles are not
    handed over. Returns as `fill_patches`.
    """
    ok = np.ones(len(plan.partial), np.bool_)
    faults: list[tuple[int, str]] = []
    scratch = np.empty((grid.tile_height, grid.tile_width, 3), np.uint8)
    waits = np.bincount(plan.pieces[:, 0], minlength=len(ok)).tolist()
    live: dict[int, NDArray[np.uint8]] = {}
    free: list[NDArray[np.uint8]] = []
    bounds, pieces, partial = plan.bounds.tolist(), plan.pieces.tolist(), plan.partial.tolist()
    for patch in [number for number, count in enumerate(waits) if count == 0]:
        take(patch, np.full((*shape, 3), 255, np.uint8))
    for number, tile in enumerate(plan.tiles.tolist()):
        moves = pieces[bounds[number] : bounds[number + 1]]
        try:
            decode(tile, scratch)
        except BadTile as fault:
            faults.append((tile, str(fault)))
            ok[[move[0] for move in moves]] = False
        for patch, y0, y1, x0, x1, tile_y, tile_x in moves:
            pixels = live.get(patch)
            if pixels is None:
                pixels = live[patch] = free.pop() if free else np.empty((*shape, 3), np.uint8)
                if partial[patch]:
                    pixels[...] = 255
            pixels[y0:y1, x0:x1] = scratch[tile_y : tile_y + y1 - y0, tile_x : tile_x + x1 - x0]
            waits[patch] -= 1
            if waits[patch] == 0:
                if ok[patch]:
                    take(patch, pixels)
                free.append(live.pop(patch))
    return ok, faults
