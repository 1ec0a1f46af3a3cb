"""The headline by groups of a column, and two models side by side, as plain values for any task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .agreement import kappas
from .compare import Comparison, compare_auroc, compare_decisions, compare_statistic
from .discrimination import weighted_auroc, weighted_average_precision, weighted_macro_auroc
from .estimate import Statistic
from .judge_classes import rule_name
from .judge_numbers import number_statistics
from .judge_parts import BOOTSTRAP, JudgeSpec, are_shares, figure, part, patient_folds, pooling_notes
from .judge_times import pairs_of, time_statistic
from .operating import Rule, cross_fitted_threshold, threshold
from .predictions import Predictions
from .subgroups import GroupFigure, subgroups

LOWER = ("MAE", "Brier score")


def judge_groups(predictions: Predictions, seed: int, options: JudgeSpec) -> list[dict[str, Any]]:
    """A table for each column asked for. Raises SpecError for a column that the predictions do not have.

    Sensitivity and specificity are of the decisions at the first operating point asked for, one rule for all groups.
    """
    if not options.subgroups:
        return []
    own = None if predictions.task in ("classification", "multilabel") else statistics(predictions)
    binary = predictions.task == "classification" and len(predictions.classes) == 2
    cuts, how = _decided(predictions, options) if binary else (np.full(len(predictions), np.nan), None)
    found = subgroups(predictions, options.subgroups, cuts, statistics=own, seed=seed)
    multiplicity = f"p values adjusted by Holm for all {found.tests} tests of these tables"
    return [
        {
            "column": column,
            "unknown": found.unknown[column],
            "tests": found.tests,
            "multiplicity": multiplicity if found.tests else "No difference was tested",
            "threshold": found.threshold,
            "threshold_is": how,
            "groups": [
                {
                    "name": group.name,
                    "bags": group.slides,
                    "patients": group.patients,
                    "prevalence": group.prevalence,
                    "reason": group.reason,
                    "figures": [
                        _group_figure(name, judged, pairs_of(predictions)) for name, judged in group.figures.items()
                    ],
                }
                for group in groups
            ],
        }
        for column, groups in found.groups.items()
    ]


def _decided(predictions: Predictions, options: JudgeSpec) -> tuple[NDArray[np.float64], str]:
    """Each bag's threshold (n,), nan where none can be chosen, and what it is: the first operating point's."""
    rule = options.rules[0] if options.rules else Rule("youden")
    positive, score, folds = predictions.truth == 1, predictions.outputs[:, 1], patient_folds(predictions)
    if rule.kind == "given":
        return np.full(len(score), float(rule.at or 0)), f"{rule.at:g}"
    if folds is not None:
        cuts = cross_fitted_threshold(positive, score, folds, rule)
        return cuts, f"{rule_name(rule)}, chosen for each fold on the other folds"
    cut = threshold(positive, score, rule)
    if cut is None:
        return np.full(len(score), np.nan), "none can be chosen: there are not both positives and negatives"
    return np.full(len(score), cut), f"{cut:.4g}, {rule_name(rule)}, chosen on these very bags: flatters"


def statistics(predictions: Predictions) -> Mapping[str, Statistic]:
    """The figures by which groups and models are compared, the headline first; see LOWER for what is better."""
    truth, outputs, ranking = predictions.truth, predictions.outputs, predictions.ranking
    if predictions.task == "regression":
        return number_statistics(predictions)
    if predictions.task in ("cox", "survival"):
        return {"c-index": time_statistic(predictions)}
    if predictions.task == "multilabel":
        return {"AUROC": lambda w: _over_labels(truth == 1, ranking, w)}
    if predictions.task == "ordinal" and are_shares(predictions):
        classes = outputs.shape[1]
        cells = np.eye(classes**2)[truth.astype(np.int64) * classes + outputs.argmax(axis=1)]
        return {"quadratic kappa": lambda w: kappas((w @ cells).reshape(-1, classes, classes), power=2)}
    if outputs.shape[1] > 2:
        return {"AUROC": lambda w: weighted_macro_auroc(truth.astype(np.int64), ranking, w)}
    positive, score = truth == 1, outputs[:, 1]
    found: dict[str, Statistic] = {"AUPRC": lambda w: weighted_average_precision(positive, ranking[:, 1], w)}
    if are_shares(predictions):
        squared = (score - positive) ** 2
        found["Brier score"] = lambda w: w @ squared / w.sum(axis=1)
    return found


def compare(first: Predictions, second: Predictions, seed: int = 0) -> dict[str, Any]:
    """Two models on the bags that both speak of: their figures, the difference first - second, and its p value.

    AUROC of two classes by DeLong's test, accuracy by McNemar's (both clustered where patients have several bags), the
    rest by the paired bootstrap over patients. The classes may stand in another order, unless the order is theirs;
    Cox risks are compared on pairs within folds of both. Raises SpecError when task, classes or truths differ, or no
    bag is shared.
    """
    shared = _shared(first, _in_order_of(first, second))
    a, b = _of_common_folds(*shared)
    if not np.array_equal(a.truth, b.truth):
        raise SpecError("comparison", "the two tables hold different truths", "judge both by one manifest")
    rows = []
    binary = a.task == "classification" and len(a.classes) == 2
    if binary:
        both = compare_auroc(a.truth == 1, a.ranking[:, 1], b.ranking[:, 1], a.patients)
        rows.append(_compared("AUROC", a.classes[-1], both))
    own, other = statistics(a), statistics(b)
    for name in own:
        if name in other:
            paired = compare_statistic(own[name], other[name], a.patients, seed=seed)
            rows.append(_compared(name, a.classes[-1] if binary else pairs_of(a), paired))
    if a.task in ("classification", "ordinal") and are_shares(a) and are_shares(b):
        truth: NDArray[Any] = a.truth
        called = compare_decisions(truth, a.outputs.argmax(axis=1), b.outputs.argmax(axis=1), a.patients)
        rows.append(_compared("accuracy", "", called))
    return {
        "bags": len(a),
        "patients": len(set(a.patients)),
        "only_first": len(first) - len(a),
        "only_second": len(second) - len(b),
        "figures": rows,
        "multiplicity": f"{len(rows)} figures are compared; their p values are not adjusted",
        "notes": list(dict.fromkeys(note for one in shared for note in pooling_notes(one))),
    }


def _in_order_of(first: Predictions, second: Predictions) -> Predictions:
    """The second's classes in the order of the first's; see `compare` for what it raises."""
    if (first.task, first.classes) == (second.task, second.classes):
        return second
    nominal = first.task in ("classification", "multilabel")
    if first.task != second.task or not nominal or sorted(first.classes) != sorted(second.classes):
        problem = f"{first.task} of {first.classes} and {second.task} of {second.classes}"
        raise SpecError("comparison", problem, "compare predictions of one task and the same classes")
    order = np.array([second.classes.index(name) for name in first.classes])
    truth: NDArray[Any] = second.truth
    return replace(
        second,
        classes=first.classes,
        truth=truth[:, order] if first.task == "multilabel" else np.argsort(order)[truth],
        outputs=second.outputs[:, order],
        scores=None if second.scores is None else second.scores[:, order],
    )


def _of_common_folds(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Cox risks with the folds in which those of both can be compared, so that both figures are of the same pairs."""
    given = [one.folds for one in (first, second) if one.folds is not None]
    if first.task != "cox" or not given:
        return first, second
    folds = np.unique(np.stack(given), axis=1, return_inverse=True)[1].reshape(-1)
    return replace(first, folds=folds), replace(second, folds=folds)


def _shared(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The bags of both, in one order."""
    at = {name: i for i, name in enumerate(second.ids)}
    keep = np.array([name in at for name in first.ids], bool)
    if not keep.any():
        raise SpecError("comparison", "the two tables share no bag", "give predictions of the same slides")
    a = part(first, keep)
    return a, part(second, np.array([at[name] for name in a.ids]))


def _compared(name: str, of: str, found: Comparison) -> dict[str, Any]:
    difference = figure(name, found.difference, of, "lower" if name in LOWER else "higher", found.method)
    both = {"first": found.first, "second": found.second}
    return {"name": name, "of": of, **both, "difference": difference, "p": found.p, "method": found.method}


def _group_figure(name: str, judged: GroupFigure, of: str) -> dict[str, Any]:
    better = "lower" if name in LOWER else "higher"
    apart = figure(name, judged.difference, "group - rest", better)
    own = figure(name, judged.estimate, of, better, BOOTSTRAP)
    return {**own, "difference": apart, "p": judged.p, "p_holm": judged.p_holm}


def _over_labels(
    truth: NDArray[np.bool_], outputs: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean AUROC over the labels that some bags have and some have not."""
    both = [c for c in range(truth.shape[1]) if 0 < int(truth[:, c].sum()) < len(truth)]
    if not both:
        return np.full(len(weights), np.nan)
    mean: NDArray[np.float64] = np.mean([weighted_auroc(truth[:, c], outputs[:, c], weights) for c in both], axis=0)
    return mean
