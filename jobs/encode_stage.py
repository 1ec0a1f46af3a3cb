"""The stage that makes one vector of a slide's embeddings, and the table of all vectors."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding.slide_encoders import EncodeSpec, find_slide_encoder
from wsi.errors import BackboneError, SpecError, StoreError
from wsi.publish import appear_file, fingerprint

from .config import RunSpec
from .features import choices, contracts_in, several_fit
from .folder import RunFolder
from .manifest import SlideRecord
from .outcome import Outcome
from .progress import busy
from .receipts import DONE, EMPTY, SKIPPED
from .stages import open_unchanged
from .stored import find_stored

if TYPE_CHECKING:
    from embedding.slide_encoders import SlideModel

Contract = dict[str, Any]
ENCODE_VERSION = 1  # raised when the same settings begin to give other results


def encode_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Vector of one embedded slide → slide_embeddings/<contract>/<slide_id>.zarr; the slide itself is not read.

    Tiles that could not be read are left out; a slide without tiles is empty, and has a store without a vector.
    """
    from embedding.slide_encoders.contract import check_fits, slide_contract_name
    from embedding.slide_store import open_slide_vector, write_slide_vector

    name, _ = find_tiles(spec.encode, folder)
    store = open_unchanged(folder.embeddings(name, record.slide_id), folder, record)
    notes = check_fits(find_slide_encoder(spec.encode.encoder), store.contract)
    contract = slide_contract_of(spec.encode, store.contract)
    mark = fingerprint(ENCODE_VERSION, contract["hash"], store.fingerprint)
    path = vector_path(folder, slide_contract_name(contract), record.slide_id)
    there = find_stored(path, mark, spec.tile.max_failed_tiles, lambda found: open_slide_vector(found).vector)
    if there is not None:
        return Outcome(SKIPPED, mark, there.tiles, there.failed)
    ok = store.ok
    tiles, failed, vector = len(ok), int((~ok).sum()), None
    if tiles:
        if failed == tiles:
            raise StoreError(store.path, "none of its tiles could be read", "see why it failed to embed")
        with busy():
            model = load_encoder(spec.encode)
            vector = model.encode(store.embeddings[ok], store.xy[ok], store.span_px, store.contract)
    facts = {
        "slide_id": record.slide_id,
        "fingerprint": mark,
        "identity": store.identity,
        "embeddings": store.fingerprint,
        "contract": contract,
        "notes": notes,
    }
    write_slide_vector(path, vector, facts, tiles, failed)
    return Outcome(DONE if tiles else EMPTY, mark, tiles, failed)


def check_encoding(spec: EncodeSpec, folder: RunFolder) -> tuple[Contract, list[str]]:
    """Find what encoding will need before any work: embeddings that fit, weights, leave to run code, device.

    Returns the contract that vectors will be of, and in words how the tiles differ from the encoder's own.
    """
    from embedding.slide_encoders.contract import check_fits

    _, tiles = find_tiles(spec, folder)
    return slide_contract_of(spec, tiles), check_fits(find_slide_encoder(spec.encoder), tiles)


def slide_contract_of(spec: EncodeSpec, tiles: Contract) -> Contract:
    """The contract of vectors made so from embeddings of the contract `tiles`. Finds the weights (and may fetch them),
    loads nothing."""
    from embedding import best_device
    from embedding.slide_encoders.build import choose_precision
    from embedding.slide_encoders.contract import make_slide_contract
    from embedding.slide_encoders.source import encoder_digest, find_encoder_weights

    encoder = find_slide_encoder(spec.encoder)
    precision = choose_precision(encoder, spec.precision, best_device(spec.device))
    return make_slide_contract(encoder, encoder_digest(encoder, find_encoder_weights(encoder, spec)), tiles, precision)


@lru_cache(maxsize=1)
def load_encoder(spec: EncodeSpec) -> "SlideModel":
    """The encoder on its device; kept, so that a process loads it once."""
    from embedding import best_device
    from embedding.slide_encoders.build import build_encoder, choose_precision
    from embedding.slide_encoders.source import find_encoder_weights

    encoder, device = find_slide_encoder(spec.encoder), best_device(spec.device)
    weights = find_encoder_weights(encoder, spec)
    precision = choose_precision(encoder, spec.precision, device)
    return build_encoder(encoder, weights, device, precision, spec.trust_remote_code)


def find_tiles(spec: EncodeSpec, folder: RunFolder) -> tuple[str, Contract]:
    """Which of the run's embeddings the encoder takes: name of their folder, and their contract.

    Of several that fit, those of the encoder's own tile size and scale. Raises BackboneError, with what is needed
    beside what is there, where none fits; StoreError where more than one does.
    """
    from embedding.slide_encoders.contract import check_fits

    encoder = find_slide_encoder(spec.encoder)
    there = contracts_in(folder)
    if spec.features is not None:
        if spec.features not in there:
            hint = f"choose {choices(there, folder)}" if there else "run `wsi embed` first"
            raise SpecError("--features", f"there are no embeddings called {spec.features!r}", hint)
        check_fits(encoder, there[spec.features])
        return spec.features, there[spec.features]
    if not there:
        raise StoreError(folder.root, "there are no embeddings in this run folder", "run `wsi embed` first")
    if encoder.backbone is None and spec.backbone is not None:
        kinds = ", ".join(sorted({str(contract["backbone"]) for contract in there.values()}))
        there = {name: contract for name, contract in there.items() if contract["backbone"] == spec.backbone}
        if not there:
            problem = f"this run has no embeddings of it, but of {kinds}"
            raise BackboneError(spec.backbone, problem, f"embed with `wsi embed --backbone {spec.backbone}`")
    fitting: dict[str, Contract] = {}
    misfits: dict[str, Contract] = {}
    refused: BackboneError | None = None
    for name, contract in there.items():
        try:
            (misfits if check_fits(encoder, contract) else fitting)[name] = contract
        except BackboneError as error:
            refused = error
    found = fitting or misfits
    if not found and refused is not None:
        raise refused
    if len(found) > 1:
        raise several_fit(found, folder, "--features")
    return next(iter(found.items()))


def write_vectors(folder: RunFolder, name: str) -> tuple[Path, int]:
    """slide_embeddings/<name>.npz: slide_ids (n,), vectors float32 (n, dim) and the contract as JSON. Returns its path
    and n.

    Of all slides that have a vector of this contract, also from earlier commands; but for those that were embedded
    anew since.
    """
    from embedding.slide_store import open_slide_vector

    ids, vectors, contract = [], [], ""
    for path in sorted(vector_path(folder, name, "").parent.glob("[!.]*.zarr")):
        try:
            store = open_slide_vector(path)
        except StoreError:
            continue  # damaged: its slide failed, and is listed
        if store.vector is not None and _is_current(store.embeddings, store.contract["tiles"], store.slide_id, folder):
            ids.append(store.slide_id)
            vectors.append(store.vector)
            contract = json.dumps(store.contract)
    target = folder.root / "slide_embeddings" / f"{name}.npz"
    table = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
    with appear_file(target) as draft:
        np.savez(draft, slide_ids=np.array(ids, dtype=np.str_), vectors=table, contract=np.array(contract))
    return target, len(ids)


def vector_path(folder: RunFolder, contract: str, slide_id: str) -> Path:
    return folder.root / "slide_embeddings" / contract / f"{slide_id}.zarr"


def _is_current(mark: str, tiles: Contract, slide_id: str, folder: RunFolder) -> bool:
    from embedding.contract import contract_name

    attrs = _attrs(folder.embeddings(contract_name(tiles), slide_id))
    return attrs is None or attrs.get("fingerprint") == mark


def _attrs(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"])
    except (OSError, ValueError, KeyError):
        return None
