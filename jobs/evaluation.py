"""Predictions of a run against the labels of its manifest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding.contract import contract_name
from wsi.errors import ManifestError, StoreError
from wsi.publish import write_json

from .folder import RunFolder
from .manifest import SlideRecord
from .model_stages import model_mark, open_model, table_rows
from .stages import open_fitting

if TYPE_CHECKING:
    from mil.model import TrainedModel


def evaluate_run(
    records: Sequence[SlideRecord], model_path: str, folder: RunFolder, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Metrics over all labelled and predicted slides → predictions/<model>.evaluation.json; returns its content.

    Empty and failed slides have no class: they are counted in the notes, not in the figures. `extra` is kept with them.
    Raises ManifestError without labels, StoreError without predictions.
    """
    from mil.metrics import evaluate

    model = open_model(model_path)
    rows = read_predictions(folder, model)
    labelled = [record for record in records if record.label is not None]
    if not labelled:
        raise ManifestError("label", "no slide has one", "add a `label` column to the manifest")
    judged = [record for record in labelled if rows.get(record.slide_id, {}).get("status") == "done"]
    if not judged:
        raise StoreError(
            folder.predictions(model.name), "none of the labelled slides is predicted", "run `wsi predict` first"
        )
    _check_current(judged, rows, model, folder)
    softmax = np.array([[float(rows[r.slide_id][f"softmax_{name}"]) for name in model.classes] for r in judged])
    origins = [rows[record.slide_id]["origin"] for record in judged]
    held_out = all(origin.startswith("held-out fold ") for origin in origins)
    folds = [int(origin.rsplit(" ", 1)[1]) for origin in origins] if held_out else None
    labels, patients = [str(record.label) for record in judged], [record.patient_id for record in judged]
    metrics = evaluate(labels, softmax, model.classes, patients, folds)
    result = {
        "model": model.name,
        "model_mark": model_mark(model),
        "metrics": metrics.as_dict(),
        "cross_validated": held_out,
        "notes": _notes(labelled, judged, rows, origins),
        **(extra or {}),
    }
    write_json(folder.evaluation(model.name), result)
    return result


def _check_current(
    records: Sequence[SlideRecord], rows: dict[str, dict[str, str]], model: "TrainedModel", folder: RunFolder
) -> None:
    """Raise StoreError for predictions of embeddings, or embeddings of tiles, that have been made anew since."""
    where = contract_name(dict(model.contract))
    for record in records:
        path = folder.embeddings(where, record.slide_id)
        if (
            path.exists()
            and open_fitting(path, folder, record.slide_id).fingerprint != rows[record.slide_id]["embeddings"]
        ):
            raise StoreError(record.slide_id, "its embeddings have been made anew since", "run `wsi predict` again")


def read_predictions(folder: RunFolder, model: "TrainedModel") -> dict[str, dict[str, str]]:
    """slide_id → its row of predictions/<model>.csv. Raises StoreError where there are none of this very model."""
    path, mark = folder.predictions(model.name), model_mark(model)
    rows = {row["slide_id"]: row for row in table_rows(path) if row.get("model") == mark}
    if not rows:
        problem = "its predictions are of another model of this name" if path.exists() else "there are no predictions"
        raise StoreError(path, problem, "run `wsi predict` first")
    return rows


def _notes(
    labelled: Sequence[SlideRecord], judged: Sequence[SlideRecord], rows: dict[str, dict[str, str]], origins: list[str]
) -> list[str]:
    notes = []
    for status, what in (("empty", "have no tissue"), ("failed", "failed")):
        ids = [record.slide_id for record in labelled if rows.get(record.slide_id, {}).get("status") == status]
        if ids:
            notes.append(f"{len(ids)} labelled slides {what} and are not judged: {', '.join(ids[:10])}")
    unknown = (
        len(labelled) - len(judged) - sum(r.slide_id in rows and rows[r.slide_id]["status"] != "done" for r in labelled)
    )
    if unknown:
        notes.append(f"{unknown} labelled slides are not in the table of predictions")
    seen = sum(origin.startswith("held-out") for origin in origins)
    if seen and seen < len(origins):
        notes.append(
            f"{seen} of {len(origins)} slides are of the training cohort and were judged by the model that did not see "
            "them; the others are new"
        )
    return notes
