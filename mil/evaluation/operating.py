"""Where to cut a score, and what the cut is worth.

A slide is called positive when its score is at or above the threshold. A threshold chosen on the very slides it is
judged by flatters: `optimistic` says so, and choosing it on the other folds (`folds`) avoids it. Intervals hold the
threshold fixed: they speak of the decisions made, not of choosing anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .agreement import Tables, confusion_tables
from .discrimination import aligned
from .estimate import Estimate

KINDS = ("youden", "sensitivity", "specificity", "given")
WILSON = "Wilson score; F1, balanced accuracy and figures at a stated prevalence by bootstrap over patients"
CLUSTER = "bootstrap over patients; a share of 0 or 1 by Wilson score with each patient counted once"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a threshold is chosen.

    kind  youden       largest sensitivity + specificity - 1 (Youden, Cancer 1950); of equals the lowest threshold
          sensitivity  the highest threshold with a sensitivity of at least `at`
          specificity  the lowest threshold with a specificity of at least `at`; it may lie above all scores
          given        `at` itself
    """

    kind: str
    at: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError("rule", f"{self.kind!r} is unknown", f"choose one of {', '.join(KINDS)}")
        if (self.at is None) != (self.kind == "youden"):
            raise SpecError("rule", f"{self.kind} with at={self.at}", "youden takes no value, every other rule one")
        if self.kind in ("sensitivity", "specificity") and not 0 < float(self.at or 0) <= 1:
            raise SpecError("rule", f"a {self.kind} of {self.at}", "ask for more than 0 and at most 1")
        if self.at is not None and not np.isfinite(self.at):
            raise SpecError("rule", f"a threshold of {self.at}", "give a finite number")


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The decisions at a threshold, judged; every Estimate with a 95 % interval.

    rule        None where decisions came without a threshold
    thresholds  one, or one per fold in the order of their numbers; empty where none could be chosen: `reason`
    optimistic  whether it was chosen on the slides that are judged
    method      how the intervals come about
    prevalence  the one ppv and npv hold for: stated, else the share of positives among the slides
    left_out    slides of folds whose other folds lack a kind: no threshold, no decision
    """

    rule: Rule | None
    thresholds: tuple[float, ...]
    optimistic: bool
    method: str
    prevalence: float | None
    tp: int
    fp: int
    tn: int
    fn: int
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    accuracy: Estimate
    f1: Estimate
    balanced_accuracy: Estimate
    left_out: int = 0
    reason: str | None = None


def threshold(positive: NDArray[np.bool_], score: NDArray[np.floating], rule: Rule) -> float | None:
    """The threshold that `rule` chooses on these slides; None when they are not of both kinds."""
    if rule.kind == "given":
        return rule.at
    positive, score = aligned(positive, score)
    if not 0 < int(positive.sum()) < len(positive):
        return None
    cuts = np.unique(score)
    cuts = np.append(cuts, np.nextafter(cuts[-1], np.inf))  # above all: nothing is called
    total, ill = len(score), int(positive.sum())
    hits = ill - np.searchsorted(np.sort(score[positive]), cuts)  # positives at or above each cut
    rejected = np.searchsorted(np.sort(score[~positive]), cuts)  # negatives below it
    sensitivity, specificity = hits / ill, rejected / (total - ill)
    if rule.kind == "youden":
        j = sensitivity + specificity
        return float(cuts[np.flatnonzero(j >= j.max() - 1e-12)[0]])
    if rule.kind == "sensitivity":
        return float(cuts[np.flatnonzero(sensitivity >= float(rule.at or 0) - 1e-12)[-1]])
    return float(cuts[np.flatnonzero(specificity >= float(rule.at or 0) - 1e-12)[0]])


def cross_fitted_threshold(
    positive: NDArray[np.bool_], score: NDArray[np.floating], folds: NDArray[np.int64], rule: Rule
) -> NDArray[np.float64]:
    """Each slide's threshold (n,), chosen on the slides of all other folds; nan where those are not of both kinds."""
    positive, score = aligned(positive, score)
    folds, found = np.asarray(folds), np.full(len(score), np.nan)
    if folds.shape != score.shape:
        raise SpecError("folds", f"{folds.shape} for {len(score)} slides", "give one for each")
    for fold in np.unique(folds):
        cut = threshold(positive[folds != fold], score[folds != fold], rule)
        found[folds == fold] = np.nan if cut is None else cut
    return found


def operating_point(
    positive: NDArray[np.bool_],
    score: NDArray[np.floating],
    patients: Sequence[str],
    rule: Rule,
    folds: NDArray[np.int64] | None = None,
    prevalence: float | None = None,
) -> OperatingPoint:
    """Judge the decisions that `rule` leads to.

    positive (n,) bool, score (n,), patients (n,). With folds (n,) each slide is judged at the threshold of the other
    folds. A prevalence in (0, 1) turns sensitivity and specificity into the ppv and npv of such a population (Bayes).
    Nothing degenerate raises: figures that cannot be computed are None, with a reason.
    """
    positive, score = aligned(positive, score, patients)
    if prevalence is not None and not 0 < prevalence < 1:
        raise SpecError("prevalence", f"{prevalence}", "state a share between 0 and 1")
    if folds is None:
        cut = threshold(positive, score, rule)
        cuts = np.full(len(score), np.nan if cut is None else cut)
    else:
        cuts = cross_fitted_threshold(positive, score, folds, rule)
    kept = ~np.isnan(cuts)
    point = decisions(positive[kept], (score >= cuts)[kept], np.asarray(patients, dtype=str)[kept].tolist(), prevalence)
    if rule.kind == "given":
        thresholds: tuple[float, ...] = (float(rule.at or 0),)
    elif folds is None:
        thresholds = tuple(np.unique(cuts[kept]).tolist())
    else:
        chosen = [cuts[np.flatnonzero(np.asarray(folds) == fold)[0]] for fold in np.unique(folds)]
        thresholds = tuple(float(cut) for cut in chosen if not np.isnan(cut))
    reason = None if kept.any() else "no threshold can be chosen: there are not both positives and negatives"
    return replace(
        point,
        rule=rule,
        thresholds=thresholds,
        optimistic=folds is None and rule.kind != "given" and bool(kept.any()),
        left_out=int((~kept).sum()),
        reason=reason,
    )


def decisions(
    positive: NDArray[np.bool_],
    called: NDArray[np.bool_],
    patients: Sequence[str],
    prevalence: float | None = None,
    seed: int = 0,
) -> OperatingPoint:
    """Judge decisions however they came about: positive, called (n,) bool; patients (n,)."""
    positive, called = np.asarray(positive, bool), np.asarray(called, bool)
    tables = confusion_tables(positive.astype(np.int64), called.astype(np.int64), 2, patients, seed)
    (tn, fp), (fn, tp) = tables.whole.astype(int).tolist()
    at = prevalence if prevalence is not None else (float(positive.mean()) if len(positive) else None)
    if prevalence is None:
        ppv = proportion(positive, called, patients, seed)
        npv = proportion(~positive, ~called, patients, seed)
    else:
        ppv, npv = _predictive(tables, prevalence)
    return OperatingPoint(
        rule=None,
        thresholds=(),
        optimistic=False,
        method=WILSON if len(set(patients)) == len(patients) else CLUSTER,
        prevalence=at,
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        sensitivity=proportion(called, positive, patients, seed),
        specificity=proportion(~called, ~positive, patients, seed),
        ppv=ppv,
        npv=npv,
        accuracy=proportion(called == positive, np.ones(len(positive), bool), patients, seed),
        f1=tables.estimate(lambda t: _share(2 * t[:, 1, 1], 2 * t[:, 1, 1] + t[:, 0, 1] + t[:, 1, 0])),
        balanced_accuracy=tables.estimate(_balanced),
    )


def proportion(
    success: NDArray[np.bool_], among: NDArray[np.bool_], patients: Sequence[str], seed: int = 0
) -> Estimate:
    """Share of successes among some of n slides, with a 95 % interval: success, among (n,) bool; patients (n,).

    Wilson's (JASA 1927) when each of those slides is another patient's, else the bootstrap over patients. A share of
    0 or 1 has no spread to resample: then Wilson's with each patient counted once, which errs on the wide side.
    """
    success, among = np.asarray(success, bool)[among], np.asarray(among, bool)
    names = np.asarray(patients, dtype=str)[among]
    if not len(success):
        return Estimate(None, reason="no slide to take a share of")
    own, share = len(set(names)), float(success.mean())
    if own == len(names) or share in (0.0, 1.0):
        return _wilson(share, own)
    tables = confusion_tables(np.zeros(len(success), np.int64), success.astype(np.int64), 2, names.tolist(), seed)
    return tables.estimate(lambda t: _share(t[:, 0, 1], t[:, 0].sum(axis=1)))


def _wilson(share: float, count: int) -> Estimate:
    from scipy.stats import binomtest

    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return Estimate(share, float(interval.low), float(interval.high))


def _predictive(tables: Tables, prevalence: float) -> tuple[Estimate, Estimate]:
    """ppv and npv at a prevalence, by Bayes from sensitivity and specificity."""

    def ill_if_called(t: NDArray[np.float64]) -> NDArray[np.float64]:
        true = prevalence * _share(t[:, 1, 1], t[:, 1].sum(axis=1))
        return _share(true, true + (1 - prevalence) * _share(t[:, 0, 1], t[:, 0].sum(axis=1)))

    def well_if_not(t: NDArray[np.float64]) -> NDArray[np.float64]:
        true = (1 - prevalence) * _share(t[:, 0, 0], t[:, 0].sum(axis=1))
        return _share(true, true + prevalence * _share(t[:, 1, 0], t[:, 1].sum(axis=1)))

    return tables.estimate(ill_if_called), tables.estimate(well_if_not)


def _balanced(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of sensitivity and specificity; nan without both kinds, unlike the mean recall of several classes."""
    return 0.5 * (_share(t[:, 1, 1], t[:, 1].sum(axis=1)) + _share(t[:, 0, 0], t[:, 0].sum(axis=1)))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
