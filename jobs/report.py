"""Gather what a run folder holds into the report that a person opens first."""

import io
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heatmaps.overlay import thumbnail_jpeg
from heatmaps.report import (
    MAX_FIGURES,
    Baseline,
    Confusion,
    Evaluation,
    Failure,
    Figure,
    FoldRow,
    Headline,
    Interval,
    Report,
    RocCurve,
    SlideRow,
    StageRow,
    write_report,
)
from tiling.patches import PatchStore, open_patches
from wsi.synthetic import truth_path

from .heatmap_files import HeatmapFiles
from .heatmap_stage import heatmap_files
from .manifest import SlideRecord
from .model_stages import open_model
from .pipeline import Job
from .prediction_table import read_predictions
from .receipts import STATUSES

FIGURE_PX = 900
# what a browser can follow: not folders, as OME-Zarr is
LINKED = {"png": "PNG", "geojson": "GeoJSON", "regions": "regions", "contours": "contours", "ome-tiff": "OME-TIFF"}
DEMO_MODEL = "synthetic-tumor"  # the name that `wsi demo` gives its model


def make_report(
    job: Job,
    facts: dict[str, Any],
    evaluation: dict[str, Any] | None = None,
    title: str = "Slide report",
) -> str:
    """Write report/index.html of a job, with the figures of `evaluate_run` if it was judged; returns its path."""
    synthetic = all_synthetic(job.records)
    model = open_model(job.spec.model) if job.spec.model else None
    name = model.name if model else None
    predictions = read_predictions(job.folder, model) if model else {}
    whole = job.folder.evaluation_page(name).name if name and job.folder.evaluation_page(name).is_file() else None
    judged = _evaluation(evaluation, whole) if evaluation else None
    slides = _slides(job, predictions, name, labelled=evaluation is not None)
    report = Report(
        title=title,
        created=datetime.fromisoformat(facts["started"]),
        command=facts["command"],
        synthetic=synthetic,
        headlines=_headlines(job, slides, judged),
        stages=[_stage(stage, receipts) for stage, receipts in job.receipts.items()],
        facts=_facts(job, facts, model),
        evaluation=judged,
        slides=slides,
        figures=_figures(job, slides, name),
        failures=[Failure(r.slide_id, r.stage, r.problem, r.remedy, r.trace) for r in job.failed().values()],
        warnings=_warnings(model, evaluation, synthetic),
    )
    write_report(report, job.folder.report)
    return str(job.folder.report)


def all_synthetic(records: Sequence[SlideRecord]) -> bool:
    """Whether every slide was drawn by the generator, which writes a truth map beside each."""
    return all(isinstance(record.path, Path) and truth_path(record.path).exists() for record in records)


def _warnings(model: Any, evaluation: dict[str, Any] | None, synthetic: bool) -> list[str]:
    found = list(evaluation["notes"]) if evaluation else []
    if model is not None and model.name == DEMO_MODEL and not synthetic:
        found.append(
            "This model was trained on SYNTHETIC slides by `wsi demo`: on real tissue its classes mean nothing."
        )
    return found


def _headlines(job: Job, slides: Sequence[SlideRow], judged: Evaluation | None) -> list[Headline]:
    states = Counter(slide.status for slide in slides)
    detail = ", ".join(f"{states[state]} {state}" for state in STATUSES if states[state])
    found = [Headline("Slides", f"{len(slides):,}", detail)]
    found.append(Headline("Tiles", f"{sum(slide.tiles or 0 for slide in slides):,}", _scale(job)))
    if judged is not None:
        found.append(Headline(f"Slide {judged.figure}", f"{judged.auroc.value:.3f}", _interval(judged.auroc)))
        if judged.tile_auroc is not None:
            found.append(Headline("Tile AUROC", f"{judged.tile_auroc.value:.3f}", "heatmap against the truth map"))
        found += [
            Headline(f"Baseline: {b.name}", f"{b.auroc.value:.3f}", _interval(b.auroc)) for b in judged.baselines[:1]
        ]
    else:
        classes = Counter(slide.predicted for slide in slides if slide.predicted)
        found += [Headline(f"Predicted {name}", f"{count:,}", "slides") for name, count in classes.most_common(2)]
    return found


def _scale(job: Job) -> str:
    return f"{job.spec.tile.tile_px} px at {job.spec.tile.mpp:g} µm/px"


def _interval(estimate: Interval) -> str:
    return (
        f"95 % interval {estimate.low:.3f} to {estimate.high:.3f}"
        if estimate.low is not None and estimate.high is not None
        else ""
    )


def _stage(stage: str, receipts: Sequence[Any]) -> StageRow:
    counts = Counter(receipt.status for receipt in receipts)
    seconds = sum(receipt.seconds for receipt in receipts)
    return StageRow(stage, counts["done"], counts["empty"], counts["skipped"], counts["failed"], seconds)


def _facts(job: Job, facts: dict[str, Any], model: Any) -> dict[str, str]:
    spec, versions, backbone = job.spec, facts["versions"], job.spec.embed.entry()
    shown = {
        "Tiles": f"{spec.tile.tile_px} px at {spec.tile.mpp:g} µm/px, at least {spec.tile.min_tissue:.0%} tissue",
        "Backbone": f"{backbone.name}, trained on {backbone.domain}; {backbone.dim} numbers a tile; "
        f"licence {backbone.licence}",
    }
    if model is not None:
        shown["Model"] = f"{model.name}: {model.head.name}, {len(model.weights)} folds, {_what(model.task)}"
        shown["Contract"] = model.contract_hash
        shown["Output"] = _calibration(model)
    shown["Versions"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if facts["revision"]:
        shown["Revision"] = facts["revision"]
    shown["Machine"] = f"{facts['machine']['system']}, {facts['machine']['cpus']} processors"
    return shown


def _slides(job: Job, predictions: dict[str, dict[str, str]], model: str | None, labelled: bool) -> list[SlideRow]:
    """A row for every slide, those that look most like the class of interest first."""
    failed = job.failed()
    tiles = {receipt.slide_id: receipt for receipt in job.receipts.get("tile", [])}
    rows = []
    for record in job.records:
        found = predictions.get(record.slide_id, {})
        receipt = tiles.get(record.slide_id)
        state = (
            "failed"
            if record.slide_id in failed
            else found.get("status") or ("done" if receipt and receipt.tiles else "empty")
        )
        softmax = _outputs(found)
        shown = heatmap_files(found, job.folder, model) if model is not None and state == "done" else {}
        rows.append(
            SlideRow(
                record.slide_id,
                state,
                record.label if labelled else None,
                found.get("predicted") or None,
                softmax,
                int(found.get("tiles") or (receipt.tiles if receipt else 0)),
                int(found.get("failed_tiles") or 0),
                {LINKED[kind]: f"../heatmaps/{model}/{shown[kind].name}" for kind in LINKED if kind in shown},
            )
        )
    return sorted(
        rows, key=lambda row: (list(STATUSES).index(row.status), -list(row.softmax.values())[-1] if row.softmax else 0)
    )


def _outputs(row: dict[str, str]) -> dict[str, float]:
    """What the table says of a slide by class: probabilities where there are any, else softmax; or its one number."""
    for kind in ("probability_", "softmax_", "sigmoid_"):
        said = {key.removeprefix(kind): float(text) for key, text in row.items() if key.startswith(kind) and text}
        if said:
            return said
    return {key: float(row[key]) for key in ("value", "risk") if row.get(key)}


def _figures(job: Job, slides: Sequence[SlideRow], model: str | None) -> list[Figure]:
    figures: list[Figure] = []
    for row in slides:
        if len(figures) == MAX_FIGURES:
            break
        shown = HeatmapFiles.of(job.folder, model, row.slide_id).by_format() if model and row.softmax else {}
        if row.files and "png" in shown:
            caption = ", ".join(f"{name} {value:.3f}" for name, value in row.softmax.items())
            picture = thumbnail_jpeg(shown["png"], FIGURE_PX)
            figures.append(Figure(row.slide_id, picture, caption))
        elif row.status in ("done", "empty") and job.folder.tiles(row.slide_id).exists():
            store = open_patches(job.folder.tiles(row.slide_id))
            area = f"{store.attrs['tissue_um2'] / 1e6:.1f} mm² of tissue, {len(store.grid):,} tiles"
            figures.append(Figure(row.slide_id, tissue_picture(store), area))
    return figures


def tissue_picture(store: PatchStore) -> bytes:
    """The thumbnail with everything that is not tissue faded, as JPEG."""
    pixels, glass = store.thumbnail.pixels.copy(), ~mask_on_thumbnail(store)
    pixels[glass] = 255 - (255 - pixels[glass]) // 4
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((FIGURE_PX, FIGURE_PX))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=85)
    return out.getvalue()


def mask_on_thumbnail(store: PatchStore) -> NDArray[np.bool_]:
    """The tissue mask at the thumbnail's scale: bool (rows, cols)."""
    mask, ratio = store.array("mask"), store.thumbnail.scale / store.mask_scale
    places = [
        (np.arange(side) * ratio).astype(int).clip(0, limit - 1)
        for side, limit in zip(store.thumbnail.pixels.shape[:2], mask.shape, strict=True)
    ]
    return mask[np.ix_(*places)]


def _evaluation(content: dict[str, Any], more: str | None) -> Evaluation | None:
    """The evaluation where its headline is a share; other figures are in the evaluation's own report."""
    metrics = content["metrics"]
    headline, classes = metrics["headline"], metrics["classes"]
    if headline["value"] is None or metrics["task"] in ("ordinal", "regression"):
        return None
    curves = [
        RocCurve(curve["of"], list(zip(curve["x"], curve["y"], strict=True))) for curve in metrics["curves"]["roc"]
    ]
    notes = (
        ["cross-validated: each slide is judged by the model that did not see its patient"]
        if content["cross_validated"]
        else []
    )
    called = metrics["confusion"]
    return Evaluation(
        positive=metrics["positive"] or ("mean over classes" if classes else ""),
        auroc=_estimate(headline),
        patients=metrics["patients"],
        slides=metrics["bags"],
        folds=[FoldRow(**row) for row in content.get("folds", [])],
        curves=curves,
        confusion=None if called is None else Confusion(classes, called["counts"], "the largest output"),
        baselines=[Baseline(row["name"], _estimate(row["auroc"]), row["note"]) for row in content.get("baselines", [])],
        tile_auroc=_estimate(content["tile_auroc"]) if content.get("tile_auroc") else None,
        notes=[*notes, *content.get("remarks", [])],
        figure=headline["name"],
        more=more,
    )


def _what(task: Any) -> str:
    return f"classes {', '.join(task.classes)}" if task.classes else task.name


def _calibration(model: Any) -> str:
    if model.calibrator.method == "none":
        return "not calibrated: it ranks slides, it is no probability"
    return f"calibrated by {model.calibrator.method} on slides that the networks had not seen"


def _estimate(estimate: dict[str, Any]) -> Interval:
    return Interval(estimate["value"], estimate["low"], estimate["high"])
