"""Regions of a run's slides whose labels would teach a model most, from saved embeddings alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray

from mil.active import Candidates, ChoiceSpec, choose, disagreement, entropy, region_about, shortlist, told
from wsi.errors import SpecError, StoreError
from wsi.publish import write_json

from ..features import names_of
from ..folder import RunFolder, now
from ..manifest import SlideRecord
from ..region_bags import tiles_inside
from .geojson import feature
from .review import Review
from .state import SUGGESTED, Region, SlideState
from .suggestions import Suggestion, by_slide, write_suggestions

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel

REGION_TILES = 5  # a readable field, and small enough to be of one class
_MOST = 256  # tiles of a slide to choose from: of a cohort of thousands all would not fit into memory


@dataclass(frozen=True, slots=True)
class Suggested:
    """What was suggested, and slides that could not be looked at: id → why."""

    suggestions: tuple[Suggestion, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Slide:
    """One slide's tiles: the rows that may be chosen, what networks say of all tiles (m, n, C), and those reviewed."""

    bag: "Bag"
    patient: str
    outputs: NDArray[np.float32]
    rows: NDArray[np.int64]
    reviewed: NDArray[np.int64]

    @property
    def mean(self) -> NDArray[np.float32]:
        return np.asarray(self.outputs.mean(axis=0))

    @property
    def place(self) -> NDArray[np.int64]:
        """Column and row of each tile, (n, 2)."""
        return np.asarray(np.round(self.bag.xy / self.bag.span_px), np.int64)


def suggest(folder: RunFolder, model: "TrainedModel", records: Sequence[SlideRecord], spec: ChoiceSpec) -> Suggested:
    """Choose regions of these slides, and put them into the run's queue in place of older suggestions.

    A slide of a patient that the model was trained on is looked at by the networks that did not see it. Where that is
    one only, it cannot disagree: such tiles are chosen by doubt, and not at all where disagreement alone counts. Tiles
    that people have spoken of are left out. Raises SpecError for a model without classes, StoreError where no slide
    has embeddings that fit it.
    """
    if model.task.name not in ("classification", "ordinal"):
        raise SpecError("--model", f"it predicts {model.task.name}, and regions have classes", "give a classifier")
    review = Review(folder.review, {record.slide_id: None for record in records}, model.classes)
    states, left_out = review.states(), dict[str, str]()
    slides = list(_slides(folder, model, records, (states, left_out, spec)))
    if not slides:
        names = ", ".join(names_of(model.contract))
        raise StoreError(
            folder.root / "embeddings", f"no slide has tiles in {names}", "embed with the model's backbone"
        )
    candidates, owner = _candidates(slides)
    chosen = choose(candidates, spec)
    found = tuple(_suggestion(slides[owner[row][0]], owner[row][1], model, spec) for row in chosen.tolist())
    facts = {"model": model.name, "mark": model.mark, "by": spec.by, "seed": spec.seed, "when": now()}
    write_suggestions(folder.review, found, facts)
    return Suggested(found, left_out)


def write_for_qupath(suggestions: Sequence[Suggestion], out: Path, classes: Sequence[str]) -> list[Path]:
    """A GeoJSON file for each slide, its regions with the reason as name and the numbers as measurements."""
    written = []
    for slide_id, ours in by_slide(suggestions).items():
        features = [_feature(one, classes) for one in ours]
        path = out / f"{slide_id}.geojson"
        write_json(path, {"type": "FeatureCollection", "features": features})
        written.append(path)
    return written


def _feature(one: Suggestion, classes: Sequence[str]) -> dict[str, Any]:
    region = Region(one.id, one.geometry, one.label, origin=SUGGESTED, reason=one.reason)
    made = feature(one.slide_id, region, classes)
    # QuPath's measurements are numbers; NaN is no JSON
    made["properties"] |= {"name": one.reason, "measurements": dict(one.scores)}
    return made


def _slides(
    folder: RunFolder,
    model: "TrainedModel",
    records: Sequence[SlideRecord],
    asked: tuple[Mapping[str, SlideState], dict[str, str], ChoiceSpec],
) -> Iterator[_Slide]:
    from embedding.store import open_embeddings
    from mil.bag import join_features, load_bag, require_contract
    from mil.predict import answers_of

    states, left_out, spec = asked
    rng = np.random.default_rng(spec.seed)
    for record in sorted(records, key=lambda record: record.slide_id):
        places = [folder.features(name, record.slide_id) for name in names_of(model.contract)]
        if not all(place.exists() for place in places):
            left_out[record.slide_id] = "no embeddings that fit the model"
            continue
        facts = (record.label, record.patient_id, record.case_id, {**record.extra})
        bag = join_features([load_bag(open_embeddings(place), *facts) for place in places])
        folds = model.folds_without(bag)
        if not bag.tiles or not folds:
            left_out[record.slide_id] = "every network has seen its patient" if bag.tiles else "no tiles"
            continue
        require_contract(bag, model.contract, model.contract_hash, model.head.dim)
        outputs = np.stack([model.task.activate(answer.tiles) for answer in answers_of(model, bag, folds)])
        reviewed = _reviewed(states.get(record.slide_id), bag)
        free = np.setdiff1d(np.arange(bag.tiles), reviewed)
        informative = entropy(outputs.mean(axis=0)) + np.nan_to_num(disagreement(outputs))
        rows = free[shortlist(informative[free], _MOST, rng)]
        yield _Slide(bag, record.patient_id, outputs, rows, reviewed)


def _reviewed(state: SlideState | None, bag: "Bag") -> NDArray[np.int64]:
    """Tiles that people have spoken of."""
    from shapely.geometry import shape

    regions = [] if state is None else [region for region in state.regions.values() if region.status != "open"]
    found = [tiles_inside(shape(region.geometry), bag.xy, bag.span_px) for region in regions]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _candidates(slides: Sequence[_Slide]) -> tuple[Candidates, list[tuple[int, int]]]:
    """Tiles to choose from, and of each the number of its slide and its row there."""
    patients = {name: number for number, name in enumerate(dict.fromkeys(slide.patient for slide in slides))}
    counts = [len(slide.rows) for slide in slides]
    owner = [(number, row) for number, slide in enumerate(slides) for row in slide.rows.tolist()]
    return (
        Candidates(
            np.concatenate([slide.bag.features[slide.rows] for slide in slides]).astype(np.float32),
            np.concatenate([entropy(slide.mean)[slide.rows] for slide in slides]),
            np.concatenate([disagreement(slide.outputs)[slide.rows] for slide in slides]),
            np.repeat(np.arange(len(slides)), counts),
            np.repeat([patients[slide.patient] for slide in slides], counts),
            np.concatenate([slide.place[slide.rows] for slide in slides]),
            np.concatenate([slide.bag.features[slide.reviewed] for slide in slides]).astype(np.float32),
            np.concatenate([slide.mean[slide.rows] for slide in slides]),
        ),
        owner,
    )


def _suggestion(slide: _Slide, row: int, model: "TrainedModel", spec: ChoiceSpec) -> Suggestion:
    import shapely

    said = slide.mean.argmax(axis=1)
    alike = said == said[row]
    alike[slide.reviewed] = False
    tiles = region_about(row, slide.place, slide.bag.features, alike, REGION_TILES)
    corners = slide.bag.xy[tiles]
    squares = shapely.box(*corners.T, *(corners + slide.bag.span_px).T)
    # tiles that touch at a corner only would make a shape of parts, which nobody can drag as one
    whole = shapely.union_all(squares).simplify(0)  # without points on straight edges
    mine = next(part for part in shapely.get_parts(whole) if part.intersects(squares[0].centroid))
    scores = {"uncertainty": float(entropy(slide.mean)[row]), "disagreement": float(disagreement(slide.outputs)[row])}
    x, y = slide.bag.xy[row].tolist()
    slide_id = slide.bag.slide_ids[0]
    return Suggestion(
        id=str(uuid5(NAMESPACE_URL, f"{slide_id} {x} {y} {slide.bag.span_px} {model.contract_hash}")),
        slide_id=slide_id,
        geometry=shapely.geometry.mapping(mine),
        label=model.classes[int(said[row])],
        reason=told(scores, spec.by),
        scores={name: round(value, 6) for name, value in scores.items() if np.isfinite(value)},
    )
