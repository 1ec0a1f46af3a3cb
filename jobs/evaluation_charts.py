"""Curves of a judgement as charts of the evaluation report."""

from collections.abc import Mapping, Sequence
from typing import Any

from heatmaps.charts import COLOURS, Axis, Chart, Series

MOST = 6  # curves in one chart; of more classes or labels the first


def charts_of(metrics: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Chart]:
    """ROC, precision-recall, reliability, decision, Kaplan-Meier and risk-coverage charts, those that there are.

    before: calibration's curves of the raw outputs, where the judged ones are calibrated.
    """
    curves = metrics["curves"]
    drawn = [_roc(metrics), _precision_recall(curves["precision_recall"])]
    drawn.append(_kaplan_meier(curves["kaplan_meier"]))
    survival = metrics["task"] == "survival"
    drawn += _reliability(curves["reliability"], (before or {}).get("curves", {}).get("reliability", []), survival)
    drawn += [_decision(curve, metrics["calibrated"]) for curve in curves["decision"]]
    drawn.append(_risk_coverage(curves["risk_coverage"]))
    return [chart for chart in drawn if chart is not None]


def _roc(metrics: Mapping[str, Any]) -> Chart | None:
    curves = metrics["curves"]["roc"][:MOST]
    values = {figure["of"]: figure for figure in metrics["figures"] if figure["name"] == "AUROC"}
    series = [Series(_area(curve["of"], values), _pairs(curve), colour=i) for i, curve in enumerate(curves)]
    if not series:
        return None
    axes = Axis("false positive rate (1 \N{MINUS SIGN} specificity)"), Axis("true positive rate (sensitivity)")
    return Chart("ROC curve", *axes, series, diagonal=True)


def _area(of: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    found = values.get(of)
    return of if found is None or found["value"] is None else f"{of}, AUROC {found['value']:.3f}"


def _precision_recall(curves: Sequence[Mapping[str, Any]]) -> Chart | None:
    if not curves:
        return None
    series = [Series(curve["of"], _pairs(curve), "step", colour=i) for i, curve in enumerate(curves[:MOST])]
    if len(curves) == 1:
        chance = curves[0]["prevalence"]
        series.append(Series(f"prevalence {chance:.3f}", [(0, chance), (1, chance)], "dashed", colour=None))
    return Chart("Precision and recall", Axis("recall (sensitivity)"), Axis("precision (PPV)"), series)


def _reliability(
    curves: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], survival: bool
) -> list[Chart]:
    """One chart for each class, label or horizon, with what it was before beside what it is after calibration."""
    found: dict[str, list[Series]] = {}
    raw = [curve for curve in before if curve["when"] == "as given"]  # not what a temperature would make of them
    for when, group in (("before calibration", raw), ("", curves)):
        for curve in group:
            name = when or ("calibrated" if before else curve["when"])
            band = list(zip(curve["x"], curve["low"], curve["high"], strict=True))
            points = list(zip(curve["x"], curve["observed"], strict=True))
            series = found.setdefault(curve["of"], [])
            series.append(Series(name, points, "points", band, colour=len(series) % COLOURS))
    note = "A point is a tenth of the range, with the 95 % interval of what was seen. On the diagonal, 30 % means 30 %."
    axes, what = (Axis("predicted"), Axis("observed share")), "Reliability"
    if survival:
        axes, what = (Axis("predicted chance"), Axis("observed (Kaplan-Meier)")), "Reliability of survival past"
        note = "A point is a quarter of the bags, with the 95 % interval of what was seen."
    sep = " " if survival else ": "
    return [
        Chart(f"{what}{sep}{of}", *axes, series, diagonal=True, note=note) for of, series in list(found.items())[:MOST]
    ]


def _decision(curve: Mapping[str, Any], calibrated: bool) -> Chart:
    x = curve["x"]
    top = max(0.05, *curve["model"], *curve["treat_all"][:1], *(curve["high"] or ()))
    band = list(zip(x, curve["low"], curve["high"], strict=True)) if curve["low"] else []
    series = [
        Series("by the model", list(zip(x, curve["model"], strict=True)), band=band, colour=0),
        Series("treat all", list(zip(x, curve["treat_all"], strict=True)), "dashed", colour=1),
        Series("treat none", [(0, 0), (1, 0)], "dashed", colour=None),
    ]
    note = "Useful where the model lies above both other lines, at the threshold at which one would act."
    if not calibrated:
        note += " The outputs are not said to be calibrated: a threshold is then of what they say, not of a chance."
    y = Axis("net benefit", -0.25 * top, 1.05 * top)
    return Chart(f"Decision curve: {curve['of']}", Axis("threshold probability"), y, series, note=note)


def _kaplan_meier(curves: Sequence[Mapping[str, Any]]) -> Chart | None:
    if not curves:
        return None
    last = max(curve["x"][-1] for curve in curves)
    series = [
        Series(
            f"{curve['of']}: {curve['bags']}, {curve['events']} events",
            _pairs(curve),
            "step",
            list(zip(curve["x"], curve["low"], curve["high"], strict=True)),
            colour=i,
        )
        for i, curve in enumerate(curves)
    ]
    p = curves[0]["p"]
    whose = "these very bags" if len(curves[0]["cuts"]) == 1 else "each fold's very bags"
    note = f"Parted at the median risk of {whose}."
    note += "" if p is None else f" Log-rank test: p {p:.2g}." if p >= 0.001 else " Log-rank test: p < 0.001."
    x = Axis("time", 0, last if last > 0 else 1)
    return Chart("Survival by predicted risk (Kaplan-Meier)", x, Axis("without the event"), series, note=note)


def _risk_coverage(curves: Sequence[Mapping[str, Any]]) -> Chart | None:
    if not curves:
        return None
    worst = max(curves[0]["y"])
    series = [Series("", _pairs(curves[0]), "step")]
    y = Axis("share of answers that are wrong", 0, max(0.1, min(1.0, 1.15 * worst)))
    note = "If only the most confident answers are given: how many of them are wrong."
    return Chart("Risk and coverage", Axis("share that is answered"), y, series, note=note)


def _pairs(curve: Mapping[str, Any]) -> list[tuple[float, float]]:
    return list(zip(curve["x"], curve["y"], strict=True))
