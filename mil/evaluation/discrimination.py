"""How well scores rank positives above negatives: AUROC, AUPRC and their curves.

AUROC is the rank statistic with ties counted half (Hanley & McNeil, Radiology 1982). AUPRC is average precision, the
step-wise area without interpolation (Davis & Goadrich, ICML 2006, on why not to interpolate); chance is the share of
positives, not a half. All resamples are computed at once as weights on the sorted scores.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import Estimate, bootstrap

Z = 1.959963984540054  # 97.5 % point of the standard normal
MISSING = "there are not both positives and negatives"
SEPARATED = "perfect separation: every {} outranks every {}, and the data put no figure on the doubt that is left"
TIED = "all scores are equal: the figure is the same however slides are drawn"


def auroc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """Chance that a positive scores above a negative, ties half; None when there are not both."""
    positive, score = aligned(positive, score)
    value = weighted_auroc(positive, score, np.ones((1, len(score))))[0]
    return None if np.isnan(value) else float(value)


def auroc_interval(
    positive: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str], seed: int = 0
) -> Estimate:
    """AUROC with its 95 % patient-cluster bootstrap interval.

    positive (n,) bool, score (n,) the higher the more positive, patients (n,). A resample without both kinds is left
    out. Under perfect separation every resample gives 1: there is no interval, and `reason` says so.
    """
    positive, score = aligned(positive, score, patients)
    reason = _no_interval(positive, score)
    if reason is not None:
        return Estimate(auroc(positive, score), reason=reason)
    return bootstrap(lambda weights: weighted_auroc(positive, score, weights), patients, seed=seed)


def auroc_delong(
    positive: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str] | None = None
) -> Estimate:
    """AUROC with DeLong's 95 % interval, computed on the logit so that it stays within [0, 1].

    DeLong, DeLong & Clarke-Pearson, Biometrics 1988, by mid-ranks (Sun & Xu, IEEE SPL 2014). With `patients` the
    variance is the clustered one of Obuchowski, Biometrics 1997; with one slide each the two are equal. The logit
    interval is Pepe's (The Statistical Evaluation of Medical Tests, 2003, section 5.2).
    """
    positive, score = aligned(positive, score, patients)
    reason = _no_interval(positive, score)
    value = auroc(positive, score)
    if value is None or reason is not None:
        return Estimate(value, reason=reason)
    covariance = auroc_covariance(positive, score[None], patients)[1]
    if np.isnan(covariance[0, 0]):
        return Estimate(value, reason="fewer than two patients with positives, or with negatives")
    if covariance[0, 0] <= 0:
        return Estimate(value, reason="its variance is estimated as zero")
    centre, half = np.log(value / (1 - value)), Z * np.sqrt(covariance[0, 0]) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    return Estimate(value, float(low), float(high))


def auroc_covariance(
    positive: NDArray[np.bool_], scores: NDArray[np.floating], patients: Sequence[str] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC (k,) of k scores of the same slides, scores (k, n), and their covariance (k, k).

    DeLong's for independent slides, Obuchowski's (Biometrics 1997, equations 3 to 8) over patients; both are sums of
    placement values, so one formula serves. All nan without both kinds; the covariance is nan when positives, or
    negatives, come from fewer than two patients.
    """
    positive = np.asarray(positive, bool)
    k, m, n = len(scores), int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return np.full(k, np.nan), np.full((k, k), np.nan)
    above, below = placements(positive, np.asarray(scores, np.float64))
    value = above.mean(axis=1)
    names = np.arange(len(positive)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(names.max()) + 1
    clusters, with_positive, with_negative = count, len(set(names[positive])), len(set(names[~positive]))
    if min(with_positive, with_negative) < 2:
        return value, np.full((k, k), np.nan)
    x, y = np.zeros((count, k)), np.zeros((count, k))  # per patient: sums of centred placements
    np.add.at(x, names[positive], (above - value[:, None]).T)
    np.add.at(y, names[~positive], (below - value[:, None]).T)
    cross = clusters / (clusters - 1) * x.T @ y
    covariance = with_positive / (with_positive - 1) * x.T @ x / m**2
    covariance += with_negative / (with_negative - 1) * y.T @ y / n**2
    return value, covariance + (cross + cross.T) / (m * n)


def placements(
    positive: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of negatives each positive outranks (k, m), and of positives that outrank each negative (k, n); ties half.

    By mid-ranks: the time is that of sorting, not of all pairs.
    """
    from scipy.stats import rankdata

    x, y = scores[:, positive], scores[:, ~positive]
    ranks = rankdata(np.concatenate([x, y], axis=1), axis=1)
    m, n = x.shape[1], y.shape[1]
    return (ranks[:, :m] - rankdata(x, axis=1)) / n, 1 - (ranks[:, m:] - rankdata(y, axis=1)) / m


def macro_auroc(
    truth: NDArray[np.int64], outputs: NDArray[np.floating], patients: Sequence[str], seed: int = 0
) -> Estimate:
    """AUROC over classes with its 95 % patient-cluster bootstrap interval.

    truth (n,) class index; outputs (n, C); patients (n,). Two classes: AUROC of class 1; more: macro one-versus-rest.
    """
    truth, outputs = np.asarray(truth, np.int64), np.asarray(outputs, np.float64)
    if outputs.shape[1] == 2:
        return auroc_interval(truth == 1, outputs[:, 1], patients, seed)
    missing = [c for c in range(outputs.shape[1]) if not 0 < int((truth == c).sum()) < len(truth)]
    if missing:
        return Estimate(None, reason=f"class {missing[0]} or its opposite has no slide")
    reasons = {_no_interval(truth == c, outputs[:, c]) for c in range(outputs.shape[1])}
    if None not in reasons:  # each class by itself leaves nothing to resample
        value = float(weighted_macro_auroc(truth, outputs, np.ones((1, len(truth))))[0])
        return Estimate(value, reason=sorted(map(str, reasons))[0])
    return bootstrap(lambda weights: weighted_macro_auroc(truth, outputs, weights), patients, seed=seed)


def average_precision(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """Precision averaged over the recall gained at each distinct score; None when there are not both kinds."""
    positive, score = aligned(positive, score)
    value = weighted_average_precision(positive, score, np.ones((1, len(score))))[0]
    return None if np.isnan(value) else float(value)


def average_precision_interval(
    positive: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str], seed: int = 0
) -> Estimate:
    """Average precision with its 95 % patient-cluster bootstrap interval. Chance is the share of positives."""
    positive, score = aligned(positive, score, patients)
    if (reason := _no_interval(positive, score)) == MISSING:
        return Estimate(None, reason=reason)
    if reason is not None and auroc(positive, score) == 1:
        return Estimate(average_precision(positive, score), reason=reason)
    return bootstrap(lambda weights: weighted_average_precision(positive, score, weights), patients, seed=seed)


def roc_curve(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False and true positive rates at each distinct threshold, (0, 0) to (1, 1); empty without both kinds."""
    positive, score = aligned(positive, score)
    if not 0 < int(positive.sum()) < len(positive):
        return (), ()
    hits, called = _cumulative(positive, score)
    false, true = (called - hits) / (~positive).sum(), hits / positive.sum()
    return (0.0, *false.tolist()), (0.0, *true.tolist())


def precision_recall_curve(
    positive: NDArray[np.bool_], score: NDArray[np.floating]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Recall and precision at each distinct threshold, the highest first; empty without both kinds.

    The first point is (0, 1) by convention: nothing called positive, nothing wrong. Join the points by steps.
    """
    positive, score = aligned(positive, score)
    if not 0 < int(positive.sum()) < len(positive):
        return (), ()
    hits, called = _cumulative(positive, score)
    return (0.0, *(hits / positive.sum()).tolist()), (1.0, *(hits / called).tolist())


def weighted_auroc(
    positive: NDArray[np.bool_], score: NDArray[np.floating], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC (R,) of the same scores under R rows of non-negative weights (R, n); nan where a row lacks a kind."""
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    first = np.append(0, np.flatnonzero(ranked[1:] != ranked[:-1]) + 1)  # where each group of tied scores begins
    sorted_weights = weights[:, order]
    above = np.add.reduceat(sorted_weights * positive[order], first, axis=1)  # positives' weight per group (R, g)
    below = np.add.reduceat(sorted_weights * ~positive[order], first, axis=1)
    won = (above * (below.cumsum(axis=1) - 0.5 * below)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def weighted_macro_auroc(
    truth: NDArray[np.int64], outputs: NDArray[np.floating], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean one-versus-rest AUROC (R,) under rows of weights (R, n); nan where a row lacks one of the C classes."""
    per_class = [weighted_auroc(truth == c, outputs[:, c], weights) for c in range(outputs.shape[1])]
    mean: NDArray[np.float64] = np.mean(per_class, axis=0)
    return mean


def weighted_average_precision(
    positive: NDArray[np.bool_], score: NDArray[np.floating], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precision (R,) under R rows of non-negative weights (R, n); nan where a row lacks a kind."""
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    first = np.append(0, np.flatnonzero(ranked[1:] != ranked[:-1]) + 1)
    sorted_weights = weights[:, order]
    gained = np.add.reduceat(sorted_weights * positive[order], first, axis=1)  # positives' weight at each threshold
    hits = gained.cumsum(axis=1)
    called = np.add.reduceat(sorted_weights, first, axis=1).cumsum(axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    total, whole = hits[:, -1], called[:, -1]
    area = (gained * precision).sum(axis=1)
    return np.divide(area, total, out=np.full(len(weights), np.nan), where=(total > 0) & (whole > total))


def _cumulative(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[NDArray[np.int64], ...]:
    """Positives, and all slides, at or above each distinct score, the highest first."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return positive[order].cumsum()[last], last + 1


def _no_interval(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> str | None:
    """Why no interval can be had from these scores, or None."""
    if not 0 < int(positive.sum()) < len(positive):
        return MISSING
    if score.min() == score.max():
        return TIED
    if score[positive].min() > score[~positive].max():
        return SEPARATED.format("positive", "negative")
    return SEPARATED.format("negative", "positive") if score[positive].max() < score[~positive].min() else None


def aligned(
    positive: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The two as bool and float64 arrays (n,). Raises SpecError when lengths differ or a score is no number."""
    labels, scores = np.asarray(positive, bool), np.asarray(score, np.float64)
    if labels.shape != scores.shape or scores.ndim != 1 or (patients is not None and len(patients) != len(scores)):
        raise SpecError("scores", f"{scores.shape} of them for {labels.shape} labels", "give one of each per slide")
    if not np.isfinite(scores).all():
        raise SpecError("scores", "they hold NaN or infinity", "leave out slides without a prediction")
    return labels, scores
