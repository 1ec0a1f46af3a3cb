"""How good out-of-fold or external predictions are, with intervals that respect patients.

AUROC is the rank statistic with ties counted half (Hanley & McNeil, Radiology 1982). Its 95 % interval is the
percentile bootstrap over patients: whole patients are drawn with replacement, so slides of one patient never count
as independent. All resamples are computed at once as weights on the sorted scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

_BLOCK = 4_000_000  # weights held at a time: bounds memory at some 100 MB however many slides there are


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; `reason` says why one of them is None. `resamples` is how many were valid."""

    value: float | None
    low: float | None = None
    high: float | None = None
    resamples: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One table of predictions, judged.

    auroc         slide level; binary: of the last class; else macro average of one-vs-rest
    per_class     one-vs-rest AUROC of every class
    per_fold      AUROC within each fold, None where a fold's test part lacks a class. Empty without folds
    mean_of_folds their mean: unlike the pooled `auroc` it never compares outputs of different models
    confusion     rows true class, columns predicted class (largest softmax)
    roc           per class: false and true positive rates, from (0, 0) to (1, 1)
    """

    classes: tuple[str, ...]
    slides: int
    patients: int
    slides_per_class: tuple[int, ...]
    auroc: Estimate
    per_class: tuple[float | None, ...]
    per_fold: tuple[float | None, ...]
    mean_of_folds: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    confusion: tuple[tuple[int, ...], ...]
    roc: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate(
    labels: Sequence[str],
    softmax: NDArray[np.floating],
    classes: Sequence[str],
    patients: Sequence[str],
    folds: Sequence[int] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judge predictions: labels (n,) class names, softmax (n, C) in the order of `classes`, patients (n,).

    Nothing degenerate raises: a figure that cannot be computed is None, with its reason beside it. Labels that are
    not among `classes` and arrays that do not fit do raise SpecError.
    """
    scores = np.asarray(softmax, np.float64)
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise SpecError("labels", f"{unknown[0]!r} is none of {', '.join(classes)}", "use the model's class names")
    if scores.shape != (len(labels), len(classes)) or len(patients) != len(labels):
        raise SpecError(
            "softmax", f"shape {scores.shape} for {len(labels)} labels, {len(classes)} classes", "align them"
        )
    truth = np.array([list(classes).index(label) for label in labels], np.int64)
    predicted = scores.argmax(axis=1) if len(truth) else truth
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    per_fold = [] if folds is None else [_fold_auroc(truth, scores, np.asarray(folds) == k) for k in sorted(set(folds))]
    valid = [value for value in per_fold if value is not None]
    return Evaluation(
        classes=tuple(classes),
        slides=len(truth),
        patients=len(set(patients)),
        slides_per_class=tuple(np.bincount(truth, minlength=len(classes)).tolist()),
        auroc=auroc_interval(truth, scores, patients, seed=seed),
        per_class=tuple(auroc(truth == c, scores[:, c]) for c in range(len(classes))),
        per_fold=tuple(per_fold),
        mean_of_folds=float(np.mean(valid)) if valid else None,
        accuracy=float((truth == predicted).mean()) if len(truth) else None,
        balanced_accuracy=balanced_accuracy(confusion),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        roc=tuple(roc_curve(truth == c, scores[:, c]) for c in range(len(classes))),
    )


def auroc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """Chance that a positive scores above a negative, ties half; None when there are not both."""
    value = _weighted_auroc(np.asarray(positive, bool), np.asarray(score), np.ones((1, len(positive))))[0]
    return None if np.isnan(value) else float(value)


def auroc_interval(
    truth: NDArray[np.int64],
    softmax: NDArray[np.floating],
    patients: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """AUROC with its 95 % patient-cluster bootstrap interval.

    truth (n,) class index; softmax (n, C); patients (n,). Two classes: AUROC of class 1; more: macro one-vs-rest.
    A resample in which a class is missing has no AUROC and is left out; `Estimate.resamples` counts the rest. When
    every positive outranks every negative each resample gives 1, and so does the interval: it then understates doubt.
    """
    classes = [1] if softmax.shape[1] == 2 else list(range(softmax.shape[1]))
    missing = [c for c in classes if not 0 < int((truth == c).sum()) < len(truth)]
    if missing:
        return Estimate(None, reason=f"class {missing[0]} or its opposite has no slide")
    value = float(np.mean([_weighted_auroc(truth == c, softmax[:, c], np.ones((1, len(truth))))[0] for c in classes]))
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(names) < 2:
        return Estimate(value, reason="a single patient: nothing to resample")
    rng = np.random.default_rng(seed)
    drawn: list[NDArray[np.float64]] = []
    block = max(1, _BLOCK // len(truth))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        weights = counts[:, patient].astype(np.float64)
        drawn.append(np.mean([_weighted_auroc(truth == c, softmax[:, c], weights) for c in classes], axis=0))
    values = np.concatenate(drawn)
    values = values[~np.isnan(values)]
    if len(values) < resamples / 2:
        return Estimate(value, resamples=len(values), reason="most resamples lack a class: too few patients")
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(values))


def roc_curve(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False and true positive rates at each distinct threshold, (0, 0) to (1, 1); empty without both kinds."""
    positive, score = np.asarray(positive, bool), np.asarray(score)
    if not 0 < int(positive.sum()) < len(positive):
        return (), ()
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # one point per distinct score
    hits = positive[order].cumsum()[last]
    false, true = (last + 1 - hits) / (~positive).sum(), hits / positive.sum()
    return (0.0, *false.tolist()), (0.0, *true.tolist())


def balanced_accuracy(confusion: NDArray[np.int64]) -> float | None:
    """Mean recall over the classes that have slides; None without any."""
    totals = confusion.sum(axis=1)
    present = totals > 0
    return float((np.diag(confusion)[present] / totals[present]).mean()) if present.any() else None


def _fold_auroc(truth: NDArray[np.int64], scores: NDArray[np.float64], part: NDArray[np.bool_]) -> float | None:
    classes = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    values = [auroc(truth[part] == c, scores[part, c]) for c in classes]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if len(found) == len(values) else None


def _weighted_auroc(
    positive: NDArray[np.bool_], score: NDArray[np.floating], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC (R,) of the same scores under R rows of non-negative weights (R, n); nan where a row lacks a kind."""
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    ranked, first = score[order], np.array([0])
    first = np.append(first, np.flatnonzero(np.diff(ranked)) + 1)  # where each group of tied scores begins
    sorted_weights = weights[:, order]
    above = np.add.reduceat(sorted_weights * positive[order], first, axis=1)  # positives' weight per group (R, g)
    below = np.add.reduceat(sorted_weights * ~positive[order], first, axis=1)
    won = (above * (below.cumsum(axis=1) - 0.5 * below)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
