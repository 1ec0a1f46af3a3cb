"""How close predicted numbers come to measured ones: error, correlation and agreement, which are three things."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, Statistic, bootstrap

_Z = 1.959963984540054  # of a normal distribution's central 95 %


@dataclass(frozen=True, slots=True)
class Regression:
    """Predictions against measurements; in the target's unit where not said otherwise.

    mae, rmse     mean absolute error, root of the mean squared one: 0 is best
    r2            share of the variance explained (no unit): 1 is best, 0 is the mean's, below 0 is worse than the mean
    pearson, spearman  correlation of the values, and of their ranks, ties at their mean (no unit)
    concordance   Lin's coefficient (Biometrics 1989): correlation with the identity line, so that shift and scale
                  count (no unit)
    bias          mean of prediction less measurement; limits_low, limits_high the limits of agreement, bias ± 1.96
                  standard deviations (Bland & Altman, Lancet 1986)
    """

    slides: int
    mae: Estimate
    rmse: Estimate
    r2: Estimate
    pearson: Estimate
    spearman: Estimate
    concordance: Estimate
    bias: Estimate
    limits_low: Estimate
    limits_high: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge_regression(
    predicted: NDArray[np.floating],
    measured: NDArray[np.floating],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Regression:
    """Judge predicted (n,) against measured (n,), both in the target's unit, of `patients` (n,).

    Nothing degenerate raises: what is not defined is None with its reason. NaN, texts and lengths that differ raise
    SpecError.
    """
    x, y = _checked(predicted, measured, patients)
    reasons: dict[str, str] = {}
    if len(y) and not np.ptp(y) > 0:
        reasons["r2"] = "all measurements are equal"
    if len(y) and not (np.ptp(y) > 0 and np.ptp(x) > 0):
        reasons["pearson"] = reasons["spearman"] = "all measurements or all predictions are equal"
    if len(y) == 1:
        reasons["limits_low"] = reasons["limits_high"] = "a single slide has no spread"
    figures = {
        name: Estimate(None, reason=reasons[name]) if name in reasons else bootstrap(one, patients, resamples, seed)
        for name, one in _statistics(x, y).items()
    }
    return Regression(len(y), **figures)


def _statistics(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Statistic]:
    error = x - y

    def limit(weights: NDArray[np.float64], side: float) -> NDArray[np.float64]:
        mean, total = _mean(error, weights), weights.sum(axis=1)
        squares = (weights * (error - mean[:, None]) ** 2).sum(axis=1)
        spread = np.sqrt(np.divide(squares, total - 1, out=np.full(len(total), np.nan), where=total > 1))
        return mean + side * _Z * spread

    return {
        "mae": lambda weights: _mean(np.abs(error), weights),
        "rmse": lambda weights: np.sqrt(_mean(error**2, weights)),
        "r2": lambda weights: 1 - _ratio(_mean(error**2, weights), _moments(y, y, weights)),
        "pearson": lambda weights: _correlation(x, y, weights),
        "spearman": lambda weights: _correlation(_ranks(x, weights), _ranks(y, weights), weights),
        "concordance": lambda weights: _concordance(x, y, weights),
        "bias": lambda weights: _mean(error, weights),
        "limits_low": lambda weights: limit(weights, -1),
        "limits_high": lambda weights: limit(weights, 1),
    }


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean (R,) of (n,) or (R, n) under weights (R, n)."""
    return (weights * values).sum(axis=1) / weights.sum(axis=1)


def _moments(a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted covariance (R,) of (n,) or (R, n), divided by the whole weight; 0 where rounding alone is left."""
    deviation_a = a - _mean(a, weights)[:, None]
    deviation_b = b - _mean(b, weights)[:, None]
    found = _mean(deviation_a * deviation_b, weights)
    rounding = 1e-24 * np.sqrt(_mean(np.square(a), weights) * _mean(np.square(b), weights))
    return np.where(np.abs(found) <= rounding, 0, found)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.sqrt(_moments(a, a, weights) * _moments(b, b, weights))
    return np.clip(_ratio(_moments(a, b, weights), spread), -1, 1)


def _concordance(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    shift = _mean(x - y, weights)
    return _ratio(2 * _moments(x, y, weights), _moments(x, x, weights) + _moments(y, y, weights) + shift**2)


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank (R, n) of each value within the resample that its row of weights stands for, ties at their mean."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(len(distinct)))
    tied = np.add.reduceat(weights[:, order], first, axis=1)
    return (tied.cumsum(axis=1) - tied + (tied + 1) / 2)[:, group]


def _ratio(part: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, of, out=np.full(len(of), np.nan), where=of > 0)


def _checked(
    predicted: NDArray[np.floating], measured: NDArray[np.floating], patients: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    given = [np.asarray(predicted), np.asarray(measured)]
    if any(values.dtype.kind not in "fiub" for values in given):
        raise SpecError("regression", "values that are no numbers", "give targets and predictions as numbers")
    x, y = (values.astype(np.float64) for values in given)
    if x.ndim != 1 or x.shape != y.shape or len(patients) != len(x):
        problem = f"shapes {x.shape} and {y.shape} for {len(patients)} patients"
        raise SpecError("regression", problem, "give one prediction and one measurement for each slide")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SpecError("regression", "NaN or infinity", "leave out slides without a measurement")
    return x, y
