"""The embedding stage: one tiled slide in, its embeddings out."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding.spec import EmbedSpec
from tiling.patches import PatchStore, open_patches
from tiling.spec import TileSpec
from tiling.stream import iter_patches
from wsi.errors import BackboneError, SlideError, StoreError
from wsi.identity import slide_identity
from wsi.publish import fingerprint

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .progress import advance, begin_busy, busy, end_busy
from .receipts import DONE, EMPTY, SKIPPED
from .run import Outcome
from .stored import find_stored
from .tile_stage import open_record

if TYPE_CHECKING:
    from embedding.loader import Embedder
    from embedding.store import EmbeddingStore

TILE_AGAIN = "run `wsi tile` again"
EMBED_VERSION = 2  # raised when the same settings begin to give other results


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Embeddings of one tiled slide → embeddings/<contract>/<slide_id>.zarr."""
    from embedding.contract import contract_name
    from embedding.store import open_embeddings, write_embeddings

    store = open_patches(folder.tiles(record.slide_id))
    tiled_mpp = store.attrs["slide"]["mpp"]
    if record.mpp not in (None, tiled_mpp):
        raise StoreError(store.path, f"it was tiled at {tiled_mpp} µm/px, the manifest says {record.mpp}", TILE_AGAIN)
    contract = contract_of(spec.embed, store.grid.spec)
    mark = fingerprint(EMBED_VERSION, contract["hash"], store.attrs["grid_fingerprint"])
    path = folder.embeddings(contract_name(contract), record.slide_id)
    there = find_stored(path, mark, spec.tile.max_failed_tiles, open_embeddings)
    if there is not None:
        return Outcome(SKIPPED, mark, there.tiles, there.failed)
    embedded = _embed(record, spec, store)
    facts = {
        "slide_id": record.slide_id,
        "fingerprint": mark,
        "identity": store.identity,
        "grid_fingerprint": store.attrs["grid_fingerprint"],
        "contract": contract,
        "span_px": store.grid.span_px,
        "mpp": store.grid.mpp,
        "mpp_source": store.attrs["slide"]["mpp_source"],
    }
    with write_embeddings(path, len(store.grid), spec.embed.entry().row_shape) as writer:
        writer.write(embedded.embeddings[:, None], embedded.ok)
        writer.finish(store.grid.xy, facts)
    failed = int((~embedded.ok).sum())
    return Outcome(DONE if len(store.grid) else EMPTY, mark, len(store.grid), failed)


def _embed(record: SlideRecord, spec: RunSpec, store: PatchStore) -> Any:
    import numpy as np

    from embedding.embed import Embedded, embed_store, embed_stream

    # the limit is today's, not the one the slide was tiled under
    limited = replace(store.grid.spec, max_failed_tiles=spec.tile.max_failed_tiles)
    grid, total = replace(store.grid, spec=limited), len(store.grid)
    if total == 0:
        return Embedded(np.zeros((0, spec.embed.entry().dim), np.float16), np.zeros(0, bool))
    embedder = load_embedder(spec.embed)
    # pixels as they were tiled: the colours are the store's, whatever this command was told
    with open_record(record, replace(spec, tile=limited)) as slide:
        if slide_identity(record.path) != store.identity:
            raise SlideError(record.path, "it is not the slide that was tiled: its content differs", TILE_AGAIN)
        if store.has_patches:
            return embed_store(store, grid, slide, embedder, spec.embed.batch)
        done = 0

        def step(tiles: int) -> None:
            nonlocal done
            done += tiles
            advance(done, total)

        advance(0, total)
        patches = iter_patches(slide, grid, spec.jobs.thread_count(), spec.jobs.read_bytes)
        embedded = embed_stream(patches, slide, grid, embedder, spec.embed.batch, step)
    if slide_identity(record.path) != store.identity:
        raise SlideError(record.path, "it changed while it was read", "run again when it is no longer written to")
    return embedded


@lru_cache(maxsize=1)
def load_embedder(spec: EmbedSpec) -> "Embedder":
    """The backbone on its device; kept, so that a process loads it once."""
    from embedding.embed import best_device
    from embedding.loader import build
    from embedding.weights import find_weights

    backbone = spec.entry()
    with busy():
        weights = find_weights(backbone, Path(spec.weights) if spec.weights else None)
        embedder = build(backbone, weights, best_device(spec.device))
    # the deadline is for reading: a large model on a CPU may compute for minutes
    embedder.register_forward_pre_hook(lambda *_: begin_busy())
    embedder.register_forward_hook(lambda *_: end_busy(), always_call=True)
    return embedder


def contract_of(spec: EmbedSpec, tile: TileSpec) -> dict[str, Any]:
    """The contract that embeddings made so are of. Finds the weights (and may fetch them), loads nothing."""
    from embedding.contract import make_contract
    from embedding.weights import find_weights, weights_digest

    backbone = spec.entry()
    weights = find_weights(backbone, Path(spec.weights) if spec.weights else None)
    return make_contract(backbone, weights_digest(weights), tile, spec)


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


def check_embedding(spec: RunSpec, wanted: Mapping[str, Any] | None = None) -> None:
    """Find what embedding will need before any work: weights and device. Raises BackboneError or SpecError, also when
    the embeddings would be of another contract than the model's, `wanted`."""
    from embedding.contract import side_by_side

    contract = contract_of(spec.embed, spec.tile)
    if wanted is not None and contract["hash"] != wanted["hash"]:
        problem = f"its embeddings would be of contract {contract['hash']}, the model is of {wanted['hash']}"
        table = side_by_side(contract, wanted, ("these settings", "the model"))
        remedy = "give the weights and settings that the model was trained with"
        raise BackboneError(spec.embed.backbone, f"{problem}\n\n{table}\n", remedy)
    if spec.embed.device not in ("auto", "cpu"):
        from embedding.embed import best_device

        best_device(spec.embed.device)
