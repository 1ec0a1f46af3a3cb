"""Times to an event: how well risks order them, and what groups by risk have lived through."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .estimate import Statistic
from .judge_parts import JudgeSpec, figure, several_folds
from .predictions import Predictions
from .survival import (
    Followed,
    _comparable,
    _ratio,
    _wins,
    auc_at,
    brier_at,
    c_index,
    followed,
    integrated_brier,
    uno_c,
)
from .survival_groups import horizon_calibration, risk_groups


def judge_times(predictions: Predictions, seed: int, options: JudgeSpec) -> dict[str, Any]:
    """Cox and discrete-time survival: parts of what `judge` returns. A higher risk says an earlier event."""
    cohort = _cohort(predictions)
    risk = predictions.outputs[:, 0]
    within = f", {pairs}" if (pairs := pairs_of(predictions)) else ""
    figures = [figure("c-index", c_index(risk, cohort, seed=seed), f"Harrell{within}")]
    figures.append(figure("c-index", uno_c(risk, cohort, seed=seed), f"Uno, weighted for censoring{within}"))
    for time in options.horizons or _horizons(cohort):
        figures.append(figure("AUC at a time", auc_at(risk, cohort, time, seed=seed), f"{time:.4g}{within}"))
    found: dict[str, Any] = {"notes": _notes(cohort), "curves": {}}
    groups = risk_groups(risk, cohort)
    found["curves"]["kaplan_meier"] = [
        {
            "of": f"{curve.name} risk" if len(groups.curves) == 2 else curve.name,
            "x": list(curve.times),
            "y": list(curve.survival),
            **{name: list(getattr(curve, name)) for name in ("low", "high", "at_risk")},
            "bags": curve.bags,
            "events": curve.events,
            "p": groups.p_value,
            "cuts": list(groups.cuts),
        }
        for curve in groups.curves
    ]
    if groups.reason:
        found["notes"].append(f"no groups by risk: {groups.reason}")
    if predictions.task == "survival" and predictions.times:
        calibration, curves = _alive(predictions, cohort, seed)
        figures += calibration["figures"][:1]
        found |= {"calibration": calibration, "curves": {**found["curves"], "reliability": curves}}
    return {**found, "figures": figures}


def pairs_of(predictions: Predictions) -> str:
    """Which pairs of bags are compared: "within folds" where risks of different folds have no common zero, else ""."""
    return "within folds" if predictions.task == "cox" and several_folds(predictions) is not None else ""


def time_headline(predictions: Predictions) -> float | None:
    """Harrell's c-index alone."""
    value = float(time_statistic(predictions)(np.ones((1, len(predictions))))[0])
    return None if np.isnan(value) else value


def time_statistic(predictions: Predictions) -> Statistic:
    """Harrell's c-index under rows of weights."""
    cohort = _cohort(predictions)
    wins = _wins(predictions.outputs[:, 0], cohort)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        won = weights.astype(np.float32) @ wins
        return _ratio((won * weights).sum(axis=1), (_comparable(cohort, weights) * weights).sum(axis=1))

    return statistic


def _cohort(predictions: Predictions) -> Followed:
    """The bags followed up; a partial likelihood leaves every fold's network a zero of its own, so Cox keeps folds."""
    folds = several_folds(predictions) if predictions.task == "cox" else None
    return followed(predictions.truth.astype(np.float64), predictions.patients, folds)


def _alive(predictions: Predictions, cohort: Followed, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How far predicted chances to live past each horizon are from what was seen."""
    alive, times = predictions.outputs[:, 1:], predictions.times
    # Past the last follow-up nothing is known, and at least one bag must outlive a horizon for its score
    inside = [k for k, time in enumerate(times) if len(cohort) and time < cohort.time.max()]
    whole = integrated_brier(alive[:, inside], cohort, [times[k] for k in inside], seed=seed) if inside else None
    rows = [] if whole is None else [figure("integrated Brier score", whole, f"to {times[inside[-1]]:.4g}", "lower")]
    rows += [
        figure("Brier score at a time", brier_at(alive[:, k], cohort, times[k], seed=seed), f"{times[k]:.4g}", "lower")
        for k in inside
    ]
    curves = []
    for k in inside:
        bins = horizon_calibration(alive[:, k], cohort, times[k])
        values = {field: [getattr(one, field) for one in bins] for field in ("observed", "low", "high")}
        named = {"of": f"{times[k]:.4g}", "when": "as given", "x": [one.predicted for one in bins], **values}
        curves.append({**named, "count": [one.bags for one in bins]})
    return {"stated": predictions.calibrated, "figures": rows, "recalibrated": None}, [c for c in curves if c["x"]]


def _horizons(cohort: Followed) -> list[float]:
    """Quartiles of the times at which events were seen, each once."""
    times = cohort.time[cohort.event]
    return sorted(set(np.quantile(times, [0.25, 0.5, 0.75]).tolist())) if len(times) else []


def _notes(cohort: Followed) -> list[str]:
    events, notes = int(cohort.event.sum()), [f"{int(cohort.event.sum())} events among {len(cohort)} bags"]
    if 0 < events < 20:
        notes.append(f"{events} events are few: intervals are themselves unsure")
    if len(set(cohort.patients)) < len(cohort):
        notes.append("Kaplan-Meier bands and the log-rank test take bags as independent, though some share a patient")
    return notes
