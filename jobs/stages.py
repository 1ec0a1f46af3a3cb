"""The embedding stage: one tiled slide in, its embeddings out."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding.spec import EmbedSpec
from tiling.codecs import QUALITY
from tiling.patches import PatchStore, open_patches
from tiling.spec import TileSpec
from wsi.errors import BackboneError, SlideError, SpecError, StoreError
from wsi.identity import slide_identity
from wsi.publish import fingerprint
from wsi.source import is_url

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
    from embedding.slide_store import SlideStore
    from embedding.store import EmbeddingStore

_log = logging.getLogger(__name__)
FEATURE_FILES = (".h5", ".pt", ".npz", ".h5ad")
AS_JPEG = f"jpeg, quality {QUALITY}"
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
    check_unchanged(record, store.identity, TILE_AGAIN)
    with busy():  # reads the weights, gigabytes of them, for their digest
        contract = contract_of(spec.embed, store.grid.spec, lossy_pixels(store))
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
                contract = facts["contract"]
                extractor = load_extractor(embed, folder, contract["weights_sha256"], contract.get("adapter"))
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


def contract_of(spec: EmbedSpec, tile: TileSpec, pixels: str | None = None) -> dict[str, Any]:
    """The contract that embeddings made so are of. Finds the weights (and may fetch them), loads nothing.

    pixels  how pixels were changed before they are embedded: see `lossy_pixels`
    """
    from embedding.contract import make_contract
    from embedding.weights import weights_digest, weights_of

    return make_contract(spec.entry(), weights_digest(weights_of(spec)), tile, spec, precision_of(spec), pixels)


def lossy_pixels(store: PatchStore) -> str | None:
    """What the store's pixels went through, where they are not the slide's own: what is encoded again is embedded at a
    cosine of 0.995."""
    if store.notes.get("imported"):
        return None if store.pixels == "raw" else "jpeg files"
    return AS_JPEG if store.pixels == "jpeg" else None


def check_unchanged(record: SlideRecord, identity: str, remedy: str) -> None:
    """Raise SlideError where the slide's file is there and is not the one with this identity: results are of another.

    A slide that is elsewhere by now need not be there for what does not read it.
    """
    if is_url(record.path) or not Path(record.path).exists():
        return
    if slide_identity(record.path) != identity:
        if Path(record.path).suffix in FEATURE_FILES:
            remedy = "this is a file of features: give the manifest of the slides themselves"
        raise SlideError(record.path, "it is not the slide that was tiled: its content differs", remedy)


def open_unchanged(path: Path, folder: RunFolder, record: SlideRecord) -> "EmbeddingStore":
    """As `open_fitting`; also raises SlideError where the slide itself was replaced since it was embedded."""
    store = open_fitting(path, folder, record.slide_id)
    if "origin" not in store.contract:  # another tool's embeddings are of no file that it knows
        check_unchanged(record, store.identity, "run `wsi tile` and `wsi embed` again")
    return store


def open_fitting(path: Path, folder: RunFolder, slide_id: str) -> "EmbeddingStore":
    """Embeddings that are of the tiles which the run folder has now. Raises StoreError when they are of older ones."""
    from embedding.store import open_embeddings

    store = open_embeddings(path)
    tiles = folder.tiles(slide_id)
    if tiles.exists() and open_patches(tiles).attrs.get("grid_fingerprint") != store.attrs.get("grid_fingerprint"):
        raise StoreError(path, "its tiles have been made anew since", "run `wsi embed` again")
    return store


def open_vector(path: Path, folder: RunFolder, slide_id: str) -> "SlideStore":
    """A slide's own vector. Raises StoreError where the embeddings it was made from are no longer those of the run."""
    from embedding.contract import contract_name
    from embedding.slide_store import open_slide_vector

    store = open_slide_vector(path)
    tiles = folder.embeddings(contract_name(store.contract["tiles"]), slide_id)
    if tiles.exists() and open_fitting(tiles, folder, slide_id).fingerprint != store.embeddings:
        raise StoreError(path, "its slide has been embedded anew since", "run `wsi encode` again")
    return store


def has_fitting(path: Path, folder: RunFolder, slide_id: str) -> bool:
    """Whether there are whole embeddings at `path` of the tiles which the run folder has now, or a slide's own vector
    of such embeddings."""
    try:
        if path.parent.parent.name == "embeddings":
            open_fitting(path, folder, slide_id)
        else:
            open_vector(path, folder, slide_id)
    except StoreError:
        return False
    return True


def check_embedding(spec: RunSpec, wanted: Mapping[str, Any] | None = None) -> str:
    """Find what embedding will need before any work: weights and devices; in words, what will compute.

    Raises BackboneError or SpecError, also when the embeddings would be of another contract than the model's, `wanted`.
    """
    from embedding.adapter import check_adapter, open_adapter
    from embedding.contract import explain_mismatch
    from embedding.loader import check_weights
    from embedding.stain_target import reference
    from embedding.weights import weights_digest, weights_of

    contract = contract_of(spec.embed, spec.tile, AS_JPEG if spec.patches == "jpeg" else None)
    if wanted is not None and ("joined" in wanted or "tiles" in wanted):
        kind = "several backbones' embeddings" if "joined" in wanted else "slides' vectors"
        remedy = "make them with `wsi embed` and `wsi encode`, then use `wsi predict` and `wsi heatmap`"
        raise SpecError("--model", f"it was trained on {kind}, which one run does not make", remedy)
    if wanted is not None and contract["hash"] != wanted["hash"]:
        problem, remedy = explain_mismatch(contract, wanted, ("these settings", "the model"))
        raise BackboneError(spec.embed.backbone, problem, remedy)
    weights = weights_of(spec.embed)
    check_weights(spec.embed.entry(), weights)
    if spec.embed.adapter is not None:
        check_adapter(open_adapter(spec.embed.adapter), spec.embed.entry(), weights_digest(weights))
    if spec.embed.stain.method != "none":
        reference(spec.embed.stain)
    return choice(spec.embed)
