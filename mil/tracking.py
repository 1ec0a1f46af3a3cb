"""Where the figures of a training go: a CSV file, TensorBoard, MLflow or Weights & Biases, by name. Nothing leaves the
machine unless the user's own environment says so.

Figures are named `group/figure`, such as `network-0/training_loss`; NaN stands for one that does not exist.
"""

import csv
import math
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from wsi.errors import SpecError, StoreError


class Tracker(Protocol):
    """Told of one training from its start. What a resumed training did before is told again, from the start."""

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        """A training of that name and settings begins."""
        ...

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one group at a step (epoch, from 0); the same names at every step."""
        ...

    def end(self, summary: Mapping[str, float]) -> None:
        """The training is finished, with these figures."""
        ...


def open_tracker(name: str, folder: str | Path) -> Tracker:
    """The tracker of that name, writing into `folder`, which it makes.

    Raises SpecError for an unknown name, and where the tracker's package is missing.
    """
    if name not in TRACKERS:
        raise SpecError("track", f"{name!r} is unknown", f"choose one of {', '.join(TRACKERS)}")
    return TRACKERS[name](Path(folder))


class CsvTracker:
    """`history.csv`: a row for each group and step, a column for each figure; empty where it does not exist.

    Every row is written at once: a killed training leaves what it told. A training that starts writes the file anew.
    """

    def __init__(self, folder: Path):
        self.path = folder / "history.csv"
        self._columns: list[str] = []

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._columns = []

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Raises StoreError for figures of several groups, or other names than before: they have no row."""
        groups = {name.partition("/")[0] for name in figures}
        named = {name.partition("/")[2]: value for name, value in figures.items()}
        first = not self._columns
        self._columns = self._columns or list(named)
        if len(groups) != 1 or set(named) != set(self._columns):
            problem = f"{', '.join(figures)} do not fit its columns {', '.join(self._columns)}"
            raise StoreError(self.path, problem, "log the same figures of one group at every step")
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            if first:
                table.writerow(["group", "step", *self._columns])
            texts = ("" if math.isnan(named[column]) else repr(float(named[column])) for column in self._columns)
            table.writerow([groups.pop(), step, *texts])

    def end(self, summary: Mapping[str, float]) -> None:
        """The summary stands in the model itself."""


class TensorBoardTracker:
    """Event files for TensorBoard, one folder for each training."""

    def __init__(self, folder: Path):
        _require("tensorboard", "tensorboard")
        self._folder, self._writer = folder / "tensorboard", None  # type: Path, Any

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted training of the same name had written from step 0 on is told again.
        self._writer = SummaryWriter(str(self._folder / name), purge_step=0)
        table = "\n".join(["| setting | value |", "|---|---|", *(f"| {key} | {settings[key]} |" for key in settings)])
        self._writer.add_text("settings", table)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in _known(figures).items():
            self._writer.add_scalar(name, value, step)

    def end(self, summary: Mapping[str, float]) -> None:
        for name, value in _known(summary).items():
            self._writer.add_scalar(f"summary/{name}", value, 0)
        self._writer.close()


class MlflowTracker:
    """A run in an MLflow database, `mlflow.db` (SQLite), or at the user's MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path):
        self._mlflow = _require("mlflow", "mlflow")
        self._folder, self._run = folder, ""

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        from mlflow.tracking import MlflowClient

        self._folder.mkdir(parents=True, exist_ok=True)
        # Not MLflow's own default, a store of files, which it has retired.
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self._folder / 'mlflow.db').resolve()}"
        self._client: Any = MlflowClient(tracking_uri=where)
        found = self._client.get_experiment_by_name("slidestream")
        artefacts = (self._folder / "mlflow").resolve().as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment("slidestream", artefacts)
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value[:500])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in _known(figures).items():
            self._client.log_metric(self._run, name, value, step=step)

    def end(self, summary: Mapping[str, float]) -> None:
        for name, value in _known(summary).items():
            self._client.log_metric(self._run, _plain(name), value)
        self._client.set_terminated(self._run)


class WandbTracker:
    """A Weights & Biases run, offline unless the user has set WANDB_MODE; `wandb sync` sends it on request."""

    def __init__(self, folder: Path):
        self._wandb = _require("wandb", "wandb")
        self._folder, self._run = folder, None  # type: Path, Any

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        place = {"project": "slidestream", "name": name, "dir": str(self._folder), "mode": mode}
        self._run = self._wandb.init(**place, config=dict(settings))
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")  # networks are trained one after the other, each from 0

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"epoch": step, **_known(figures)})

    def end(self, summary: Mapping[str, float]) -> None:
        self._run.summary.update(_known(summary))
        self._run.finish()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "csv": CsvTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


_SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}  # both report home by default


def _require(package: str, extra: str) -> Any:
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # the package is there, and something it needs is not
        raise SpecError("track", f"the package {package} is missing", f"pip install 'slidestream[{extra}]'") from error


def _known(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _plain(name: str) -> str:
    """A name of those characters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name)
