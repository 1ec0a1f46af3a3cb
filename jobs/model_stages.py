"""The stages that use a trained model: predictions and heatmaps."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatmaps import Heatmap, OverlayStyle, draw_overlay, write_geojson
from tiling.patches import open_patches
from wsi.errors import SpecError, StoreError
from wsi.publish import fingerprint, write_json

from .bags import SlideBag, bag_for, bag_id, with_others
from .config import RunSpec
from .folder import RunFolder
from .gallery import export_extremes
from .manifest import SlideRecord
from .outcome import Outcome
from .receipts import DONE, EMPTY, SKIPPED

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel
    from mil.predict import Prediction

PREDICT_VERSION, HEATMAP_VERSION = 2, 2
LITTLE_TISSUE_UM2 = 0.2e6
MOSTLY_BLURRED = 0.5
OCCLUSIONS = 400  # forward passes per network


def predict_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """What the model says of one embedded slide → predictions/<model>/<slide_id>.json, from which the table is made."""
    model, mark_of_model = _model(spec)
    bag, mine, missing = bag_for(model, record, folder)
    mark = _mark((mark_of_model, missing), mine, bag, record)
    target = folder.predictions(model.name).with_suffix("") / f"{record.slide_id}.json"
    failed = int((~mine.ok).sum())
    if _recorded(target) == mark:
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


def heatmap_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Heatmap of one embedded slide → heatmaps/<model>/<slide_id>.geojson.gz and .png; the slide itself is not read.

    A heatmap of another score than the prediction has its name in the files' names: <slide_id>.attention.png.
    """
    model, mark_of_model = _model(spec)
    bag, mine, missing = bag_for(model, record, folder)
    score, said = spec.heatmap.score, _mark((mark_of_model, missing), mine, bag, record)
    mark = fingerprint(HEATMAP_VERSION, spec.heatmap, said)
    path, picture = (
        folder.heatmap(model.name, record.slide_id, score),
        folder.overlay(model.name, record.slide_id, score),
    )
    sidecar = picture.with_suffix(".json")
    made_from = {"slide_id": record.slide_id, "model": mark_of_model, "embeddings": mine.mark, "prediction": said}
    gallery = picture.with_suffix(".tiles")
    drawn = path.is_file() and picture.is_file() and (not spec.heatmap.tiles or gallery.is_dir())
    drawn = drawn or len(mine.ok) == 0
    if drawn and _recorded(sidecar) == mark:
        return Outcome(SKIPPED, mark, len(mine.ok))
    if _recorded(sidecar, "prediction") != said:
        shutil.rmtree(gallery, ignore_errors=True)  # this time none may be asked for, and that one is of another
    if len(mine.ok) == 0:
        path.unlink(missing_ok=True)  # of an earlier run that found tissue
        picture.unlink(missing_ok=True)
        write_json(sidecar, {**made_from, "objects": 0, "fingerprint": mark}, sealed=True)
        return Outcome(EMPTY, mark)
    if not mine.attrs.get("placed", True):
        raise StoreError(mine.path, "the places of its tiles are not known", "import them with coordinates")
    if not folder.tiles(record.slide_id).exists():
        remedy = "tile the slide at their places (`wsi tile --coords`), then import them again"
        raise StoreError(mine.path, "these embeddings of another tool lie on no tiles of this run", remedy)
    tiles = open_patches(folder.tiles(record.slide_id))
    heatmap = replace(heatmap_of(model, bag, mine, score), origin=mark_of_model)
    count = write_geojson(heatmap, path)
    thumbnail, mpp = tiles.thumbnail, float(tiles.attrs["slide"]["mpp"])
    draw_overlay(thumbnail.pixels, thumbnail.scale, heatmap, picture, mpp, OverlayStyle(max_px=spec.heatmap.max_px))
    if spec.heatmap.tiles:
        export_extremes(record, spec, tiles, heatmap, gallery)
    facts = {"score": heatmap.name, "class": heatmap.class_name, "limits": heatmap.limits, "objects": count}
    write_json(sidecar, {**made_from, **facts, "fingerprint": mark}, sealed=True)
    return Outcome(DONE, mark, len(mine.ok), int((~mine.ok).sum()))


def heatmap_of(model: "TrainedModel", bag: "Bag", mine: SlideBag, score: str) -> Heatmap:
    """Heatmap of one slide's tiles, of the output that its bag's prediction draws: of two classes the second, of more
    the predicted one.

    score  prediction: what the model says of a bag of this tile alone, comparable between slides; attention, gradient
           and occlusion: the tile's rank among those of its slide, since their size depends on the number of tiles
    What the prediction draws and the attention are always in the file; `score` is the one that is drawn.
    """
    prediction = _predict(model, bag)
    here = tiles_here(bag, mine)
    name = _title(prediction)
    columns: dict[str, NDArray[np.float32]] = {name: prediction.scores[here, prediction.drawn].astype(np.float32)}
    if prediction.attention is not None:
        attention = prediction.attention[here]
        columns["attention rank"] = _ranks(attention)
        columns["attention x tiles"] = (attention * prediction.tiles).astype(np.float32)
    drawn = name
    if score == "attention":
        if prediction.attention is None:
            remedy = "draw --score prediction, gradient or occlusion"
            raise SpecError("--score", f"the head {model.head.name} has no attention", remedy)
        drawn = "attention rank"
    elif score != "prediction":
        values = explained(model, bag, score, prediction.drawn)[here]
        drawn = f"{score} rank"
        columns |= {drawn: _ranks(values), score: values}
    low, high = (0.0, 1.0) if drawn != name else prediction.task.limits
    shown = columns.pop(drawn)
    return Heatmap(
        mine.bag.slide_ids[0],
        drawn,
        _class(prediction),
        shown if drawn != name else shown.clip(low, high),
        mine.bag.xy,
        mine.bag.span_px,
        limits=(low, high),
        measurements=columns,
        failed_xy=mine.xy[~mine.ok],
    )


def explained(model: "TrainedModel", bag: "Bag", method: str, column: int) -> NDArray[np.float32]:
    """Score of every tile of the bag by a method of `mil.explain`, mean over the networks that did not see it.

    Occlusion leaves out squares of tiles, so large that there are some hundreds of them.
    """
    from mil.explain import Asked, explain

    known = None if model.covariates is None else model.covariates.encode([bag])[0]
    block = max(1, math.ceil(math.sqrt(bag.tiles / OCCLUSIONS)))
    asked = Asked(method, column, known, block if method == "occlusion" else 1)
    networks = (model.network(fold) for fold in model.folds_without(bag))
    each = [explain(network, model.task, bag.features, bag.positions(), asked) for network in networks]
    return np.mean(each, axis=0, dtype=np.float32)


def tiles_here(bag: "Bag", mine: SlideBag) -> NDArray[np.bool_]:
    """Which of the bag's tiles are of this slide."""
    if bag.slide_of is None:
        return np.ones(bag.tiles, bool)
    return np.asarray(bag.slide_of == bag.slide_ids.index(mine.bag.slide_ids[0]))


def _title(prediction: "Prediction") -> str:
    column = prediction.task.columns[prediction.drawn]
    kind, _, name = column.partition("_")
    return f"{name} {kind}" if name and prediction.classes else column


def _class(prediction: "Prediction") -> str:
    return prediction.classes[prediction.drawn] if prediction.classes else prediction.task.columns[prediction.drawn]


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return (values.argsort().argsort() / max(1, len(values) - 1)).astype(np.float32)


def heatmap_is_of(row: Mapping[str, str], folder: RunFolder, model: str) -> bool:
    """Whether the slide's heatmap files show what its row in the table of predictions says."""
    path, picture = folder.heatmap(model, row["slide_id"]), folder.overlay(model, row["slide_id"])
    sidecar = picture.with_suffix(".json")
    if not (path.is_file() and sidecar.is_file() and picture.is_file()):
        return False
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    said = _recorded(folder.predictions(model).with_suffix("") / f"{row['slide_id']}.json")
    return facts.get("prediction") == said and all(facts.get(key) == row[key] for key in ("model", "embeddings"))


def open_model(path: str | Path) -> "TrainedModel":
    """A model by its folder; its name is the folder's."""
    from mil.model import load_model

    folder = Path(path)
    return replace(load_model(folder), name=folder.resolve().name)


def together(records: list[SlideRecord], spec: RunSpec) -> list[SlideRecord]:
    """The slides as the model's bags take them: each with the others of its case or patient."""
    return with_others(records, open_model(spec.model).training.level if spec.model else "slide")


def _model(spec: RunSpec) -> tuple["TrainedModel", str]:
    if spec.model is None:
        raise SpecError("model", "none was given", "name a model's folder with --model")
    config = Path(spec.model) / "config.json"
    stamp = config.stat().st_mtime_ns if config.is_file() else 0
    return _cached_model(spec.model, stamp)


@lru_cache(maxsize=1)
def _cached_model(path: str, stamp: int) -> tuple["TrainedModel", str]:
    model = open_model(path)
    return model, model.mark


def _mark(model: tuple[str, Sequence[str]], mine: SlideBag, bag: "Bag", record: SlideRecord) -> str:
    """Fingerprint of a prediction; model: its mark, and the slides of the bag that it was not shown."""
    columns, who = sorted(bag.columns.items()), (record.patient_id, record.case_id)
    return fingerprint(PREDICT_VERSION, *model, mine.mark, mine.beside, bag.slide_ids, columns, *who)


def _predict(model: "TrainedModel", bag: "Bag") -> "Prediction":
    from mil.predict import predict

    return predict(model, bag)


def _recorded(path: Path, key: str = "fingerprint") -> str | None:
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
