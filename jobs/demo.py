"""The demo: a synthetic cohort through every stage, judged against its truth."""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.evaluation.discrimination import auroc, auroc_interval
from tiling.patches import PatchStore, open_patches
from wsi.publish import fingerprint
from wsi.synthetic import CohortSpec, PlannedSlide, plan_cohort, read_truth, tile_truth, write_manifest, write_planned

from .bags import bag_for
from .executors import open_executor
from .folder import RunFolder
from .manifest import SlideRecord
from .model_stages import open_model
from .report import all_synthetic, mask_on_thumbnail

COHORT = CohortSpec(seed=7, patients=24)


def make_cohort(folder: Path, cohort: CohortSpec, workers: int, progress: Callable[[int, str], None]) -> Path:
    """Write the cohort's slides in parallel, but for those that are there already; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = plan_cohort(folder, cohort)
    todo = [slide for slide in planned if not _written(slide)]
    with open_executor(workers) as executor:
        futures = {executor.submit(write_planned, slide): slide for slide in todo}
        for done, future in enumerate(as_completed(futures), start=len(planned) - len(todo) + 1):
            future.result()
            slide = futures[future]
            _stamp(slide).write_text(fingerprint(slide.spec))
            progress(done, slide.row["slide_id"])
    return write_manifest(folder, planned)


def _stamp(slide: PlannedSlide) -> Path:
    return slide.path.with_suffix(".spec")


def _written(slide: PlannedSlide) -> bool:
    """The stamp is written last, so a slide with its stamp is whole."""
    return slide.path.exists() and _stamp(slide).exists() and _stamp(slide).read_text() == fingerprint(slide.spec)


def truth_figures(records: Sequence[SlideRecord], folder: RunFolder, model_path: str) -> dict[str, Any]:
    """What only the cohort that a model was trained on, if it is synthetic, allows: tile-level AUROC of the heatmaps,
    a colour baseline, a row a fold. Nothing for any other cohort.

    A tile is positive when at least half of it is tumour and negative when none is; the others are left out. Scores
    are those of the model that did not see the patient.
    """
    from mil.predict import predict

    model = open_model(model_path)
    tiled = all(folder.tiles(record.slide_id).exists() for record in records)  # not so of another tool's embeddings
    same = {name for row in model.cohort for name in row.slide_ids} == {record.slide_id for record in records}
    its_own = model.task.spec.target == "label" and len(model.classes) == 2 and model.training.level == "slide"
    its_own = its_own and all(row.folds for row in model.cohort)  # else networks saw some, or a slide has no tissue
    if not (tiled and same and its_own and all_synthetic(records)):
        return {}
    share, softmax, attention = [], [], []
    for record in records:
        prediction = predict(model, bag_for(model, record, folder)[0])
        share.append(tile_truth(read_truth(record.path), prediction.xy, prediction.span_px))
        softmax.append(prediction.scores[:, -1])
        looked = np.zeros(prediction.tiles) if prediction.attention is None else prediction.attention
        attention.append(looked * prediction.tiles)
    truth = np.concatenate(share)
    clear = (truth >= 0.5) | (truth == 0)
    value = auroc(truth[clear] >= 0.5, np.concatenate(softmax)[clear])
    found = auroc(truth[clear] >= 0.5, np.concatenate(attention)[clear])
    return {
        "tile_auroc": {"value": value, "low": None, "high": None},
        "tile_auroc_attention": found,
        "baselines": [colour_baseline(records, folder, model)],
        "folds": fold_rows(model),
        "remarks": [
            f"Tiles: {int((truth >= 0.5).sum()):,} of {len(truth):,} are at least half tumour. Softmax of single tiles "
            f"finds them with AUROC {value:.3f}, attention with {found:.3f}.",
            "The slides are SYNTHETIC: drawn by a program, with a known truth. The figures show that the engine works, "
            "not that a model is good for patients.",
        ],
    }


def colour_baseline(records: Sequence[SlideRecord], folder: RunFolder, model: Any) -> dict[str, Any]:
    """What mean pooling of raw colour reaches: logistic regression on the tissue's mean RGB, same folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    fold_of = {row.bag: row.folds[0] for row in model.cohort}
    colours = np.array([tissue_colour(open_patches(folder.tiles(record.slide_id))) for record in records])
    truth = np.array([model.classes.index(str(record.label)) for record in records])
    folds = np.array([fold_of[record.slide_id] for record in records])
    scores = np.zeros((len(records), 2))
    for fold in np.unique(folds):
        test = folds == fold
        scale = StandardScaler().fit(colours[~test])
        fitted = LogisticRegression().fit(scale.transform(colours[~test]), truth[~test])
        scores[test] = fitted.predict_proba(scale.transform(colours[test]))
    estimate = auroc_interval(truth == 1, scores[:, 1], [record.patient_id for record in records])
    return {
        "name": "mean colour",
        "auroc": {"value": estimate.value, "low": estimate.low, "high": estimate.high},
        "note": "logistic regression on the mean RGB of each slide's tissue, same folds: what colour alone gives away. "
        "A useless score scatters about 0.5, and in cross-validation of few slides mostly below it",
    }


def tissue_colour(store: PatchStore) -> NDArray[np.float64]:
    """Mean RGB of the slide's tissue on its thumbnail, (3,)."""
    thumbnail = store.thumbnail
    return thumbnail.pixels[mask_on_thumbnail(store)].mean(axis=0)


def fold_rows(model: Any) -> list[dict[str, Any]]:
    """One row a fold for the report."""
    per_fold = model.figures["per_fold"]
    rows = []
    for fold, value in enumerate(per_fold):
        members = [row for row in model.cohort if fold in row.folds]
        patients = len({row.patient_id for row in members})
        rows.append({"name": f"fold {fold}", "patients": patients, "slides": len(members), "auroc": value})
    return rows
