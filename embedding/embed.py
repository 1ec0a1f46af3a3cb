"""Patches of a slide → embeddings, chunk by chunk, reading ahead while the model works."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tiling.grid import TileGrid
from tiling.patches import PatchStore
from tiling.stream import MEMORY_BYTES, PatchBatch, batch_tiles, check_failed_tiles, iter_patches
from wsi.errors import BackboneError
from wsi.slide import Slide

from .devices import best_device
from .extractor import BATCH, Extractor, Plan
from .loader import Embedder

__all__ = [
    "BATCH",
    "Chunk",
    "Embedded",
    "best_device",
    "embed_chunks",
    "embed_patches",
    "embed_store",
    "stored_patches",
]

LARGEST = {"float16": 65504.0}


@dataclass(frozen=True)
class Embedded:
    """What `embed_patches` made of one slide: embeddings float16 (n, *row_shape), ok bool (n,)."""

    embeddings: NDArray[np.float16]
    ok: NDArray[np.bool_]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows: vectors (b, views, *row_shape), zero where `ok` (b,) is False."""

    vectors: NDArray[np.floating]
    ok: NDArray[np.bool_]


def embed_chunks(
    patches: Iterable[PatchBatch],
    grid: TileGrid,
    extractor: Extractor,
    dtype: str = "float16",
    stain: nn.Module | None = None,
    rows: slice | None = None,
) -> Iterator[Chunk]:
    """The embeddings of `grid`'s patches, in order and each row once, as they are ready: memory does not grow with n.

    rows  of the grid, that `patches` are of; None for all
    Raises BackboneError, naming tiles, for an embedding that is not finite, or is not in `dtype`.
    """
    views, row_shape = extractor.plan.views, extractor.embedder.backbone.row_shape
    done, end = (0, len(grid)) if rows is None else (rows.start, rows.stop)
    stain = None if stain is None else stain.to(extractor.device)
    with extractor.lane(grid.spec.tile_px, stain) as lane:
        for places, found in lane.run(patches):
            _check_finite(places, found, grid, dtype, extractor.embedder.backbone.name)
            stop = int(places[-1]) + 1
            chunk = _empty(stop - done, views, row_shape, dtype)
            chunk.vectors[places - done], chunk.ok[places - done] = found, True
            done = stop
            yield chunk
    if done < end:
        yield _empty(end - done, views, row_shape, dtype)


def _empty(rows: int, views: int, row_shape: tuple[int, ...], dtype: str) -> Chunk:
    return Chunk(np.zeros((rows, views, *row_shape), dtype), np.zeros(rows, bool))


def _check_finite(
    places: NDArray[np.int64], found: NDArray[np.float32], grid: TileGrid, dtype: str, backbone: str
) -> None:
    rows = found.reshape(len(found), -1)
    largest = np.abs(rows).max(axis=1)  # of a row with a NaN: NaN
    bad = places[~np.isfinite(largest)]
    if len(bad):
        problem = f"not finite (NaN or Inf) are the embeddings of {_named(bad, grid)}, of the first {places[-1] + 1}"
        raise BackboneError(backbone, problem, "check the weights; with --precision fp32 they may be finite")
    bad = places[largest > LARGEST.get(dtype, np.inf)]
    if len(bad):
        problem = f"too large for {dtype} are the embeddings of {_named(bad, grid)}: up to {largest.max():.3g}"
        raise BackboneError(backbone, problem, "store them with --dtype float32")


def _named(places: NDArray[np.int64], grid: TileGrid) -> str:
    first = ", ".join(f"{place} at ({x}, {y})" for place, (x, y) in zip(places[:5], grid.xy[places[:5]], strict=True))
    return f"{len(places)} tiles: {first}{', …' if len(places) > 5 else ''}"


def stored_patches(
    store: PatchStore, threads: int = 2, memory: int = MEMORY_BYTES, rows: slice | None = None
) -> Iterator[PatchBatch]:
    """The patches that a PatchStore keeps, all or of these rows, in order, read ahead by threads, in at most `memory`
    bytes."""
    ok = store.array("ok").astype(bool)
    first, end = (0, len(ok)) if rows is None else (rows.start, rows.stop)
    size = store.grid.spec.tile_px
    count = min(batch_tiles(size), store.shards.per_shard)
    threads = max(1, min(threads, memory // (count * size * size * 3) - 2))

    def read(start: int) -> PatchBatch:
        part = ok[start : min(start + count, end)]
        return PatchBatch(start, store.read_patches(start, start + len(part)), part)

    starts = deque(range(first, end, count))
    with ThreadPoolExecutor(threads, "read") as pool:
        ahead: deque[Future[PatchBatch]] = deque()
        try:
            while starts or ahead:
                while starts and len(ahead) < threads + 1:
                    ahead.append(pool.submit(read, starts.popleft()))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def embed_patches(
    slide: Slide,
    grid: TileGrid,
    embedder: Embedder,
    batch: int | None = None,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed every tile of `grid` that can be read, into memory.

    Pixels go to the device as uint8; the transform runs there. `progress` is told how many tiles each step did.
    Raises SlideError when more tiles than the spec allows cannot be read, BackboneError for NaN or Inf.
    """
    embedded = _collect(iter_patches(slide, grid, threads), grid, embedder, batch, progress)
    check_failed_tiles(slide, embedded.ok, grid.spec.max_failed_tiles)
    return embedded


def embed_store(store: PatchStore, embedder: Embedder, batch: int | None = None) -> Embedded:
    """The same from the pixels kept in a PatchStore; the slide is not needed."""
    return _collect(stored_patches(store), store.grid, embedder, batch)


def _collect(
    patches: Iterable[PatchBatch],
    grid: TileGrid,
    embedder: Embedder,
    batch: int | None,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    embeddings = np.zeros((len(grid), *embedder.backbone.row_shape), np.float16)
    ok, done = np.zeros(len(grid), bool), 0
    with Extractor(embedder, Plan(batch, torch.get_num_threads())) as extractor:
        for chunk in embed_chunks(patches, grid, extractor):
            part = slice(done, done + len(chunk.ok))
            embeddings[part], ok[part] = chunk.vectors[:, 0], chunk.ok
            done = part.stop
            if progress is not None:
                progress(len(chunk.ok))
    return Embedded(embeddings, ok)
