"""Patches of a slide → embeddings, reading ahead while the model works."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from tiling.grid import TileGrid
from tiling.patches import PatchStore
from tiling.stream import PatchBatch, check_failed_tiles, iter_patches
from wsi.errors import BackboneError
from wsi.slide import Slide

from .loader import Embedder
from .store import Embedded

BATCH = {"cpu": 16, "cuda": 128}  # a CPU's caches hold 16; a GPU is full at 128


def best_device(wanted: str = "auto") -> str:
    """cuda where there is one, then Apple's mps, else cpu; or what was asked for."""
    if wanted != "auto":
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


def embed_store(store: PatchStore, slide: Slide, embedder: Embedder, batch: int | None = None) -> Embedded:
    """The same from the pixels kept in a PatchStore; `slide` is only named in errors."""
    grid, ok, step = store.grid, store.array("ok"), 256

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
    device = embedder.mean.device
    size = batch or BATCH.get(device.type, 32)
    embeddings = np.zeros((len(grid), embedder.backbone.dim), np.float16)
    ok = np.zeros(len(grid), bool)
    with torch.inference_mode():
        for group in patches:
            rows = np.flatnonzero(group.ok)
            ok[group.start + rows] = True
            for chunk in (rows[i : i + size] for i in range(0, len(rows), size)):
                pixels = torch.from_numpy(group.patches[chunk]).to(device, non_blocking=True)
                embeddings[group.start + chunk] = _finite(embedder(pixels), embedder)
            if progress is not None:
                progress(len(group.ok))
    check_failed_tiles(slide, ok, grid.spec.max_failed_tiles)
    return Embedded(embeddings, ok)


def _finite(vectors: torch.Tensor, embedder: Embedder) -> np.ndarray:
    values = vectors.to(torch.float16)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values).all(dim=1)).sum())
        raise BackboneError(
            embedder.backbone.name,
            f"{bad} of {len(values)} embeddings of a batch are not finite in float16",
            "check the weights; a model with larger values needs another precision",
        )
    return values.cpu().numpy()
