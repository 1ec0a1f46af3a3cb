"""The evaluation report of a run's model: its figures, and its worst errors with their heatmaps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatmaps.evaluation_report import Case, write_evaluation_report
from heatmaps.overlay import thumbnail_jpeg
from wsi.errors import SpecError

from .bags import bag_id, with_truth
from .evaluation import predictions_of
from .evaluation_page import page_of
from .folder import RunFolder
from .heatmap_stage import heatmap_files
from .model_stages import open_model
from .pipeline import Job
from .prediction_table import read_predictions
from .report import FIGURE_PX, all_synthetic
from .training import grouped

if TYPE_CHECKING:
    from mil.model import TrainedModel

Rows = Mapping[str, Mapping[str, str]]


def make_evaluation_report(job: Job, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Path:
    """Write report/evaluation-<model>.html of what `evaluate_run` found; returns its path.

    facts: of `folder.run_facts`. Worst errors are shown with the heatmaps that are there; `wsi heatmap` makes them.
    """
    from mil.evaluation.judge_cases import cohort, worst_cases

    if not job.spec.model:
        raise SpecError("model", "none was given", "name a model's folder with --model")
    model = open_model(job.spec.model)
    rows = read_predictions(job.folder, model)
    known = with_truth(job.records, model.task.spec, model.training.level)
    done = [record for record in known if rows.get(record.slide_id, {}).get("status") == "done"]
    judged = with_truth(done, model.task.spec, model.training.level)
    predictions = predictions_of(judged, rows, model)
    columns = tuple(table["column"] for table in result["metrics"]["subgroups"])
    if "site" in predictions.columns and "site" not in columns:
        columns = ("site", *columns)
    level = model.training.level
    slides = {bag_id(group[0], level): [record.slide_id for record in group] for group in grouped(judged, level)}
    worst = worst_cases(predictions)
    cases = [_case(job.folder, model.name, case, slides[case["id"]], rows) for case in worst]
    whole = {**result, "cohort": cohort(predictions, columns), "noun": f"{level}s"}
    page = page_of(whole, facts, cases, _made_of(model), all_synthetic(job.records))
    path = job.folder.evaluation_page(model.name)
    write_evaluation_report(page, path)
    return path


def _case(folder: RunFolder, model: str, case: Mapping[str, str], slides: Sequence[str], rows: Rows) -> Case:
    """A worst error, with the picture and heatmap of the first of its slides that has them."""
    drawn = (heatmap_files(rows[name], folder, model) for name in slides)
    shown: Mapping[str, Path] = next((files for files in drawn if files), {})
    image = thumbnail_jpeg(shown["png"], FIGURE_PX) if "png" in shown else None
    link = f"../heatmaps/{model}/{shown['geojson'].name}" if "geojson" in shown else None
    return Case(case["id"], case["truth"], case["said"], case["detail"], image, link)


def _made_of(model: "TrainedModel") -> dict[str, str]:
    """What of the model a reader of its figures asks for."""
    networks = f"{len(model.weights)} networks, their outputs averaged for slides that none of them saw"
    return {
        "Model": f"{model.head.name}, {model.task.spec.name} of {', '.join(model.classes) or model.task.spec.target}; "
        + networks,
        "Splits": f"sha256 {model.partition}" if model.partition else "drawn by the seed of the training",
        "Seed of the training": str(model.training.seed),
        "Calibration": model.calibrator.method,
        "Contract of the embeddings": model.contract_hash,
        "Digest of the model": model.mark,
    }
