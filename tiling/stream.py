"""Read the patches of a grid as a stream of batches, ahead of whoever uses them, in bounded memory."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError
from wsi.resample import read_tiles
from wsi.slide import Slide

from .grid import TileGrid

BATCH_BYTES = 48 << 20  # about 256 patches of 256 px: enough tiles that each compressed tile is decoded about once


@dataclass(frozen=True)
class PatchBatch:
    """Consecutive patches of a grid: tiles start to start + len(patches).

    patches  uint8 (b, t, t, 3)
    ok       bool (b,), False where a patch could not be read; its pixels mean nothing then
    """

    start: int
    patches: NDArray[np.uint8]
    ok: NDArray[np.bool_]


def iter_patches(slide: Slide, grid: TileGrid, threads: int = 2) -> Iterator[PatchBatch]:
    """Patches of `grid` in order, read by `threads` threads that stay at most one batch each ahead of the user."""
    size = grid.spec.tile_px
    count = max(1, BATCH_BYTES // (size * size * 3))
    starts = deque(range(0, len(grid), count))

    def read(start: int) -> PatchBatch:
        xy = grid.xy[start : start + count]
        patches = np.empty((len(xy), size, size, 3), np.uint8)
        return PatchBatch(start, patches, read_tiles(slide, xy, grid.span_px, grid.level, patches))

    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        ahead: deque[Future[PatchBatch]] = deque()
        try:
            while starts or ahead:
                while starts and len(ahead) < threads + 1:
                    ahead.append(pool.submit(read, starts.popleft()))
                yield ahead.popleft().result()
        finally:
            for future in ahead:  # the user stopped early: do not read on
                future.cancel()


def check_failed_tiles(slide: Slide, ok: NDArray[np.bool_], limit: float) -> int:
    """Number of unreadable tiles; raises SlideError when their share is above `limit`."""
    failed = int((~ok).sum())
    if failed > limit * len(ok):
        raise SlideError(
            slide.path,
            f"damaged: {failed} of {len(ok)} tiles ({failed / len(ok):.0%}) cannot be read, limit {limit:.0%}",
            "copy the slide again, or raise max_failed_tiles",
        )
    return failed
