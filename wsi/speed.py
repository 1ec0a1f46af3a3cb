"""How fast a slide's pixels can be read here: for people who plan a run, or wonder why one is slow."""

import time
from dataclasses import dataclass

import numpy as np

from .slide import Slide

_SIDE, _BLOCK = 256, 8  # patches of 256 px, in blocks of 8 x 8 as a run reads them


@dataclass(frozen=True)
class ReadingSpeed:
    """Of level 0, on one thread: megapixels read, per second of wall time and of processor time, in patches of
    `patch_px`, and the patches that could not be read."""

    megapixels: float
    patch_px: int
    per_second: float
    per_cpu_second: float
    unreadable: int


def measure_reading(slide: Slide, seconds: float = 2.0) -> ReadingSpeed:
    """Read blocks of patches spread over the slide until `seconds` are over (at least one block)."""
    base = slide.levels[0]
    side = min(_SIDE, base.width, base.height)
    across, down = max(1, base.width // (side * _BLOCK)), max(1, base.height // (side * _BLOCK))
    order = np.random.default_rng(0).permutation(across * down)
    steps = np.arange(_BLOCK, dtype=np.int64) * side
    block = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    out = np.empty((len(block), side, side, 3), np.uint8)
    patches = failed = 0
    wall, processor = time.perf_counter(), time.process_time()
    for number in order.tolist():
        corner = np.array([number % across, number // across], np.int64) * side * _BLOCK
        xy = block + corner
        xy = xy[(xy + side <= [base.width, base.height]).all(axis=1)]
        failed += int((~slide.read_many(xy, 0, out[: len(xy)])).sum())
        patches += len(xy)
        if time.perf_counter() - wall > seconds:
            break
    megapixels = patches * side * side / 1e6
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return ReadingSpeed(megapixels, side, megapixels / wall, megapixels / max(processor, 1e-6), failed)
