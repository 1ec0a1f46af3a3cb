"""Thresholds of prediction sets and of abstaining that a model keeps, from logits of bags it was not trained on.

They are found on probabilities as a new bag gets them: of a calibrator that was fitted on others. So are those for a
bag of the training cohort itself, from the folds that it does not lie in: a threshold that was found on the very bag
would keep its promise there by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .abstain import abstain_threshold
from .calibrators import cross_calibrated, feasible_method, fit_calibrator
from .conformal import ConformalSpec, fit_conformal


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """What is promised: sets that miss the true class with chance `alpha`, answers that are wrong with chance `risk`,
    both in (0, 1)."""

    alpha: float = 0.1
    risk: float = 0.1


def fit_rules(
    logits: NDArray[np.floating],
    truth: NDArray[np.integer],
    patients: Sequence[str],
    folds: Sequence[int] | NDArray[np.integer],
    method: str,
    spec: RuleSpec | None = None,
) -> dict[str, Any]:
    """`sets` (Conformal.as_dict) and `abstain` (Abstain.as_dict) from held-out logits of classes that exclude.

    logits  (n, C); truth (n,) class index; patients (n,); folds (n,), which divide no patient
    method  of the calibrator; probabilities of a fold come from one that is fitted on the other folds. Where these
            allow no calibrator at all, and with a single fold, from one that is fitted on all n
    Give the rows of other folds alone to get the rules for a bag of the cohort. Raises SpecError where shapes do not
    fit.
    """
    spec, fold, y = spec or RuleSpec(), np.asarray(folds), np.asarray(truth)
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or not fold.shape == y.shape == (len(patients),) == z.shape[:1]:
        problem = f"logits {z.shape}, truth {y.shape}, folds {fold.shape}, {len(patients)} patients"
        raise SpecError("rules", problem, "give one of each for every bag")
    across = feasible_method(method, y, z.shape[1], fold) if len(np.unique(fold)) > 1 else "none"
    if across != "none":
        p = cross_calibrated(z, y, fold, across)
    else:
        p = fit_calibrator(z, y, feasible_method(method, y, z.shape[1])).apply(z)
    sets = fit_conformal(p, y, ConformalSpec(spec.alpha), patients)
    return {"sets": sets.as_dict(), "abstain": abstain_threshold(p, y, spec.risk, patients).as_dict()}


def patient_parts(patients: Sequence[str], parts: int = 5) -> NDArray[np.int64]:
    """Part of each bag, int64 (n,) in [0, parts), that divides no patient: for held-out bags that have no folds."""
    return np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1].reshape(-1).astype(np.int64) % parts
