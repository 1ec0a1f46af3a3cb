"""Whether probabilities mean what they say: of all bags given 30 %, do 30 % have it?

Figures follow the hierarchy of Van Calster et al. (J Clin Epidemiol 2016): calibration in the large, slope and
intercept (Cox, Biometrika 1958), and the curve in bins; with the two proper scores, Brier (1950) and the logarithmic.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, Statistic, bootstrap

SCHEMES = ("width", "mass")
_CLIP = 1e-7  # a probability nearer to 0 or 1 counts as this, in logits and logarithms
_STEPS = 30  # of Newton's method; six are usual


@dataclass(frozen=True, slots=True)
class Bins:
    """How [0, 1] is cut: `count` bins of equal width, or of equal mass, the same number of bags in each."""

    count: int = 10
    scheme: str = "width"

    def __post_init__(self) -> None:
        if self.count < 1 or self.scheme not in SCHEMES:
            raise SpecError("bins", f"{self.count} of {self.scheme!r}", f"one or more; {' or '.join(SCHEMES)}")

    def place(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """Bin of each value in [0, 1], int64 (n,). Equal values share one; the last bin of width holds 1."""
        if self.scheme == "width" or not len(values):
            return np.minimum((np.asarray(values) * self.count).astype(np.int64), self.count - 1)
        edges = np.unique(np.quantile(values, np.arange(1, self.count) / self.count))
        return np.searchsorted(edges, values, side="right").astype(np.int64)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One point of a reliability diagram: mean prediction, observed share, bags, and Wilson's 95 % interval."""

    predicted: float
    observed: float
    count: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty + within_bins (Murphy, J Appl Meteorol 1973).

    reliability  mean squared distance from the diagonal of the diagram, 0 is best
    resolution   how far the bins' observed shares lie from the prevalence, more is better
    uncertainty  prevalence * (1 - prevalence): the task's own
    within_bins  what binning hides; 0 where all predictions of a bin are equal (Stephenson et al., 2008)
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of one table of probabilities.

    bins       how they were cut for the diagram, parts and `ece`
    ece        expected calibration error (Naeini et al., AAAI 2015): of the last of two classes; of more, of the class
               named by the model (Guo et al., 2017). Every resample adds scatter to the bins, so the interval of a
               small cohort lies high, and may lie wholly above the figure
    ece_mass   the same in bins of equal mass
    classwise  mean over the classes of each one's ece against the rest (Kull et al., NeurIPS 2019)
    brier      mean squared error: of the last of two classes, in [0, 1]; summed over more, in [0, 2]
    nll        mean negative logarithm of the true class's probability, in nats
    in_the_large  log odds by which all predictions must shift: 0 is right, above 0 they are too low (two classes)
    slope      1 is right, below 1 predictions are too extreme (two classes); intercept is fitted with it
    parts      of the Brier score, two classes; else None
    diagrams   one for each class that is judged: the last of two, else every class against the rest
    """

    bins: Bins
    ece: Estimate
    ece_mass: Estimate
    classwise: Estimate
    brier: Estimate
    nll: Estimate
    in_the_large: Estimate
    slope: Estimate
    intercept: Estimate
    parts: BrierParts | None
    diagrams: tuple[tuple[ReliabilityBin, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge_calibration(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    patients: Sequence[str],
    bins: Bins | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Calibration:
    """Judge probabilities (n, C), rows sum to 1, of bags of truth (n,) class index and `patients` (n,).

    A label of a multi-label task is judged by itself, as the classes (1 - p, p). Nothing degenerate raises: figures
    that are not defined are None with their reason. Arrays that do not fit and NaN raise SpecError.
    """
    p, y = _checked(probabilities, truth, patients)
    bins = bins or Bins()
    mass = Bins(bins.count, "mass")
    hot = np.eye(p.shape[1])[y]

    def interval(statistic: Statistic) -> Estimate:
        return bootstrap(statistic, patients, resamples, seed)

    two = p.shape[1] == 2
    judged, right = (p[:, 1], hot[:, 1]) if two else (p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64))
    only = Estimate(None, reason="for two classes only")
    line = [only] * 3
    if two and len(np.unique(y)) < 2:
        line = [Estimate(None, reason="all bags are of one class")] * 3
    elif two:
        line = [interval(_in_the_large(judged, right)), *(interval(_line(judged, right, k)) for k in (1, 0))]
    shown = [1] if two else range(p.shape[1])
    return Calibration(
        bins=bins,
        ece=interval(calibration_error(judged, right, bins)),
        ece_mass=interval(calibration_error(judged, right, mass)),
        classwise=interval(_mean_of([calibration_error(p[:, c], hot[:, c], bins) for c in range(p.shape[1])])),
        brier=interval(mean_loss(brier_loss(p, hot))),
        nll=interval(mean_loss(-np.log(np.maximum((p * hot).sum(axis=1), _CLIP)))),
        in_the_large=line[0],
        slope=line[1],
        intercept=line[2],
        parts=brier_parts(judged, right, bins) if two and len(p) else None,
        diagrams=tuple(reliability_diagram(p[:, c], hot[:, c], patients, bins) for c in shown),
    )


def mean_loss(loss: NDArray[np.floating]) -> Statistic:
    """The weighted mean of a loss (n,)."""
    return lambda weights: weights @ loss / weights.sum(axis=1)


def brier_loss(probabilities: NDArray[np.float64], hot: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared error (n,) of (n, C) against 0 and 1 (n, C): of the last of two classes, else summed over classes."""
    squared = (probabilities - hot) ** 2
    return squared[:, 1] if squared.shape[1] == 2 else squared.sum(axis=1)


def calibration_error(p: NDArray[np.floating], observed: NDArray[np.floating], bins: Bins) -> Statistic:
    """Expected calibration error of p (n,) in [0, 1] against 0 or 1 (n,): mean distance of a bin from the diagonal,
    weighted by its bags. Bins are those of all bags, under whatever weights."""
    place = bins.place(p)
    surplus = np.zeros((len(p), int(place.max(initial=0)) + 1))
    surplus[np.arange(len(p)), place] = observed - p
    return lambda weights: np.abs(weights @ surplus).sum(axis=1) / weights.sum(axis=1)


def brier_parts(p: NDArray[np.floating], observed: NDArray[np.floating], bins: Bins) -> BrierParts:
    """Murphy's decomposition of the Brier score of p (n,) against 0 or 1 (n,), n > 0."""
    place = bins.place(p)
    count = np.bincount(place).astype(np.float64)
    filled = np.maximum(count, 1)
    said, seen = np.bincount(place, p) / filled, np.bincount(place, observed) / filled
    share, prevalence = count / len(p), float(np.mean(observed))
    reliability = float(share @ (said - seen) ** 2)
    resolution = float(share @ (seen - prevalence) ** 2)
    uncertainty = prevalence * (1 - prevalence)
    whole = float(np.mean((p - observed) ** 2))
    return BrierParts(reliability, resolution, uncertainty, whole - (reliability - resolution + uncertainty))


def reliability_diagram(
    p: NDArray[np.floating], observed: NDArray[np.floating], patients: Sequence[str], bins: Bins
) -> tuple[ReliabilityBin, ...]:
    """The filled bins of p (n,) in [0, 1] against 0 or 1 (n,), in order.

    Wilson's interval (1927) of the observed share counts the patients of a bin, not its bags: several bags of one
    patient are taken as saying the same thing.
    """
    from statsmodels.stats.proportion import proportion_confint

    place, names = bins.place(p), np.asarray(patients, dtype=str)
    points = []
    for k in np.unique(place):
        inside = place == k
        share, independent = float(np.mean(observed[inside])), len(np.unique(names[inside]))
        low, high = proportion_confint(share * independent, independent, method="wilson")
        points.append(ReliabilityBin(float(np.mean(p[inside])), share, int(inside.sum()), float(low), float(high)))
    return tuple(points)


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def _logit(p: NDArray[np.floating]) -> NDArray[np.float64]:
    clipped = np.clip(np.asarray(p, np.float64), _CLIP, 1 - _CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def _in_the_large(p: NDArray[np.floating], observed: NDArray[np.floating]) -> Statistic:
    """Intercept of logistic recalibration with the slope held at 1, by Newton's method on all rows at once."""
    from scipy.special import expit

    x = _logit(p)

    def shift(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total, a = weights @ observed, np.zeros(len(weights))
        possible = (total > 0) & (weights @ (1 - observed) > 0)
        for _ in range(_STEPS):
            q = expit(x + a[:, None])
            step = (total - (weights * q).sum(axis=1)) / np.maximum((weights * q * (1 - q)).sum(axis=1), 1e-300)
            step = np.where(possible, np.clip(step, -2, 2), 0)  # a longer step may overshoot into a flat part
            a += step
            if np.abs(step).max() < 1e-9:
                break
        return np.where(possible & (np.abs(step) < 1e-6), a, np.nan)

    return shift


def _line(p: NDArray[np.floating], observed: NDArray[np.floating], which: int) -> Statistic:
    """Intercept (which = 0) or slope (1) of logistic recalibration, by Newton's method on all rows at once.

    nan where the classes separate, and so no line is best, or where all predictions are equal.
    """
    from scipy.special import expit

    x = _logit(p)

    def fit(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = np.zeros((2, len(weights)))
        for _ in range(_STEPS):
            q = expit(a[:, None] + b[:, None] * x)
            error, curve = weights * (observed - q), weights * q * (1 - q)
            g0, g1 = error.sum(axis=1), error @ x
            h00, h01, h11 = curve.sum(axis=1), curve @ x, curve @ x**2
            det = h00 * h11 - h01**2
            sound = det > 1e-9 * h00 * h11
            scale = np.divide(1.0, det, out=np.zeros(len(det)), where=sound)
            step0, step1 = (h11 * g0 - h01 * g1) * scale, (h00 * g1 - h01 * g0) * scale
            a, b = a + step0, b + step1
            step = np.where(sound, np.abs(step0) + np.abs(step1), 0)
            if step.max() < 1e-9:
                break
        fine = sound & (step < 1e-6) & (np.abs(a) + np.abs(b) < 1e3)
        return np.where(fine, b if which else a, np.nan)

    return fit


def _checked(
    probabilities: NDArray[np.floating], truth: NDArray[np.integer], patients: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1] or len(patients) != len(p):
        problem = f"shape {p.shape} for {len(y)} truths and {len(patients)} patients"
        raise SpecError("probabilities", problem, "give (bags, classes) and one of each for every bag")
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(y, np.arange(p.shape[1])).all():
        raise SpecError("probabilities", "outside [0, 1], NaN, or a truth that is no class", "correct the table")
    return p, y.astype(np.int64)
