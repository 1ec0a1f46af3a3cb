"""Numbers: how close predictions come to what was measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .estimate import Statistic
from .judge_parts import JudgeSpec, figure
from .predictions import Predictions
from .regression import judge_regression

UNIT = "the target's"
SHOWN = (
    ("R²", "r2", "higher", ""),
    ("MAE", "mae", "lower", UNIT),
    ("RMSE", "rmse", "lower", UNIT),
    ("Pearson's r", "pearson", "higher", ""),
    ("Spearman's rho", "spearman", "higher", ""),
    ("concordance (Lin)", "concordance", "higher", ""),
    ("bias", "bias", "", UNIT),
    ("lower limit of agreement", "limits_low", "", UNIT),
    ("upper limit of agreement", "limits_high", "", UNIT),
)


def judge_numbers(predictions: Predictions, seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Regression: parts of what `judge` returns."""
    truth = predictions.truth.astype(np.float64)
    judged = judge_regression(predictions.outputs[:, 0], truth, predictions.patients, seed=seed)
    return {
        "figures": [figure(name, getattr(judged, field), "", better, unit=unit) for name, field, better, unit in SHOWN]
    }


def number_headline(predictions: Predictions) -> float | None:
    """R² alone."""
    value = float(number_statistics(predictions)["R²"](np.ones((1, len(predictions))))[0]) if len(predictions) else None
    return None if value is None or np.isnan(value) else value


def number_statistics(predictions: Predictions) -> Mapping[str, Statistic]:
    """R² and MAE under rows of weights, by which groups and models are compared."""
    truth = predictions.truth.astype(np.float64)
    error = predictions.outputs[:, 0] - truth

    def r2(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total = weights.sum(axis=1)
        mean = np.divide(weights @ truth, total, out=np.zeros(len(total)), where=total > 0)
        spread = (weights * (truth - mean[:, None]) ** 2).sum(axis=1)
        residual = np.divide(weights @ error**2, spread, out=np.full(len(total), np.nan), where=spread > 0)
        return 1 - residual

    return {"R²": r2, "MAE": lambda weights: weights @ np.abs(error) / weights.sum(axis=1)}
