"""Anyone's table of predictions, judged against anyone's table of truths: figures, tables and a page."""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mil.evaluation.judge import JudgeSpec, compare, judge
from mil.evaluation.judge_cases import cohort, worst_cases
from mil.evaluation.table_join import Joined, read_joined
from mil.evaluation.table_truth import TableSpec
from wsi.errors import SpecError
from wsi.publish import appear_file, write_json

from .prediction_table import as_cell

FIGURES = ("section", "name", "of", "value", "low", "high", "unit", "better", "resamples", "method", "reason")
GROUPS = (
    *("column", "group", "bags", "patients", "prevalence", "figure", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "reason"),
)


@dataclass(frozen=True, slots=True)
class TableJob:
    """What is judged, and how. other: a second table of predictions of the same bags, to be compared with."""

    predictions: Path
    manifest: Path
    table: TableSpec = field(default_factory=TableSpec)
    options: JudgeSpec = field(default_factory=JudgeSpec)
    other: Path | None = None
    seed: int = 0


def evaluate_table(job: TableJob) -> dict[str, Any]:
    """Judge a table: what goes to evaluation.json.

    metrics     see `mil.evaluation.judge`
    flow        from the manifest to the bags that are judged, with who was left out
    comparison  with the other table, or None
    cohort, cases  who was judged, and the worst errors
    noun, flow_noun  what was judged and what the manifest lists: slides, cases, patients or rows
    tables      names and digests of what was read; columns: what was read in them
    Raises ManifestError for tables that cannot be judged and SpecError for options that do not fit them.
    """
    joined = read_joined(job.predictions, job.manifest, job.table)
    predictions = joined.predictions
    missing = [name for name in job.options.subgroups if name not in predictions.columns]
    if missing:
        known = ", ".join(predictions.columns) or "none"
        raise SpecError("--by", f"{job.manifest} has no column {missing[0]!r}", f"choose among: {known}")
    given = {"predictions": job.predictions, "manifest": job.manifest, "compared with": job.other}
    return {
        "metrics": judge(predictions, job.seed, job.options),
        "before_calibration": None,
        "cross_validated": predictions.folds is not None,
        "flow": [step.as_dict() for step in joined.flow],
        "comparison": _comparison(job, joined),
        "cohort": cohort(predictions, job.options.subgroups),
        "cases": worst_cases(predictions),
        "noun": _noun(joined.columns["id"]),
        "flow_noun": _noun(joined.columns["joined by"]),
        "tables": {role: {"name": path.name, "sha256": _digest(path)} for role, path in given.items() if path},
        "columns": dict(joined.columns),
        "notes": [*joined.notes, *_left_out(joined)],
        "options": asdict(job.options),
        "seed": job.seed,
    }


def write_evaluation(result: Mapping[str, Any], out: Path, facts: Mapping[str, Any]) -> Path:
    """Write evaluation.json, figures.csv, subgroups.csv and index.html into `out`; returns the page's path.

    facts: command, started and versions, as `folder.run_facts` gives them.
    """
    from heatmaps.evaluation_report import write_evaluation_report

    from .evaluation_page import page_of

    if out.exists() and not out.is_dir():
        raise SpecError(out, "it is a file", "give a folder with -o")
    write_json(out / "evaluation.json", {**result, "facts": facts})
    write_rows(out / "figures.csv", FIGURES, figure_rows(result["metrics"]))
    write_rows(out / "subgroups.csv", GROUPS, group_rows(result["metrics"]))
    write_evaluation_report(page_of(result, facts), out / "index.html")
    return out / "index.html"


def figure_rows(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every figure of a judgement, one a row, with the section it belongs to."""
    sections: list[tuple[str, Sequence[Mapping[str, Any]]]] = [("figures", metrics["figures"])]
    sections += [(f"threshold: {point['name']}", point["figures"]) for point in metrics["operating_points"]]
    calibration, sets = metrics["calibration"], metrics["conformal"]
    sections.append(("calibration", calibration.get("figures", [])))
    if again := calibration.get("recalibrated"):
        sections.append((f"calibration after {again['method']}", again["figures"]))
    sections.append(("prediction sets", sets.get("figures", [])))
    sections.append(("abstaining", sets.get("abstain", {}).get("figures", [])))
    for section, figures in sections:
        for figure in figures:
            yield {"section": section, **figure}


def group_rows(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every figure of every subgroup, one a row; a group that is not judged has one row with its reason."""
    for table in metrics["subgroups"]:
        for group in table["groups"]:
            known = {name: group[name] for name in ("bags", "patients", "prevalence", "reason")}
            row = {"column": table["column"], "group": group["name"], **known}
            if not group["figures"]:
                yield row
            for one in group["figures"]:
                apart = one["difference"]
                reasons = "; ".join(dict.fromkeys(r for r in (one["reason"], apart["reason"]) if r))
                values = {name: one[name] for name in ("value", "low", "high", "p", "p_holm")}
                differs = {"": apart["value"], "_low": apart["low"], "_high": apart["high"]}
                named = {f"difference{end}": value for end, value in differs.items()}
                yield {**row, "figure": one["name"], **values, **named, "reason": reasons}


def write_rows(path: Path, columns: Sequence[str], rows: Iterator[dict[str, Any]]) -> None:
    """A CSV of these columns; texts that a spreadsheet would run are quoted."""
    with appear_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows([as_cell(row.get(column)) for column in columns] for row in rows)


def _comparison(job: TableJob, joined: Joined) -> dict[str, Any] | None:
    if job.other is None:
        return None
    other = read_joined(job.other, job.manifest, job.table).predictions
    return {"other": job.other.name, **compare(joined.predictions, other, job.seed)}


def _left_out(joined: Joined) -> list[str]:
    found = []
    for step in joined.flow:
        for reason, ids in step.excluded.items():
            shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            found.append(f"{len(ids)} not judged, {reason}: {shown}")
    return found


def _noun(column: str) -> str:
    """What the rows that a column names are called."""
    return {"slide_id": "slides", "case_id": "cases", "patient_id": "patients"}.get(column.casefold(), "rows")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
