"""Predictions of a run against the truth in its manifest."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi.errors import ManifestError, StoreError
from wsi.publish import write_json

from .bags import bag_id, columns_of, mark_of, with_truth
from .features import names_of
from .folder import RunFolder
from .manifest import SlideRecord
from .model_stages import open_model
from .prediction_table import read_predictions
from .training import grouped

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.evaluation.judge import JudgeSpec
    from mil.evaluation.predictions import Predictions
    from mil.model import TrainedModel

Rows = dict[str, dict[str, str]]


def evaluate_run(
    records: Sequence[SlideRecord],
    model_path: str,
    folder: RunFolder,
    extra: dict[str, Any] | None = None,
    options: "JudgeSpec | None" = None,
) -> dict[str, Any]:
    """Figures over all labelled and predicted bags → predictions/<model>.evaluation.json; returns its content.

    Empty and failed slides have no prediction: they are counted in `flow`, not in the figures. `extra` is kept with
    them. Raises ManifestError without labels, StoreError without predictions.
    """
    from mil.evaluation.judge import judge

    model = open_model(model_path)
    rows = read_predictions(folder, model)
    labelled = with_truth(records, model.task.spec, model.training.level)
    if not labelled:
        raise ManifestError(model.task.spec.target, "no slide has one", "add such a column to the manifest")
    done = [record for record in labelled if rows.get(record.slide_id, {}).get("status") == "done"]
    judged = with_truth(done, model.task.spec, model.training.level)
    if not judged:
        raise StoreError(
            folder.predictions(model.name), "none of the labelled slides is predicted", "run `wsi predict` first"
        )
    _check_current(judged, rows, model, folder)
    predictions = predictions_of(judged, rows, model)
    options, told = with_locked_thresholds(model, predictions, options)
    origins = [rows[record.slide_id]["origin"] for record in judged]
    result = {
        "model": model.name,
        "model_mark": model.mark,
        "metrics": judge(predictions, options=options),
        "before_calibration": _uncalibrated(judged, rows, model) if predictions.calibrated else None,
        "cross_validated": predictions.folds is not None,
        "flow": flow(records, labelled, judged, rows),
        "notes": [*_notes(labelled, judged, rows, origins), *told],
        **(extra or {}),
    }
    write_json(folder.evaluation(model.name), result)
    return result


def predictions_of(
    judged: Sequence[SlideRecord], rows: Rows, model: "TrainedModel", calibrated: bool | None = None
) -> "Predictions":
    """The rows of these slides as `mil.evaluation` takes them, one for each bag; probabilities where there are any.

    Those of the training cohort come from calibrators that were not fitted on them: see `mil.predict.calibrator_for`.
    """
    from mil.evaluation.predictions import Predictions

    task = model.task
    bags = grouped(judged, model.training.level)
    firsts = [rows[group[0].slide_id] for group in bags]
    if calibrated is None:
        calibrated = model.calibrator.method != "none"
    columns = [f"probability_{name}" for name in task.classes] if calibrated else list(task.columns)
    outputs = [_said(group, rows, columns) for group in bags]
    raw = np.array([_said(group, rows, task.columns) for group in bags], np.float64) if calibrated else None
    origins = [row["origin"] for row in firsts]
    held_out = all(origin.startswith("held-out fold") for origin in origins)
    described = [without_tiles(group) for group in bags]
    names = dict.fromkeys(name for bag in described for name in bag.columns)
    return Predictions(
        task=task.spec.name,
        classes=task.classes,
        ids=tuple(bag_id(group[0], model.training.level) for group in bags),
        patients=tuple(group[0].patient_id for group in bags),
        truth=task.truth(described),
        outputs=np.array(outputs, np.float64),
        folds=np.array([_first_fold(origin) for origin in origins], np.int64) if held_out else None,
        calibrated=calibrated,
        times=task.times,
        columns={name: tuple(bag.value(name) or "" for bag in described) for name in names},
        scores=raw,
        repeats=model.training.repeats if held_out else 1,
    )


def _said(group: Sequence[SlideRecord], rows: Rows, columns: Sequence[str]) -> list[float]:
    """What the table says of a bag. Raises StoreError where the rows of its slides are of bags of different slides."""
    first, *others = ([float(rows[record.slide_id][column]) for column in columns] for record in group)
    for record, other in zip(group[1:], others, strict=True):
        if not np.allclose(first, other, rtol=1e-3, atol=1e-4):  # the same but for rounding
            problem = f"it was predicted beside other slides than {group[0].slide_id}, which is of the same bag"
            raise StoreError(record.slide_id, problem, "run `wsi predict` on all of them again")
    return first


def with_locked_thresholds(
    model: "TrainedModel", predictions: "Predictions", options: "JudgeSpec | None"
) -> "tuple[JudgeSpec, list[str]]":
    """The options with the thresholds that each rule chose on the training cohort, for slides new to the model.

    Chosen on the very slides that are judged they would flatter. Of a cross-validation nothing is changed: there each
    fold's thresholds come from the others; nor of the test part of a fixed division, which no other bags speak for:
    thresholds chosen on it are said to flatter. Returns also what is to be told of it.
    """
    from mil.evaluation.judge import JudgeSpec
    from mil.evaluation.operating import Rule, threshold
    from mil.predict import held_out_cohort

    options = options or JudgeSpec()
    if predictions.folds is not None or predictions.task != "classification" or len(predictions.classes) != 2:
        return options, []
    held_out = [row for row in model.cohort if row.logits is not None]
    known = {name for row in held_out for name in (row.bag, *row.slide_ids, row.patient_id, row.case_id)}
    if known & {*predictions.ids, *predictions.patients}:
        return options, []
    probabilities, truth = held_out_cohort(model)
    locked, told = [], []
    for rule in options.rules:
        found = rule.at if rule.kind == "given" else threshold(truth == 1, probabilities[:, 1], rule)
        if found is not None and np.isfinite(found):
            locked.append(Rule("given", float(found)))
            if rule.kind != "given":
                asked = f"{rule.kind} {rule.at:g}" if rule.at is not None else rule.kind
                told.append(f"threshold {found:.4g} is the one that {asked} chose on the training cohort, out of fold")
    return replace(options, rules=tuple(dict.fromkeys(locked))), told


def without_tiles(group: Sequence[SlideRecord]) -> "Bag":
    """What the manifest says of the slides of one bag, as a bag without tiles."""
    from mil.bag import Bag, merge_bags

    nothing = (np.zeros((0, 1), np.float32), np.zeros((0, 2), np.int64), 1)
    return merge_bags(
        [Bag(*nothing, (r.slide_id,), r.label, r.patient_id, r.case_id, columns=columns_of(r)) for r in group]
    )


def flow(
    records: Sequence[SlideRecord], labelled: Sequence[SlideRecord], judged: Sequence[SlideRecord], rows: Rows
) -> list[dict[str, Any]]:
    """How many slides and patients came how far, and why others did not: the diagram of an evaluation."""
    kept = {record.slide_id for record in judged}
    lost: dict[str, list[str]] = {}
    for record in labelled:
        if record.slide_id not in kept:
            status = rows.get(record.slide_id, {}).get("status", "")
            why = {"empty": "no tissue", "failed": "failed", "": "not predicted"}.get(status, status)
            lost.setdefault(why, []).append(record.slide_id)
    without = [record.slide_id for record in records if record.slide_id not in {r.slide_id for r in labelled}]
    steps: tuple[tuple[str, Sequence[SlideRecord], dict[str, list[str]]], ...] = (
        ("in the manifest", records, {}),
        ("labelled", labelled, {"no label": without} if without else {}),
        ("predicted and judged", judged, lost),
    )
    return [
        {"step": step, "slides": len(kept), "patients": len({r.patient_id for r in kept}), "excluded": gone}
        for step, kept, gone in steps
    ]


def _first_fold(origin: str) -> int:
    return int(origin.partition("fold")[2].lstrip("s ").partition(",")[0])


def _uncalibrated(judged: Sequence[SlideRecord], rows: Rows, model: "TrainedModel") -> dict[str, Any]:
    """How far the outputs were from probabilities before they were calibrated."""
    from mil.evaluation.judge import judge

    raw: dict[str, Any] = judge(predictions_of(judged, rows, model, calibrated=False))
    return {"calibration": raw["calibration"], "curves": {"reliability": raw["curves"]["reliability"]}}


def _check_current(records: Sequence[SlideRecord], rows: Rows, model: "TrainedModel", folder: RunFolder) -> None:
    """Raise StoreError for predictions of embeddings, or embeddings of tiles, that have been made anew since."""
    names = names_of(model.contract)
    for record in records:
        there = all(folder.features(name, record.slide_id).exists() for name in names)
        if there and mark_of(record, names, folder) != rows[record.slide_id]["embeddings"]:
            raise StoreError(record.slide_id, "its embeddings have been made anew since", "run `wsi predict` again")


def _notes(labelled: Sequence[SlideRecord], judged: Sequence[SlideRecord], rows: Rows, origins: list[str]) -> list[str]:
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
