"""When a model should keep silent: a confidence below which its answer is not given, chosen for a promised risk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, Statistic, bootstrap


@dataclass(frozen=True, slots=True)
class Abstain:
    """Answer when the largest probability is at least `threshold`, which promises an error of at most `risk`.

    coverage  share of bags that are answered; selective_risk the share of these that are wrong, patients alike
    bound     its upper bound, which holds with chance 1 - delta for all thresholds that were tried
    reason    why there is no threshold, and all else is None
    """

    risk: float
    delta: float
    threshold: float | None
    coverage: float | None = None
    selective_risk: float | None = None
    bound: float | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Error among the most confident bags as ever more are answered; aurc is the mean of it over the bags.

    coverage, risk  one point for each distinct confidence, from the most confident on
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def abstain_threshold(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    risk: float,
    patients: Sequence[str] | None = None,
    delta: float = 0.05,
) -> Abstain:
    """Selection with guaranteed risk (Geifman & El-Yaniv, NeurIPS 2017, algorithm 2), on held-out bags.

    probabilities (n, C), truth (n,) class index, patients (n,); without them every bag is one. The lowest threshold
    that a bisection over the confidences finds, with the bound at delta / ceil(log2 n) for each step. The bound is
    Clopper and Pearson's where patients have one bag each. Where some have more, a patient's loss is a mean, between 0
    and 1, to which Bentkus' inequality applies (Ann. Probab. 2004): the binomial tail times e. Raises SpecError when
    risk or delta is not in (0, 1) or arrays do not fit.
    """
    if not (0 < risk < 1 and 0 < delta < 1):
        raise SpecError("abstain", f"risk {risk}, delta {delta}", "give both between 0 and 1")
    confidence, wrong = _judged(probabilities, truth)
    names = np.arange(len(wrong)).astype(str) if patients is None else np.asarray(patients, dtype=str)
    if names.shape != wrong.shape:
        raise SpecError("patients", f"{len(names)} for {len(wrong)} bags", "give one for each")
    candidates = np.unique(confidence)  # ascending: the first answers everything
    steps = max(1, int(np.ceil(np.log2(max(2, len(wrong))))))
    best: tuple[float, float, float] | None = None
    low, high = 0, len(candidates) - 1
    for _ in range(steps):
        if low > high:
            break
        middle = (low + high) // 2
        answered = confidence >= candidates[middle]
        mean, bound = _bounded(wrong[answered], names[answered], delta / steps)
        if bound <= risk:
            best, high = (float(candidates[middle]), mean, bound), middle - 1
        else:
            low = middle + 1
    if best is None:
        return Abstain(risk, delta, None, reason="no confidence promises it: too few patients, or too many errors")
    return Abstain(risk, delta, best[0], float((confidence >= best[0]).mean()), best[1], best[2])


def risk_coverage(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv & Wiener, JMLR 2010) of probabilities (n, C) and truth (n,), and the area under
    it (Geifman, Uziel & El-Yaniv, ICLR 2019); equal confidences are answered together."""
    confidence, wrong = _judged(probabilities, truth)
    if len(patients) != len(wrong):
        raise SpecError("patients", f"{len(patients)} for {len(wrong)} bags", "give one for each")
    if not len(wrong):
        return RiskCoverage((), (), Estimate(None, reason="there are no bags"))
    order = np.argsort(-confidence, kind="stable")
    first = np.append(0, np.flatnonzero(np.diff(confidence[order])) + 1)

    def curve(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Weight and mean error up to each group of equal confidence, and the group's own weight: (R, g)."""
        group = np.add.reduceat(weights[:, order], first, axis=1)
        errors = np.add.reduceat(weights[:, order] * wrong[order], first, axis=1).cumsum(axis=1)
        total = group.cumsum(axis=1)
        return total, np.divide(errors, total, out=np.zeros_like(total), where=total > 0), group

    def area(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total, risk, group = curve(weights)
        return (risk * group).sum(axis=1) / total[:, -1]

    statistic: Statistic = area
    total, risk, _ = (row[0] for row in curve(np.ones((1, len(wrong)))))
    aurc = bootstrap(statistic, patients, resamples, seed)
    return RiskCoverage(tuple((total / total[-1]).tolist()), tuple(risk.tolist()), aurc)


def _judged(
    probabilities: NDArray[np.floating], truth: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest probability and whether its class is wrong, 0 or 1, each (n,)."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth)
    if p.ndim != 2 or p.shape[1] < 1 or y.shape != p.shape[:1] or not np.isfinite(p).all():
        raise SpecError("probabilities", f"shape {p.shape} for {len(y)} truths, or NaN", "give (bags, classes)")
    return p.max(axis=1), (p.argmax(axis=1) != y).astype(np.float64)


def _bounded(wrong: NDArray[np.float64], names: NDArray[np.str_], delta: float) -> tuple[float, float]:
    """Mean loss over patients and its upper bound at 1 - delta; names are those of the bags, one or more."""
    from scipy.stats import beta

    _, person, bags = np.unique(names, return_inverse=True, return_counts=True)
    losses = np.bincount(person, wrong) / bags
    count, errors = len(bags), int(np.ceil(losses.sum() - 1e-9))
    chance = delta if (bags == 1).all() else delta / np.e
    bound = 1.0 if errors >= count else float(beta.ppf(1 - chance, errors + 1, count - errors))
    return float(losses.mean()), bound
