"""Figures of a training arrive where they are asked to, whole also after an interruption, and never on a network."""

import csv
import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from mil.bag import Bag
from mil.crossval import cross_validate
from mil.spec import TrainSpec
from mil.tracking import TRACKERS, CsvTracker, open_tracker
from wsi.errors import SpecError, StoreError

SPEC = TrainSpec(head="mean", hidden=4, folds=2, epochs=7)


def cohort():
    rng = np.random.default_rng(0)
    return [
        Bag(
            rng.normal(size=(5, 3)).astype(np.float32) + i % 2,
            np.zeros((5, 2), np.int64),
            1,
            (f"s{i}",),
            ("a", "b")[i % 2],
        )
        for i in range(12)
    ]


def rows_of(folder):
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_csv_file_has_a_row_for_every_epoch_of_every_network(tmp_path):
    model = cross_validate(cohort(), SPEC, tracker=open_tracker("csv", tmp_path))
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["group", "step", "training_loss", "learning_rate", "validation_loss"]
    assert [(row["group"], row["step"]) for row in rows] == [(f"network-{k}", f"{e}") for k in (0, 1) for e in range(7)]
    for place, history in enumerate(model.folds):
        mine = [row for row in rows if row["group"] == f"network-{place}"]
        for name in ("training_loss", "validation_loss"):
            assert [float(row[name]) for row in mine] == history[name]
    assert float(rows[0]["learning_rate"]) == SPEC.learning_rate
    assert float(rows[6]["learning_rate"]) == pytest.approx(SPEC.learning_rate * 0.5 * (1 + math.cos(math.pi * 6 / 7)))


@pytest.mark.parametrize("moment", [(0, 6), (1, 6)])
def test_a_resumed_training_tells_what_it_did_before_too(tmp_path, moment):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    cross_validate(cohort(), SPEC, tracker=open_tracker("csv", whole))

    def progress(*news):
        if news[:2] == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(cohort(), SPEC, None, progress, tmp_path / "state", open_tracker("csv", parted))
    assert len(rows_of(parted)) == 7 * moment[0] + moment[1] + 1
    cross_validate(cohort(), SPEC, resume=tmp_path / "state", tracker=open_tracker("csv", parted))
    assert (parted / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()


def test_a_figure_that_does_not_exist_is_an_empty_cell_and_strangers_are_refused(tmp_path):
    tracker = CsvTracker(tmp_path)
    tracker.start("one", {})
    tracker.log(0, {"network-0/training_loss": 0.5, "network-0/validation_loss": math.nan})
    assert rows_of(tmp_path) == [{"group": "network-0", "step": "0", "training_loss": "0.5", "validation_loss": ""}]
    for strangers in ({"network-0/training_loss": 1.0}, {"a/training_loss": 1.0, "b/validation_loss": 1.0}):
        with pytest.raises(StoreError, match="do not fit its columns"):
            tracker.log(1, strangers)


def test_tensorboard_reads_the_same_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = cross_validate(cohort(), SPEC, tracker=open_tracker("tensorboard", tmp_path))
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    told = events.Scalars("network-1/validation_loss")
    assert [event.step for event in told] == list(range(7))
    np.testing.assert_allclose([event.value for event in told], model.folds[1]["validation_loss"], rtol=1e-6)
    (headline,) = (event.value for event in events.Scalars("summary/raw/AUROC"))
    assert headline == pytest.approx(model.metrics["raw"]["headline"]["value"])


def test_mlflow_keeps_them_in_a_database_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    model = cross_validate(cohort(), SPEC, tracker=open_tracker("mlflow", tmp_path))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("slidestream").experiment_id])
    told = client.get_metric_history(run.info.run_id, "network-1/validation_loss")
    assert [metric.value for metric in sorted(told, key=lambda one: one.step)] == model.folds[1]["validation_loss"]
    assert run.data.params["learning_rate"] == str(SPEC.learning_rate)
    assert run.info.status == "FINISHED"


def test_wandb_stays_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    cross_validate(cohort(), SPEC, tracker=open_tracker("wandb", tmp_path))
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_named_with_what_installs_it(name, tmp_path, monkeypatch):
    for variable in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(SpecError, match=rf"the package {name} is missing; pip install 'slidestream\[{name}\]'"):
        open_tracker(name, tmp_path)
    assert not list(tmp_path.iterdir())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"  # before anything of it is imported
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_an_unknown_tracker_is_refused_with_the_choices(tmp_path):
    with pytest.raises(SpecError, match="choose one of csv, tensorboard, mlflow, wandb"):
        open_tracker("paper", tmp_path)
    assert all(replace(SPEC, track=name).track == name for name in TRACKERS)


def test_settings_told_to_a_tracker_name_nobody(tmp_path):
    class Listener:
        def start(self, name, settings):
            self.told = settings

        def log(self, step, figures):
            assert all(isinstance(value, float) for value in figures.values())

        def end(self, summary):
            self.summary = summary

    listener = Listener()
    bags = [replace(bag, patient_id=f"Jane Doe {i}") for i, bag in enumerate(cohort())]
    cross_validate(bags, SPEC, tracker=listener)
    assert listener.told["learning_rate"] == "0.0005"
    assert not any("Jane" in text or text == "s0" for text in listener.told.values())
    assert set(listener.summary) == {"raw/AUROC", "calibrated/AUROC"}
