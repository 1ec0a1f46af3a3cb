"""Two models, or two readings, on the same slides: is one better, or at least not worse?

`first` is the one in question, `second` what it is held against; the difference is first - second and larger is
better. Non-inferiority at a margin is shown when the 95 % interval of the difference lies above -margin, which is a
one-sided test at 2.5 % (Piaggio et al., JAMA 2012).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .agreement import from_draws
from .discrimination import Z, aligned, auroc_covariance
from .estimate import RESAMPLES, Estimate, Statistic, bootstrap_weights


@dataclass(frozen=True, slots=True)
class Comparison:
    """first, second: the two figures; difference: first - second with its 95 % interval.

    p              two-sided, of no difference
    margin         the loss that is tolerated, in the figure's unit, or None where none was stated
    p_inferior     one-sided, of a loss of the margin or more
    non_inferior   whether the interval lies above -margin; None without a margin or an interval
    """

    first: float | None
    second: float | None
    difference: Estimate
    p: float | None
    method: str
    margin: float | None = None
    p_inferior: float | None = None
    non_inferior: bool | None = None


def compare_auroc(
    positive: NDArray[np.bool_],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    margin: float | None = None,
) -> Comparison:
    """AUROC of two scores of the same slides: positive (n,) bool; first, second (n,); patients (n,) or None.

    DeLong's test (Biometrics 1988); with patients of several slides the clustered one of Obuchowski (Biometrics 1997).
    The interval is normal.
    """
    _check(margin)
    positive, first = aligned(positive, first, patients)
    second = aligned(positive, second)[1]
    clustered = patients is not None and len(set(patients)) < len(patients)
    method = "DeLong, clustered by patient (Obuchowski 1997)" if clustered else "DeLong, paired"
    value, covariance = auroc_covariance(positive, np.stack([first, second]), patients)
    if np.isnan(value).any():
        reason = "there are not both positives and negatives"
        return Comparison(None, None, Estimate(None, reason=reason), None, method, margin)
    a, b = (float(v) for v in value)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if np.isnan(variance):
        reason = "fewer than two patients with positives, or with negatives"
        return Comparison(a, b, Estimate(a - b, reason=reason), None, method, margin)
    if variance <= 1e-15:
        same = abs(a - b) < 1e-12
        reason = "the two rank the slides alike" if same else "its variance is estimated as zero"
        return Comparison(a, b, Estimate(a - b, reason=reason), 1.0 if same else None, method, margin)
    return _normal(a, b, float(np.sqrt(variance)), method, margin)


def compare_statistic(
    first: Statistic, second: Statistic, patients: Sequence[str], margin: float | None = None, seed: int = 0
) -> Comparison:
    """Any figure of two models on the same slides, by the paired bootstrap over patients (n,).

    Both figures are computed in each resample, so what the two share cancels. p inverts the percentile interval, with
    one added to counts so that it is never 0 (Davison & Hinkley, 1997, chapter 4). Where smaller is better, hand in
    the figure's negative.
    """
    _check(margin)
    method = f"paired bootstrap over patients, {RESAMPLES} resamples"
    if not len(patients):
        return Comparison(None, None, Estimate(None, reason="there are no slides"), None, method, margin)
    once = np.ones((1, len(patients)))
    a, b = float(first(once)[0]), float(second(once)[0])
    shown_a, shown_b = (None if np.isnan(v) else v for v in (a, b))
    if len(set(patients)) < 2 and not np.isnan(a - b):
        alone = Estimate(a - b, reason="a single patient: nothing to resample")
        return Comparison(shown_a, shown_b, alone, None, method, margin)
    drawn = np.concatenate([first(weights) - second(weights) for weights in bootstrap_weights(patients, seed=seed)])
    difference = from_draws(a - b, drawn)
    if difference.low is None:
        return Comparison(shown_a, shown_b, difference, None, method, margin)
    inferior = None if margin is None else _p_below(drawn, -margin)
    return Comparison(
        shown_a, shown_b, difference, p_two_sided(drawn), method, margin, inferior, _above(difference, margin)
    )


def compare_decisions(
    positive: NDArray[np.bool_],
    first: NDArray[np.generic],
    second: NDArray[np.generic],
    patients: Sequence[str],
    margin: float | None = None,
) -> Comparison:
    """Accuracy of two sets of decisions on the same slides: positive, first, second (n,), classes or bools.

    One slide per patient: the exact test of McNemar (Psychometrika 1947) on the slides that only one calls right, with
    a normal interval. Else the ratio estimator over patients, for p too (Obuchowski, Stat Med 1998; Rao & Scott,
    Biometrics 1992). To compare sensitivities hand in the positives only.
    """
    _check(margin)
    truth = np.asarray(positive)
    right, other = np.asarray(first) == truth, np.asarray(second) == truth
    if right.shape != truth.shape or other.shape != truth.shape or len(patients) != len(truth):
        raise SpecError("decisions", f"{right.shape}, {other.shape}, {truth.shape}", "give one of each per slide")
    gain = right.astype(np.float64) - other
    clustered = len(set(patients)) < len(patients)
    method = "patient-clustered test of paired shares (Obuchowski 1998)" if clustered else "McNemar, exact"
    if not len(truth):
        return Comparison(None, None, Estimate(None, reason="there are no slides"), None, method, margin)
    a, b = float(right.mean()), float(other.mean())
    if not gain.any():
        reason = "the two are right on the same slides"
        return Comparison(a, b, Estimate(0.0, reason=reason), 1.0, method, margin)
    names, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(names) < 2:
        reason = "a single patient: nothing to compare over"
        return Comparison(a, b, Estimate(a - b, reason=reason), None, method, margin)
    residual = np.bincount(patient, weights=gain - gain.mean())  # per patient
    error = float(np.sqrt(len(names) / (len(names) - 1) * (residual**2).sum())) / len(truth)
    if error < 1e-12:
        reason = "its variance is estimated as zero"
        return Comparison(a, b, Estimate(a - b, reason=reason), None if clustered else _mcnemar(gain), method, margin)
    found = _normal(a, b, error, method, margin)
    if clustered:
        return found
    return Comparison(a, b, found.difference, _mcnemar(gain), method, margin, found.p_inferior, found.non_inferior)


def shuffled_groups(
    group: NDArray[np.int64], patients: Sequence[str], kinds: NDArray[np.int64], seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES rows (r, n) of groups dealt anew, for a permutation test of whether groups differ.

    group (n,) of each slide, -1 where unknown; patients (n,); kinds (n,) what a slide truly is. Patients swap their
    groups with patients whose slides are of the same kinds, so a group keeps its mix of kinds, and slides of one
    patient stay together. Where a patient's slides lie in several groups, patients swap the groups of all their slides,
    kind by kind, and only with patients of as many slides of each kind. Patients of unknown group take no part.
    """
    patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    count = int(patient.max()) + 1 if len(patient) else 0
    order = np.lexsort((kinds, patient))
    start = np.searchsorted(patient[order], np.arange(count))
    slot = np.empty(len(patient), np.int64)
    slot[order] = np.arange(len(patient)) - start[patient[order]]
    of = np.split(order, start[1:])
    straddling = any(len(set(group[slides].tolist())) > 1 for slides in of)
    strata: dict[tuple[int, ...], list[int]] = {}
    for p, slides in enumerate(of if count else ()):
        mix = kinds[slides].tolist()
        if (group[slides] >= 0).any():
            strata.setdefault(tuple(mix if straddling else sorted(set(mix))), []).append(p)
    rng, block = np.random.default_rng(seed), max(1, 4_000_000 // max(1, len(patient)))
    for begin in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - begin)
        source = np.tile(np.arange(count), (rows, 1))  # whose groups each patient takes
        for members in strata.values():
            source[:, members] = rng.permuted(np.tile(members, (rows, 1)), axis=1)
        yield group[order[start[source[:, patient]] + (slot if straddling else 0)]]


def p_permuted(value: float, drawn: NDArray[np.float64]) -> float | None:
    """Two-sided p of a difference among those of groups dealt anew (R,), nan left out; None where most are nan."""
    valid = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(valid) < max(1, len(drawn) / 2):
        return None
    return (int((np.abs(valid) >= abs(value) - 1e-12).sum()) + 1) / (len(valid) + 1)


def p_two_sided(drawn: NDArray[np.float64]) -> float:
    """p of no difference from resampled differences (R,), nan left out: twice the smaller tail beyond zero."""
    valid = drawn[~np.isnan(drawn)]
    tail = min(int((valid <= 0).sum()), int((valid >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(valid) + 1))


def _p_below(drawn: NDArray[np.float64], bound: float) -> float:
    valid = drawn[~np.isnan(drawn)]
    return (int((valid <= bound).sum()) + 1) / (len(valid) + 1)


def _normal(a: float, b: float, error: float, method: str, margin: float | None) -> Comparison:
    """The comparison of two figures whose difference is normal with a standard error."""
    from scipy.stats import norm

    difference = Estimate(a - b, a - b - Z * error, a - b + Z * error)
    inferior = None if margin is None else float(norm.sf((a - b + margin) / error))
    p = float(2 * norm.sf(abs(a - b) / error))
    return Comparison(a, b, difference, p, method, margin, inferior, _above(difference, margin))


def _mcnemar(gain: NDArray[np.float64]) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    only_first, only_second = int((gain > 0).sum()), int((gain < 0).sum())
    return float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)


def _above(difference: Estimate, margin: float | None) -> bool | None:
    return None if margin is None or difference.low is None else difference.low > -margin


def _check(margin: float | None) -> None:
    if margin is not None and not 0 < margin < np.inf:
        raise SpecError("margin", f"{margin}", "state the loss that is tolerated as a positive number")
