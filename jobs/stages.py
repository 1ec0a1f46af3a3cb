"""The embedding stage: one tiled slide in, its embeddings out."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding.spec import EmbedSpec
from tiling.patches import open_patches
from tiling.spec import TileSpec
from wsi.errors import BackboneError, StoreError
from wsi.publish import fingerprint

from .checks import check_native
from .config import RunSpec
from .extraction import TILE_AGAIN, check_unread, choice, load_extractor, pixels_of, precision_of, stain_of
from .folder import RunFolder
from .manifest import SlideRecord
from .progress import advance, busy
from .receipts import DONE, EMPTY, SKIPPED
from .run import Outcome
from .stored import find_stored

if TYPE_CHECKING:
    from embedding.store import EmbeddingStore

_log = logging.getLogger(__name__)
EMBED_VERSION = 2  # raised when the same settings begin to give other results


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Embeddings of one tiled slide → embeddings/<contract>/<slide_id>.zarr."""
    from embedding.contract import contract_name, off_native
    from embedding.store import open_embeddings

    store = open_patches(folder.tiles(record.slide_id))
    tiled_mpp = store.attrs["slide"]["mpp"]
    if record.mpp not in (None, tiled_mpp):
        raise StoreError(store.path, f"it was tiled at {tiled_mpp} µm/px, the manifest says {record.mpp}", TILE_AGAIN)
    check_native(spec.embed, store.grid.spec)
    with busy():  # reads the weights, gigabytes of them, for their digest
        contract = contract_of(spec.embed, store.grid.spec)
    mark = fingerprint(EMBED_VERSION, contract["hash"], store.attrs["grid_fingerprint"])
    path = folder.embeddings(contract_name(contract), record.slide_id)
    there = find_stored(path, mark, spec.tile.max_failed_tiles, open_embeddings)
    if there is not None:
        return Outcome(SKIPPED, mark, there.tiles, there.failed)
    facts = {
        "slide_id": record.slide_id,
        "fingerprint": mark,
        "identity": store.identity,
        "grid_fingerprint": store.attrs["grid_fingerprint"],
        "contract": contract,
        "span_px": store.grid.span_px,
        "mpp": store.grid.mpp,
        "mpp_source": store.attrs["slide"]["mpp_source"],
        "off_native": off_native(spec.embed.entry(), store.grid.spec),
    }
    try:
        failed = _embed(record, spec, folder, path, facts)
    except OSError:
        there = find_stored(path, mark, spec.tile.max_failed_tiles, open_embeddings)
        if there is None:
            raise
        return Outcome(SKIPPED, mark, there.tiles, there.failed)  # another process published the same meanwhile
    return Outcome(DONE if len(store.grid) else EMPTY, mark, len(store.grid), failed)


def _embed(record: SlideRecord, spec: RunSpec, folder: RunFolder, path: Path, facts: dict[str, Any]) -> int:
    """Embed the slide into a store that appears at `path`; returns the number of its tiles that cannot be read."""
    from embedding.store import write_embeddings

    store, embed = open_patches(folder.tiles(record.slide_id)), spec.embed
    # the limit is today's, not the one the slide was tiled under
    limited = replace(store.grid.spec, max_failed_tiles=spec.tile.max_failed_tiles)
    grid, total, done, failed = replace(store.grid, spec=limited), len(store.grid), 0, 0
    with write_embeddings(path, total, embed.entry().row_shape, embed.dtype, embed.views) as writer:
        if total:
            from embedding.embed import embed_chunks

            with pixels_of(record, spec, store, grid) as pixels:
                extractor = load_extractor(embed, folder, facts["contract"]["weights_sha256"])
                stain = stain_of(embed.stain, grid, pixels)
                if stain is not None and stain.problem:
                    _log.warning("%s keeps its colours: %s", record.slide_id, stain.problem)
                    facts = {**facts, "stain_problem": stain.problem}
                advance(0, total)
                for chunk in embed_chunks(pixels.stream, grid, extractor, embed.dtype, stain):
                    writer.write(chunk.vectors, chunk.ok)
                    done += len(chunk.ok)
                    advance(done, total)
            failed = check_unread(record, writer.ok, limited.max_failed_tiles)
        writer.finish(store.grid.xy, facts)
    return failed


def contract_of(spec: EmbedSpec, tile: TileSpec) -> dict[str, Any]:
    """The contract that embeddings made so are of. Finds the weights (and may fetch them), loads nothing."""
    from embedding.contract import make_contract
    from embedding.weights import weights_digest, weights_of

    return make_contract(spec.entry(), weights_digest(weights_of(spec)), tile, spec, precision_of(spec))


def open_fitting(path: Path, folder: RunFolder, slide_id: str) -> "EmbeddingStore":
    """Embeddings that are of the tiles which the run folder has now. Raises StoreError when they are of older ones."""
    from embedding.store import open_embeddings

    store = open_embeddings(path)
    tiles = folder.tiles(slide_id)
    if tiles.exists() and open_patches(tiles).attrs.get("grid_fingerprint") != store.attrs.get("grid_fingerprint"):
        raise StoreError(path, "its tiles have been made anew since", "run `wsi embed` again")
    return store


def has_fitting(path: Path, folder: RunFolder, slide_id: str) -> bool:
    """Whether there are whole embeddings at `path` of the tiles which the run folder has now."""
    try:
        open_fitting(path, folder, slide_id)
    except StoreError:
        return False
    return True


def check_embedding(spec: RunSpec, wanted: Mapping[str, Any] | None = None) -> str:
    """Find what embedding will need before any work: weights and devices; in words, what will compute.

    Raises BackboneError or SpecError, also when the embeddings would be of another contract than the model's, `wanted`.
    """
    from embedding.contract import side_by_side

    contract = contract_of(spec.embed, spec.tile)
    if wanted is not None and contract["hash"] != wanted["hash"]:
        problem = f"its embeddings would be of contract {contract['hash']}, the model is of {wanted['hash']}"
        table = side_by_side(contract, wanted, ("these settings", "the model"))
        remedy = "give the weights and settings that the model was trained with"
        raise BackboneError(spec.embed.backbone, f"{problem}\n\n{table}\n", remedy)
    return choice(spec.embed)
