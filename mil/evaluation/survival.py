"""Whether those said to be at higher risk have their event earlier, and whether predicted survival is right.

Everything takes time > 0 (any one unit), event (1 happened, 0 censored) and a risk of which more means earlier; that
direction is fixed. Censoring is taken as independent of risk. Its distribution, for the inverse-probability weights
(IPCW), is the Kaplan-Meier curve of the bags judged, estimated anew in every resample; an event and a censoring at
one time count as the event first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, Statistic, bootstrap

_PAIRS = 1 << 24  # pairs of bags that are held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """n bags followed up: time float64 (n,) > 0, event bool (n,), the patient of each.

    folds  int64 (n,): whose risks can be compared. Networks that learned a partial likelihood each have a zero of their
           own, so out-of-fold risks say nothing of who of two folds is at more risk; c-indices and AUCs then take only
           pairs within a fold. None where all risks are on one scale
    """

    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    patients: tuple[str, ...]
    folds: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def parts(self) -> list[NDArray[np.bool_]]:
        """The bags (n,) of each fold; of the whole where all can be compared."""
        if self.folds is None:
            return [np.ones(len(self), bool)]
        return [self.folds == fold for fold in np.unique(self.folds)]


def followed(
    truth: NDArray[np.floating], patients: Sequence[str], folds: NDArray[np.integer] | None = None
) -> Followed:
    """Of truth (n, 2), time and event, as Predictions holds it; folds (n,) as in Followed. Raises SpecError for a shape
    or event that is none.

    Times that are not above 0 are kept, and make every figure None with its reason.
    """
    given = np.asarray(truth, np.float64)
    if given.ndim != 2 or given.shape[1] != 2 or len(patients) != len(given):
        raise SpecError("survival", f"shape {given.shape} for {len(patients)} patients", "give (n, 2): time, event")
    if not np.isfinite(given).all() or not np.isin(given[:, 1], (0, 1)).all():
        raise SpecError("survival", "NaN, or an event other than 0 and 1", "1 is an event, 0 is censored")
    if folds is not None and np.shape(folds) != (len(given),):
        raise SpecError("folds", f"shape {np.shape(folds)} for {len(given)} bags", "give one for each")
    fold = None if folds is None else np.asarray(folds, np.int64)
    return Followed(given[:, 0], given[:, 1] > 0, tuple(patients), fold)


def unfit(cohort: Followed) -> str | None:
    """Why nothing can be computed, or None."""
    if not len(cohort):
        return "there are no slides"
    if not (cohort.time > 0).all():
        return f"{int((cohort.time <= 0).sum())} follow-up time(s) are not above 0"
    if not cohort.event.any():
        return "there is no event"
    return None


def c_index(risk: NDArray[np.floating], cohort: Followed, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Harrell's c-index (JAMA 1982; Stat Med 1996) of risk (n,): the chance that of a comparable pair the bag with
    the higher risk has its event first, equal risks half. A pair is comparable when the earlier time is an event, or
    both times are equal and only one is an event. Pairs within a patient count as others do."""
    wins = _wins(_fitting(risk, cohort), cohort)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        won = weights.astype(np.float32) @ wins
        return _ratio((won * weights).sum(axis=1), (_comparable(cohort, weights) * weights).sum(axis=1))

    return _estimate(statistic, cohort, resamples, seed, "no two bags can be compared")


def uno_c(
    risk: NDArray[np.floating],
    cohort: Followed,
    horizon: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Uno's c (Stat Med 2011) of risk (n,) for events before `horizon` (all events if None): pairs weighted by
    1 / G(time-)², so that the figure does not depend on how long censoring let others be followed."""
    wins = _wins(_fitting(risk, cohort), cohort)
    first = np.ones(len(cohort), bool) if horizon is None else cohort.time < horizon

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        at = _censoring(cohort, weights, cohort.time, before=True)
        share = np.divide(weights * first, at**2, out=np.zeros_like(weights), where=at > 0)
        won = weights.astype(np.float32) @ wins
        return _ratio((won * share).sum(axis=1), (_comparable(cohort, weights) * share).sum(axis=1))

    return _estimate(statistic, cohort, resamples, seed, "no two bags can be compared before the horizon")


def auc_at(
    risk: NDArray[np.floating], cohort: Followed, time: float, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Cumulative-dynamic AUC at `time` of risk (n,): events until then against those still without one.

    Events are weighted by 1 / G(time of the event-) (Uno, Cai, Tian & Wei, JASA 2007; Hung & Chiang, Can J Stat 2010);
    equal risks count half.
    """
    score = _fitting(risk, cohort)
    order = np.argsort(score, kind="stable")
    first = np.append(0, np.flatnonzero(np.diff(score[order])) + 1)
    case, control = cohort.event & (cohort.time <= time), cohort.time > time

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        at = _censoring(cohort, weights, cohort.time, before=True)
        share = np.divide(weights * case, at, out=np.zeros_like(weights), where=at > 0)
        won, pairs = np.zeros((2, len(weights)))
        for inside in cohort.parts:
            above = np.add.reduceat((share * inside)[:, order], first, axis=1)
            below = np.add.reduceat((weights * control * inside)[:, order], first, axis=1)
            won += (above * (below.cumsum(axis=1) - 0.5 * below)).sum(axis=1)
            pairs += above.sum(axis=1) * below.sum(axis=1)
        return _ratio(won, pairs)

    return _estimate(statistic, cohort, resamples, seed, f"no event until {time:g}, or nobody followed longer")


def brier_at(
    alive: NDArray[np.floating], cohort: Followed, time: float, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Brier score at `time` of predicted chances (n,) to live past it, with IPCW (Graf et al., Stat Med 1999)."""
    return integrated_brier(np.asarray(alive)[:, None], cohort, (time,), resamples, seed)


def integrated_brier(
    alive: NDArray[np.floating],
    cohort: Followed,
    times: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of the Brier score over the span of `times` (T,), ascending, by trapezoids (Graf et al., Stat Med 1999).

    alive (n, T), predicted chances to live past each. 0 is best; a constant 0.5 has 0.25. Not defined when
    the last bag is censored by the last time: nothing is known of then.
    """
    chance, at = np.asarray(alive, np.float64), np.asarray(times, np.float64)
    if chance.shape != (len(cohort), len(at)) or not len(at) or not ((chance >= 0) & (chance <= 1)).all():
        problem = f"shape {chance.shape}, or outside [0, 1], for {len(cohort)} bags and {len(at)} times"
        raise SpecError("survival curves", problem, "give (bags, times) of chances to live past each")
    if (np.diff(at) <= 0).any():
        raise SpecError("times", "they do not ascend", "sort them, each once")
    died = cohort.event[:, None] & (cohort.time[:, None] <= at)
    lived = cohort.time[:, None] > at

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        before = _censoring(cohort, weights, cohort.time, before=True)
        share = np.divide(weights, before, out=np.zeros_like(weights), where=before > 0)
        after = _censoring(cohort, weights, at, before=False)
        late = np.divide(
            weights @ (lived * (1 - chance) ** 2), after, out=np.full(after.shape, np.nan), where=after > 0
        )
        score = (share @ (died * chance**2) + late) / weights.sum(axis=1, keepdims=True)
        if len(at) == 1:
            return score[:, 0]
        return (score[:, 1:] + score[:, :-1]) @ np.diff(at) / 2 / (at[-1] - at[0])

    return _estimate(statistic, cohort, resamples, seed, f"nobody is followed beyond {at[-1]:g}")


def _estimate(statistic: Statistic, cohort: Followed, resamples: int, seed: int, undefined: str) -> Estimate:
    reason = unfit(cohort)
    if reason is None and np.isnan(statistic(np.ones((1, len(cohort))))[0]):
        reason = undefined
    if reason is not None:
        return Estimate(None, reason=reason)
    found = bootstrap(statistic, cohort.patients, resamples, seed)
    if found.low is not None and (found.high or 0.0) - found.low < 1e-12:  # a perfect order is so in every resample
        return replace(found, low=None, high=None, reason="it is the same in every resample: no spread to judge by")
    return found


def _fitting(risk: NDArray[np.floating], cohort: Followed) -> NDArray[np.float64]:
    score = np.asarray(risk, np.float64)
    if score.shape != (len(cohort),) or not np.isfinite(score).all():
        raise SpecError("risk", f"shape {score.shape} for {len(cohort)} bags, or NaN", "give one for each")
    return score


def _ratio(won: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(won, of, out=np.full(len(of), np.nan), where=of > 0)


def _wins(risk: NDArray[np.float64], cohort: Followed) -> NDArray[np.float32]:
    """What bag j earns i in their pair, (j, i): 1, 0.5 or 0; 0 where i is not the earlier of a comparable pair.

    float32 holds sums of halves exactly up to eight million, in half the memory: 400 MB for 10,000 bags.
    """
    time, event = cohort.time, cohort.event
    n = len(time)
    wins = np.zeros((n, n), np.float32)
    block = max(1, _PAIRS // max(1, n))
    for start in range(0, n, block):
        part = np.s_[start : start + block]
        later = (time[:, None] > time[part]) | ((time[:, None] == time[part]) & ~event[:, None])
        earned = (risk[:, None] < risk[part]) + 0.5 * (risk[:, None] == risk[part])
        wins[:, part] = later * event[part] * earned
    for inside in cohort.parts if cohort.folds is not None else ():
        wins[np.ix_(inside, ~inside)] = 0
    return wins


def _comparable(cohort: Followed, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of the bags that each bag can be compared with as the earlier one, (R, n); 0 for the censored."""
    order = np.lexsort((~cohort.event, cohort.time))  # of one time, events come first
    time, event = cohort.time[order], cohort.event[order]
    ends = np.append(np.flatnonzero((np.diff(time) > 0) | (event[1:] != event[:-1])), len(time) - 1)
    group = np.searchsorted(ends, np.arange(len(time)))
    out = np.zeros_like(weights)
    for inside in cohort.parts:
        running = (weights * inside)[:, order].cumsum(axis=1)
        out[:, order] += (running[:, -1:] - running[:, ends[group]]) * event * inside[order]
    return out


def _censoring(
    cohort: Followed, weights: NDArray[np.float64], at: NDArray[np.float64], before: bool
) -> NDArray[np.float64]:
    """Chance G to be uncensored beyond each of `at` (m,), or up to it (before), under rows of weights: (R, m)."""
    order = np.argsort(cohort.time, kind="stable")
    time, ranked = cohort.time[order], weights[:, order]
    first = np.append(0, np.flatnonzero(np.diff(time)) + 1)
    lost = np.add.reduceat(ranked * ~cohort.event[order], first, axis=1)
    happened = np.add.reduceat(ranked * cohort.event[order], first, axis=1)
    left = (lost + happened)[:, ::-1].cumsum(axis=1)[:, ::-1] - happened
    kept = 1 - np.divide(lost, left, out=np.zeros_like(lost), where=left > 0)
    curve = np.hstack([np.ones((len(weights), 1)), kept.cumprod(axis=1)])
    return curve[:, np.searchsorted(time[first], at, side="left" if before else "right")]
