"""predictions/<model>.csv: one row for every slide that was asked for."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.errors import StoreError
from wsi.publish import appear_file

from .bags import bag_id
from .folder import RunFolder
from .manifest import SlideRecord
from .receipts import FAILED

if TYPE_CHECKING:
    from mil.model import TrainedModel

FORMULA = re.compile(r"^'([=+\-@])")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_WHO = ["slide_id", "case_id", "patient_id", "bag", "status", "predicted"]
_DOUBT = ["spread", "set", "abstains", "flags", "origin"]
_FACTS = ["slides", "tiles", "failed_tiles", "mpp", "mpp_source", "contract", "model", "embeddings", "problem"]


def write_predictions(
    records: Sequence[SlideRecord], model: "TrainedModel", folder: RunFolder, failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for every slide asked for, also those that are empty or failed. Returns them.

    failed  slide_id → problem, of the slides that did not come through
    Rows of other slides, from earlier commands on the same run folder, stay if they are of the same model: a table
    that mixes a model with one of the same name, or with itself before it was trained anew, would judge neither.
    """
    calibrated = model.calibrator.method != "none"
    said = [*model.task.columns, *(f"probability_{name}" for name in model.classes if calibrated)]
    columns, mark, rows = [*_WHO, *said, *_DOUBT, *_FACTS], model.mark, []
    for record in records:
        path = folder.predictions(model.name).with_suffix("") / f"{record.slide_id}.json"
        made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        row: dict[str, Any] = {"slide_id": record.slide_id, "case_id": record.case_id, "patient_id": record.patient_id}
        row |= {"model": mark, "bag": bag_id(record, model.training.level)}
        if record.slide_id in failed or made.get("model") != mark:
            row |= {"status": FAILED, "problem": failed.get(record.slide_id, "not predicted")}
        else:
            row |= {key: value for key, value in made.items() if key in columns}
            row |= {key: f"{value:.9g}" for key, value in {**made["output"], **made["probability"]}.items()}
            row |= {key: "; ".join(made[key]) for key in ("set", "flags")}
        rows.append({column: as_cell(row.get(column)) for column in columns})
    target, mine = folder.predictions(model.name), {row["slide_id"] for row in rows}
    others = [row for row in table_rows(target) if row["slide_id"] not in mine and row.get("model") == mark]
    rows_of_others = [{column: as_cell(row.get(column)) for column in columns} for row in others]
    with (
        appear_file(target) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(sorted([*rows_of_others, *rows], key=lambda row: row["slide_id"]))
    return rows


def read_predictions(folder: RunFolder, model: "TrainedModel") -> dict[str, dict[str, str]]:
    """slide_id → its row of predictions/<model>.csv. Raises StoreError where there are none of this very model."""
    path, mark = folder.predictions(model.name), model.mark
    rows = {row["slide_id"]: row for row in table_rows(path) if row.get("model") == mark}
    if not rows:
        problem = "its predictions are of another model of this name" if path.exists() else "there are no predictions"
        raise StoreError(path, problem, "run `wsi predict` first")
    return rows


def table_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of predictions, none if there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{key: FORMULA.sub(r"\1", value) for key, value in row.items()} for row in csv.DictReader(stream)]


def as_cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is written as text; `table_rows` takes the quote away again.

    A negative number stays one: for whoever reads the table, a risk of '-0.5 would be a text.
    """
    if isinstance(value, str) and value[:1] in list("=+-@") and not NUMBER.fullmatch(value):
        return f"'{value}"
    return "" if value is None else value
