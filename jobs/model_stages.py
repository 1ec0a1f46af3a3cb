"""The stage that predicts with a trained model, and what the stages with a model share."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.patches import open_patches
from wsi.errors import SpecError
from wsi.publish import fingerprint, write_json

from .bags import SlideBag, bag_for, bag_id, with_others
from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .outcome import Outcome
from .receipts import DONE, EMPTY, SKIPPED

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel
    from mil.predict import Prediction

PREDICT_VERSION = 2
LITTLE_TISSUE_UM2 = 0.2e6
MOSTLY_BLURRED = 0.5


def predict_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """What the model says of one embedded slide → predictions/<model>/<slide_id>.json, from which the table is made."""
    model, mark_of_model = model_of(spec)
    bag, mine, missing = bag_for(model, record, folder)
    mark = mark_of_prediction((mark_of_model, missing), mine, bag, record)
    target = folder.predictions(model.name).with_suffix("") / f"{record.slide_id}.json"
    failed = int((~mine.ok).sum())
    if recorded(target) == mark:
        return Outcome(SKIPPED, mark, len(mine.ok))
    prediction = _predict(model, bag)
    row = {
        "slide_id": record.slide_id,
        "bag": bag_id(record, model.training.level),
        **_said(prediction, missing),
        "tiles": len(mine.ok),
        "failed_tiles": failed,
        "slides": len(bag.slide_ids),
        "mpp": mine.attrs["mpp"],
        "mpp_source": mine.attrs["mpp_source"],
        "contract": bag.contract_hash,
        "model": mark_of_model,
        "embeddings": mine.mark,
        "fingerprint": mark,
    }
    row["flags"] += _quality(record, folder)
    write_json(target, row, sealed=True)
    return Outcome(EMPTY if prediction.status == EMPTY else DONE, mark, len(mine.ok), failed)


def _said(prediction: "Prediction", missing: list[str]) -> dict[str, Any]:
    task, output, probability = prediction.task, prediction.output, prediction.probability
    flags = list(prediction.flags)
    if missing:
        flags.append(f"without {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}")
    return {
        "status": prediction.status,
        "predicted": prediction.predicted,
        "output": {} if output is None else dict(zip(task.columns, output.tolist(), strict=True)),
        "probability": {}
        if probability is None
        else {f"probability_{name}": value for name, value in zip(task.classes, probability.tolist(), strict=True)},
        "spread": None if prediction.spread is None else round(float(prediction.spread[prediction.drawn]), 6),
        "set": list(prediction.chosen),
        "abstains": prediction.abstains,
        "flags": flags,
        "origin": prediction.origin,
    }


def _quality(record: SlideRecord, folder: RunFolder) -> list[str]:
    """What speaks against relying on the slide itself: little tissue, most of it blurred."""
    if not folder.tiles(record.slide_id).exists():
        return []
    tiles, found = open_patches(folder.tiles(record.slide_id)), []
    area = tiles.attrs.get("tissue_um2")
    if area is not None and 0 < area < LITTLE_TISSUE_UM2:
        found.append(f"little tissue ({area / 1e6:.2f} mm²)")
    if tiles.has("flag_blur") and len(tiles.grid) and tiles.array("flag_blur").mean() > MOSTLY_BLURRED:
        found.append("most tiles are blurred")
    return found


def open_model(path: str | Path) -> "TrainedModel":
    """A model by its folder; its name is the folder's."""
    from mil.model import load_model

    folder = Path(path)
    return replace(load_model(folder), name=folder.resolve().name)


def together(records: list[SlideRecord], spec: RunSpec) -> list[SlideRecord]:
    """The slides as the model's bags take them: each with the others of its case or patient."""
    return with_others(records, open_model(spec.model).training.level if spec.model else "slide")


def model_of(spec: RunSpec) -> tuple["TrainedModel", str]:
    if spec.model is None:
        raise SpecError("model", "none was given", "name a model's folder with --model")
    config = Path(spec.model) / "config.json"
    stamp = config.stat().st_mtime_ns if config.is_file() else 0
    return _cached_model(spec.model, stamp)


@lru_cache(maxsize=1)
def _cached_model(path: str, stamp: int) -> tuple["TrainedModel", str]:
    model = open_model(path)
    return model, model.mark


def mark_of_prediction(model: tuple[str, Sequence[str]], mine: SlideBag, bag: "Bag", record: SlideRecord) -> str:
    """Fingerprint of a prediction; model: its mark, and the slides of the bag that it was not shown."""
    columns, who = sorted(bag.columns.items()), (record.patient_id, record.case_id)
    return fingerprint(PREDICT_VERSION, *model, mine.mark, mine.beside, bag.slide_ids, columns, *who)


def _predict(model: "TrainedModel", bag: "Bag") -> "Prediction":
    from mil.predict import predict

    return predict(model, bag)


def recorded(path: Path, key: str = "fingerprint") -> str | None:
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
