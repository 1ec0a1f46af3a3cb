"""What the embedding stage needs of this process: the model, where pixels come from, and the slide's stains."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedding.devices import find_devices
from embedding.precision import choose_precision
from embedding.spec import EmbedSpec, StainSpec
from tiling.grid import TileGrid
from tiling.patches import PatchStore
from tiling.stream import PatchBatch, iter_patches
from wsi.errors import BackboneError, SlideError
from wsi.identity import slide_identity

from .config import RunSpec
from .executors import ExecSpec, cpu_count
from .folder import RunFolder
from .manifest import SlideRecord
from .parts import Rows
from .pools import EMBED_SLOTS
from .progress import advance, busy
from .tile_stage import open_record
from .workers import worker_number

if TYPE_CHECKING:
    from embedding.extractor import Extractor
    from embedding.stain import StainTransform

STAIN_TILES = 64  # of a slide, evenly spread over its grid, on which its stains are fitted
TILE_AGAIN = "run `wsi tile` again"

_log = logging.getLogger(__name__)
_turn = threading.Lock()
_kept: tuple[tuple[EmbedSpec, str, str | None], "Extractor"] | None = None  # of these settings and these digests


def load_extractor(spec: EmbedSpec, folder: RunFolder, digest: str, adapter: str | None = None) -> "Extractor":
    """The backbone on this worker's device, shared by all slides of the process and kept, so that it is loaded once.

    digest   sha256 of its weights, as the contract has it
    adapter  what the contract states of the adapter over them, None where there is none
    Raises BackboneError where the weights or the adapter are others by now.
    """
    global _kept
    from embedding.weights import weights_digest, weights_of

    with busy(), _turn:
        wanted = spec, digest, adapter
        if _kept is None or _kept[0] != wanted:
            if _kept is not None:
                _kept[1].close()
            _kept = None  # before the next is loaded: two may not fit
            weights = weights_of(spec)
            loaded = _load(spec, weights, folder)
            if weights_digest(weights) != digest:  # asked after it was read
                loaded.close()
                raise BackboneError(weights, "it was replaced while the run was at work", "run again")
            if adapter_of(spec) != adapter:
                loaded.close()
                raise BackboneError(spec.adapter, "the adapter was replaced while the run was at work", "run again")
            _kept = wanted, loaded
        return _kept[1]


def _load(spec: EmbedSpec, weights: Path, folder: RunFolder) -> "Extractor":
    from embedding.extractor import Extractor, Plan, usable_threads
    from embedding.loader import build

    devices = find_devices(spec.device)
    device = devices[worker_number() % len(devices)]
    embedder = build(spec.entry(), weights, device, precision_of(spec), spec.adapter)
    tiles = count_tiles(folder) if device.startswith("cuda") and spec.compile == "auto" else 0
    threads = usable_threads(compute_threads(devices))
    if spec.engine == "openvino":
        from embedding.openvino import use_openvino

        use_openvino(embedder, threads)
    return Extractor(embedder, Plan(spec.batch, threads, spec.compile, tiles, spec.views, busy))


def adapter_of(spec: EmbedSpec) -> str | None:
    """What the contract states of the adapter; None without one."""
    from embedding.adapter import adapter_digest

    return None if spec.adapter is None else adapter_digest(spec.adapter)


def precision_of(spec: EmbedSpec) -> str:
    """What the network computes in: one for all devices of a run, as it is part of the contract."""
    if spec.precision != "auto":
        return spec.precision
    if spec.engine == "openvino":
        return "fp32"
    return choose_precision(spec.precision, spec.entry(), find_devices(spec.device)[0])


def compute_threads(devices: tuple[str, ...]) -> int:
    """Processors for a process that computes on the CPU: those that do so share what there is."""
    return max(1, cpu_count() // max(1, devices.count("cpu")))


def count_tiles(folder: RunFolder) -> int:
    """Tiles of the run's slides, as far as they are tiled."""
    found = 0
    for record in folder.tiles("*").parent.glob("*.zarr/zarr.json"):
        attrs = json.loads(record.read_text(encoding="utf-8")).get("attributes", {})
        found += int(attrs.get("complete", {}).get("tiles", 0))
    return found


def choice(spec: EmbedSpec) -> str:
    """In words, what computes the embeddings here. Raises BackboneError where the engine cannot."""
    devices, entry = find_devices(spec.device), spec.entry()
    engine = ""
    if spec.engine == "openvino":
        from embedding.openvino import check_openvino

        for device in devices:
            check_openvino(entry.name, device)
        engine = " by OpenVINO"
    batch = f", batches of {spec.batch}" if spec.batch else ""
    threads = f", {compute_threads(devices)} threads" if "cpu" in devices else ""
    over = f", adapter {Path(spec.adapter).name}" if spec.adapter else ""
    return (
        f"{entry.name} ({entry.pooling}{over}) on {', '.join(devices)} in {precision_of(spec)}{engine}{batch}{threads}"
    )


def embed_rows(
    record: SlideRecord, spec: RunSpec, folder: RunFolder, store: PatchStore, contract: dict[str, Any], rows: slice
) -> Rows:
    """Embeddings of consecutive tiles of a slide, in memory; signs of life count these tiles only.

    Raises SlideError where the slide is not the one that was tiled, BackboneError for what the model cannot do.
    """
    from embedding.embed import embed_chunks

    from .throughput import measured

    embed, total = spec.embed, rows.stop - rows.start
    vectors = np.zeros((total, embed.views, *embed.entry().row_shape), embed.dtype)
    ok, done, problem = np.zeros(total, np.bool_), 0, ""
    with pixels_of(record, spec, store, rows) as pixels:
        extractor = load_extractor(embed, folder, contract["weights_sha256"], contract.get("adapter"))
        stain = stain_of(embed.stain, store.grid, pixels)
        if stain is not None and stain.problem:
            problem = stain.problem
            if rows.start == 0:  # once a slide
                _log.warning("%s keeps its colours: %s", record.slide_id, problem)
        advance(0, total)
        with measured(embed, store.grid.spec.tile_px) as count:
            for chunk in embed_chunks(pixels.stream, store.grid, extractor, embed.dtype, stain, rows):
                part = slice(done, done + len(chunk.ok))
                vectors[part], ok[part] = chunk.vectors, chunk.ok
                done = part.stop
                count(len(chunk.ok))
                advance(done, total)
    return Rows(vectors, ok, problem)


@dataclass(frozen=True)
class Pixels:
    """Where the patches of a tiled slide come from.

    stream  those of consecutive tiles, in the grid's order, read ahead of whoever takes them
    sample  those of the given rows of the grid, as far as they can be read: uint8 (k, t, t, 3)
    """

    stream: Iterator[PatchBatch]
    sample: Callable[[NDArray[np.intp]], NDArray[np.uint8]]


@contextmanager
def pixels_of(record: SlideRecord, spec: RunSpec, store: PatchStore, rows: slice | None = None) -> Iterator[Pixels]:
    """The patches that the slide's store keeps, else those of the slide itself; the stream is of `rows` of its grid, or
    of all.

    Raises SlideError where the slide is not the one that was tiled, or, at the end, changed meanwhile.
    """
    if slide_identity(record.path) != store.identity:
        raise SlideError(record.path, "it is not the slide that was tiled: its content differs", TILE_AGAIN)
    memory, threads, grid = reading_bytes(spec.jobs), spec.jobs.thread_count(), store.grid
    rows = rows or slice(0, len(grid))
    if store.has_patches:
        from embedding.embed import stored_patches

        ok = store.array("ok")
        yield Pixels(stored_patches(store, threads, memory, rows), lambda few: store.read_at(few[ok[few]]))
        return
    # pixels as they were tiled: the colours are the store's, whatever this command was told
    with open_record(record, replace(spec, tile=grid.spec)) as slide:

        def sample(few: NDArray[np.intp]) -> NDArray[np.uint8]:
            found = iter_patches(slide, _of(grid, few), threads, memory)
            return np.concatenate([group.patches[group.ok] for group in found])

        stream = iter_patches(slide, _of(grid, rows), threads, memory)
        # tiles are called by their places in the whole grid: what is random about them depends on these
        yield Pixels((replace(group, start=group.start + rows.start) for group in stream), sample)
    if slide_identity(record.path) != store.identity:
        raise SlideError(record.path, "it changed while it was read", "run again when it is no longer written to")


def _of(grid: TileGrid, rows: slice | NDArray[np.intp]) -> TileGrid:
    return replace(grid, xy=grid.xy[rows], tissue=grid.tissue[rows])


def reading_bytes(jobs: ExecSpec) -> int:
    """Memory for reading one slide: the slides that a process works on share it."""
    return jobs.read_bytes // (1 if jobs.executor == "serial" else EMBED_SLOTS)


def check_unread(record: SlideRecord, ok: NDArray[np.bool_], limit: float) -> int:
    """Number of tiles without pixels; raises SlideError where their share is above `limit`."""
    failed = int((~ok).sum())
    if failed > limit * len(ok):
        raise SlideError(
            record.path,
            f"damaged: {failed} of {len(ok)} tiles ({failed / len(ok):.0%}) cannot be read, limit {limit:.0%}",
            "copy the slide again, or raise max_failed_tiles",
        )
    return failed


def stain_of(spec: StainSpec, grid: TileGrid, pixels: Pixels) -> "StainTransform | None":
    """What is done to the colours of the slide's patches, None where nothing is; fitted once on pixels of some of its
    tiles, at their own scale: a thumbnail has no nuclei left."""
    if spec.method == "none" and spec.jitter == 0:
        return None
    from embedding.stain import fit_stain

    if spec.method == "none":
        return fit_stain(spec, np.zeros((0, 3), np.uint8))
    rows = np.unique(np.linspace(0, len(grid) - 1, min(len(grid), STAIN_TILES)).astype(np.intp))
    return fit_stain(spec, pixels.sample(rows).reshape(-1, 3))
