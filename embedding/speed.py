"""How fast a model computes here, without any slide: for people who plan a run."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tiling.stream import PatchBatch

from .extractor import Extractor

_LEAST_BATCHES = 8  # after those that fill the threads, so that the end of the measurement is a small part of it


def measure_speed(extractor: Extractor, tile_px: int, seconds: float = 4.0) -> tuple[int, float]:
    """(tiles, seconds that they took) of the model alone, on noise: loading and the first steps do not count.

    It ends soon after `seconds`, but not before one tile is done. A model that is slow is given one tile a step.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (1, tile_px, tile_px, 3), np.uint8)
    one = PatchBatch(0, pixels, np.ones(1, np.bool_))
    for _ in range(2):  # the first one sets things up
        started = time.perf_counter()
        _run(extractor, tile_px, iter([one]))
        alone = time.perf_counter() - started
        if alone > seconds:
            return 1, alone
    if extractor.device.type == "cpu" and alone * extractor.batch * _LEAST_BATCHES > seconds:
        extractor = Extractor(extractor.embedder, replace(extractor.plan, batch=1))
        with extractor:
            return _measure(extractor, pixels, seconds)
    return _measure(extractor, pixels, seconds)


def _measure(extractor: Extractor, pixels: np.ndarray, seconds: float) -> tuple[int, float]:
    patches = np.repeat(pixels, extractor.batch, axis=0)

    def batches() -> Iterator[PatchBatch]:
        end, number = time.perf_counter() + seconds, 0
        while number < 2 * extractor.window or time.perf_counter() < end:
            yield PatchBatch(number * len(patches), patches, np.ones(len(patches), np.bool_))
            number += 1

    return _run(extractor, pixels.shape[1], batches())


def _run(extractor: Extractor, tile_px: int, batches: Iterator[PatchBatch]) -> tuple[int, float]:
    """(tiles, seconds) from when the first batch is done to when the last one is."""
    done, first, last = 0, 0.0, 0.0
    with extractor.lane(tile_px) as lane:
        for places, _ in lane.run(batches):
            last = time.perf_counter()
            if first:
                done += len(places)
            else:
                first = last
    return done, last - first
