"""What suits a GPU: how many patches a step, and whether torch.compile pays."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIZES = (32, 64, 128, 256, 512, 1024)
GAIN = 1.03  # a larger batch must bring so much: it takes memory and makes the last batch of a slide dearer
PINNED_BYTES = 256 << 20  # that a batch may take of the host: six are in memory that cannot be swapped out
COMPILE_S, COMPILE_GAIN = 90.0, 0.15  # what compiling costs, and what share of the time it saves


def compile_pays(tiles: int, tiles_per_s: float) -> bool:
    """Whether the run is long enough: what compiling saves of it is more than compiling takes, so 10 minutes or so.

    tiles        to embed in all
    tiles_per_s  measured before compiling; 0 where it was not, which is never enough
    """
    return tiles_per_s > 0 and tiles / tiles_per_s * COMPILE_GAIN > COMPILE_S


def find_batch(
    forward: Callable[[Tensor, Tensor], Tensor], tile_px: int, views: int, sizes: Sequence[int] | None = None
) -> tuple[int, float]:
    """(patches a step, patches per second): the smallest that is nearly as fast as the fastest, on the current CUDA
    device. It stops at half of the free memory, as the next slide's batches must fit beside.
    """
    best, best_speed = 0, 0.0
    pinned = [size for size in SIZES if size * tile_px * tile_px * 3 <= PINNED_BYTES] or SIZES[:1]
    for size in sizes or [max(8, size // views) for size in pinned]:
        try:
            speed, used = _measure(forward, size, tile_px)
        except torch.OutOfMemoryError:
            break
        if best and speed < best_speed * GAIN:
            break
        best, best_speed = size, speed
        if used > 0.25:  # twice as many would take twice as much
            break
    torch.cuda.empty_cache()  # of the largest size that was tried
    return best or 1, best_speed


def _measure(forward: Callable[[Tensor, Tensor], Tensor], size: int, tile_px: int) -> tuple[float, float]:
    """(patches per second, share of the device's free memory) of one step."""
    pixels = torch.randint(0, 256, (size, tile_px, tile_px, 3), dtype=torch.uint8, device="cuda")
    places = torch.arange(size, device="cuda")
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward(pixels, places)  # chooses kernels
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(2):
        forward(pixels, places)
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before
    return 2 * size / (time.perf_counter() - started), used / free
