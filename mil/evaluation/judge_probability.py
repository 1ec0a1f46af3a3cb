"""Classes' probabilities judged as such: calibration, net benefit, prediction sets, and when to keep silent.

Whatever is fitted here (a temperature, a set's threshold, a confidence to answer at) is fitted on other patients than
it is judged on: on the other folds where there are any, else on the other half of the patients.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .abstain import abstain_threshold, risk_coverage
from .calibration import Calibration, ReliabilityBin, judge_calibration
from .calibrators import as_logits, cross_calibrated
from .conformal import ConformalSpec, cross_conformal
from .decision import decision_curve
from .judge_parts import SHARE, JudgeSpec, figure, patient_folds, points
from .operating import proportion
from .predictions import Predictions

DELTA = 0.05  # chance that the promise of abstaining fails
_LINES = (("calibration in the large", "in_the_large", "log odds"), ("calibration slope", "slope", ""))


def judge_probability(predictions: Predictions, seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Calibration, curves and prediction sets of outputs that are shares of 1; parts of what `judge` returns."""
    folds, how = parts(predictions, seed)
    outputs, truth, patients = predictions.outputs, predictions.truth.astype(np.int64), predictions.patients
    given = judge_calibration(outputs, truth, patients, seed=seed)
    found: dict[str, Any] = {"calibration": {"stated": predictions.calibrated, "figures": _figures(predictions, given)}}
    curves: dict[str, list[dict[str, Any]]] = {"reliability": _diagrams(predictions, given.diagrams, "as given")}
    found["calibration"]["recalibrated"] = None
    if folds is not None and not predictions.calibrated:
        after = cross_calibrated(as_logits(outputs), truth, folds, "temperature")
        judged = judge_calibration(after, truth, patients, seed=seed)
        rows = _figures(predictions, judged)
        found["calibration"]["recalibrated"] = {"method": f"temperature, fitted on {how}", "figures": rows}
        curves["reliability"] += _diagrams(predictions, judged.diagrams, f"after a temperature fitted on {how}")
    if len(predictions.classes) == 2:
        curves["decision"] = _decision(predictions, seed)
    curve = risk_coverage(outputs, truth, patients, seed=seed)
    if curve.coverage:
        curves["risk_coverage"] = [{"of": "", **points(curve.coverage, curve.risk)}]
    found["conformal"] = {"reason": "fewer than two patients: nothing to promise from"}
    if folds is not None:
        found["conformal"] = _sets(predictions, folds, seed, options)
        found["conformal"] |= {"fitted_on": how, "abstain": _abstain(predictions, folds, seed, options)}
        found["conformal"]["aurc"] = figure("area under risk-coverage", curve.aurc, "", "lower")
    return {**found, "curves": curves}


def parts(predictions: Predictions, seed: int) -> tuple[NDArray[np.int64] | None, str]:
    """Parts that divide no patient, to fit on all but one, and what to call these; None with fewer than two patients.

    The folds where they do so, else two random halves of the patients.
    """
    names, patient = np.unique(np.asarray(predictions.patients, dtype=str), return_inverse=True)
    folds = patient_folds(predictions)
    if folds is not None:
        return folds, "the other folds"
    if len(names) < 2:
        return None, ""
    half = np.random.default_rng(seed).permutation(len(names)) % 2
    return half[patient].astype(np.int64), "the other half of the patients"


def _figures(predictions: Predictions, judged: Calibration) -> list[dict[str, Any]]:
    two = len(predictions.classes) == 2
    of = predictions.classes[-1] if two else "called class"
    rows = [
        figure("ECE", judged.ece, of, "lower"),
        figure("ECE, equal mass", judged.ece_mass, of, "lower"),
        figure("Brier score", judged.brier, predictions.classes[-1] if two else "sum over classes", "lower"),
        figure("negative log-likelihood", judged.nll, "", "lower", unit="nats"),
    ]
    if not two:
        return [*rows, figure("ECE, class by class", judged.classwise, "mean over classes", "lower")]
    return rows + [figure(name, getattr(judged, field), of, "", unit=unit) for name, field, unit in _LINES]


def _diagrams(
    predictions: Predictions, diagrams: tuple[tuple[ReliabilityBin, ...], ...], when: str
) -> list[dict[str, Any]]:
    names = predictions.classes[-1:] if len(predictions.classes) == 2 else predictions.classes
    fields = ("observed", "low", "high", "count")
    return [
        {
            "of": name,
            "when": when,
            "x": [point.predicted for point in diagram],
            **{field: [getattr(point, field) for point in diagram] for field in fields},
        }
        for name, diagram in zip(names, diagrams, strict=True)
        if diagram
    ]


def _decision(predictions: Predictions, seed: int) -> list[dict[str, Any]]:
    positive = predictions.truth == 1
    curve = decision_curve(predictions.outputs[:, 1], positive, predictions.patients, seed=seed)
    if not curve.model:
        return []
    shown = {"x": list(curve.thresholds), "model": list(curve.model), "treat_all": list(curve.treat_all)}
    band = {"low": list(curve.low), "high": list(curve.high), "gain": list(curve.gain)}
    return [{"of": predictions.classes[-1], **shown, **band, "reason": curve.reason}]


def _sets(predictions: Predictions, folds: NDArray[np.int64], seed: int, options: JudgeSpec) -> dict[str, Any]:
    spec = ConformalSpec(options.alpha)
    truth, patients = predictions.truth.astype(np.int64), predictions.patients
    judged = cross_conformal(predictions.outputs, truth, folds, patients, spec, seed)
    held, size = judged.sets[np.arange(len(truth)), truth], judged.sets.sum(axis=1)
    everyone = np.ones(len(truth), bool)

    def share(name: str, of: str, hit: NDArray[np.bool_], among: NDArray[np.bool_], better: str) -> dict[str, Any]:
        return figure(name, proportion(hit, among, patients, seed), of, better, SHARE)

    return {
        "alpha": options.alpha,
        "score": spec.score,
        "figures": [
            share("coverage", f"promised {1 - options.alpha:.0%}", held, everyone, "higher"),
            figure("classes in a set", judged.size, "mean", "lower"),
            share("sets of one class", "of all", size == 1, everyone, "higher"),
            share("right", "of the sets of one class", held, size == 1, "higher"),
            share("empty sets", "of all", size == 0, everyone, "lower"),
            *(share("coverage", name, held, truth == c, "higher") for c, name in enumerate(predictions.classes)),
        ],
    }


def _abstain(predictions: Predictions, folds: NDArray[np.int64], seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Answers at the confidence that keeps the risk on the other parts: how many are given, how many are wrong."""
    outputs, truth = predictions.outputs, predictions.truth.astype(np.int64)
    patients = np.asarray(predictions.patients, dtype=str)
    answered, cuts, reasons = np.zeros(len(truth), bool), [], []
    for fold in np.unique(folds):
        rest = folds != fold
        rule = abstain_threshold(outputs[rest], truth[rest], options.risk, patients[rest].tolist(), DELTA)
        cuts.append(rule.threshold)
        reasons.append(rule.reason)
        if rule.threshold is not None:
            answered[~rest] = outputs[~rest].max(axis=1) >= rule.threshold
    wrong, everyone = outputs.argmax(axis=1) != truth, np.ones(len(truth), bool)
    promised = f"of those answered, at most {options.risk:.0%} promised"
    shares = [
        ("answered", "of all", answered, everyone, "higher"),
        ("wrong", promised, wrong, answered, "lower"),
        ("wrong without abstaining", "of all", wrong, everyone, "lower"),
    ]
    return {
        "risk": options.risk,
        "delta": DELTA,
        "thresholds": cuts,
        "reason": next((reason for reason in reasons if reason), None),
        "figures": [
            figure(name, proportion(hit, among, predictions.patients, seed), of, better, SHARE)
            for name, of, hit, among, better in shares
        ],
    }
