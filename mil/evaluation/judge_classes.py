"""Classes that exclude each other, ordered or not: ranking, thresholds, called classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .agreement import Agreement, agreement, confusion, kappas
from .discrimination import (
    auroc,
    auroc_delong,
    auroc_interval,
    average_precision_interval,
    macro_auroc,
    precision_recall_curve,
    roc_curve,
)
from .estimate import Estimate, bootstrap
from .judge_parts import RANKS_ONLY, SHARE, JudgeSpec, are_shares, figure, patient_folds, points
from .judge_probability import judge_probability
from .operating import OperatingPoint, Rule, operating_point, proportion
from .predictions import Predictions

DELONG = "DeLong on the logit, clustered by patient (Obuchowski 1997)"
RULES = {
    "youden": "largest Youden index",
    "sensitivity": "sensitivity of at least {:g}",
    "specificity": "specificity of at least {:g}",
    "given": "threshold {:g}",
}


def judge_classes(predictions: Predictions, seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Classification and ordinal: parts of what `judge` returns. The headline comes first among the figures."""
    binary = len(predictions.classes) == 2
    figures = _ranking(predictions, seed)
    found: dict[str, Any] = {"curves": ranking_curves(predictions), "notes": []}
    if binary:
        positive, score = predictions.truth == 1, predictions.outputs[:, 1]
        found["operating_points"] = thresholds(predictions, positive, score, options)
        prevalence = proportion(positive, np.ones(len(positive), bool), predictions.patients, seed)
        figures.append(figure("prevalence", prevalence, predictions.classes[-1], "", SHARE))
    if are_shares(predictions):
        called = predictions.outputs.argmax(axis=1)
        agreed = agreement(
            predictions.truth.astype(np.int64), called, len(predictions.classes), predictions.patients, seed
        )
        figures += _agreement(predictions, agreed, called, seed)
        probable = judge_probability(predictions, seed, options)
        found |= {**probable, "curves": {**found["curves"], **probable["curves"]}}
        found["confusion"] = {"classes": list(predictions.classes), "counts": [list(r) for r in agreed.confusion]}
    else:
        found["notes"].append(RANKS_ONLY)
    if predictions.task == "ordinal":
        figures.sort(key=lambda row: row["name"] != "quadratic kappa")  # stable: the headline of an order goes first
    return {**found, "figures": figures}


def class_headline(predictions: Predictions) -> float | None:
    """The headline figure alone: AUROC (macro one-versus-rest over several classes), for an order quadratic kappa."""
    if predictions.task == "ordinal" and are_shares(predictions):
        called, truth = predictions.outputs.argmax(axis=1), predictions.truth.astype(np.int64)
        kappa = float(kappas(confusion(truth, called, len(predictions.classes))[None].astype(np.float64), power=2)[0])
        return None if np.isnan(kappa) else kappa
    classes = range(1, 2) if len(predictions.classes) == 2 else range(len(predictions.classes))
    values = [auroc(predictions.truth == c, predictions.ranking[:, c]) for c in classes]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def thresholds(
    predictions: Predictions, positive: NDArray[np.bool_], score: NDArray[np.float64], options: JudgeSpec, of: str = ""
) -> list[dict[str, Any]]:
    """Decisions about one class by each rule: positive (n,) bool, score (n,).

    Thresholds are of the other folds where none divides a patient; else they are chosen on the judged bags.
    """
    folds = patient_folds(predictions)
    return [
        _point(
            rule,
            operating_point(positive, score, predictions.patients, rule, folds, options.prevalence),
            of or predictions.classes[-1],
            folds is not None,
        )
        for rule in options.rules
    ]


def rule_name(rule: Rule) -> str:
    """A rule as people say it."""
    return RULES[rule.kind].format(rule.at)


def one_class(predictions: Predictions, positive: NDArray[np.bool_], column: int, seed: int) -> list[dict[str, Any]]:
    """AUROC and AUPRC of one class or label against the rest."""
    score, patients, of = predictions.ranking[:, column], predictions.patients, predictions.classes[column]
    ranked = figure("AUROC", auroc_interval(positive, score, patients, seed), of)
    return [ranked, figure("AUPRC", average_precision_interval(positive, score, patients, seed), of)]


def ranking_curves(predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    """ROC and precision-recall curves: of the positive of two classes, else of each class or label."""
    binary = predictions.task != "multilabel" and len(predictions.classes) == 2
    curves: dict[str, list[dict[str, Any]]] = {"roc": [], "precision_recall": []}
    for c in range(1, 2) if binary else range(len(predictions.classes)):
        positive = predictions.truth[:, c] == 1 if predictions.task == "multilabel" else predictions.truth == c
        for name, curve in (("roc", roc_curve), ("precision_recall", precision_recall_curve)):
            xs, ys = curve(positive, predictions.ranking[:, c])
            if xs:
                chance = float(positive.mean())
                curves[name].append({"of": predictions.classes[c], **points(xs, ys), "prevalence": chance})
    return curves


def _ranking(predictions: Predictions, seed: int) -> list[dict[str, Any]]:
    if len(predictions.classes) == 2:
        positive, score, of = predictions.truth == 1, predictions.ranking[:, 1], predictions.classes[-1]
        rows = one_class(predictions, positive, 1, seed)
        by_delong = figure("AUROC (DeLong)", auroc_delong(positive, score, predictions.patients), of, method=DELONG)
        return [rows[0], by_delong, *rows[1:]]
    macro = macro_auroc(predictions.truth.astype(np.int64), predictions.ranking, predictions.patients, seed)
    rows = [figure("AUROC", macro, "mean of one class against the rest")]
    for c in range(len(predictions.classes)):
        rows += one_class(predictions, predictions.truth == c, c, seed)
    return rows


def _agreement(
    predictions: Predictions, agreed: Agreement, called: NDArray[np.int64], seed: int
) -> list[dict[str, Any]]:
    names = [("accuracy", agreed.accuracy), ("balanced accuracy", agreed.balanced_accuracy)]
    names += [("F1 (macro)", agreed.f1_macro), ("kappa", agreed.kappa)]
    if predictions.task != "ordinal":
        return [figure(name, estimate) for name, estimate in names]
    names += [("linear kappa", agreed.kappa_linear), ("quadratic kappa", agreed.kappa_quadratic)]
    off = np.abs(called - predictions.truth.astype(np.int64)).astype(np.float64)
    error = bootstrap(lambda weights: _mean(weights, off), predictions.patients, seed=seed)
    return [*(figure(name, estimate) for name, estimate in names), figure("MAE", error, "", "lower", unit="classes")]


def _point(rule: Rule, point: OperatingPoint, of: str, crossed: bool) -> dict[str, Any]:
    names = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "f1", "balanced_accuracy")
    shown = {"ppv": "PPV", "npv": "NPV", "f1": "F1", "balanced_accuracy": "balanced accuracy"}
    estimates: dict[str, Estimate] = {name: getattr(point, name) for name in names}
    chosen = "on these very bags: figures flatter" if point.optimistic else "beforehand"
    return {
        "of": of,
        "name": rule_name(rule),
        "rule": {"kind": rule.kind, "at": rule.at},
        "thresholds": [float(cut) for cut in point.thresholds],
        "chosen": "for each fold on the other folds" if crossed and rule.kind != "given" else chosen,
        "optimistic": point.optimistic,
        "prevalence": point.prevalence,
        "counts": {"tp": point.tp, "fp": point.fp, "tn": point.tn, "fn": point.fn},
        "figures": [figure(shown.get(n, n), estimate, of, method=point.method) for n, estimate in estimates.items()],
        "left_out": point.left_out,
        "reason": point.reason,
    }


def _mean(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean (R,) of values (n,) under rows of weights (R, n)."""
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full(len(weights), np.nan), where=total > 0)
