"""Patients in groups of risk: Kaplan-Meier curves, the log-rank test, and calibration at a horizon."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .survival import Followed, unfit


@dataclass(frozen=True, slots=True)
class Curve:
    """Kaplan-Meier estimate of one group: at each time of `times`, the share still without the event from then on.

    low, high  95 % interval (Greenwood, on the log-log scale), bags taken as independent
    at_risk    bags followed up to each time; median is when half have had the event, None if that is not reached
    """

    name: str
    bags: int
    events: int
    times: tuple[float, ...]
    survival: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_risk: tuple[int, ...]
    median: float | None


@dataclass(frozen=True, slots=True)
class RiskGroups:
    """Curves of groups of ascending risk, and the log-rank test of their difference (Mantel, 1966).

    cuts     risks at which a group begins
    p_value  of bags taken as independent; with several bags to a patient it is too small. A cut at the median of the
             very bags that are judged is part of the data: give the training cohort's cut for a confirmation
    reason   why there are no curves or no test
    """

    cuts: tuple[float, ...]
    curves: tuple[Curve, ...] = ()
    statistic: float | None = None
    p_value: float | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HorizonBin:
    """Bags of like predicted survival: its mean, and the Kaplan-Meier survival at the horizon with its interval."""

    predicted: float
    observed: float
    low: float
    high: float
    bags: int


def risk_groups(risk: NDArray[np.floating], cohort: Followed, cuts: Sequence[float] | None = None) -> RiskGroups:
    """Groups by risk (n,), parted at `cuts` (ascending), at the median if None; a risk at a cut is in the upper one.

    Risks that are comparable within folds only (`Followed.folds`) are parted at each fold's own median, else groups
    would be of folds and not of risk; `cuts` of the result is then one for each fold, in their order. Two groups are
    called low and high, more by their number. Raises SpecError for cuts that do not ascend.
    """
    score = np.asarray(risk, np.float64)
    if score.shape != (len(cohort),) or not np.isfinite(score).all():
        raise SpecError("risk", f"shape {score.shape} for {len(cohort)} bags, or NaN", "give one for each")
    reason = unfit(cohort)
    if reason is not None:
        return RiskGroups(tuple(cuts or ()), reason=reason)
    if cuts is None:
        at = np.array([np.median(score[inside]) for inside in cohort.parts])
        group = np.sum([(score >= cut) & inside for cut, inside in zip(at, cohort.parts, strict=True)], axis=0)
        names: tuple[str, ...] = ("low", "high")
    else:
        at = np.asarray(cuts, np.float64)
        if at.ndim != 1 or not len(at) or (np.diff(at) <= 0).any():
            raise SpecError("cuts", "they do not ascend", "give one risk or more, each once")
        group = np.searchsorted(at, score, side="right")
        names = ("low", "high") if len(at) == 1 else tuple(f"group {k + 1}" for k in range(len(at) + 1))
    found = np.unique(group)
    curves = tuple(_curve(names[k], cohort.time[group == k], cohort.event[group == k]) for k in found)
    if len(found) < 2:
        return RiskGroups(tuple(at.tolist()), curves, reason="all bags are in one group")
    from lifelines.statistics import multivariate_logrank_test

    test = multivariate_logrank_test(cohort.time, group, cohort.event)
    return RiskGroups(tuple(at.tolist()), curves, float(test.test_statistic), float(test.p_value))


def horizon_calibration(
    alive: NDArray[np.floating], cohort: Followed, time: float, groups: int = 4
) -> tuple[HorizonBin, ...]:
    """Predicted chances (n,) to live past `time` against what Kaplan-Meier saw, in groups of equally many bags.

    Groups of which nobody is followed until then are left out; nothing is returned where nothing can be computed.
    """
    chance = np.asarray(alive, np.float64)
    if chance.shape != (len(cohort),) or not ((chance >= 0) & (chance <= 1)).all() or groups < 1:
        problem = f"shape {chance.shape}, or outside [0, 1], for {len(cohort)} bags"
        raise SpecError("survival", problem, "give the chance to live past the horizon for each")
    if unfit(cohort) is not None:
        return ()
    edges = np.unique(np.quantile(chance, np.arange(1, groups) / groups))
    group, bins = np.searchsorted(edges, chance, side="right"), []
    for k in np.unique(group):
        inside = group == k
        if not (cohort.time[inside] >= time).any():
            continue
        curve = _curve("", cohort.time[inside], cohort.event[inside])
        last = int(np.searchsorted(curve.times, time, side="right")) - 1  # times begin at 0
        seen = curve.survival[last], curve.low[last], curve.high[last]
        bins.append(HorizonBin(float(chance[inside].mean()), *seen, curve.bags))
    return tuple(bins)


def _curve(name: str, time: NDArray[np.float64], event: NDArray[np.bool_]) -> Curve:
    from lifelines import KaplanMeierFitter

    fit = KaplanMeierFitter().fit(time, event, label="survival")
    survival = fit.survival_function_["survival"]
    band = fit.confidence_interval_.reindex(survival.index)
    # Before the first event, and where none is left, the log-log interval is not defined: it is the point itself.
    low, high = (band.iloc[:, k].fillna(survival) for k in (0, 1))
    at_risk = fit.event_table["at_risk"].reindex(survival.index)
    median = float(fit.median_survival_time_)
    times, alive, lower, upper = (tuple(map(float, values)) for values in (survival.index, survival, low, high))
    return Curve(
        name,
        len(time),
        int(event.sum()),
        times,
        alive,
        lower,
        upper,
        tuple(map(int, at_risk)),
        median if np.isfinite(median) else None,
    )
