"""The heatmap stage: what a trained model sees on every tile of a slide, as files for viewers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heatmaps import Heatmap
from tiling.patches import open_patches
from wsi.errors import SpecError, StoreError
from wsi.publish import fingerprint

from .bags import SlideBag, bag_for
from .config import HeatmapSpec, RunSpec
from .folder import RunFolder
from .gallery import export_extremes
from .heatmap_files import Drawing, HeatmapFiles
from .manifest import SlideRecord
from .model_stages import mark_of_prediction, model_of, recorded
from .outcome import Outcome
from .receipts import DONE, EMPTY, SKIPPED

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel
    from mil.predict import Prediction

OCCLUSIONS = 400  # forward passes per network


def heatmap_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Heatmap of one embedded slide → heatmaps/<model>/<slide_id>.*, in the formats asked for; the slide is not read.

    A heatmap of another score than the prediction has its name in the files' names: <slide_id>.attention.png.
    """
    model, mark_of_model = model_of(spec)
    bag, mine, missing = bag_for(model, record, folder)
    said = mark_of_prediction((mark_of_model, missing), mine, bag, record)
    files, asked = HeatmapFiles.of(folder, model.name, record.slide_id, spec.heatmap.score), spec.heatmap
    made_from: dict[str, object] = {
        "slide_id": record.slide_id,
        "model": mark_of_model,
        "embeddings": mine.mark,
        "prediction": said,
    }
    if len(mine.ok) == 0:
        return Outcome(SKIPPED if files.write_empty(made_from) else EMPTY, fingerprint(said))
    before, drawn = files.recorded(), fingerprint(said, asked.display, asked.class_name, model.ranges)
    wanted, mark = files.to_write(asked, drawn), fingerprint(asked, drawn)
    pictures = bool(asked.tiles) and (before.get("gallery") != [said, asked.tiles] or not files.gallery.is_dir())
    if not wanted and not pictures:
        return Outcome(SKIPPED, mark, len(mine.ok))
    if not mine.attrs.get("placed", True):
        raise StoreError(mine.path, "the places of its tiles are not known", "import them with coordinates")
    if not folder.tiles(record.slide_id).exists():
        remedy = "tile the slide at their places (`wsi tile --coords`), then import them again"
        raise StoreError(mine.path, "these embeddings of another tool lie on no tiles of this run", remedy)
    tiles = open_patches(folder.tiles(record.slide_id))
    heatmap = replace(heatmap_of(model, bag, mine, asked.score, asked.class_name), origin=mark_of_model)
    if before.get("prediction") != said:
        files.clear()  # pictures of tiles, too: this time none may be asked for
    if pictures:
        export_extremes(record, spec, tiles, heatmap, files.gallery)
        made_from["gallery"] = [said, asked.tiles]
    files.write(Drawing(heatmap, tiles, asked, *colour_range(heatmap, asked, model)), wanted, made_from)
    return Outcome(DONE, mark, len(mine.ok), int((~mine.ok).sum()))


def colour_range(heatmap: Heatmap, asked: HeatmapSpec, model: "TrainedModel") -> tuple[tuple[float, float], str]:
    """((low, high), whose range that is) that the heatmap's colours are spread over.

    A model of an earlier version knows no range of its cohort, and ranks have none but their own.
    """
    if asked.display not in ("cohort", "definition"):
        return asked.given_range(), "as asked for"
    column = next((name for name in model.ranges if heatmap.name == title_of(name, model.task.classes)), None)
    if asked.display == "definition" or column is None:
        return heatmap.limits, "the score's whole range"
    return model.ranges[column], f"where 98 % of the tiles of the model's {len(model.cohort)} training bags lie"


def heatmap_of(model: "TrainedModel", bag: "Bag", mine: SlideBag, score: str, class_name: str | None = None) -> Heatmap:
    """Heatmap of one slide's tiles, of the output that its bag's prediction draws: of two classes the second, of more
    the predicted one.

    score  prediction: what the model says of a bag of this tile alone, comparable between slides; attention, gradient
           and occlusion: the tile's rank among those of its slide, since their size depends on the number of tiles
    class_name  of which class, None for what the prediction draws
    What the prediction draws and the attention are always in the file; `score` is the one that is drawn.
    """
    from mil.predict import predict

    if class_name is not None and class_name not in model.classes:
        known = ", ".join(model.classes) or "it has none"
        raise SpecError("--class", f"{class_name!r} is no class of the model", f"choose of {known}")
    prediction = predict(model, bag, None if class_name is None else model.classes.index(class_name))
    here = tiles_here(bag, mine)
    name = title_of(prediction.task.columns[prediction.drawn], prediction.classes)
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


def title_of(column: str, classes: Sequence[str]) -> str:
    """A column of the output as viewers show it: "tumor softmax"."""
    kind, _, name = column.partition("_")
    return f"{name} {kind}" if name and classes else column


def _class(prediction: "Prediction") -> str:
    return prediction.classes[prediction.drawn] if prediction.classes else prediction.task.columns[prediction.drawn]


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return (values.argsort().argsort() / max(1, len(values) - 1)).astype(np.float32)


def heatmap_files(row: Mapping[str, str], folder: RunFolder, model: str) -> dict[str, Path]:
    """Files by format of the slide's heatmap, where it shows what its row in the table of predictions says; else {}."""
    files = HeatmapFiles.of(folder, model, row["slide_id"])
    facts = files.recorded()
    said = recorded(folder.predictions(model).with_suffix("") / f"{row['slide_id']}.json")
    if facts.get("prediction") != said or any(facts.get(key) != row[key] for key in ("model", "embeddings")):
        return {}
    return files.by_format()
