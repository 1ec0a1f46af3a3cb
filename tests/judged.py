"""Tables of predictions to judge, and figures of a judgement by their names."""

from typing import Any

import numpy as np

from mil.evaluation.predictions import Predictions


def table(task: str, n: int = 120, bags: int = 2, folds: int = 3, seed: int = 0, classes: int = 3) -> Predictions:
    """Predictions that are right more often than not; `bags` to a patient, folds by patient (0: none)."""
    rng, times, names = np.random.default_rng(seed), (), ()
    if task in ("classification", "ordinal"):
        names = ("a", "b", "c")[:classes]
        truth: Any = rng.integers(0, classes, n)
        outputs = np.exp(rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth])
        outputs /= outputs.sum(axis=1, keepdims=True)
    elif task == "multilabel":
        names, truth = ("x", "y"), rng.integers(0, 2, (n, 2))
        outputs = 1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(size=(n, 2)))))
    elif task == "regression":
        truth = rng.normal(50, 10, n)
        outputs = truth[:, None] + rng.normal(0, 6, (n, 1))
    else:
        risk = rng.normal(size=n)
        event, end = rng.exponential(np.exp(-risk)) + 0.01, rng.exponential(2, n) + 0.01
        truth, outputs = np.stack([np.minimum(event, end), event <= end], axis=1).astype(float), risk[:, None]
        if task == "survival":
            times = (0.3, 0.8, 1.5)
            outputs = np.hstack([outputs, np.exp(-np.exp(risk)[:, None] * np.array(times))])
    patients = tuple(f"p{i // bags}" for i in range(n))
    columns = {
        "site": tuple("xy"[i // bags % 2] for i in range(n)),
        "age": tuple(str(20 + i // bags) for i in range(n)),
    }
    fold = np.arange(n) // bags % folds if folds else None
    return Predictions(
        task, names, tuple(f"s{i}" for i in range(n)), patients, truth, outputs, fold, False, times, columns
    )


def value(judged: dict[str, Any], name: str, of: str | None = None) -> float:
    """The one figure of that name (and class)."""
    found = [f["value"] for f in judged["figures"] if f["name"] == name and of in (None, f["of"])]
    assert len(found) == 1, (name, found)
    return found[0]
