"""A trained model as plain data, and the folder it lives in: config.json and one safetensors file per fold."""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError, StoreError
from wsi.publish import appear, fingerprint

from .bag import Bag
from .covariates import Covariates
from .evaluation.calibrators import Calibrator
from .evaluation.outliers import Outliers
from .spec import HeadSpec, TaskSpec, TrainSpec
from .tasks import task_from_dict
from .tasks.task import Task

if TYPE_CHECKING:
    from .network import Network

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class CohortRow:
    """A bag the model was made from.

    bag     its name: the slides it is made of
    truth   what the manifest says of it, as text
    folds   places in `weights` of the networks that did not see it, one for each repeat of the cross-validation; empty
            for a bag without tiles, which no network saw
    logits  (O,), mean of what those networks say of it; None for a bag without tiles
    """

    bag: str
    slide_ids: tuple[str, ...]
    patient_id: str | None
    case_id: str | None
    identity: str
    truth: str
    tiles: int
    folds: tuple[int, ...]
    logits: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """One network per fold (and repeat), with all that is needed to use them and to judge them.

    task        what is predicted; its classes are in the order of the outputs, the positive one last
    contract    of the embeddings it was trained on, and its hash
    span_px     tile sides in level-0 pixels that occur in the cohort (they differ with the slides' resolution)
    weights     per network: name → array, standardisation included
    folds       per network: repeat and fold, bags in training, validation and test, epochs run, best epoch, losses
    metrics     `evaluation.judge` of the out-of-fold predictions
    calibrator  makes probabilities of logits; fitted on out-of-fold logits. Its method is `none` without one
    covariates  how columns of the manifest become numbers, None without any
    partition   hash of the splits it was cross-validated on
    outliers    what tells slides that are unlike the cohort, None where the cohort is too small to say
    conformal   miscoverage and thresholds of prediction sets, and of abstaining; empty without
    regions     bags of regions that it learnt from beside the cohort, and the networks that did not see them
    ranges      column of the output -> (low, high) of its tile scores over the cohort: see `mil.ranges`; empty without
    """

    name: str
    task: Task
    head: HeadSpec
    training: TrainSpec
    contract: Mapping[str, object]
    contract_hash: str
    span_px: tuple[int, ...]
    weights: tuple[Mapping[str, NDArray[Any]], ...]
    cohort: tuple[CohortRow, ...]
    folds: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    calibrator: Calibrator
    covariates: Covariates | None = None
    partition: str = ""
    outliers: Outliers | None = None
    conformal: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    regions: tuple[CohortRow, ...] = ()

    @property
    def figures(self) -> Mapping[str, Any]:
        """Those of the calibrated outputs where there are any, else of the raw ones: see `evaluation.judge`."""
        found: Mapping[str, Any] = self.metrics.get("calibrated") or self.metrics["raw"]
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    def head_of(self, fold: int) -> HeadSpec:
        """The head of one network: the model's own, but where a search within its training part chose another."""
        chosen = self.folds[fold].get("head") if fold < len(self.folds) else None
        return self.head if chosen is None else HeadSpec(**{**chosen, "blocks": tuple(chosen["blocks"])})

    def network(self, fold: int) -> "Network":
        """One network in evaluation mode, on the CPU. Raises StoreError when its weights are of another head."""
        import torch

        from .network import Network

        with torch.device("meta"):  # no memory, no random numbers: every value comes from the file
            network = Network(self.head_of(fold))
        state = {name: torch.from_numpy(np.array(array)) for name, array in self.weights[fold].items()}
        try:
            network.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:  # what torch raises for missing, unexpected or misshapen entries
            raise StoreError(self.name, f"fold {fold}'s weights do not fit the head described", _REMEDY) from error
        return network.eval()

    def folds_without(self, bag: Bag) -> tuple[int, ...]:
        """The networks that saw nothing of this bag's slides, case or patient: all of them for a new patient.

        None where rows of the cohort that look like this bag were seen by different networks, or by all.
        """
        known = [set(row.folds) for row in (*self.cohort, *self.regions) if row.tiles and _same(row, bag)]
        if not known:
            return tuple(range(len(self.weights)))
        return tuple(sorted(set.intersection(*known)))

    @property
    def mark(self) -> str:
        """Fingerprint of what the model answers: weights and how they are used, task, contract, calibration, what it
        flags, and the cohort it was made of."""
        weights = [{name: _digest(array.tobytes()) for name, array in fold.items()} for fold in self.weights]
        rest = (self.calibrator.as_dict(), dict(self.conformal), self.task.as_dict(), asdict(self.task.spec))
        heads = [asdict(self.head_of(fold)) for fold in range(len(self.weights))]
        covariates = None if self.covariates is None else self.covariates.as_dict()
        state = {} if self.outliers is None else self.outliers.state()
        outliers = {name: _digest(np.ascontiguousarray(array).tobytes()) for name, array in state.items()}
        used = (heads, covariates, outliers, self.training.level)
        rows = [asdict(row) for row in (*self.cohort, *self.regions)]
        return fingerprint(weights, self.contract_hash, rows, rest, used)


def save_model(model: TrainedModel, folder: Path, companions: Mapping[str, Path] | None = None) -> None:
    """Write the model as `folder`, which appears whole; an older one of that name is replaced.

    companions  files to go with it, by the names they get there: the history of its training, its splits
    """
    from safetensors.numpy import save

    if folder.name in ("", ".", "..") or folder.name.startswith("."):
        raise SpecError(folder, "is no name for a model's folder", "use letters, digits, - and _")
    config: dict[str, Any] = {"schema": f"model/{SCHEMA}", "name": model.name}
    config["task"] = {"spec": asdict(model.task.spec), **model.task.as_dict()}
    config |= {name: getattr(model, name) for name in ("contract", "contract_hash", "span_px", "partition")}
    config |= {"head": asdict(model.head), "training": asdict(model.training)}
    config["calibrator"] = model.calibrator.as_dict()
    config["covariates"] = None if model.covariates is None else model.covariates.as_dict()
    config |= {"conformal": model.conformal, "versions": model.versions, "metrics": model.metrics, "folds": model.folds}
    config["ranges"] = {name: list(ends) for name, ends in model.ranges.items()}
    config["cohort"] = [asdict(row) for row in model.cohort]
    config["regions"] = [asdict(row) for row in model.regions]
    config["weights"] = []
    files = {f"fold-{fold}.safetensors": weights for fold, weights in enumerate(model.weights)}
    if model.outliers is not None:
        files["outliers.safetensors"] = model.outliers.state()
    with appear(folder) as draft:
        for name, arrays in files.items():
            content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
            (draft / name).write_bytes(content)
            config["weights"].append({"file": name, "sha256": _digest(content)})
        for name, path in (companions or {}).items():
            shutil.copy(path, draft / name)
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> TrainedModel:
    """Read a model folder. Raises StoreError when it is missing, damaged, or of another schema."""
    folder = Path(folder)
    config = _read_config(folder)
    try:
        arrays = {entry["file"]: _read_weights(folder, entry["file"], entry["sha256"]) for entry in config["weights"]}
        facts = dict(config["task"])
        spec = facts.pop("spec")
        task = TaskSpec(**{**spec, "classes": tuple(spec["classes"])})
        outliers = arrays.pop("outliers.safetensors", None)
        return TrainedModel(
            name=config["name"],
            task=task_from_dict(task, facts),
            head=HeadSpec(**{**config["head"], "blocks": tuple(config["head"]["blocks"])}),
            training=_training(config["training"]),
            contract=config["contract"],
            contract_hash=config["contract_hash"],
            span_px=tuple(config["span_px"]),
            weights=tuple(arrays.values()),
            cohort=tuple(_row(row) for row in config["cohort"]),
            folds=tuple(config["folds"]),
            metrics=config["metrics"],
            versions=config["versions"],
            calibrator=Calibrator.from_dict(config["calibrator"]),
            covariates=None if config["covariates"] is None else Covariates.from_dict(config["covariates"]),
            partition=config["partition"],
            outliers=None if outliers is None else Outliers.from_state(outliers),
            conformal=config["conformal"],
            regions=tuple(_row(row) for row in config.get("regions", ())),
            ranges={name: (low, high) for name, (low, high) in config.get("ranges", {}).items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(folder / "config.json", f"an entry is missing or misshapen ({error})", _REMEDY) from error


def current_versions() -> dict[str, str]:
    """Versions that shape a training's result."""
    found = {"python": platform.python_version()}
    for package in ("slidestream", "torch", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree on the path, not installed
            found[package] = "unknown"
    return found


_REMEDY = "copy the model's folder again or train it again"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise StoreError(folder, "is no model folder: it has no config.json", "give the folder that `wsi train` wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(path, f"is damaged: no JSON ({error})", _REMEDY) from error
    kind, _, number = str(config.get("schema") if isinstance(config, dict) else None).partition("/")
    if kind != "model" or not number.isdigit():
        raise StoreError(path, "does not describe a model: no schema 'model/…'", "give the folder `wsi train` wrote")
    if int(number) != SCHEMA:
        newer = int(number) > SCHEMA
        problem = f"has schema model/{number}, {'newer' if newer else 'older'} than this version's model/{SCHEMA}"
        raise StoreError(path, problem, "update slidestream" if newer else "train the model again")
    return config


def _read_weights(folder: Path, file: str, digest: str) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    path = folder / file
    if Path(file).name != file or not path.is_file():
        raise StoreError(path, "is missing", _REMEDY)
    content = path.read_bytes()
    if _digest(content) != digest:
        raise StoreError(path, "is damaged: its SHA-256 is not the one in config.json", _REMEDY)
    weights: dict[str, NDArray[Any]] = load(content)
    return weights


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _training(facts: Mapping[str, Any]) -> TrainSpec:
    lists = {name: tuple(facts[name]) for name in ("covariates", "stratify")}
    task = TaskSpec(**{**facts["task"], "classes": tuple(facts["task"]["classes"])})
    return TrainSpec(**{**facts, **lists, "task": task})


def _row(row: Mapping[str, Any]) -> CohortRow:
    lists = {name: tuple(row[name]) for name in ("slide_ids", "folds")}
    return CohortRow(**{**row, **lists, "logits": None if row["logits"] is None else tuple(row["logits"])})


def _same(row: CohortRow, bag: Bag) -> bool:
    """Whether a bag may show tissue of a patient the model was made from; in doubt, yes."""
    if set(filter(None, bag.identity.split("+"))) & set(row.identity.split("+")):
        return True
    # A manifest without patients names each slide its own patient: such an id says nothing about who it is.
    if row.patient_id not in (None, *row.slide_ids) and bag.patient_id not in (None, *bag.slide_ids):
        return row.patient_id == bag.patient_id  # then an equal slide or case id is a coincidence between cohorts
    if row.patient_id and row.patient_id == bag.patient_id:
        return True
    if row.case_id and bag.case_id and row.case_id == bag.case_id:
        return True
    return bool({bag.name, *bag.slide_ids} & {row.bag, *row.slide_ids})
