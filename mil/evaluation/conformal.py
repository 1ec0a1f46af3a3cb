"""Sets of classes that hold the true one with a promised chance, and models that may say "I do not know".

The promise needs bags that are exchangeable with the ones the threshold comes from: the same hospitals, scanners and
mix of cases, in no particular order. Bags of one patient are not exchangeable with those of another, but patients are;
so thresholds count each patient once, as hierarchical conformal prediction does (Lee, Barber & Willett,
arXiv:2306.06342), and intervals resample patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .calibration import mean_loss
from .estimate import RESAMPLES, Estimate, Statistic, bootstrap

SCORES = ("lac", "aps")


@dataclass(frozen=True, slots=True)
class ConformalSpec:
    """What is promised, and how.

    alpha     chance of a set without the true class, in (0, 1)
    score     lac  1 - probability of the class: the smallest sets (Sadinle, Lei & Wasserman, JASA 2019); may be empty
              aps  probability of the class and of all likelier ones, 0 for the likeliest: larger sets where cases are
                   hard, never empty (Romano, Sesia & Candès, NeurIPS 2020; not randomised, so it covers a little more)
    by_class  a threshold for each class, so that the promise holds within each (Mondrian; Vovk, 2012): it then needs
              1 / alpha - 1 patients of every class
    """

    alpha: float = 0.1
    score: str = "lac"
    by_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.score not in SCORES:
            raise SpecError("conformal", f"alpha {self.alpha}, score {self.score!r}", "alpha in (0, 1), lac or aps")


@dataclass(frozen=True, slots=True)
class Conformal:
    """Fitted thresholds: a class is in the set when its score is at most that of its class.

    thresholds  (C,); inf where too few patients can promise anything, so that the class is in every set
    patients    (C,) how many each threshold comes from
    """

    spec: ConformalSpec
    thresholds: tuple[float, ...]
    patients: tuple[int, ...]

    def sets(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which classes are in the set of each bag: bool (n, C) of probabilities (n, C)."""
        scores = nonconformity(probabilities, self.spec.score)
        if scores.shape[1] != len(self.thresholds):
            raise SpecError("probabilities", f"{scores.shape[1]} classes, not {len(self.thresholds)}", "align them")
        return scores <= np.asarray(self.thresholds) + 1e-12  # a sum of probabilities may round either way

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite threshold is None."""
        finite = [value if math.isfinite(value) else None for value in self.thresholds]
        return {**asdict(self.spec), "thresholds": finite, "patients": list(self.patients)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Conformal":
        """What as_dict gave."""
        spec = ConformalSpec(values["alpha"], values["score"], values["by_class"])
        thresholds = (math.inf if value is None else float(value) for value in values["thresholds"])
        return cls(spec, tuple(thresholds), tuple(values["patients"]))


@dataclass(frozen=True, slots=True, eq=False)
class CrossConformal:
    """Sets of out-of-fold predictions, and whether they keep the promise.

    sets        bool (n, C)
    coverage    share of bags whose set holds the true class, to be compared with 1 - alpha; bags count alike, while
                the promise is for one bag of a new patient: they part where patients with many bags are special
    per_class   the same within each class
    size        mean number of classes in a set
    singletons  share of sets of exactly one class; empty of none
    right       share of singletons that are right
    """

    spec: ConformalSpec
    sets: NDArray[np.bool_]
    coverage: Estimate
    per_class: tuple[Estimate, ...]
    size: Estimate
    singletons: Estimate
    empty: Estimate
    right: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; sets as lists of class indices."""
        figures = {name: getattr(self, name) for name in ("coverage", "size", "singletons", "empty", "right")}
        values: dict[str, Any] = {name: asdict(figure) for name, figure in figures.items()}
        values["per_class"] = [asdict(figure) for figure in self.per_class]
        return {**asdict(self.spec), **values, "sets": [np.flatnonzero(row).tolist() for row in self.sets]}


def nonconformity(probabilities: NDArray[np.floating], score: str) -> NDArray[np.float64]:
    """How ill each class suits each bag, (n, C) in [0, 1] of probabilities (n, C). Of equal ones the first is likelier.

    Raises SpecError for NaN and values outside [0, 1].
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not ((p >= 0) & (p <= 1)).all():
        raise SpecError("probabilities", f"shape {p.shape}, NaN or outside [0, 1]", "give (bags, classes)")
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    scores = np.empty_like(p)
    running = np.minimum(np.take_along_axis(p, order, axis=1).cumsum(axis=1), 1)
    running[:, :1] = 0  # the likeliest class is always in: a set is never empty
    np.put_along_axis(scores, order, running, axis=1)
    return scores


def conformal_threshold(scores: NDArray[np.floating], alpha: float, patients: Sequence[str] | None = None) -> float:
    """The least score under which a new patient's lies with chance 1 - alpha, of held-out scores (n,).

    Each of K patients counts 1 / (K + 1) however many bags he has, and the new one counts as infinite (Lee, Barber &
    Willett, equation 6); with one bag each this is the ceil((n + 1)(1 - alpha))-th smallest. inf if K < 1 / alpha - 1.
    """
    values = np.asarray(scores, np.float64)
    names = np.arange(len(values)) if patients is None else np.asarray(patients, dtype=str)
    _, person, bags = np.unique(names, return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    mass = (1 / bags[person[order]]).cumsum()
    reached = np.flatnonzero(mass >= (1 - alpha) * (len(bags) + 1) - 1e-9)
    return float(values[order[reached[0]]]) if len(reached) else math.inf


def fit_conformal(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    spec: ConformalSpec,
    patients: Sequence[str] | None = None,
) -> Conformal:
    """Thresholds from held-out probabilities (n, C) and their truth (n,) class index.

    Without `patients` (n,) every bag is a patient by itself.
    """
    scores, y = nonconformity(probabilities, spec.score), np.asarray(truth)
    if y.shape != (len(scores),) or not np.isin(y, np.arange(scores.shape[1])).all():
        raise SpecError("truth", f"shape {y.shape} for probabilities {scores.shape}", "one class index for each")
    names = np.arange(len(y)).astype(str) if patients is None else np.asarray(patients, dtype=str)
    own = scores[np.arange(len(y)), y]
    parts = [y == c if spec.by_class else np.ones(len(y), bool) for c in range(scores.shape[1])]
    return Conformal(
        spec,
        tuple(conformal_threshold(own[part], spec.alpha, names[part].tolist()) for part in parts),
        tuple(len(np.unique(names[part])) for part in parts),
    )


def cross_conformal(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    folds: Sequence[int] | NDArray[np.integer],
    patients: Sequence[str],
    spec: ConformalSpec | None = None,
    seed: int = 0,
) -> CrossConformal:
    """Sets of out-of-fold probabilities (n, C), each fold's with thresholds from the other folds.

    Folds (n,) must not divide a patient. The folds' models differ, so 1 - alpha is not guaranteed here: coverage is
    measured. What will be used on new slides is fit_conformal on all of them. Raises SpecError for a single fold.
    """
    spec, fold, y = spec or ConformalSpec(), np.asarray(folds), np.asarray(truth)
    names, p = np.asarray(patients, dtype=str), np.asarray(probabilities, np.float64)
    if not fold.shape == names.shape == y.shape == p.shape[:1] or len(np.unique(fold)) < 2:
        problem = f"{len(np.unique(fold))} fold(s), shapes {fold.shape}, {names.shape}, {y.shape}, {p.shape}"
        raise SpecError("folds", problem, "give two folds or more, and one of each for every bag")
    sets = np.zeros(p.shape, bool)
    for k in np.unique(fold):
        rest = fold != k
        sets[~rest] = fit_conformal(p[rest], y[rest], spec, names[rest].tolist()).sets(p[~rest])
    held, size = sets[np.arange(len(y)), y].astype(np.float64), sets.sum(axis=1)

    def share(values: NDArray[np.floating], among: NDArray[np.bool_], of: str) -> Estimate:
        if not among.any():
            return Estimate(None, reason=f"there is no bag {of}")
        return bootstrap(_share(values, among), patients, RESAMPLES, seed)

    everyone = np.ones(len(y), bool)
    return CrossConformal(
        spec,
        sets,
        coverage=share(held, everyone, ""),
        per_class=tuple(share(held, y == c, f"of class {c}") for c in range(p.shape[1])),
        size=share(size.astype(np.float64), everyone, ""),
        singletons=share((size == 1).astype(np.float64), everyone, ""),
        empty=share((size == 0).astype(np.float64), everyone, ""),
        right=share(held, size == 1, "with a single class"),
    )


def _share(values: NDArray[np.floating], among: NDArray[np.bool_]) -> Statistic:
    """Weighted mean of `values` over the bags `among`; nan where a row has none."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total = weights @ among
        return np.divide(weights @ (values * among), total, out=np.full(len(weights), np.nan), where=total > 0)

    return mean_loss(values) if among.all() else statistic
