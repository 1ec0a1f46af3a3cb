"""A trained model as plain data, and the folder it lives in: config.json and one safetensors file per fold."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError, StoreError
from wsi.publish import appear

from .bag import Bag
from .spec import HeadSpec, TrainSpec

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1


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

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    def network(self, fold: int) -> "Network":
        """One network in evaluation mode, on the CPU. Raises StoreError when its weights are of another head."""
        import torch

        from .network import Network

        with torch.device("meta"):  # no memory, no random numbers: every value comes from the file
            network = Network(self.head)
        state = {name: torch.from_numpy(np.array(array)) for name, array in self.weights[fold].items()}
        try:
            network.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:  # what torch raises for missing, unexpected or misshapen entries
            raise StoreError(self.name, f"fold {fold}'s weights do not fit the head described", _REMEDY) from error
        return network.eval()

    def folds_without(self, bag: Bag) -> tuple[int, ...]:
        """The folds whose models saw nothing of this bag's slide, case or patient: all of them for a new patient."""
        seen_by_others = {row.fold for row in self.cohort if row.fold is not None and _same(row, bag)}
        if not seen_by_others:
            return tuple(range(len(self.weights)))
        # The model of fold k was trained on every fold but k.
        return tuple(sorted(seen_by_others)) if len(seen_by_others) == 1 else ()


def save_model(model: TrainedModel, folder: Path) -> None:
    """Write the model as `folder`, which appears whole; an older one of that name is replaced."""
    from safetensors.numpy import save

    if folder.name in ("", ".", "..") or folder.name.startswith("."):
        raise SpecError(folder, "is no name for a model's folder", "use letters, digits, - and _")
    config: dict[str, Any] = {"schema": f"model/{SCHEMA}"}
    config |= {field: getattr(model, field) for field in ("name", "task", "classes", "contract", "contract_hash")}
    config |= {"span_px": model.span_px, "head": asdict(model.head), "training": asdict(model.training)}
    config |= {"versions": model.versions, "metrics": model.metrics, "folds": model.folds}
    config["cohort"] = [asdict(row) for row in model.cohort]
    config["weights"] = []
    with appear(folder) as draft:
        for fold, weights in enumerate(model.weights):
            content = save({name: np.ascontiguousarray(array) for name, array in weights.items()})
            (draft / f"fold-{fold}.safetensors").write_bytes(content)
            entry = {"file": f"fold-{fold}.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
            config["weights"].append(entry)
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> TrainedModel:
    """Read a model folder. Raises StoreError when it is missing, damaged, or of a newer schema."""
    folder = Path(folder)
    config = _read_config(folder)
    try:
        return TrainedModel(
            name=config["name"],
            task=config["task"],
            classes=tuple(config["classes"]),
            head=HeadSpec(**config["head"]),
            training=TrainSpec(**config["training"]),
            contract=config["contract"],
            contract_hash=config["contract_hash"],
            span_px=tuple(config["span_px"]),
            weights=tuple(_read_weights(folder, entry["file"], entry["sha256"]) for entry in config["weights"]),
            cohort=tuple(_row(row) for row in config["cohort"]),
            folds=tuple(config["folds"]),
            metrics=config["metrics"],
            versions=config["versions"],
        )
    except (KeyError, TypeError) as error:
        raise StoreError(folder / "config.json", f"an entry is missing or misshapen ({error})", _REMEDY) from error


def named(model: TrainedModel, name: str) -> TrainedModel:
    return replace(model, name=name)


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
    if int(number) > SCHEMA:
        raise StoreError(
            path, f"has schema model/{number}, newer than this version's model/{SCHEMA}", "update slidestream"
        )
    return config


def _read_weights(folder: Path, file: str, digest: str) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    path = folder / file
    if Path(file).name != file or not path.is_file():
        raise StoreError(path, "is missing", _REMEDY)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(path, "is damaged: its SHA-256 is not the one in config.json", _REMEDY)
    weights: dict[str, NDArray[Any]] = load(content)
    return weights


def _row(row: Mapping[str, Any]) -> CohortRow:
    return CohortRow(**{**row, "softmax": None if row["softmax"] is None else tuple(row["softmax"])})


def _same(row: CohortRow, bag: Bag) -> bool:
    """Whether a bag may show tissue of a patient the model was made from; in doubt, yes."""
    if bag.identity and bag.identity == row.identity:
        return True
    # A manifest without patients names each slide its own patient: such an id says nothing about who it is.
    if row.patient_id not in (None, row.slide_id) and bag.patient_id not in (None, *bag.slide_ids):
        return row.patient_id == bag.patient_id  # then an equal slide or case id is a coincidence between cohorts
    if row.patient_id and row.patient_id == bag.patient_id:
        return True
    if row.case_id and bag.case_id and row.case_id == bag.case_id:
        return True
    return row.slide_id in (bag.name, *bag.slide_ids)
