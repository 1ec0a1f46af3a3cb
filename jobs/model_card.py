"""The model card of a trained model, from what its folder holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatmaps.evaluation_report import CountTable, FlowStep
from heatmaps.model_card import BackboneRow, ModelCard, write_model_card

from .evaluation_charts import charts_of
from .evaluation_page import calibration_of, row_of

if TYPE_CHECKING:
    from mil.model import TrainedModel

MOST = 12  # values of the truth that are counted one by one
_KEPT = (
    "weights_sha256",
    "pooling",
    "dim",
    "tile_px",
    "mpp",
    "precision",
    "stain",
    "views",
    "adapter",
    "pixels",
    "hash",
)
_GIVES = {
    "classification": "a probability for each class",
    "multilabel": "a probability for each label",
    "ordinal": "a share of 1 for each grade",
    "regression": "a number",
    "cox": "a risk (log hazard)",
    "survival": "a risk, and the chance to live past each horizon",
}


def write_card(
    model: "TrainedModel",
    folder: Path,
    facts: Mapping[str, Any],
    flow: Sequence[FlowStep] = (),
    synthetic: bool = False,
) -> tuple[Path, Path]:
    """MODEL_CARD.md and MODEL_CARD.html of a model into `folder`; returns their paths.

    facts  command, started and versions of its training, as `folder.run_facts` gives them
    flow   from the cohort's slides to the bags it was trained on; without it those bags alone
    """
    return write_model_card(card_of(model, facts, flow, synthetic), folder)


def card_of(
    model: "TrainedModel", facts: Mapping[str, Any], flow: Sequence[FlowStep] = (), synthetic: bool = False
) -> ModelCard:
    """The card as values; see `write_card`."""
    judged, raw = model.figures, model.metrics["raw"]
    before = raw if judged is not raw else None
    calibration = calibration_of(judged, before)
    task = model.task.spec
    what = f" ({', '.join(model.classes)})" if model.classes else f" ({task.target})" if not task.is_survival else ""
    return ModelCard(
        name=model.name,
        created=datetime.fromisoformat(facts["started"]),
        summary=f"From the tiles of a {model.training.level} it gives {_GIVES[task.name]}{what}, and a heatmap of the "
        f"tiles that spoke for it. {len(model.weights)} networks of the kind {model.head.name}, averaged.",
        synthetic=synthetic,
        flow=flow or [_trained_on(model)],
        cohort=_cohort(model),
        splits=_splits(model),
        figures=[row_of(figure) for figure in judged["figures"]],
        how=f"Out of fold, on {judged['bags']} {model.training.level}s of {judged['patients']} patients: each is "
        "judged by networks that did not see its patient. Intervals are 95 %, over patients.",
        calibration=calibration["calibration"],
        calibration_text=calibration["calibration_text"],
        charts=charts_of(judged, {"curves": raw["curves"]} if before else None),
        limits=[*_limits(model), *judged["notes"], *model.metrics.get("notes", [])],
        contract=_contract(model.contract),
        backbones=[_backbone(part) for part in _parts(model.contract)],
        commands=[f"wsi run SLIDES --model {model.name} --out RUN"],
        facts=_facts(model, facts),
    )


def _trained_on(model: "TrainedModel") -> FlowStep:
    used = [row for row in model.cohort if row.tiles]
    empty = tuple(row.bag for row in model.cohort if not row.tiles)
    slides = sum(len(row.slide_ids) for row in used)
    patients = len({row.patient_id or row.bag for row in used})
    return FlowStep("trained and cross-validated on", slides, patients, {"no tissue": empty} if empty else {})


def _cohort(model: "TrainedModel") -> list[CountTable]:
    """Slides and patients by truth; numbers and times are not counted one by one."""
    counts = Counter(row.truth for row in model.cohort)
    if len(counts) > MOST:
        return []
    rows = []
    for truth in sorted(counts):
        of = [row for row in model.cohort if row.truth == truth]
        slides, patients = sum(len(row.slide_ids) for row in of), len({row.patient_id or row.bag for row in of})
        rows.append((truth or "–", slides, patients))
    return [CountTable(model.task.spec.target, rows)]


def _splits(model: "TrainedModel") -> dict[str, str]:
    training = model.training
    found = {
        "How": f"{training.folds} folds"
        + (f", {training.repeats} times" if training.repeats > 1 else "")
        + f", by patient, seed {training.seed}"
        + (f"; spread evenly by {', '.join(training.stratify)}" if training.stratify else "")
    }
    if model.partition:
        found["Hash of the partition"] = model.partition
    return found


def _limits(model: "TrainedModel") -> list[str]:
    found = [
        "It was judged on the cohort it comes from, by cross-validation: at other hospitals, on other scanners and "
        "stains it may do worse. Evaluate it there first."
    ]
    if model.outliers is None:
        found.append("It cannot tell slides that are unlike its cohort.")
    if model.calibrator.method == "none":
        found.append("Its outputs are not calibrated: they rank, and are no probabilities.")
    return found


def _parts(contract: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Contracts of the backbones: several where their embeddings are joined, that of the tiles where slides are."""
    parts: Sequence[Mapping[str, Any]] = contract.get("joined") or [contract]
    return [part.get("tiles", part) for part in parts]


def _contract(contract: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in _parts(contract):
        name = str(part.get("backbone", part.get("origin", "embeddings")))
        known = [f"{key} {part[key]}" for key in _KEPT if part.get(key) not in (None, "", 0)]
        found[name if name not in found else f"{name} ({len(found) + 1})"] = ", ".join(known)
    return found


def _backbone(contract: Mapping[str, Any]) -> BackboneRow:
    from embedding.backbones import BACKBONES

    name = str(contract.get("backbone", contract.get("origin", "unknown")))
    entry = BACKBONES.get(name)
    if entry is None:
        return BackboneRow(name, "not known", "", "ask its authors")
    words = ["no commercial use"] if "NC" in entry.licence.upper().split("-") else []
    words += ["no derivatives"] if "ND" in entry.licence.upper().split("-") else []
    words += ["weights after an acceptance on the hub"] if entry.gated else []
    return BackboneRow(name, entry.licence, entry.weights, ", ".join(words) or "see the licence")


def _facts(model: "TrainedModel", facts: Mapping[str, Any]) -> dict[str, str]:
    shown = {
        "Digest of the model": model.mark,
        "Contract": model.contract_hash,
        "Calibration": model.calibrator.method,
        "Seed": str(model.training.seed),
        "Command": facts["command"],
        "Software": ", ".join(f"{name} {version}" for name, version in model.versions.items() if version),
    }
    return shown | ({"Revision": facts["revision"]} if facts.get("revision") else {})
