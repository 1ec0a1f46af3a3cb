"""The stages that use a trained model: predictions, heatmaps, and their table."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatmaps import Heatmap, OverlayStyle, draw_overlay, write_geojson
from tiling.patches import open_patches
from wsi.errors import SpecError, StoreError
from wsi.publish import appear_file, fingerprint, write_json

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .receipts import DONE, EMPTY, FAILED, SKIPPED
from .run import Outcome
from .stages import open_unchanged

if TYPE_CHECKING:
    from embedding.store import EmbeddingStore
    from mil.model import TrainedModel
    from mil.predict import Prediction

PREDICT_VERSION, HEATMAP_VERSION = 1, 1
FORMULA = re.compile(r"^'([=+\-@])")


def predict_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Class of one embedded slide → predictions/<model>/<slide_id>.json, from which the table is made."""
    model, mark_of_model = _model(spec)
    store = embeddings_for(model, record, folder)
    mark = fingerprint(PREDICT_VERSION, mark_of_model, store.fingerprint, record.patient_id, record.case_id)
    target = folder.predictions(model.name).with_suffix("") / f"{record.slide_id}.json"
    if _recorded(target) == mark:
        return Outcome(SKIPPED, mark, len(store.ok))
    prediction = _predict(model, store, record)
    softmax = [] if prediction.softmax is None else prediction.softmax.tolist()
    row = {
        "slide_id": record.slide_id,
        "status": prediction.status,
        "predicted": prediction.predicted,
        "softmax": dict(zip(prediction.classes, softmax, strict=False)),
        "origin": prediction.origin,
        "tiles": len(store.ok),
        "failed_tiles": int((~store.ok).sum()),
        "mpp": store.attrs["mpp"],
        "mpp_source": store.attrs["mpp_source"],
        "contract": store.contract_hash,
        "model": mark_of_model,
        "embeddings": store.fingerprint,
        "fingerprint": mark,
    }
    write_json(target, row)
    return Outcome(EMPTY if prediction.status == EMPTY else DONE, mark, len(store.ok), row["failed_tiles"])


def heatmap_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Heatmap of one embedded slide → heatmaps/<model>/<slide_id>.geojson.gz and .png; the slide itself is not read."""
    model, mark_of_model = _model(spec)
    store = embeddings_for(model, record, folder)
    mark = fingerprint(
        HEATMAP_VERSION, mark_of_model, store.fingerprint, spec.heatmap, record.patient_id, record.case_id
    )
    path, picture = folder.heatmap(model.name, record.slide_id), folder.overlay(model.name, record.slide_id)
    sidecar = path.with_name(f"{record.slide_id}.json")
    made_from = {"slide_id": record.slide_id, "model": mark_of_model, "embeddings": store.fingerprint}
    drawn = len(store.ok) == 0 or (path.is_file() and picture.is_file())
    if drawn and _recorded(sidecar) == mark:
        return Outcome(SKIPPED, mark, len(store.ok))
    if len(store.ok) == 0:
        path.unlink(missing_ok=True)  # of an earlier run that found tissue
        picture.unlink(missing_ok=True)
        write_json(sidecar, {**made_from, "objects": 0, "fingerprint": mark})
        return Outcome(EMPTY, mark)
    if not store.attrs.get("placed", True):
        raise StoreError(store.path, "the places of its tiles are not known", "import them with coordinates")
    if not folder.tiles(record.slide_id).exists():
        remedy = "tile the slide at their places (`wsi tile --coords`), then import them again"
        raise StoreError(store.path, "these embeddings of another tool lie on no tiles of this run", remedy)
    tiles = open_patches(folder.tiles(record.slide_id))
    heatmap = replace(heatmap_of(_predict(model, store, record), store, spec.heatmap.score), origin=mark_of_model)
    count = write_geojson(heatmap, path)
    thumbnail, mpp = tiles.thumbnail, float(tiles.attrs["slide"]["mpp"])
    draw_overlay(thumbnail.pixels, thumbnail.scale, heatmap, picture, mpp, OverlayStyle(max_px=spec.heatmap.max_px))
    facts = {"score": heatmap.name, "class": heatmap.class_name, "limits": heatmap.limits, "objects": count}
    write_json(sidecar, {**made_from, **facts, "fingerprint": mark})
    return Outcome(DONE, mark, len(store.ok), int((~store.ok).sum()))


def heatmap_of(prediction: "Prediction", store: "EmbeddingStore", score: str) -> Heatmap:
    """Prediction → Heatmap of the class of interest: with two classes the second, with more the predicted one.

    score  softmax: what the head says of a bag of this tile alone, comparable between slides; attention: the tile's
           rank among those of its slide, since raw attention depends on the number of tiles
    Both are always in the file; `score` is the one that is drawn.
    """
    classes = prediction.classes
    wanted = 1 if len(classes) == 2 else classes.index(prediction.predicted or classes[0])
    ranks = (prediction.attention.argsort().argsort() / max(1, prediction.tiles - 1)).astype(np.float32)
    name = classes[wanted]
    columns: dict[str, NDArray[np.float32]] = {
        f"{name} softmax": prediction.scores[:, wanted].astype(np.float32),
        "attention rank": ranks,
    }
    raw = {"attention x tiles": (prediction.attention * prediction.tiles).astype(np.float32)}
    drawn = f"{name} softmax" if score == "softmax" else "attention rank"
    others = {key: values for key, values in {**columns, **raw}.items() if key != drawn}
    return Heatmap(
        prediction.slide_id,
        drawn,
        name,
        columns[drawn],
        prediction.xy,
        prediction.span_px,
        measurements=others,
        failed_xy=store.xy[~store.ok],
    )


def embeddings_for(model: "TrainedModel", record: SlideRecord, folder: RunFolder) -> "EmbeddingStore":
    """The slide's embeddings that fit the model; where there are only others, BackboneError names both contracts."""
    from embedding.contract import contract_name
    from embedding.store import open_embeddings
    from mil.bag import load_bag, require_contract

    path = folder.embeddings(contract_name(dict(model.contract)), record.slide_id)
    if path.exists():
        return open_unchanged(path, folder, record)
    for other in sorted(folder.root.glob(f"embeddings/*/{record.slide_id}.zarr")):
        bag = load_bag(open_embeddings(other))
        require_contract(bag, model.contract, model.contract_hash, model.head.dim)
    raise StoreError(path, "this slide has no embeddings", "run `wsi embed` on it first")


def write_predictions(
    records: Sequence[SlideRecord], model: "TrainedModel", folder: RunFolder, failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """predictions/<model>.csv: a row for every slide asked for, also those that are empty or failed. Returns them.

    failed  slide_id → problem, of the slides that did not come through
    Rows of other slides, from earlier commands on the same run folder, stay if they are of the same model: a table
    that mixes a model with one of the same name, or with itself before it was trained anew, would judge neither.
    """
    classes = model.classes
    columns = ["slide_id", "case_id", "patient_id", "status", "predicted", *(f"softmax_{name}" for name in classes)]
    columns += ["origin", "tiles", "failed_tiles", "mpp", "mpp_source", "contract", "model", "embeddings", "problem"]
    mark = model_mark(model)
    rows = []
    for record in records:
        path = folder.predictions(model.name).with_suffix("") / f"{record.slide_id}.json"
        made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        row: dict[str, Any] = {"slide_id": record.slide_id, "case_id": record.case_id, "patient_id": record.patient_id}
        row["model"] = mark
        if record.slide_id in failed or made.get("model") != mark:
            row |= {"status": FAILED, "problem": failed.get(record.slide_id, "not predicted")}
        else:
            row |= {key: value for key, value in made.items() if key in columns}
            row |= {f"softmax_{name}": f"{value:.6f}" for name, value in made["softmax"].items()}
        rows.append({column: as_cell(row.get(column)) for column in columns})
    target, mine = folder.predictions(model.name), {row["slide_id"] for row in rows}
    others = [row for row in table_rows(target) if row["slide_id"] not in mine and row.get("model") == mark]
    with (
        appear_file(target) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(sorted([*others, *rows], key=lambda row: row["slide_id"]))
    return rows


def heatmap_is_of(row: Mapping[str, str], folder: RunFolder, model: str) -> bool:
    """Whether the slide's heatmap files show what its row in the table of predictions says."""
    path = folder.heatmap(model, row["slide_id"])
    sidecar = path.with_name(f"{row['slide_id']}.json")
    if not (path.is_file() and sidecar.is_file() and folder.overlay(model, row["slide_id"]).is_file()):
        return False
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    return all(facts.get(key) == row[key] for key in ("model", "embeddings"))


def table_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of predictions, none if there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{key: FORMULA.sub(r"\1", value) for key, value in row.items()} for row in csv.DictReader(stream)]


def as_cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is written as text; `table_rows` takes the quote away again."""
    return f"'{value}" if isinstance(value, str) and value[:1] in list("=+-@") else "" if value is None else value


def open_model(path: str | Path) -> "TrainedModel":
    """A model by its folder; its name is the folder's."""
    from mil.model import load_model

    folder = Path(path)
    return replace(load_model(folder), name=folder.resolve().name)


def model_mark(model: "TrainedModel") -> str:
    """Fingerprint of what a model answers: its weights, classes, contract, and the cohort it must not judge unseen."""
    weights = [{name: sha256(array.tobytes()).hexdigest() for name, array in fold.items()} for fold in model.weights]
    cohort = [asdict(row) for row in model.cohort]
    return fingerprint(weights, model.classes, model.contract_hash, cohort)


def _model(spec: RunSpec) -> tuple["TrainedModel", str]:
    if spec.model is None:
        raise SpecError("model", "none was given", "name a model's folder with --model")
    config = Path(spec.model) / "config.json"
    stamp = config.stat().st_mtime_ns if config.is_file() else 0
    return _cached_model(spec.model, stamp)


@lru_cache(maxsize=1)
def _cached_model(path: str, stamp: int) -> tuple["TrainedModel", str]:
    model = open_model(path)
    return model, model_mark(model)


def _predict(model: "TrainedModel", store: "EmbeddingStore", record: SlideRecord) -> "Prediction":
    from mil.bag import load_bag
    from mil.predict import predict

    return predict(model, load_bag(store, record.label, record.patient_id, record.case_id))


def _recorded(path: Path) -> str | None:
    return json.loads(path.read_text(encoding="utf-8")).get("fingerprint") if path.is_file() else None
