"""What is made of bags of several slides is of all of them, says which are missing, and never outlives them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from embedding.slide_store import write_slide_vector
from embedding.store import open_embeddings
from jobs.bags import mark_of, slide_bag
from jobs.config import HeatmapSpec, resolve
from jobs.demo import truth_figures
from jobs.evaluation import _check_current
from jobs.folder import RunFolder
from jobs.heatmap_stage import heatmap_files, heatmap_slide
from jobs.manifest import read_manifest
from jobs.model_stages import open_model, predict_slide
from jobs.pipeline import Job
from jobs.prediction_table import read_predictions, write_predictions
from jobs.receipts import FAILED, Receipt
from jobs.run import Watcher
from jobs.stages import has_fitting
from jobs.training import train_model
from mil.model import save_model
from mil.spec import TaskSpec
from wsi.errors import ManifestError, StoreError

SETTINGS = {"jobs": {"executor": "serial"}, "train": {"folds": 2, "epochs": 1, "level": "patient", "head": "mean"}}


@pytest.fixture(scope="module")
def job(trained, tmp_path_factory) -> Job:
    """A copy of the trained run with a model of patients."""
    folder = RunFolder(tmp_path_factory.mktemp("bags") / "run")
    shutil.copytree(trained.run, folder.root)
    records, spec = read_manifest(trained.manifest), resolve(SETTINGS)
    train_model(records, spec, folder, "patients")
    return Job(records, replace(spec, model=str(folder.model("patients"))), folder)


@pytest.fixture
def pair(job):
    """Two slides of one patient."""
    first = next(one for one in job.records if sum(other.patient_id == one.patient_id for other in job.records) > 1)
    return [record for record in job.records if record.patient_id == first.patient_id]


def done(job, stage):
    return job.do(stage, watch=lambda name, total: Watcher())


def rows_of(job, model):
    write_predictions(job.records, model, job.folder, {})
    return read_predictions(job.folder, model)


def test_a_bag_names_its_slide_that_failed_and_is_made_anew_when_one_more_is_missing(job, pair, tmp_path):
    mine, other = pair
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(job.folder.root, folder.root)
    model = open_model(job.spec.model)
    alone = Job([mine], job.spec, folder)
    assert done(alone, predict_slide)[0].status == "done"
    assert "without" not in rows_of(alone, model)[mine.slide_id]["flags"]
    name = next((folder.root / "embeddings").iterdir()).name
    shutil.rmtree(folder.embeddings(name, other.slide_id))
    failed = Receipt(other.slide_id, "embed", FAILED)
    both = Job(pair, job.spec, folder, {"embed": [failed]})
    assert [receipt.status for receipt in done(both, predict_slide)] == ["done"]  # the same tiles, another statement
    assert f"without {other.slide_id}" in rows_of(both, model)[mine.slide_id]["flags"]


def test_a_heatmap_and_its_tiles_are_of_the_prediction_beside_them(job, pair):
    mine, model = pair[0], open_model(job.spec.model)
    drawing = replace(job.spec, heatmap=HeatmapSpec(tiles=1))
    now = Job([mine], drawing, job.folder)
    done(now, predict_slide), done(now, heatmap_slide)
    gallery = job.folder.overlay("patients", mine.slide_id).with_suffix(".tiles")
    assert heatmap_files(rows_of(now, model)[mine.slide_id], job.folder, "patients")
    assert gallery.is_dir()
    later = Job(pair, job.spec, job.folder)  # beside its other slide the patient is another bag
    done(later, predict_slide)
    assert not heatmap_files(rows_of(later, model)[mine.slide_id], job.folder, "patients")
    done(later, heatmap_slide)
    assert heatmap_files(rows_of(later, model)[mine.slide_id], job.folder, "patients")
    assert not gallery.exists()


def test_labels_that_differ_between_a_patients_slides_hinder_only_who_learns_them(job, pair):
    differing = [replace(record, label=label) for record, label in zip(pair, ("normal", "tumor"), strict=True)]
    assert {receipt.status for receipt in done(Job(differing, job.spec, job.folder), predict_slide)} <= {
        "done",
        "skipped",
    }
    records = [record for record in job.records if record not in pair] + differing
    with pytest.raises(ManifestError, match=r"its slides differ in column 'label': normal \| tumor"):
        train_model(records, job.spec, job.folder, "differing")
    times = [replace(r, extra={**r.extra, "days": f"{10 + i}"}) for i, r in enumerate(records)]
    of_patient = {r.patient_id: r.extra["days"] for r in times}
    times = [replace(r, extra={**r.extra, "days": of_patient[r.patient_id]}) for r in times]
    task = TaskSpec("regression", target="days")
    assert train_model(times, replace(job.spec, train=replace(job.spec.train, task=task)), job.folder, "days")


def test_the_history_of_an_earlier_training_is_not_taken_for_this_ones(job):
    pytest.importorskip("tensorboard")
    train_model(job.records, job.spec, job.folder, "twice")
    assert (job.folder.model("twice") / "history.csv").is_file()
    elsewhere = replace(job.spec, train=replace(job.spec.train, track="tensorboard"))
    train_model(job.records, elsewhere, job.folder, "twice")
    assert not (job.folder.model("twice") / "history.csv").exists()


def test_a_slides_vector_is_of_its_present_embeddings(job):
    record, name = job.records[0], next((job.folder.root / "embeddings").iterdir()).name
    store = open_embeddings(job.folder.embeddings(name, record.slide_id))
    path = job.folder.root / "slide_embeddings" / "mean" / f"{record.slide_id}.zarr"
    facts = {"slide_id": record.slide_id, "fingerprint": "f", "identity": store.identity, "notes": []}
    facts["contract"] = {"hash": "h", "dim": 3, "tiles": dict(store.contract)}
    write_slide_vector(path, np.ones(3, np.float32), {**facts, "embeddings": store.fingerprint}, 5, 0)
    assert slide_bag(record, ["mean"], job.folder).bag.dim == 3
    assert has_fitting(path, job.folder, record.slide_id)
    write_slide_vector(path, np.ones(3, np.float32), {**facts, "embeddings": "of older tiles"}, 5, 0)
    with pytest.raises(StoreError, match="embedded anew"):
        slide_bag(record, ["mean"], job.folder)
    assert not has_fitting(path, job.folder, record.slide_id)
    shutil.rmtree(path.parent.parent)


def test_predictions_of_older_embeddings_are_not_judged_whatever_they_are_joined_of(job):
    record, name = job.records[0], next((job.folder.root / "embeddings").iterdir()).name
    model = open_model(job.spec.model)
    joined = replace(model, contract={"joined": [model.contract, model.contract]})
    rows = {record.slide_id: {"embeddings": mark_of(record, [name, name], job.folder)}}
    _check_current([record], rows, joined, job.folder)
    with pytest.raises(StoreError, match="made anew"):
        _check_current([record], {record.slide_id: {"embeddings": "older"}}, joined, job.folder)


def test_a_cohort_with_slides_that_all_networks_saw_has_no_figures_of_tiles(job, trained, tmp_path):
    assert truth_figures(job.records, job.folder, str(trained.model))["tile_auroc"]
    model = open_model(trained.model)
    seen = replace(model.cohort[0], folds=(), logits=None)
    save_model(replace(model, cohort=(seen, *model.cohort[1:])), tmp_path / "fixed")
    assert truth_figures(job.records, job.folder, str(tmp_path / "fixed")) == {}
