"""A bag: the tiles of one slide, case or patient as a model sees them, with who they belong to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding.contract import differing
from wsi.errors import BackboneError, SpecError, StoreError
from wsi.publish import fingerprint


class Embeddings(Protocol):
    """The part of an EmbeddingStore that a bag is made from."""

    @property
    def slide_id(self) -> str: ...
    @property
    def embeddings(self) -> NDArray[np.float16]: ...
    @property
    def xy(self) -> NDArray[np.int64]: ...
    @property
    def ok(self) -> NDArray[np.bool_]: ...
    @property
    def span_px(self) -> int: ...
    @property
    def contract(self) -> Mapping[str, object]: ...
    @property
    def contract_hash(self) -> str: ...
    @property
    def identity(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """Readable tiles only; n may be 0 for a slide without tissue, and such a bag is never fed to a model.

    features       float16 or float32 (n, d), as the backbone made them (standardised by the model, not here); may be a
                   part of a memory-mapped file
    xy             int64 (n, 2), tile top-left corners in level-0 pixels; span_px is the tiles' side there
    slide_ids      the slides the tiles come from
    label          class name, None where unknown
    patient_id     and case_id, None where the manifest has none
    identity       digest of the slide file's content, "" where unknown: it knows a slide again under another name; of
                   several slides, their digests joined by `+`
    contract       all that determined the embeddings, and its hash; empty for bags made by hand
    columns        what else the manifest says of it, as text: further targets, covariates, site
    slide_of       int32 (n,), which of `slide_ids` each tile is of; None for bags of one slide
    views          the same tiles' other views (n, v - 1, d), where more than one was embedded
    blocks         lengths of the parts of a feature that come from different backbones, () for one
    region         of a bag of some of a slide's tiles only, what is drawn about them; "" for whole slides
    """

    features: NDArray[np.float16] | NDArray[np.float32]
    xy: NDArray[np.int64]
    span_px: int
    slide_ids: tuple[str, ...]
    label: str | None = None
    patient_id: str | None = None
    case_id: str | None = None
    identity: str = ""
    contract: Mapping[str, object] = field(default_factory=dict)
    contract_hash: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    slide_of: NDArray[np.int32] | None = None
    views: NDArray[np.float16] | NDArray[np.float32] | None = None
    blocks: tuple[int, ...] = ()
    region: str = ""

    def __post_init__(self) -> None:
        if not self.slide_ids:
            raise SpecError("bag", "it names no slide", "give slide_ids=(…,)")
        shapes = f"features {self.features.shape} {self.features.dtype}, xy {self.xy.shape}"
        floats = self.features.dtype in (np.float16, np.float32)
        if self.features.ndim != 2 or not floats or self.xy.shape != (self.tiles, 2):
            remedy = "features float32 or float16 (n, d), xy int64 (n, 2)"
            raise SpecError(self.name, f"its arrays do not fit: {shapes}", remedy)
        if (self.slide_of is None) != (len(self.slide_ids) == 1) and self.tiles:
            raise SpecError(self.name, "it does not say which slide each tile is of", "give slide_of, int32 (n,)")
        if not isinstance(self.features.base, np.memmap) and not np.isfinite(self.features).all():
            raise StoreError(self.name, "its embeddings hold NaN or infinity", "embed the slide again")

    @property
    def tiles(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        return int(self.features.shape[1])

    @property
    def name(self) -> str:
        return "+".join(self.slide_ids)

    @property
    def group(self) -> str:
        """Who must not be split between training and test: the patient, else the case, else the slide itself."""
        return self.patient_id or self.case_id or self.name

    def value(self, column: str) -> str | None:
        """What the manifest says in that column, None where it says nothing."""
        known = {"label": self.label, "patient_id": self.patient_id, "case_id": self.case_id}
        return (known[column] if column in known else self.columns.get(column)) or None

    def positions(self) -> NDArray[np.float32]:
        """Where tiles lie, in tiles, float32 (n, 2); several slides lie beside each other, ten tiles apart."""
        places = (self.xy / self.span_px).astype(np.float32)
        if self.slide_of is None:
            return places
        left = 0.0
        for slide in range(len(self.slide_ids)):
            mine = self.slide_of == slide
            if mine.any():
                places[mine] -= places[mine].min(axis=0)
                places[mine, 0] += left
                left = float(places[mine, 0].max()) + 10
        return places


def merge_bags(bags: Sequence[Bag]) -> Bag:
    """One bag of all tiles of several slides, of one case or patient.

    Where their rows differ, in the label or a column, its texts stand side by side ("A | B"): a task that is to learn
    them refuses such a bag, for any other they mean nothing. Raises BackboneError for embeddings of different
    contracts. `xy` is in the first slide's pixels.
    """
    first, *others = bags
    if not others:
        return first
    for bag in others:
        require_contract(bag, first.contract, first.contract_hash, first.dim)
    names = dict.fromkeys(name for bag in bags for name in bag.columns)
    views: list[Any] = [bag.views for bag in bags if bag.views is not None]
    return replace(
        first,
        features=np.concatenate([bag.features for bag in bags]),
        xy=np.concatenate([np.round(bag.xy * (first.span_px / bag.span_px)).astype(np.int64) for bag in bags]),
        slide_ids=tuple(name for bag in bags for name in bag.slide_ids),
        label=" | ".join(_distinct(bag.label for bag in bags)) or None,
        identity="+".join(bag.identity for bag in bags if bag.identity),
        columns={name: " | ".join(_distinct(bag.columns.get(name) for bag in bags)) for name in names},
        slide_of=np.repeat(np.arange(len(bags), dtype=np.int32), [bag.tiles for bag in bags]),
        views=np.concatenate(views) if len(views) == len(bags) else None,
    )


def join_features(bags: Sequence[Bag]) -> Bag:
    """One bag of the same slide's tiles as several backbones see them: their vectors end to end.

    Raises BackboneError where the tiles are not the same, tile by tile.
    """
    first, *others = bags
    for bag in others:
        if bag.span_px != first.span_px or not np.array_equal(bag.xy, first.xy):
            problem = "the embeddings to be joined lie on different tiles, or some were not readable for one of them"
            raise BackboneError(first.name, problem, "embed the same tiles with each backbone, or train on one")
    if not others:
        return first
    # no one command makes such embeddings, hence an origin
    contract: dict[str, object] = {"origin": "several backbones", "joined": [dict(bag.contract) for bag in bags]}
    return replace(
        first,
        features=np.concatenate([bag.features for bag in bags], axis=1),
        contract=contract,
        contract_hash=fingerprint([bag.contract_hash for bag in bags]),
        views=None,
        blocks=tuple(bag.dim for bag in bags),
    )


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def load_bag(
    store: Embeddings,
    label: str | None = None,
    patient_id: str | None = None,
    case_id: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Bag:
    """The bag of one slide's embeddings; tiles that could not be read (`ok` False) are left out.

    Raises BackboneError for dense embeddings.
    """
    embeddings, views = np.asarray(store.embeddings), getattr(store, "views", None)
    if embeddings.ndim != 2:
        problem = "its embeddings are dense: a vector for each patch token, not one for each tile"
        raise BackboneError(store.slide_id, problem, "embed with another --variant, such as cls or mean")
    ok = np.asarray(store.ok, bool)
    return Bag(
        features=embeddings[ok],
        xy=np.asarray(store.xy)[ok].astype(np.int64),
        span_px=int(store.span_px),
        slide_ids=(store.slide_id,),
        label=label,
        patient_id=patient_id,
        case_id=case_id,
        identity=store.identity,
        contract=dict(store.contract),
        contract_hash=store.contract_hash,
        columns=dict(columns or {}),
        views=None if views is None else np.asarray(views)[ok],
    )


def require_contract(bag: Bag, contract: Mapping[str, object], contract_hash: str, dim: int) -> None:
    """Raises BackboneError, naming both contracts and what differs, unless the bag's embeddings keep this contract."""
    if bag.contract_hash == contract_hash and bag.dim == dim:
        return
    mine, wanted = dict(bag.contract) | {"dim": bag.dim}, dict(contract) | {"dim": dim}
    listed = ", ".join(f"{key} {found!r} instead of {right!r}" for key, found, right in differing(mine, wanted))
    raise BackboneError(
        bag.name,
        f"its embeddings are of contract {_title(bag.contract, bag.contract_hash)}, the model is of contract "
        f"{_title(contract, contract_hash)}; differing: {listed or 'only the hash'}",
        "embed the slide with the model's backbone and tile settings, or use a model trained on these embeddings",
    )


def _title(contract: Mapping[str, object], contract_hash: str) -> str:
    name = contract.get("backbone") or contract.get("name")
    shown = name if isinstance(name, str) else "unnamed"
    return f"{shown} ({contract_hash or 'no hash'})"
