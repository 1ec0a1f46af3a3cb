"""Judge a table of predictions of any task: every figure that fits it, each with its interval or why there is none.

What comes back is plain values for JSON, the same frame for all tasks:

task, classes, positive   as of the predictions; positive is the last of two classes, else ""
bags, patients            how many
calibrated                whether outputs are said to be probabilities, fitted on held-out data
headline, figures         see `judge_parts.figure`; the headline is the first of the figures
folds, per_fold           numbers of the folds, the headline's value on each (None where it is not defined there)
mean_of_folds             mean of those that are defined, None without folds
confusion                 classes and counts[true][called], or None
operating_points          decisions at thresholds, each with how it was chosen
calibration               how far outputs are from probabilities: {} where they are none
curves                    roc, precision_recall, reliability, decision, kaplan_meier, risk_coverage: lists of curves
subgroups                 one table for each column asked for
conformal                 prediction sets and abstaining: {} where there are no classes
notes                     what the reader must know, as sentences
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .judge_classes import class_headline, judge_classes
from .judge_groups import compare, judge_groups
from .judge_labels import judge_labels, label_headline
from .judge_numbers import judge_numbers, number_headline
from .judge_parts import JudgeSpec, crossings, part, pooling_notes
from .judge_times import judge_times, time_headline
from .predictions import Predictions

__all__ = ["JudgeSpec", "compare", "judge"]

CURVES = ("roc", "precision_recall", "reliability", "decision", "kaplan_meier", "risk_coverage")
JUDGES: dict[str, tuple[Callable[[Predictions, int, JudgeSpec], dict[str, Any]], Callable[[Predictions], Any]]] = {
    "classification": (judge_classes, class_headline),
    "ordinal": (judge_classes, class_headline),
    "multilabel": (judge_labels, label_headline),
    "regression": (judge_numbers, number_headline),
    "cox": (judge_times, time_headline),
    "survival": (judge_times, time_headline),
}


def judge(predictions: Predictions, seed: int = 0, options: JudgeSpec | None = None) -> dict[str, Any]:
    """Every figure that fits the task, with 95 % intervals over patients; see the module's head for what is in it.

    Nothing degenerate raises: a figure that cannot be computed is None beside its reason. Raises SpecError for a
    subgroup column that the predictions do not have.
    """
    options = options or JudgeSpec()
    judged, headline = JUDGES[predictions.task]
    found = judged(predictions, seed, options)
    frame: dict[str, Any] = {
        "task": predictions.task,
        "classes": list(predictions.classes),
        "positive": predictions.classes[-1] if _binary(predictions) else "",
        "bags": len(predictions),
        "patients": len(set(predictions.patients)),
        "calibrated": predictions.calibrated,
        "headline": found["figures"][0],
        "figures": found["figures"],
        **_folds(predictions, headline),
        "confusion": found.get("confusion"),
        "operating_points": found.get("operating_points", []),
        "calibration": found.get("calibration", {}),
        "curves": {name: found.get("curves", {}).get(name, []) for name in CURVES},
        "subgroups": judge_groups(predictions, seed, options),
        "conformal": found.get("conformal", {}),
        "notes": [*found.get("notes", []), *_notes(predictions)],
    }
    return frame


def _binary(predictions: Predictions) -> bool:
    return predictions.task == "classification" and len(predictions.classes) == 2


def _folds(predictions: Predictions, headline: Callable[[Predictions], float | None]) -> dict[str, Any]:
    if predictions.folds is None:
        return {"folds": [], "per_fold": [], "mean_of_folds": None}
    folds = np.unique(predictions.folds).tolist()
    values = [headline(part(predictions, predictions.folds == fold)) for fold in folds]
    known = [value for value in values if value is not None]
    return {"folds": folds, "per_fold": values, "mean_of_folds": float(np.mean(known)) if known else None}


def _notes(predictions: Predictions) -> list[str]:
    """What limits any table: few patients, models pooled, patients over folds, two kinds of outputs."""
    notes, patients = [], len(set(predictions.patients))
    if 0 < patients < 20:
        few = "a single patient is" if patients == 1 else f"{patients} patients are"
        notes.append(f"{few} few: intervals from so few are themselves unsure, and tend to be too narrow")
    notes += pooling_notes(predictions)
    if crossing := crossings(predictions):
        notes.append(
            f"patients lie in more than one fold ({crossing} times): a fold's model may have seen the patient, figures "
            "by fold are not independent, and thresholds are chosen on the judged bags, not on other folds"
        )
    if predictions.scores is not None:
        notes.append(
            "AUROC, AUPRC and their curves rank by the outputs before calibration; called classes, thresholds and "
            "whatever needs a probability take the calibrated ones"
        )
    return notes
