"""What the judges of all tasks share: their options, figures as plain values, and parts of a table of predictions."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate
from .operating import Rule
from .predictions import Predictions

BOOTSTRAP = f"percentiles of {RESAMPLES} bootstrap resamples of whole patients"
NO_SPREAD = "it is the same in every resample: no spread to judge by"
SHARE = "Wilson score with one bag a patient, else percentiles of resampled patients"
RANKS_ONLY = (
    "the outputs are scores that rank but are no shares of 1: nothing that needs a called class or a probability is "
    "judged (accuracy, calibration, decision curve, prediction sets)"
)


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """What is asked of a table of predictions beyond what its task always gets.

    subgroups   columns by whose values the headline figure is broken down
    rules       how thresholds are chosen (two classes, labels)
    prevalence  of the positive class where the model is to be used: PPV and NPV are then of that population
    alpha       share of prediction sets that may miss the truth, (0, 1)
    risk        share of wrong calls among those not abstained from that is tolerated, (0, 1)
    horizons    times at which survival is judged, in the unit of the truth; () for the quartiles of event times
    """

    subgroups: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = (Rule("youden"), Rule("sensitivity", 0.95), Rule("specificity", 0.95))
    prevalence: float | None = None
    alpha: float = 0.1
    risk: float = 0.1
    horizons: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("alpha", "risk"):
            if not 0 < getattr(self, name) < 1:
                raise SpecError(name, f"{getattr(self, name)} is not between 0 and 1", "0.1 is the default")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise SpecError("prevalence", f"{self.prevalence} is not between 0 and 1", "state a share such as 0.02")
        if any(not 0 < time < float("inf") for time in self.horizons):
            raise SpecError("horizons", f"{self.horizons} are not all positive", "give times in the unit of follow-up")


def figure(
    name: str, estimate: Estimate, of: str = "", better: str = "higher", method: str = BOOTSTRAP, unit: str = ""
) -> dict[str, Any]:
    """A figure as plain values. `of` is the class, label or time it speaks of; `better` is higher, lower or empty.

    An interval without width would claim certainty: it is left out, and the reason says so.
    """
    if estimate.low is not None and estimate.low == estimate.high:
        estimate = replace(estimate, low=None, high=None, reason=NO_SPREAD)
    return {
        "name": name,
        "of": of,
        "better": better,
        "value": _plain(estimate.value),
        "low": _plain(estimate.low),
        "high": _plain(estimate.high),
        "resamples": estimate.resamples,
        "reason": estimate.reason,
        "method": method,
        "unit": unit,
    }


def part(predictions: Predictions, keep: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
    """The bags for which `keep` (n,) is True, or those at its places, in that order."""
    at = np.arange(len(predictions))[keep].tolist()
    return replace(
        predictions,
        ids=tuple(predictions.ids[i] for i in at),
        patients=tuple(predictions.patients[i] for i in at),
        truth=predictions.truth[at],
        outputs=predictions.outputs[at],
        folds=None if predictions.folds is None else predictions.folds[at],
        scores=None if predictions.scores is None else predictions.scores[at],
        columns={name: tuple(values[i] for i in at) for name, values in predictions.columns.items()},
    )


def are_shares(predictions: Predictions) -> bool:
    """Whether the outputs can be read as probabilities: within [0, 1], and for classes rows that sum to 1."""
    outputs = predictions.outputs
    within = bool(((outputs >= 0) & (outputs <= 1)).all())
    return within and (predictions.task == "multilabel" or bool(np.allclose(outputs.sum(axis=1), 1, atol=1e-3)))


def several_folds(predictions: Predictions) -> NDArray[np.int64] | None:
    """The folds where there are at least two of them, else None."""
    return predictions.folds if predictions.folds is not None and len(set(predictions.folds.tolist())) > 1 else None


def patient_folds(predictions: Predictions) -> NDArray[np.int64] | None:
    """The folds where there are at least two and none divides a patient, else None.

    Only such folds let something be fitted on the others that has not seen who it is judged on.
    """
    folds = several_folds(predictions)
    return folds if folds is not None and not crossings(predictions) else None


def crossings(predictions: Predictions) -> int:
    """How many folds patients lie in beyond their first; 0 without folds."""
    if predictions.folds is None:
        return 0
    return len(set(zip(predictions.patients, predictions.folds.tolist(), strict=True))) - len(set(predictions.patients))


def pooling_notes(predictions: Predictions) -> list[str]:
    """What figures over several folds are of, and what their intervals leave out; [] without folds."""
    folds = several_folds(predictions)
    if folds is None:
        return []
    how = {"cox": "are ranked within each fold, as no two have one zero", "regression": "are judged together"}
    notes = [
        f"the outputs of the models of {len(set(folds.tolist()))} folds "
        f"{how.get(predictions.task, 'are pooled into one ranking')}; intervals hold these models fixed and do not "
        "contain the variation of training, of which the values of single folds give an idea"
    ]
    if predictions.repeats > 1:
        notes.append(
            f"each output is the mean over {predictions.repeats} repeats of the cross-validation: values of single "
            "folds are of these means, by the folds of the first repeat"
        )
    return notes


def points(xs: tuple[float, ...], ys: tuple[float, ...], most: int = 500) -> dict[str, list[float]]:
    """A curve as plain values, thinned to at most about `most` points; the ends stay."""
    step = max(1, -(-len(xs) // most))
    keep = sorted({*range(0, len(xs), step), *([len(xs) - 1] if xs else [])})
    return {"x": [float(xs[i]) for i in keep], "y": [float(ys[i]) for i in keep]}


def _plain(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
