"""Read the patches of a grid as a stream of batches, ahead of whoever uses them, in bounded memory."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError
from wsi.resample import read_tiles, reader_for
from wsi.slide import Slide

from .grid import TileGrid

BATCH_BYTES = 48 << 20  # 256 patches of 256 px
MEMORY_BYTES = 1 << 30  # that reading one slide may hold, by default


@dataclass(frozen=True)
class PatchBatch:
    """Consecutive patches of a grid: tiles start to start + len(patches).

    patches  uint8 (b, t, t, 3)
    ok       bool (b,), False where a patch could not be read; its pixels mean nothing then
    """

    start: int
    patches: NDArray[np.uint8]
    ok: NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """How a slide is read: on how many threads, holding how many bytes (see iter_patches); `tick` is called now and
    then, as a sign of life."""

    threads: int = 2
    memory: int = MEMORY_BYTES
    tick: Callable[[], None] = lambda: None


READING = Reading()


def iter_patches(slide: Slide, grid: TileGrid, threads: int = 2, memory: int = MEMORY_BYTES) -> Iterator[PatchBatch]:
    """Patches of `grid` in order, read by up to `threads` threads that stay at most one batch each ahead of the user.

    memory  bytes that reading may hold: a quarter for tiles that batches share, the rest for batches, of which there is
            one for each thread, one that waits and one with the user; fewer threads read where that is too many
    A batch's memory is used again when nobody refers to it any more, so it may be kept for as long as one likes.
    """
    size = grid.spec.tile_px
    count = batch_tiles(size)
    starts = deque(range(0, len(grid), count))
    threads = max(1, min(threads, int(0.75 * memory / (count * size * size * 3)) - 2))
    group = _at_once(slide, grid, memory // (4 * threads), count)
    parts = [grid.xy[i : i + group] for start in starts for i in range(start, min(start + count, len(grid)), group)]
    reader = reader_for(slide, parts, grid.span_px, grid.level, memory // 4)

    def read(start: int) -> PatchBatch:
        xy = grid.xy[start : start + count]
        patches = _BUFFERS.take(count * size * size * 3)[: len(xy) * size * size * 3].reshape(len(xy), size, size, 3)
        ok = np.empty(len(xy), np.bool_)
        for part in (slice(i, i + group) for i in range(0, len(xy), group)):
            ok[part] = read_tiles(reader, xy[part], grid.span_px, grid.level, patches[part])
        return PatchBatch(start, patches, ok)

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


def _at_once(slide: Slide, grid: TileGrid, memory: int, count: int) -> int:
    """How many patches of a batch are read together: all, or fewer where they are read large and shrunk, so that those
    in the making fit into `memory`."""
    stored = round(grid.span_px / slide.levels[grid.level].downsample)
    if stored <= grid.spec.tile_px:
        return count
    return min(count, max(1, memory // (stored * stored * 3)))


def batch_tiles(tile_px: int) -> int:
    """Patches in a batch of the stream."""
    return max(1, BATCH_BYTES // (tile_px * tile_px * 3))


class _Buffers:
    """Batch buffers of the process, used again when nobody refers to them any more.

    Fresh memory costs a page fault each 4 KiB, a tenth of all the work of reading; so it outlives a slide.
    """

    def __init__(self, kept_bytes: int):
        self._kept_bytes = kept_bytes
        self._all: list[NDArray[np.uint8]] = []
        self._turn = threading.Lock()
        self._unused = self._holders([np.empty(0, np.uint8)], 0)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """uint8 (nbytes,), of any content; in use for as long as it, or a view of it, is referred to."""
        with self._turn:
            free = [index for index in range(len(self._all)) if self._holders(self._all, index) == self._unused]
            for index in free:
                if self._all[index].nbytes == nbytes:
                    return self._all[index]
            for index in reversed(free):  # of another size: slides of before
                if sum(buffer.nbytes for buffer in self._all) + nbytes > self._kept_bytes:
                    del self._all[index]
            self._all.append(np.empty(nbytes, np.uint8))
            return self._all[-1]

    @staticmethod
    def _holders(arrays: list[NDArray[np.uint8]], index: int) -> int:
        return sys.getrefcount(arrays[index])


_BUFFERS = _Buffers(256 << 20)


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
