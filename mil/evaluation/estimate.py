"""A figure with its interval, and the bootstrap over patients that most intervals come from.

Whole patients are drawn with replacement, so slides of one patient never count as independent (Field & Welsh, JRSS B
2007, cluster bootstrap). A resample is a row of weights, how often each slide's patient was drawn; statistics are
computed for many rows at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_BLOCK = 4_000_000  # weights held at a time: bounds memory at some 100 MB however many slides there are

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Rows of non-negative weights (R, n) over the slides → the figure (R,) under each; nan where it is not defined."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; `reason` says why one of them is None. `resamples` is how many were valid."""

    value: float | None
    low: float | None = None
    high: float | None = None
    resamples: int = 0
    reason: str | None = None


def bootstrap_weights(
    patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Rows (r, n) of weights, `resamples` in all: how often the patient of each of the n slides was drawn."""
    if resamples * len(patients) <= _BLOCK:
        yield _drawn(tuple(patients), resamples, seed)
        return
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng, block = np.random.default_rng(seed), max(1, _BLOCK // len(patient))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        yield counts[:, patient].astype(np.float64)


@lru_cache(maxsize=4)  # every figure of a table is resampled in the same way: half of the time was drawing it again
def _drawn(patients: tuple[str, ...], resamples: int, seed: int) -> NDArray[np.float64]:
    """All rows of weights of a small table, read-only."""
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights = counts[:, patient].astype(np.float64)
    weights.flags.writeable = False
    return weights


def bootstrap(statistic: Statistic, patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The figure on all slides with its percentile interval over resampled patients.

    A resample in which the figure is not defined is left out; without half of them there is no interval.
    """
    if not len(patients):
        return Estimate(None, reason="there are no slides")
    value = float(statistic(np.ones((1, len(patients))))[0])
    if np.isnan(value):
        return Estimate(None, reason="it is not defined on these slides")
    if len(set(patients)) < 2:
        return Estimate(value, reason="a single patient: nothing to resample")
    drawn = np.concatenate([statistic(weights) for weights in bootstrap_weights(patients, resamples, seed)])
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < resamples / 2:
        return Estimate(value, resamples=len(drawn), reason="it is not defined in most resamples: too few patients")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(drawn))
