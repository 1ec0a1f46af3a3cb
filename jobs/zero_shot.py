"""Zero-shot: classes described by prompts, their scores on every tile, and the slide's; no training, no labels.

A description lies in the run as zero_shot/<name>.npz: the classes' embeddings and what they were made of. Predictions
and heatmaps take its name, as they take a model's.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedding.backbones import BACKBONES, find_backbone
from embedding.contract import contract_name, side_by_side
from embedding.spec import EmbedSpec
from embedding.zero_shot import Prompts, class_embeddings, slide_cosines, softmax, tile_cosines
from heatmaps import Heatmap
from tiling.patches import open_patches
from wsi.errors import BackboneError, SpecError, StoreError
from wsi.publish import appear_file, fingerprint, write_json

from .config import HeatmapSpec, RunSpec, Settings
from .features import choose_features, contracts_in, features_table
from .folder import RunFolder
from .heatmap_files import Drawing, HeatmapFiles
from .manifest import SlideRecord
from .model_stages import recorded
from .outcome import Outcome
from .prediction_table import as_cell, table_rows
from .receipts import DONE, EMPTY, FAILED, SKIPPED
from .stages import open_unchanged

if TYPE_CHECKING:
    from embedding.store import EmbeddingStore

VERSION = 1
VARIANT = "projected"


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """Classes as a backbone's text tower sees them.

    vectors      float32 (c, d), of unit length, in the order of `classes`
    logit_scale  what cosines are multiplied with before the softmax
    top_k        tiles nearest to a class that speak for the slide
    contract     of the embeddings that they are compared with
    mark         fingerprint of all that it was made of
    """

    name: str
    classes: tuple[str, ...]
    vectors: NDArray[np.float32]
    logit_scale: float
    top_k: int
    contract: Mapping[str, Any]
    mark: str


def projected_features(settings: Settings, named: str | None, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """(name, contract) of the run's embeddings that prompts can be compared with: the variant `projected`.

    Raises BackboneError where the run has those of other variants or backbones, with these and what is needed;
    StoreError where it has none, or several that fit.
    """
    embed, there = settings.get("embed") or {}, contracts_in(folder)
    backbone = embed.get("backbone")
    if named is None and there and not any(_compares(contract, backbone) for contract in there.values()):
        raise _refused(there, backbone, folder)
    # of weights that differ it is said later, with both contracts
    asked = {key: value for key, value in embed.items() if key != "weights"} | {"variant": VARIANT}
    name, contract = choose_features({**settings, "embed": asked}, named, folder)
    if not _compares(contract, backbone):
        raise _refused({name: contract}, backbone, folder)
    return name, contract


def _compares(contract: Mapping[str, Any], backbone: str | None) -> bool:
    return contract.get("pooling") == VARIANT and backbone in (None, contract.get("backbone"))


def _refused(there: Mapping[str, Mapping[str, Any]], asked: str | None, folder: RunFolder) -> BackboneError:
    """The refusal of embeddings that are of other variants, or of other backbones than `asked`."""
    able = [name for name, backbone in BACKBONES.items() if VARIANT in backbone.variants]
    first, *others = there.values()
    if asked is None and not others and first.get("backbone") in able:
        asked = first["backbone"]
    wanted = {"backbone": asked or "one with a text tower", "pooling": VARIANT}
    if others:
        table = features_table(there, shown=("variant",))
    else:
        table = side_by_side({key: first.get(key) for key in wanted}, wanted, ("these embeddings", "prompts need"))
    what = f"the variant {VARIANT}" + (f" of {asked}" if asked else "")
    problem = f"prompts are compared with embeddings of {what}, and these are of others\n\n{table}\n"
    name = asked if asked in able else "NAME"
    remedy = f"embed with `wsi embed --backbone {name} --variant {VARIANT}`"
    return BackboneError(
        folder.root / "embeddings", problem, remedy if name != "NAME" else f"{remedy}, of {', '.join(able)}"
    )


def describe(
    name: str, prompts: Prompts, top_k: int, spec: EmbedSpec, contract: Mapping[str, Any], folder: RunFolder
) -> Path:
    """Embed the prompts → zero_shot/<name>.npz, unless it is there already; returns its path.

    Raises BackboneError when the weights are not those that the embeddings were made with, or have no text tower.
    """
    from embedding.text import load_text_tower, text_mark, tokenizer_file
    from embedding.weights import find_weights, weights_digest

    if top_k < 1:
        raise SpecError("--top-k", f"{top_k} is out of range", "give at least 1")
    if folder.model(name).exists():
        raise SpecError("--name", f"{name!r} is a trained model of this run", "give another --name")
    backbone = find_backbone(contract["backbone"], VARIANT)
    weights = find_weights(backbone, Path(spec.weights) if spec.weights else None, spec.offline)
    if weights_digest(weights) != contract.get("weights_sha256"):
        found = {key: contract.get(key) for key in ("backbone", "pooling", "weights_sha256")}
        wanted = {**found, "weights_sha256": weights_digest(weights)}
        table = side_by_side(found, wanted, ("these embeddings", "these weights"))
        remedy = "give with --weights the file that they were made with"
        raise BackboneError(weights, f"the embeddings are not of these weights\n\n{table}\n", remedy)
    tokenizer = tokenizer_file(backbone, weights, spec.offline)
    mark = fingerprint(VERSION, text_mark(weights, tokenizer), prompts, top_k, contract["hash"])
    path = folder.root / "zero_shot" / f"{name}.npz"
    if path.is_file() and open_description(path).mark == mark:
        return path
    tower = load_text_tower(backbone, weights, offline=spec.offline)
    facts = {
        "classes": prompts.classes,
        "templates": prompts.templates,
        "logit_scale": tower.logit_scale,
        "top_k": top_k,
        "contract": dict(contract),
        "mark": mark,
    }
    vectors = class_embeddings(tower, prompts)
    with appear_file(path) as draft, draft.open("wb") as stream:
        np.savez(stream, vectors=vectors, facts=np.array(json.dumps(facts)))
    return path


def open_description(path: Path) -> Description:
    """A description by its file; its name is the file's."""
    with np.load(path, allow_pickle=False) as stored:
        facts, vectors = json.loads(str(stored["facts"])), stored["vectors"]
    names = tuple(name for name, _ in facts["classes"])
    return Description(
        path.stem, names, vectors, facts["logit_scale"], facts["top_k"], facts["contract"], facts["mark"]
    )


def zero_shot_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Scores of one embedded slide → predictions/<name>/<slide_id>.json, and its heatmap; the slide is not read."""
    described = _described(spec)
    path = folder.embeddings(contract_name(described.contract), record.slide_id)
    if not path.exists():
        raise StoreError(path, "this slide has no embeddings", "run `wsi embed` on it first")
    store = open_unchanged(path, folder, record)
    mark = fingerprint(VERSION, described.mark, store.fingerprint)
    target = folder.predictions(described.name).with_suffix("") / f"{record.slide_id}.json"
    files, ok = HeatmapFiles.of(folder, described.name, record.slide_id), np.asarray(store.ok, bool)
    wanted = files.to_write(spec.heatmap, fingerprint(mark, spec.heatmap.display)) if ok.any() else {}
    if not wanted and recorded(target) == mark:
        return Outcome(SKIPPED, mark, len(ok))
    features = np.asarray(store.embeddings)[ok].astype(np.float32)
    if not np.isfinite(features).all():
        raise StoreError(path, "its embeddings hold NaN or infinity", "embed the slide again")
    cosines = tile_cosines(features, described.vectors)
    scores = softmax(slide_cosines(cosines, described.top_k), described.logit_scale) if len(cosines) else None
    row = _row(record, described, store, scores) | {"fingerprint": mark}
    if scores is None:
        files.clear()  # of an earlier run that found tissue
    else:
        heatmap = heatmap_of(softmax(cosines, described.logit_scale), described, store, str(row["predicted"]))
        if files.recorded().get("prediction") != mark:
            files.clear()
        facts = {"slide_id": record.slide_id, "model": described.mark, "embeddings": store.fingerprint}
        files.write(_drawing(heatmap, spec.heatmap, folder), wanted, {**facts, "prediction": mark})
    write_json(target, row, sealed=True)
    return Outcome(EMPTY if scores is None else DONE, mark, len(ok), int((~ok).sum()))


def heatmap_of(scores: NDArray[np.float32], described: Description, store: "EmbeddingStore", predicted: str) -> Heatmap:
    """Scores of the readable tiles (n, c) → Heatmap of the class of interest: with two classes the second, with more
    the predicted one. The others' scores are in the file, too."""
    ok, classes = np.asarray(store.ok, bool), described.classes
    wanted = 1 if len(classes) == 2 else classes.index(predicted)
    columns = {f"{name} softmax": scores[:, column].astype(np.float32) for column, name in enumerate(classes)}
    drawn = f"{classes[wanted]} softmax"
    return Heatmap(
        store.slide_id,
        drawn,
        classes[wanted],
        columns.pop(drawn),
        np.asarray(store.xy)[ok].astype(np.int64),
        store.span_px,
        measurements=columns,
        failed_xy=np.asarray(store.xy)[~ok].astype(np.int64),
        origin=described.mark,
    )


def write_scores(
    records: Sequence[SlideRecord], path: Path, folder: RunFolder, failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """predictions/<name>.csv of a description: a row for every slide asked for. Returns them.

    failed  slide_id → problem, of the slides that did not come through
    Rows of other slides stay if they are of the same description.
    """
    described = open_description(path)
    columns = ["slide_id", "case_id", "patient_id", "status", "predicted"]
    columns += [f"softmax_{name}" for name in described.classes]
    columns += ["origin", "tiles", "failed_tiles", "mpp", "mpp_source", "contract", "model", "embeddings", "problem"]
    target, rows = folder.predictions(described.name), []
    for record in records:
        made_path = target.with_suffix("") / f"{record.slide_id}.json"
        made = json.loads(made_path.read_text(encoding="utf-8")) if made_path.exists() else {}
        row = {"slide_id": record.slide_id, "case_id": record.case_id, "patient_id": record.patient_id}
        if record.slide_id in failed or made.get("model") != described.mark:
            row |= {"status": FAILED, "model": described.mark, "problem": failed.get(record.slide_id, "not scored")}
        else:
            row |= {key: made[key] for key in columns if key in made}
            row |= {f"softmax_{name}": f"{value:.6f}" for name, value in made["softmax"].items()}
        rows.append({column: as_cell(row.get(column)) for column in columns})
    mine = {record.slide_id for record in records}
    others = [row for row in table_rows(target) if row["slide_id"] not in mine and row.get("model") == described.mark]
    with (
        appear_file(target) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(sorted([*others, *rows], key=lambda row: str(row["slide_id"])))
    return rows


def _row(
    record: SlideRecord, described: Description, store: "EmbeddingStore", scores: NDArray[np.float32] | None
) -> dict[str, Any]:
    values = [] if scores is None else scores.tolist()
    return {
        "slide_id": record.slide_id,
        "status": EMPTY if scores is None else DONE,
        "predicted": None if scores is None else described.classes[int(scores.argmax())],
        "softmax": dict(zip(described.classes, values, strict=False)),
        "origin": f"prompts, top {described.top_k} tiles",
        "tiles": len(store.ok),
        "failed_tiles": int((~np.asarray(store.ok, bool)).sum()),
        "mpp": store.attrs["mpp"],
        "mpp_source": store.attrs["mpp_source"],
        "contract": store.contract_hash,
        "model": described.mark,
        "embeddings": store.fingerprint,
    }


def _drawing(heatmap: Heatmap, asked: HeatmapSpec, folder: RunFolder) -> Drawing:
    """No cohort was trained on, so colours are spread over the whole softmax unless a range is given."""
    given = asked.display not in ("cohort", "definition")
    display, note = (asked.given_range(), "as asked for") if given else (heatmap.limits, "the score's whole range")
    return Drawing(heatmap, open_patches(folder.tiles(heatmap.slide_id)), asked, display, note)


def _described(spec: RunSpec) -> Description:
    if spec.model is None or not Path(spec.model).is_file():
        raise SpecError("model", "no description was given", "run `wsi zero-shot`")
    return _cached(spec.model, Path(spec.model).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _cached(path: str, stamp: int) -> Description:
    return open_description(Path(path))
