"""Who was judged, and where the predictions are furthest from the truth: what a reader wants to look at."""

from typing import Any

import numpy as np

from .judge_parts import are_shares
from .predictions import Predictions


def cohort(predictions: Predictions, columns: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Bags and patients by truth, then by each of `columns`: [{"column", "rows": [{"name", "bags", "patients"}]}].

    Numbers of more than six distinct values are given as their range and median, by one row each.
    """
    named = {"truth": _truths(predictions), **{name: predictions.columns[name] for name in columns}}
    tables = []
    for column, texts in named.items():
        values = [text or "unknown" for text in texts]
        numbers = _numbers(texts)
        if numbers is not None and len(set(numbers)) > 6:
            low, middle, high = np.quantile(numbers, [0, 0.5, 1]).tolist()
            values = ["unknown" if not text else f"{low:g} to {high:g}, median {middle:g}" for text in texts]
        rows = []
        for name in sorted(set(values), key=lambda value: (value == "unknown", value)):
            inside = [patient for value, patient in zip(values, predictions.patients, strict=True) if value == name]
            rows.append({"name": name, "bags": len(inside), "patients": len(set(inside))})
        tables.append({"column": column, "rows": rows})
    return tables


def worst_cases(predictions: Predictions, most: int = 12) -> list[dict[str, Any]]:
    """The bags whose predictions are furthest from their truth, the worst first; [] for survival, where none is known.

    Each {"id", "patient", "truth", "said", "detail"}, texts. Classes: those called wrongly, by the probability of the
    true one; with scores that only rank, positives below and negatives above the middle score. Labels: by the largest
    error of one. Numbers: by the error.
    """
    if predictions.task in ("cox", "survival") or not len(predictions):
        return []
    order, texts = _described(predictions)
    return [
        {"id": predictions.ids[i], "patient": predictions.patients[i], "truth": t, "said": said, "detail": detail}
        for i, (t, said, detail) in list(zip(order, texts, strict=True))[:most]
    ]


def _described(predictions: Predictions) -> tuple[list[int], list[tuple[str, str, str]]]:
    """Places of the errors, the worst first, and (truth, said, detail) of each."""
    outputs, names = predictions.outputs, predictions.classes
    truth: Any = predictions.truth
    if predictions.task == "regression":
        error = outputs[:, 0] - truth
        order = np.argsort(-np.abs(error), kind="stable")
        texts = [(f"{truth[i]:g}", f"{outputs[i, 0]:.4g}", f"off by {error[i]:+.4g}") for i in order]
    elif predictions.task == "multilabel":
        apart = np.abs(outputs - truth)
        label = apart.argmax(axis=1)
        order = np.argsort(-apart.max(axis=1), kind="stable")
        order = order[apart.max(axis=1)[order] > 0.5]
        texts = [
            (f"{'has' if truth[i, label[i]] == 1 else 'has no'} {names[label[i]]}", f"{outputs[i, label[i]]:.3f}", "")
            for i in order
        ]
    elif are_shares(predictions):
        called, own = outputs.argmax(axis=1), outputs[np.arange(len(truth)), truth.astype(int)]
        order = np.argsort(own, kind="stable")
        order = order[called[order] != truth[order]]
        texts = [(names[truth[i]], names[called[i]], f"{names[truth[i]]} got {own[i]:.3f}") for i in order]
    else:
        middle, score = float(np.median(outputs[:, 1])), outputs[:, 1]
        wrong = np.where(truth == 1, middle - score, score - middle)
        order = np.argsort(-wrong, kind="stable")
        order = order[wrong[order] > 0]
        texts = [(names[truth[i]], f"score {score[i]:.4g}", f"the middle score is {middle:.4g}") for i in order]
    return order.tolist(), texts


def _truths(predictions: Predictions) -> tuple[str, ...]:
    truth, names = predictions.truth, predictions.classes
    if predictions.task in ("classification", "ordinal"):
        return tuple(names[int(value)] for value in truth)
    if predictions.task == "multilabel":
        return tuple(" + ".join(n for n, has in zip(names, row, strict=True) if has) or "none" for row in truth)
    if predictions.task == "regression":
        return tuple(f"{value:g}" for value in truth)
    return tuple("event seen" if event else "followed up without" for event in truth[:, 1])


def _numbers(texts: tuple[str, ...]) -> list[float] | None:
    """The values that are known as numbers; None when one is a text, or nothing is known."""
    try:
        values = [float(text) for text in texts if text]
    except ValueError:
        return None
    return values if values and np.isfinite(values).all() else None
