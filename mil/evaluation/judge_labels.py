"""Labels that do not exclude each other: each judged by itself, and the mean over them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import judge_calibration
from .calibrators import as_logits, cross_calibrated
from .discrimination import auroc, weighted_auroc, weighted_average_precision
from .estimate import Estimate, Statistic, bootstrap
from .judge_classes import one_class, ranking_curves, thresholds
from .judge_parts import RANKS_ONLY, SHARE, JudgeSpec, are_shares, figure
from .judge_probability import parts
from .operating import proportion
from .predictions import Predictions


def judge_labels(predictions: Predictions, seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Multi-label: parts of what `judge` returns. Means are over labels that some bags have and some have not."""
    truth, outputs, patients = predictions.truth == 1, predictions.outputs, predictions.patients
    judged = [c for c in range(truth.shape[1]) if 0 < int(truth[:, c].sum()) < len(truth)]
    left = [name for c, name in enumerate(predictions.classes) if c not in judged]
    over = f"mean of {len(judged)} labels"
    macro = [("AUROC", weighted_auroc), ("AUPRC", weighted_average_precision)]
    figures = [
        figure(name, _mean([_label(rank, truth, predictions.ranking, c) for c in judged], patients, seed), over)
        for name, rank in macro
    ]
    found: dict[str, Any] = {"curves": ranking_curves(predictions), "operating_points": [], "notes": []}
    if left:
        found["notes"].append(f"all bags or none have {', '.join(left)}: not judged, and in no mean")
    everyone = np.ones(len(truth), bool)
    for c, name in enumerate(predictions.classes):
        figures += one_class(predictions, truth[:, c], c, seed)
        share = proportion(truth[:, c], everyone, patients, seed)
        figures.append(figure("prevalence", share, name, "", SHARE))
        found["operating_points"] += thresholds(predictions, truth[:, c], outputs[:, c], options, name)
    if not are_shares(predictions):
        found["notes"].append(RANKS_ONLY)
        return {**found, "figures": figures}
    called = outputs >= 0.5
    figures.append(figure("F1 at 0.5", _mean([_f1(truth[:, c], called[:, c]) for c in judged], patients, seed), over))
    exact = proportion((called == truth).all(axis=1), everyone, patients, seed)
    figures.append(figure("all labels right at 0.5", exact, "", "higher", SHARE))
    found["calibration"], found["curves"]["reliability"] = _calibration(predictions, seed)
    return {**found, "figures": figures}


def label_headline(predictions: Predictions) -> float | None:
    """Mean AUROC over the labels that some bags have and some have not, as the headline; None without any."""
    truth = predictions.truth == 1
    values = [auroc(truth[:, c], predictions.ranking[:, c]) for c in range(truth.shape[1])]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _calibration(predictions: Predictions, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tables = [("as given", predictions.outputs)]
    folds, how = parts(predictions, seed)
    if folds is not None and not predictions.calibrated:
        logits = as_logits(predictions.outputs, "sigmoid")
        mended = cross_calibrated(logits, predictions.truth.astype(np.int64), folds, "temperature", "sigmoid")
        tables.append((f"after a temperature fitted on {how}", mended))
    rows: list[list[dict[str, Any]]] = []
    curves = []
    for when, table in tables:
        rows.append([])
        for c, name in enumerate(predictions.classes):
            both = np.stack([1 - table[:, c], table[:, c]], axis=1)
            judged = judge_calibration(both, predictions.truth[:, c].astype(np.int64), predictions.patients, seed=seed)
            named = (("ECE", judged.ece), ("Brier score", judged.brier), ("negative log-likelihood", judged.nll))
            rows[-1] += [figure(what, estimate, name, "lower") for what, estimate in named]
            rows[-1].append(figure("calibration slope", judged.slope, name, ""))
            diagram = judged.diagrams[0]
            fields = ("observed", "low", "high", "count")
            values = {field: [getattr(point, field) for point in diagram] for field in fields}
            curves.append({"of": name, "when": when, "x": [point.predicted for point in diagram], **values})
    again = {"method": tables[1][0].removeprefix("after a "), "figures": rows[1]} if len(tables) > 1 else None
    return {"stated": predictions.calibrated, "figures": rows[0], "recalibrated": again}, curves


def _label(rank: Any, truth: NDArray[np.bool_], outputs: NDArray[np.float64], c: int) -> Statistic:
    return lambda weights: rank(truth[:, c], outputs[:, c], weights)


def _f1(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> Statistic:
    """F1 of one label; 0 where it is neither there nor called."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = weights @ truth + weights @ called
        return np.divide(2 * (weights @ (truth & called)), seen, out=np.zeros(len(weights)), where=seen > 0)

    return statistic


def _mean(statistics: list[Statistic], patients: tuple[str, ...], seed: int) -> Estimate:
    if not statistics:
        return Estimate(None, reason="no label is there in some bags and absent in others")
    return bootstrap(lambda w: np.mean([one(w) for one in statistics], axis=0), patients, seed=seed)
