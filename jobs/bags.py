"""Bags of a run's slides: of one backbone's embeddings or of several, at the level of slides, cases or patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import EngineError, StoreError
from wsi.publish import fingerprint

from .features import names_of
from .folder import RunFolder
from .manifest import SlideRecord
from .stages import check_unchanged, open_unchanged, open_vector

if TYPE_CHECKING:
    from embedding.slide_store import SlideStore
    from mil.bag import Bag
    from mil.model import TrainedModel
    from mil.spec import TaskSpec


@dataclass(frozen=True, slots=True, eq=False)
class SlideBag:
    """A slide's part of a bag, and what it was made from.

    bag       its readable tiles
    ok        bool (n,), which of the slide's tiles these are; xy int64 (n, 2) of all
    mark      fingerprint of the embeddings; beside: those of the other slides of its bag
    attrs     of the first store: mpp, mpp_source, whether places are known
    """

    bag: "Bag"
    ok: NDArray[np.bool_]
    xy: NDArray[np.int64]
    mark: str
    path: Path
    attrs: Mapping[str, Any]
    beside: tuple[str, ...] = ()


def with_others(records: Sequence[SlideRecord], level: str) -> list[SlideRecord]:
    """The records, each with the other slides of its case or patient; as they are at the level of slides."""
    if level == "slide":
        return [replace(record, others=()) for record in records]
    together: dict[str, list[SlideRecord]] = {}
    for record in records:
        together.setdefault(bag_id(record, level), []).append(record)
    return [
        replace(record, others=tuple(other for other in together[bag_id(record, level)] if other is not record))
        for record in records
    ]


def bag_id(record: SlideRecord, level: str) -> str:
    """What a bag is called: the slide, the case or the patient."""
    return {"slide": record.slide_id, "case": record.case_id, "patient": record.patient_id}[level]


def columns_of(record: SlideRecord) -> dict[str, str]:
    """What the manifest says of a slide beside its name, by column."""
    return {**record.extra, **({"site": record.site} if record.site else {})}


def has_truth(record: SlideRecord, task: "TaskSpec") -> bool:
    """Whether the manifest says what is to be predicted of the slide."""
    columns = {**columns_of(record), "label": record.label or ""}
    wanted = (task.time, task.event) if task.is_survival else (task.target,)
    return all(columns.get(name) for name in wanted)


def with_truth(records: Sequence[SlideRecord], task: "TaskSpec", level: str) -> list[SlideRecord]:
    """The slides of all bags of which at least one slide's row says what is to be predicted."""
    known = {bag_id(record, level) for record in records if has_truth(record, task)}
    return [record for record in records if bag_id(record, level) in known]


def slide_bag(record: SlideRecord, names: Sequence[str], folder: RunFolder) -> SlideBag:
    """The bag of one slide from its embeddings of these names, end to end.

    Raises StoreError where there are none or they are of older tiles, SlideError where the slide was replaced.
    """
    from mil.bag import join_features, load_bag

    facts = (record.label, record.patient_id, record.case_id, columns_of(record))
    stores = [_open(record, name, folder) for name in names]
    first = stores[0]
    bag = join_features([load_bag(store, *facts) for store in stores])
    mark = _joint([store.fingerprint for store in stores])
    return SlideBag(bag, np.asarray(first.ok, bool), first.xy, mark, first.path, first.attrs)


def mark_of(record: SlideRecord, names: Sequence[str], folder: RunFolder) -> str:
    """The mark that `slide_bag` would have; raises as it does, but reads no vectors."""
    return _joint([_open(record, name, folder).fingerprint for name in names])


def _joint(marks: Sequence[str]) -> str:
    return marks[0] if len(marks) == 1 else fingerprint(list(marks))


def _open(record: SlideRecord, name: str, folder: RunFolder) -> Any:
    path = folder.features(name, record.slide_id)
    if path.parent.parent.name == "embeddings":
        return open_unchanged(path, folder, record)
    store = open_vector(path, folder, record.slide_id)
    check_unchanged(record, str(store.attrs["identity"]), "run `wsi tile`, `wsi embed` and `wsi encode` again")
    return VectorBag(store)


class VectorBag:
    """A slide's own vector as embeddings of one tile that has no place."""

    def __init__(self, store: "SlideStore"):
        rows = 0 if store.vector is None else 1
        self.path, self.fingerprint, self.slide_id = store.path, store.fingerprint, store.slide_id
        self.embeddings = (
            np.zeros((0, store.contract["dim"]), np.float32) if store.vector is None else store.vector[None]
        )
        self.xy, self.ok, self.span_px = np.zeros((rows, 2), np.int64), np.ones(rows, bool), 1
        self.contract, self.contract_hash = store.contract, store.contract_hash
        self.identity = str(store.attrs["identity"])
        self.attrs = {"mpp": None, "mpp_source": None, "placed": False}


def whole_bag(record: SlideRecord, names: Sequence[str], folder: RunFolder) -> "tuple[Bag, SlideBag, list[str]]":
    """(bag of all slides of the record's case or patient, this slide's part, ids of those that are missing).

    Slides beside this one that have no embeddings are left out, and named; where this one has none it is an error.
    """
    from mil.bag import merge_bags

    mine = slide_bag(record, names, folder)
    others, missing = [], []
    for other in record.others:
        try:
            others.append(slide_bag(other, names, folder))
        except (EngineError, OSError):  # its own receipt says what is wrong with it
            missing.append(other.slide_id)
    parts = sorted([mine.bag, *(other.bag for other in others)], key=lambda bag: bag.slide_ids)
    return merge_bags(parts), replace(mine, beside=tuple(sorted(other.mark for other in others))), missing


def bag_for(model: "TrainedModel", record: SlideRecord, folder: RunFolder) -> "tuple[Bag, SlideBag, list[str]]":
    """`whole_bag` of the embeddings that fit the model.

    Where there are only others, BackboneError names both contracts; StoreError where there are none at all.
    """
    from embedding.store import open_embeddings
    from mil.bag import load_bag, require_contract

    names = names_of(model.contract)
    places = [folder.features(name, record.slide_id) for name in names]
    if all(place.exists() for place in places):
        return whole_bag(record, names, folder)
    for other in sorted(folder.root.glob(f"embeddings/*/{record.slide_id}.zarr")):
        if other not in places:
            require_contract(load_bag(open_embeddings(other)), model.contract, model.contract_hash, model.head.dim)
    raise StoreError(places[0], "this slide has no embeddings", "run `wsi embed` on it first")
