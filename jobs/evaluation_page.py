"""A judgement, as `evaluate_table` and `evaluate_run` give it, laid out as the evaluation report."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from heatmaps.evaluation_report import (
    CalibrationRow,
    Case,
    ComparedRow,
    Comparison,
    CountTable,
    EvaluationReport,
    FigureRow,
    FlowStep,
    GroupRow,
    GroupTable,
    PointRow,
)
from heatmaps.report import Confusion, Headline

from .evaluation_charts import charts_of

QUESTIONS = {
    "classification": "How well does the model tell {classes} apart?",
    "ordinal": "How well does the model grade from {classes}?",
    "multilabel": "How well does the model find {classes}?",
    "regression": "How close do the model's numbers come to what was measured?",
    "cox": "How well do the model's risks order the times to the event?",
    "survival": "How well do the model's risks order the times to the event, and do its survival chances hold?",
}
_POINT = {"ppv": "PPV", "npv": "NPV"}


def page_of(
    result: Mapping[str, Any],
    facts: Mapping[str, Any],
    cases: Sequence[Case] = (),
    more: Mapping[str, str] | None = None,
    synthetic: bool = False,
) -> EvaluationReport:
    """The report of a judgement.

    result  metrics, flow and notes; before_calibration, comparison, cohort, cases, tables, columns where there are any
    facts   command, started and versions of `folder.run_facts`
    cases   worst errors with their pictures; without them the ones that the result lists
    more    further facts of how it was made: contract, splits' hash, licences
    """
    metrics = result["metrics"]
    names = metrics["classes"]
    listed = ", ".join(names[:-1]) + (f" and {names[-1]}" if names else "")
    return EvaluationReport(
        title=f"Evaluation of {result.get('model') or _name(result)}",
        created=datetime.fromisoformat(facts["started"]),
        command=facts["command"],
        question=QUESTIONS[metrics["task"]].format(classes=listed.lstrip(", ")) + _positive(metrics),
        headline=row_of(metrics["headline"]),
        slides=metrics["bags"],
        patients=metrics["patients"],
        noun=result.get("noun", "slides"),
        flow_noun=result.get("flow_noun", "slides"),
        synthetic=synthetic,
        cards=_cards(metrics),
        flow=[FlowStep(**step) for step in result.get("flow", [])],
        cohort=[_counts(table) for table in result.get("cohort", [])],
        splits=_splits(result, more or {}),
        figures=[row_of(figure) for figure in [*metrics["figures"], *_places(result)]],
        folds=[(f"fold {fold}", value) for fold, value in zip(metrics["folds"], metrics["per_fold"], strict=True)],
        confusion=Confusion(**metrics["confusion"], rule="the likeliest class") if metrics["confusion"] else None,
        charts=charts_of(metrics, result.get("before_calibration")),
        **calibration_of(metrics, result.get("before_calibration")),
        points=[_point(point) for point in metrics["operating_points"]],
        subgroups=[_groups(table) for table in metrics["subgroups"]],
        **_sets(metrics["conformal"]),
        comparison=_comparison(result.get("comparison")),
        cases=cases or [Case(c["id"], c["truth"], c["said"], c["detail"]) for c in result.get("cases", [])],
        cases_text="The predictions that are furthest from the truth, the worst first. Look at them before the figures "
        "are believed: a wrong label, a poor scan and a real failure look the same in a table.",
        notes=[*result.get("notes", []), *metrics["notes"]],
        facts={**_facts(result, facts), **(more or {})},
    )


def row_of(figure: Mapping[str, Any]) -> FigureRow:
    """A figure of `judge_parts.figure` as a row of the page."""
    kept = ("name", "value", "low", "high", "of", "unit", "better", "method", "reason")
    return FigureRow(**{name: figure[name] for name in kept})


def _places(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Figures of heatmaps against drawn regions, where there are any."""
    found: Sequence[Mapping[str, Any]] = (result.get("localisation") or {}).get("figures", [])
    return found


def _positive(metrics: Mapping[str, Any]) -> str:
    return f" The positive class is {metrics['positive']}." if metrics["positive"] else ""


def _name(result: Mapping[str, Any]) -> str:
    return str(result["tables"]["predictions"]["name"]) if result.get("tables") else "a model"


def _cards(metrics: Mapping[str, Any]) -> list[Headline]:
    """The few figures beside the headline that most readers ask for first."""
    wanted = ("AUPRC", "balanced accuracy", "F1 at 0.5", "MAE", "Pearson's r", "linear kappa")
    found = {}
    for figure in metrics["figures"][1:]:
        if figure["name"] in wanted and figure["value"] is not None and figure["name"] not in found:
            detail = ""
            if figure["low"] is not None:
                detail = f"95 % interval {figure['low']:.3f} to {figure['high']:.3f}"
            found[figure["name"]] = Headline(_titled(figure), f"{figure['value']:.3f}", detail)
    cards = list(found.values())[:2]
    errors = [f for f in metrics["calibration"].get("figures", []) if f["name"] == "ECE" and f["value"] is not None]
    if errors:
        said = "of probabilities" if metrics["calibration"].get("stated") else "of outputs that were not calibrated"
        cards.append(Headline("Calibration error (ECE)", f"{errors[0]['value']:.3f}", said))
    return cards


def _titled(figure: Mapping[str, Any]) -> str:
    return f"{figure['name']} · {figure['of']}" if figure["of"] else str(figure["name"])


def _counts(table: Mapping[str, Any]) -> CountTable:
    return CountTable(table["column"], [(row["name"], row["bags"], row["patients"]) for row in table["rows"]])


def _splits(result: Mapping[str, Any], more: Mapping[str, str]) -> dict[str, str]:
    metrics = result["metrics"]
    if not metrics["folds"]:
        how = "the table names none: whether the model was trained on these patients cannot be told from it"
        return {"Folds": more.get("Folds", how)}
    leak = [note for note in metrics["notes"] if note.startswith("patients lie in more than one fold")]
    mean = metrics["mean_of_folds"]
    return {
        "Folds": f"{len(metrics['folds'])}; every prediction is taken as that of the fold's own model, which "
        + ("may have seen the patient: patients lie in several folds" if leak else "did not see the patient"),
        "Leakage check": leak[0] if leak else "no patient lies in two folds",
        f"{metrics['headline']['name']}, mean of folds": "–" if mean is None else f"{mean:.3f}",
    }


def calibration_of(metrics: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rows of calibration's figures, before and after, and the sentence above them.

    before: the judgement of the raw outputs, where `metrics` is of the calibrated ones.
    """
    found = metrics["calibration"]
    if not found:
        missing = metrics["task"] in ("classification", "ordinal", "multilabel")
        text = "The outputs are no probabilities: nothing can be said of their calibration." if missing else ""
        return {"calibration": [], "calibration_text": text}
    now, after = found["figures"], None
    if before and before.get("calibration"):
        now, after = before["calibration"]["figures"], found["figures"]
        text = "Before: the outputs as they come. After: calibrated on bags that the model was not trained on."
    elif found.get("recalibrated"):
        after = found["recalibrated"]["figures"]
        text = (
            "The outputs are not said to be calibrated. Before: as they are. After: what dividing their logits by one "
            f"number would make of them ({found['recalibrated']['method']})."
        )
    elif found["stated"]:
        text = "The outputs are said to be probabilities; here is how true that is."
    else:
        text = "The outputs as they are; they were not calibrated."
    later = {(figure["name"], figure["of"]): figure for figure in after or ()}
    pairs = [(figure, later.get((figure["name"], figure["of"]))) for figure in now]
    rows = [CalibrationRow(row_of(figure), row_of(other) if other else None) for figure, other in pairs]
    return {"calibration": rows, "calibration_text": text}


def _point(point: Mapping[str, Any]) -> PointRow:
    notes = [f"PPV and NPV at a prevalence of {point['prevalence']:.3g}"] if point["prevalence"] is not None else []
    notes += [f"{point['left_out']} left out"] if point["left_out"] else []
    notes += [point["reason"]] if point["reason"] else []
    counts = tuple(int(point["counts"][name]) for name in ("tp", "fp", "tn", "fn"))
    figures = [row_of(figure) for figure in point["figures"]]
    method = point["figures"][0]["method"]
    cuts = point["thresholds"]
    return PointRow(point["of"], point["name"], cuts, point["chosen"], counts, figures, method, "; ".join(notes))  # type: ignore[arg-type]


def _groups(table: Mapping[str, Any]) -> GroupTable:
    rows = [
        GroupRow(
            group["name"],
            group["bags"],
            group["patients"],
            group["prevalence"],
            [row_of(figure) for figure in group["figures"]],
            [row_of(figure["difference"]) for figure in group["figures"]],
            [figure["p_holm"] for figure in group["figures"]],
            group["reason"],
        )
        for group in table["groups"]
    ]
    return GroupTable(table["column"], rows, table["multiplicity"], table["unknown"], table["threshold_is"] or "")


def _sets(conformal: Mapping[str, Any]) -> dict[str, Any]:
    if "figures" not in conformal:
        return {"sets_text": f"There are no prediction sets: {conformal['reason']}."} if conformal.get("reason") else {}
    abstain = conformal["abstain"]
    sets = (
        f"For each case the set of classes that a threshold from {conformal['fitted_on']} leaves possible; it is to "
        f"hold the true one in {1 - conformal['alpha']:.0%} of cases like these."
    )
    silent = (
        f"The model answers only above a confidence, chosen on {conformal['fitted_on']} so that at most "
        f"{abstain['risk']:.0%} of its answers are wrong (with a chance of {1 - abstain['delta']:.0%})."
    )
    if abstain["reason"]:
        silent += f" Where none could be chosen it keeps silent: {abstain['reason']}."
    return {
        "sets": [row_of(figure) for figure in conformal["figures"]],
        "sets_text": sets,
        "abstain": [row_of(figure) for figure in (*abstain["figures"], conformal["aurc"])],
        "abstain_text": silent,
    }


def _comparison(found: Mapping[str, Any] | None) -> Comparison | None:
    if not found:
        return None
    rows = [
        ComparedRow(_titled(row), row["first"], row["second"], row_of(row["difference"]), row["p"], row["method"])
        for row in found["figures"]
    ]
    text = f"On the {found['bags']} bags of {found['patients']} patients that both predict. {found['multiplicity']}."
    text += "".join(f" {note[0].upper()}{note[1:]}." for note in found["notes"])
    if found["only_first"] or found["only_second"]:
        text += f" {found['only_first']} are only in this table, {found['only_second']} only in the other."
    return Comparison(found["other"], rows, text)


def _facts(result: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for role, table in result.get("tables", {}).items():
        shown[f"Table: {role}"] = f"{table['name']}, sha256 {table['sha256']}"
    if result.get("columns"):
        shown["Columns read"] = "; ".join(f"{role}: {name}" for role, name in result["columns"].items())
    if "seed" in result:
        shown["Seed"] = f"{result['seed']}: the same tables give the same figures"
    shown["Software"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    if facts.get("revision"):
        shown["Revision"] = facts["revision"]
    return shown
