"""A bag: the tiles of one slide (later: case or patient) as a model sees them, with who they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding.contract import differing
from wsi.errors import BackboneError, SpecError, StoreError


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

    features       float32 (n, d), as the backbone made them (standardised by the model, not here)
    xy             int64 (n, 2), tile top-left corners in level-0 pixels; span_px is the tiles' side there
    slide_ids      the slides the tiles come from
    label          class name, None where unknown
    patient_id     and case_id, None where the manifest has none
    identity       digest of the slide file's content, "" where unknown: it knows a slide again under another name
    contract       all that determined the embeddings, and its hash; empty for bags made by hand
    """

    features: NDArray[np.float32]
    xy: NDArray[np.int64]
    span_px: int
    slide_ids: tuple[str, ...]
    label: str | None = None
    patient_id: str | None = None
    case_id: str | None = None
    identity: str = ""
    contract: Mapping[str, object] = field(default_factory=dict)
    contract_hash: str = ""

    def __post_init__(self) -> None:
        if not self.slide_ids:
            raise SpecError("bag", "it names no slide", "give slide_ids=(…,)")
        shapes = f"features {self.features.shape} {self.features.dtype}, xy {self.xy.shape}"
        if self.features.ndim != 2 or self.features.dtype != np.float32 or self.xy.shape != (self.tiles, 2):
            raise SpecError(self.name, f"its arrays do not fit: {shapes}", "features float32 (n, d), xy int64 (n, 2)")
        if not np.isfinite(self.features).all():
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


def load_bag(
    store: Embeddings, label: str | None = None, patient_id: str | None = None, case_id: str | None = None
) -> Bag:
    """The bag of one slide's embeddings; tiles that could not be read (`ok` False) are left out.

    Raises BackboneError for dense embeddings.
    """
    if np.asarray(store.embeddings).ndim != 2:
        problem = "its embeddings are dense: a vector for each patch token, not one for each tile"
        raise BackboneError(store.slide_id, problem, "embed with another --variant, such as cls or mean")
    ok = np.asarray(store.ok, bool)
    return Bag(
        features=np.asarray(store.embeddings)[ok].astype(np.float32),
        xy=np.asarray(store.xy)[ok].astype(np.int64),
        span_px=int(store.span_px),
        slide_ids=(store.slide_id,),
        label=label,
        patient_id=patient_id,
        case_id=case_id,
        identity=store.identity,
        contract=dict(store.contract),
        contract_hash=store.contract_hash,
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
