"""Several readers, several treatments, the same cases: is one treatment read better (MRMC)?

Obuchowski & Rockette, Commun Stat Simul 1995: an analysis of variance of the AUROCs of I treatments and J readers
whose errors are correlated, since all read the same cases. Denominator degrees of freedom of Hillis, Stat Med 2007;
in the form of Hillis, Obuchowski & Berbaum, Acad Radiol 2011. A treatment may be the reader alone or with the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .discrimination import MISSING, Z, auroc_covariance, weighted_auroc
from .estimate import Estimate, bootstrap_weights

COVARIANCES = ("jackknife", "delong", "bootstrap")
KINDS = ("random", "fixed")


@dataclass(frozen=True, slots=True)
class Components:
    """Variances and covariances of the Obuchowski-Rockette model; estimates of variances may be negative.

    error         of one AUROC over samples of cases
    cov1          between treatments of one reader; cov2: readers of one treatment; cov3: neither in common
    reader, treatment_reader    between readers, and of treatment by reader; nan with one reader or one treatment
    ms_treatment, ms_reader, ms_treatment_reader  mean squares; nan where they have no degree of freedom
    """

    error: float
    cov1: float
    cov2: float
    cov3: float
    reader: float
    treatment_reader: float
    ms_treatment: float
    ms_reader: float
    ms_treatment_reader: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean AUROC over readers of treatment `first` - that of `second` (indices); p two-sided, None without interval."""

    first: int
    second: int
    estimate: Estimate
    p: float | None


@dataclass(frozen=True, slots=True)
class MRMC:
    """The analysis. Intervals are 95 %.

    auroc        (I, J) per treatment and reader; None where it is not defined
    treatments   mean over readers of each, its interval from that treatment's data alone, cut to [0, 1]
    differences  of all pairs of treatments
    statistic    F(df, ddf) of equal treatments; with fixed readers chi-square(df), and ddf None
    p            of equal treatments; None where `reason` says why
    """

    readers: str
    cases: str
    covariance: str
    auroc: tuple[tuple[float | None, ...], ...]
    treatments: tuple[Estimate, ...]
    differences: tuple[Difference, ...]
    statistic: float | None
    df: int
    ddf: float | None
    p: float | None
    components: Components | None
    reason: str | None = None


def mrmc(
    positive: NDArray[np.bool_],
    ratings: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    readers: str = "random",
    cases: str = "random",
    covariance: str = "jackknife",
) -> MRMC:
    """Compare the treatments of a fully crossed reader study.

    positive    (n,) bool, the truth of each case
    ratings     (I, J, n): by treatment, reader and case, the higher the more positive; every reader reads every case
    patients    (n,) whom each case belongs to; by default every case is its own patient
    readers     random: conclusions hold for such readers; fixed: for these alone
    cases       random, or fixed (with random readers only): conclusions hold for these cases alone
    covariance  how the error covariance is estimated over patients: jackknife, delong (unbiased placements, clustered
                by Obuchowski 1997 where patients have several cases) or bootstrap

    Raises SpecError for ratings of another shape, missing ratings or an unknown choice. Data that carry no answer do
    not raise: p is None, with a reason.
    """
    positive, ratings = _checked(positive, ratings, (readers, cases, covariance))
    whom = tuple(str(i) for i in range(len(positive))) if patients is None else tuple(map(str, patients))
    if len(whom) != len(positive):
        raise SpecError("patients", f"{len(whom)} for {len(positive)} cases", "name one for each")
    i, j, n = ratings.shape
    setting = (readers, cases, covariance)
    flat = ratings.reshape(i * j, n)
    value, sigma = _estimates(positive, flat, whom, covariance)
    if cases == "fixed":
        sigma = np.zeros_like(sigma)
    auroc = value.reshape(i, j)
    reason = _unanswerable(value, sigma, readers, j)
    shown = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in auroc)
    if reason is not None:
        means = [None if np.isnan(m) else float(m) for m in auroc.mean(axis=1)]
        empty = tuple(Estimate(mean, reason=reason) for mean in means)
        return MRMC(*setting, shown, empty, (), None, i - 1, None, None, None, reason)
    parts = _components(auroc, sigma.reshape(i, j, i, j))
    error, ddf = _error_term(parts, readers, i, j) if i > 1 else (0.0, None)
    statistic, p = _test(parts.ms_treatment, error, i - 1, ddf) if error > 0 else (None, None)
    return MRMC(
        *setting,
        auroc=shown,
        treatments=tuple(_single(auroc[t], sigma.reshape(i, j, i, j)[t, :, t], readers) for t in range(i)),
        differences=tuple(_pair(auroc, first, second, error, ddf) for first, second in combinations(range(i), 2)),
        statistic=statistic,
        df=i - 1,
        ddf=ddf,
        p=p,
        components=parts,
        reason=None if error > 0 else "its error term is estimated as zero" if i > 1 else "a single treatment",
    )


def _estimates(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], patients: Sequence[str], covariance: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC (k,) of scores (k, n) and their covariance (k, k) over patients; nan where not defined."""
    value, sigma = auroc_covariance(positive, scores, patients)
    if covariance == "delong" or np.isnan(sigma).any():
        return value, sigma
    if covariance == "jackknife":
        names, patient = np.unique(np.asarray(patients), return_inverse=True)
        parts = np.array_split(np.arange(len(names)), max(1, names.size * patient.size // 4_000_000))
        rows: Iterator[NDArray[np.float64]] = (
            1.0 - (part[:, None] == patient[None]) for part in parts
        )  # each row: all but one patient
        factor = (len(names) - 1) ** 2 / len(names)
    else:
        rows, factor = bootstrap_weights(patients), 1.0
    drawn = np.concatenate([np.stack([weighted_auroc(positive, score, w) for score in scores], axis=1) for w in rows])
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    return value, factor * np.atleast_2d(np.cov(drawn, rowvar=False))


def _components(auroc: NDArray[np.float64], sigma: NDArray[np.float64]) -> Components:
    """auroc (I, J), sigma (I, J, I, J)."""
    i, j = auroc.shape
    same_t, same_r = np.eye(i, dtype=bool)[:, None, :, None], np.eye(j, dtype=bool)[None, :, None, :]

    def mean(where: NDArray[np.bool_]) -> float:
        chosen = sigma[np.broadcast_to(where, sigma.shape)]
        return float(chosen.mean()) if len(chosen) else 0.0

    error, cov1 = mean(same_t & same_r), mean(~same_t & same_r)
    cov2, cov3 = mean(same_t & ~same_r), mean(~same_t & ~same_r)
    by_t, by_r, grand = auroc.mean(axis=1), auroc.mean(axis=0), auroc.mean()
    ms_t = _per(j * ((by_t - grand) ** 2).sum(), i - 1)
    ms_r = _per(i * ((by_r - grand) ** 2).sum(), j - 1)
    ms_tr = _per(((auroc - by_t[:, None] - by_r[None] + grand) ** 2).sum(), (i - 1) * (j - 1))
    treatment_reader = ms_tr - error + cov1 + cov2 - cov3
    reader = (ms_r - ms_tr) / i - cov1 + cov3
    return Components(error, cov1, cov2, cov3, reader, treatment_reader, ms_t, ms_r, ms_tr)


def _error_term(parts: Components, readers: str, i: int, j: int) -> tuple[float, float | None]:
    """What the treatments' mean square is held against, and its degrees of freedom (None: chi-square)."""
    apart = max(parts.cov2 - parts.cov3, 0.0)
    if readers == "fixed":
        return parts.error - parts.cov1 + (j - 1) * apart, None
    error = parts.ms_treatment_reader + j * apart
    if parts.ms_treatment_reader <= 0:
        return error, np.inf
    return error, error**2 / (parts.ms_treatment_reader**2 / ((i - 1) * (j - 1)))  # Hillis 2007, ddf_H


def _test(mean_square: float, error: float, df: int, ddf: float | None) -> tuple[float, float]:
    """Statistic and p of equal treatments."""
    from scipy.stats import chi2, f

    if ddf is None or np.isinf(ddf):
        statistic = df * mean_square / error
        return (statistic if ddf is None else statistic / df), float(chi2.sf(statistic, df))
    return mean_square / error, float(f.sf(mean_square / error, df, ddf))


def _pair(auroc: NDArray[np.float64], first: int, second: int, error: float, ddf: float | None) -> Difference:
    """A difference of two treatments with its t, or normal, interval."""
    value = float(auroc[first].mean() - auroc[second].mean())
    if error <= 0:
        return Difference(first, second, Estimate(value, reason="its error term is estimated as zero"), None)
    spread = float(np.sqrt(2 / auroc.shape[1] * error))
    half = _quantile(ddf) * spread
    return Difference(first, second, Estimate(value, value - half, value + half), _tail(value / spread, ddf))


def _single(values: NDArray[np.float64], sigma: NDArray[np.float64], readers: str) -> Estimate:
    """Mean AUROC of one treatment over readers, values (J,), sigma (J, J), from its own data alone (Hillis 2007)."""
    count, mean = len(values), float(values.mean())
    off = sigma[~np.eye(count, dtype=bool)]
    cov2 = max(float(off.mean()), 0.0) if len(off) else 0.0
    ddf = None
    if readers == "fixed":
        variance = (float(np.diag(sigma).mean()) + (count - 1) * cov2) / count
    else:
        square = float(values.var(ddof=1))
        variance = square / count + cov2
        ddf = np.inf if square <= 0 else (square + count * cov2) ** 2 / (square**2 / (count - 1))
    if variance <= 0:
        return Estimate(mean, reason="its variance is estimated as zero")
    half = _quantile(ddf) * float(np.sqrt(variance))
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))


def _quantile(ddf: float | None) -> float:
    from scipy.stats import t

    return Z if ddf is None or np.isinf(ddf) else float(t.ppf(0.975, ddf))


def _tail(ratio: float, ddf: float | None) -> float:
    from scipy.stats import norm, t

    return float(2 * (norm.sf(abs(ratio)) if ddf is None or np.isinf(ddf) else t.sf(abs(ratio), ddf)))


def _per(total: float, df: int) -> float:
    return float(total / df) if df else float("nan")


def _unanswerable(value: NDArray[np.float64], sigma: NDArray[np.float64], readers: str, j: int) -> str | None:
    """Why there is nothing to test, or None."""
    if np.isnan(value).any():
        return MISSING
    if np.isnan(sigma).any():
        return "fewer than two patients with positives, or with negatives"
    return "a single reader says nothing of others: take readers as fixed" if j < 2 and readers == "random" else None


def _checked(
    positive: NDArray[np.bool_], ratings: NDArray[np.floating], setting: tuple[str, str, str]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    readers, cases, covariance = setting
    for name, given, known in (
        ("readers", readers, KINDS),
        ("cases", cases, KINDS),
        ("covariance", covariance, COVARIANCES),
    ):
        if given not in known:
            raise SpecError(name, f"{given!r} is unknown", f"choose one of {', '.join(known)}")
    if readers == cases == "fixed":
        raise SpecError("cases", "readers and cases are both fixed: nothing is random", "take one of them as random")
    truth, found = np.asarray(positive, bool), np.asarray(ratings, np.float64)
    if found.ndim != 3 or truth.shape != found.shape[2:] or not found.shape[0] or not found.shape[1]:
        raise SpecError("ratings", f"shape {found.shape} for {truth.shape} cases", "give (treatments, readers, cases)")
    if not np.isfinite(found).all():
        raise SpecError("ratings", "they hold NaN or infinity", "every reader reads every case in every treatment")
    return truth, found
