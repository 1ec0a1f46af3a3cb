"""Patches of a slide → embeddings, reading ahead while the model works."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tiling.grid import TileGrid
from tiling.patches import PatchStore
from tiling.stream import PatchBatch, check_failed_tiles, iter_patches
from wsi.errors import BackboneError, SpecError
from wsi.slide import Slide

from .loader import Embedder


@dataclass(frozen=True)
class Embedded:
    """What `embed_patches` made of one slide: embeddings float16 (n, *row_shape), ok bool (n,)."""

    embeddings: NDArray[np.float16]
    ok: NDArray[np.bool_]


BATCH = {"cpu": 16, "cuda": 128}  # a CPU's caches hold 16; a GPU is full at 128


def best_device(wanted: str = "auto") -> str:
    """cuda where there is one, then Apple's mps, else cpu; or what was asked for, if it is there (else SpecError)."""
    if wanted != "auto":
        try:
            known = wanted.partition(":")[0] in ("cpu", "cuda", "mps", "xpu")
            there = known and torch.zeros(1, device=wanted).sum().item() == 0
        except (RuntimeError, AssertionError):  # torch's ways of saying that a device is absent
            there = False
        if not there:
            raise SpecError(
                "--device", f"{wanted!r} cannot be used here", "choose auto, cpu, or what `wsi doctor` shows"
            )
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def embed_patches(
    slide: Slide,
    grid: TileGrid,
    embedder: Embedder,
    batch: int | None = None,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed every tile of `grid` that can be read.

    Pixels go to the device as uint8; the transform runs there. `progress` is told how many tiles each step did.
    Raises SlideError when more tiles than the spec allows cannot be read, BackboneError for NaN or Inf.
    """
    return embed_stream(iter_patches(slide, grid, threads), slide, grid, embedder, batch, progress)


def embed_store(
    store: PatchStore, grid: TileGrid, slide: Slide, embedder: Embedder, batch: int | None = None
) -> Embedded:
    """The same from the pixels kept in a PatchStore of that grid; `slide` is only named in errors."""
    ok, step = store.array("ok"), 256

    def batches() -> Iterator[PatchBatch]:
        for start in range(0, len(grid), step):
            stop = min(start + step, len(grid))
            yield PatchBatch(start, store.read_patches(start, stop), ok[start:stop])

    return embed_stream(batches(), slide, grid, embedder, batch)


def embed_stream(
    patches: Iterator[PatchBatch],
    slide: Slide,
    grid: TileGrid,
    embedder: Embedder,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed a stream of batches of `grid`'s patches; see `embed_patches`."""
    device = embedder.device
    size = batch or BATCH.get(device.type, 32)
    embeddings = np.zeros((len(grid), *embedder.backbone.row_shape), np.float16)
    ok = np.zeros(len(grid), bool)
    with _workers(device) as pool:
        for group in patches:
            rows = np.flatnonzero(group.ok)
            ok[group.start + rows] = True
            chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
            for chunk, vectors in zip(chunks, pool.map(partial(_embed, embedder, group.patches), chunks), strict=True):
                embeddings[group.start + chunk] = vectors
            if progress is not None:
                progress(len(group.ok))
    check_failed_tiles(slide, ok, grid.spec.max_failed_tiles)
    return Embedded(embeddings, ok)


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that embed a chunk each. On a CPU one a core, each computing alone: threads that share the work of one
    layer wait for each other dozens of times a batch, and for as long as anything else wants a core."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        with ThreadPoolExecutor(1, "embed") as pool:
            yield pool
        return
    try:
        with ThreadPoolExecutor(threads, "embed", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _embed(embedder: Embedder, patches: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.float16]:
    with torch.inference_mode():
        pixels = torch.from_numpy(patches[rows]).to(embedder.device, non_blocking=True)
        return _finite(embedder(pixels), embedder)


def _finite(vectors: torch.Tensor, embedder: Embedder) -> NDArray[np.float16]:
    values = vectors.to(torch.float16)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values).all(dim=1)).sum())
        raise BackboneError(
            embedder.backbone.name,
            f"{bad} of {len(values)} embeddings of a batch are not finite in float16",
            "check the weights; a model with larger values needs another precision",
        )
    return values.cpu().numpy()
