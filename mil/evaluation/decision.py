"""Whether acting on a model does more good than treating everybody or nobody (Vickers & Elkin, MDM 2006)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, bootstrap_weights

THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(1, 100))


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit at each threshold probability: true positives per bag, less false ones at the threshold's odds.

    thresholds  (T,) in (0, 1): who would be treated from this probability on
    model       (T,) net benefit of treating those with a probability of at least the threshold; low, high its 95 %
                band, point by point
    treat_all   (T,); treating nobody has 0
    gain        (T,) model less the better of treating all and none; gain_low, gain_high its band
    avoided     (T,) per 100 bags: treatments fewer than when all are treated, none of them missed
    reason      why there is no band, or no curve
    """

    thresholds: tuple[float, ...]
    prevalence: float | None
    model: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    treat_all: tuple[float, ...] = ()
    gain: tuple[float, ...] = ()
    gain_low: tuple[float, ...] = ()
    gain_high: tuple[float, ...] = ()
    avoided: tuple[float, ...] = ()
    resamples: int = 0
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def decision_curve(
    probability: NDArray[np.floating],
    positive: NDArray[np.bool_],
    patients: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DecisionCurve:
    """Net benefit of `probability` (n,) for the class that `positive` (n,) bool says is there.

    Thresholds are probabilities, so these must be calibrated. Bands resample patients; the model is fixed. Bags of
    one class only give a curve too, though an idle one. Raises SpecError for thresholds outside (0, 1) and arrays
    that do not fit.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(positive, np.float64)
    cuts = np.asarray(thresholds, np.float64)
    if cuts.ndim != 1 or not len(cuts) or not ((cuts > 0) & (cuts < 1)).all():
        raise SpecError("thresholds", "one is not between 0 and 1", "give probabilities, such as 0.05 to 0.5")
    if p.ndim != 1 or y.shape != p.shape or len(patients) != len(p) or not ((p >= 0) & (p <= 1)).all():
        problem = f"shape {p.shape}, or outside [0, 1], for {len(y)} truths and {len(patients)} patients"
        raise SpecError("probability", problem, "give one probability of the positive class for each bag")
    given = tuple(cuts.tolist())
    if not len(p):
        return DecisionCurve(given, None, reason="there are no bags")
    odds = cuts / (1 - cuts)
    worth = y[:, None] - (1 - y)[:, None] * odds  # (n, T): what treating this bag adds

    def benefit(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the model and of treating all, each (R, T)."""
        total = weights.sum(axis=1, keepdims=True)
        return weights @ (worth * (p[:, None] >= cuts)) / total, weights @ worth / total

    model, everybody = (row[0] for row in benefit(np.ones((1, len(p)))))
    curve: dict[str, NDArray[np.float64]] = {
        "model": model,
        "treat_all": everybody,
        "gain": model - np.maximum(everybody, 0),
        "avoided": 100 * (model - everybody) / odds,
    }
    single = len(set(patients)) < 2
    if not single:
        drawn = [benefit(weights) for weights in bootstrap_weights(patients, resamples, seed)]
        models, alls = (np.concatenate([pair[k] for pair in drawn]) for k in (0, 1))
        curve["low"], curve["high"] = np.percentile(models, [2.5, 97.5], axis=0)
        gains = models - np.maximum(alls, 0)
        curve["gain_low"], curve["gain_high"] = np.percentile(gains, [2.5, 97.5], axis=0)
    return DecisionCurve(
        given,
        float(y.mean()),
        **{name: tuple(values.tolist()) for name, values in curve.items()},
        resamples=0 if single else resamples,
        reason="a single patient: nothing to resample" if single else None,
    )
