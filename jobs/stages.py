"""The embedding stage: one tiled slide in, its embeddings out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding.spec import EmbedSpec
from tiling.codecs import QUALITY
from tiling.patches import PatchStore, open_patches
from tiling.spec import TileSpec
from wsi.errors import BackboneError, SlideError, SpecError, StoreError
from wsi.identity import slide_identity
from wsi.publish import fingerprint
from wsi.source import is_url

from .agreed import agreed
from .checks import check_native
from .config import RunSpec
from .extraction import TILE_AGAIN, check_unread, choice, embed_rows, precision_of
from .folder import RunFolder
from .manifest import SlideRecord
from .outcome import Outcome, Split
from .parts import PARTS, Rows, clear_parts, part_tiles, read_part, write_part
from .progress import busy
from .receipts import DONE, EMPTY, SKIPPED
from .stored import Stored, find_stored

if TYPE_CHECKING:
    from embedding.slide_store import SlideStore
    from embedding.store import EmbeddingStore

FEATURE_FILES = (".h5", ".pt", ".npz", ".h5ad")
AS_JPEG = f"jpeg, quality {QUALITY}"
EMBED_VERSION = 2  # raised when the same settings begin to give other results


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome | Split:
    """Embeddings of one tiled slide → embeddings/<contract>/<slide_id>.zarr; a slide of many tiles is to be split."""
    asked = _asked(record, spec, folder)
    there = asked.there()
    if there is not None:
        rmtree(asked.parts, ignore_errors=True)  # of a run that was killed when it had just joined them
        return Outcome(SKIPPED, asked.mark, there.tiles, there.failed)
    tiles, size = len(asked.store.grid), asked.part_tiles
    if tiles > size:
        asked.parts.mkdir(parents=True, exist_ok=True)
        return Split(asked.parts, -(-tiles // size), tiles, embed_part, join_parts)
    return asked.publish([lambda: embed_rows(record, asked.spec, folder, asked.store, asked.contract, slice(0, tiles))])


def embed_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    """One part of a slide; returns its tiles, and how many of them could not be read."""
    asked = _asked(record, spec, folder)
    size = asked.part_tiles
    rows = slice(number * size, min(len(asked.store.grid), (number + 1) * size))
    if asked.there() is None:
        found = embed_rows(record, asked.spec, folder, asked.store, asked.contract, rows)
        write_part(asked.parts / Split.name_of(number), found)
        return len(found.ok), int((~found.ok).sum())
    return 0, 0  # others have joined the parts


def join_parts(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """The embeddings of a slide from those of its parts."""
    asked = _asked(record, spec, folder)
    there = asked.there()
    if there is None:
        count = -(-len(asked.store.grid) // asked.part_tiles)
        names = [asked.parts / Split.name_of(number) for number in range(count)]
        try:
            outcome = asked.publish([partial(read_part, name) for name in names])
        except SlideError:  # too many tiles could not be read: the next run reads them again
            rmtree(asked.parts, ignore_errors=True)
            raise
    else:
        outcome = Outcome(SKIPPED, asked.mark, there.tiles, there.failed)
    clear_parts(asked.parts)  # not before: another session may make the slide of parts of another size
    rmtree(asked.parts, ignore_errors=True)
    return outcome


@dataclass(frozen=True)
class _Asked:
    """What is to be made of one slide: `store` are its tiles, `mark` the fingerprint of the result at `path`."""

    record: SlideRecord
    spec: RunSpec
    store: PatchStore
    contract: dict[str, Any]
    mark: str
    path: Path

    @property
    def parts(self) -> Path:
        """The folder of its parts: of other settings' it is another."""
        return self.path.parent / PARTS / f"{self.mark}-{self.part_tiles}-{self.record.slide_id}"

    @property
    def part_tiles(self) -> int:
        embed = self.spec.embed
        row_bytes = int(np.prod(embed.entry().row_shape)) * embed.views * np.dtype(embed.dtype).itemsize
        return part_tiles(self.store.grid.spec.tile_px, self.spec.jobs.shard_tiles, row_bytes)

    def there(self) -> Stored | None:
        from embedding.store import open_embeddings

        return find_stored(self.path, self.mark, self.spec.tile.max_failed_tiles, open_embeddings)

    def publish(self, parts: Sequence[Callable[[], Rows]]) -> Outcome:
        """Write the embeddings, which appear when all are there and enough tiles could be read."""
        from embedding.contract import off_native
        from embedding.store import write_embeddings

        embed, grid, total = self.spec.embed, self.store.grid, len(self.store.grid)
        facts = {
            "slide_id": self.record.slide_id,
            "fingerprint": self.mark,
            "identity": self.store.identity,
            "grid_fingerprint": self.store.attrs["grid_fingerprint"],
            "contract": self.contract,
            "span_px": grid.span_px,
            "mpp": grid.mpp,
            "mpp_source": self.store.attrs["slide"]["mpp_source"],
            "off_native": off_native(embed.entry(), grid.spec),
        }
        failed = 0
        try:
            with write_embeddings(self.path, total, embed.entry().row_shape, embed.dtype, embed.views) as writer:
                for part in parts if total else ():
                    found = part()
                    writer.write(found.vectors, found.ok)
                    facts |= {"stain_problem": found.stain_problem} if found.stain_problem else {}
                # the limit is today's, not the one the slide was tiled under
                failed = check_unread(self.record, writer.ok, self.spec.tile.max_failed_tiles) if total else 0
                writer.finish(grid.xy, facts)
        except OSError:
            there = self.there()
            if there is None:
                raise
            return Outcome(SKIPPED, self.mark, there.tiles, there.failed)  # another process published it meanwhile
        return Outcome(DONE if total else EMPTY, self.mark, total, failed)


def _asked(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> _Asked:
    """Raises StoreError or SlideError where the slide is not the one that was tiled, or not tiled so."""
    from embedding.contract import contract_name

    store = open_patches(folder.tiles(record.slide_id))
    tiled_mpp = store.attrs["slide"]["mpp"]
    if record.mpp not in (None, tiled_mpp):
        raise StoreError(store.path, f"it was tiled at {tiled_mpp} µm/px, the manifest says {record.mpp}", TILE_AGAIN)
    check_native(spec.embed, store.grid.spec)
    check_unchanged(record, store.identity, TILE_AGAIN)
    spec = replace(spec, embed=agreed(spec.embed, folder, choose=True))
    with busy():  # reads the weights, gigabytes of them, for their digest
        contract = contract_of(spec.embed, store.grid.spec, lossy_pixels(store))
    mark = fingerprint(EMBED_VERSION, contract["hash"], store.attrs["grid_fingerprint"])
    path = folder.embeddings(contract_name(contract), record.slide_id)
    return _Asked(record, spec, store, contract, mark, path)


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

    on_cluster = spec.jobs.executor == "dask"
    if on_cluster:  # where this command runs there may be none of the devices that it asks its workers for
        spec = replace(spec, embed=replace(spec.embed, device="auto"))
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
    return f"{spec.embed.entry().name} on the workers of a cluster" if on_cluster else choice(spec.embed)
