"""Write the pixels of a grid's tiles, one batch a shard, while the next batch is read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.slide import Slide

from .codecs import QUALITY, JpegCodec, encode_patch, is_sound
from .grid import TileGrid
from .shards import Chunk, create_patches, write_shard
from .stream import MEMORY_BYTES, PatchBatch, batch_tiles, iter_patches

MODES = ("none", "raw", "jpeg", "native")
SAME_SCALE = 0.01  # relative; spans are whole pixels, so the scale of a grid deviates a little from its level's
_WAITING = 2  # batches of pixels that are being written while the next are read: what writing adds to memory

Write = Callable[[int, list[Chunk | None]], int]  # (first tile, the chunks of a batch) → how many they are


@runtime_checkable
class NativeTiles(Protocol):
    """A reader that can hand over the JPEG tiles of its file as they are stored; see TiledSlide.native_jpegs."""

    def native_jpegs(self, xy: NDArray[np.int64], side: int, level: int) -> Iterator[bytes | None] | None: ...


@dataclass(frozen=True)
class PatchRequest:
    """Whose the store is, and how it keeps pixels.

    fingerprint       of all that shaped the store; grid_fingerprint: of what shaped the grid alone
    identity          digest of the slide's content
    pixels            none: coordinates only; raw: as they are; jpeg: encoded with `quality`, a fifth of the bytes;
                      native: the slide's own JPEG tiles, copied, where the grid is theirs
    threads           that read, and as many that encode
    memory            bytes that reading may hold, see iter_patches
    notes             plain values to keep in the store's attributes, such as how many tiles were left out
    part_tiles        tiles that one worker writes where several do, whole shards: see tiling.parts
    progress          is told (tiles done, of all) whenever pixels are written
    """

    slide_id: str
    fingerprint: str
    grid_fingerprint: str = ""
    identity: str = ""
    pixels: str = "none"
    threads: int = 2
    quality: int = QUALITY
    progress: Callable[[int, int], None] | None = None
    memory: int = MEMORY_BYTES
    notes: Mapping[str, Any] | None = None
    part_tiles: int = 0

    def __post_init__(self) -> None:
        if self.pixels not in MODES:
            raise SpecError("pixels", f"{self.pixels!r} is unknown", f"choose one of {', '.join(MODES)}")
        if not 1 <= self.quality <= 100:
            raise SpecError("quality", f"{self.quality} is out of range", "give 1 to 100, such as 90")


def declare_pixels(store: Path, grid: TileGrid, request: PatchRequest) -> Path:
    """The array `patches` of the store in that folder, still without pixels: returns its folder."""
    codec = None if request.pixels == "raw" else JpegCodec(request.quality if request.pixels == "jpeg" else None)
    size = grid.spec.tile_px
    return create_patches(store, (len(grid), size), batch_tiles(size), codec)


def write_pixels(
    folder: Path, slide: Slide, grid: TileGrid, request: PatchRequest, first: int = 0
) -> NDArray[np.bool_]:
    """Write the tiles of `grid` into the array in `folder`; returns ok, bool (n,): which of them are in it.

    first  place of the first tile in the array: whole shards lie before it. The grid may be a part of the array's

    A tile that is not ok is zeros in raw, and is absent otherwise, which reads as zeros. Memory is bounded: that of
    `iter_patches` and two batches more.
    """
    ok = np.zeros(len(grid), bool)
    mode, threads, per_shard = request.pixels, max(1, request.threads), batch_tiles(grid.spec.tile_px)
    if first % per_shard:
        raise ValueError(f"tile {first} is not the first of a shard of {per_shard}")

    def write(start: int, chunks: list[Chunk | None]) -> int:
        write_shard(folder, (first + start) // per_shard, per_shard, chunks)
        return len(chunks)

    done = 0
    with ThreadPoolExecutor(threads, "encode") as encoders:
        if mode == "native":
            parts = (slice(start, start + per_shard) for start in range(0, len(grid), per_shard))
            written = _run((partial(_copy, slide, grid, part, ok, write) for part in parts), threads, threads + 1)
        else:
            encode = partial(_encode, request.quality, encoders, threads) if mode == "jpeg" else _as_it_is
            batches = iter_patches(slide, grid, threads, request.memory)
            written = _run((partial(_store, batch, ok, encode, write) for batch in batches), 2, _WAITING)
        for count in written:
            done += count
            if request.progress is not None:
                request.progress(done, len(grid))
    return ok


def check_pixels(slide: Slide, grid: TileGrid, request: PatchRequest) -> None:
    """Raise SpecError where native pixels are asked for that the grid does not allow."""
    if request.pixels == "native":
        check_native(slide, grid)


def check_native(slide: Slide, grid: TileGrid) -> None:
    """Raise SpecError unless the tiles of `grid` are stored in the slide as JPEG tiles of their own."""
    level = slide.levels[grid.level]
    corner = grid.xy.max(axis=0, initial=0) + grid.span_px
    inside = grid.xy.min(initial=0) >= 0 and (corner <= [slide.levels[0].width, slide.levels[0].height]).all()
    same_px = round(grid.span_px / level.downsample) == grid.spec.tile_px
    if not isinstance(slide, NativeTiles) or slide.info.codec != "jpeg" or slide.info.tile_px is None:
        problem = f"its tiles are not stored as JPEG (codec {slide.info.codec}, reader {slide.info.reader})"
        raise SpecError("pixels native", problem, "keep the pixels as raw or jpeg")
    if grid.spec.icc != "none":
        raise SpecError(
            "pixels native", "copied tiles cannot be colour-corrected", "leave out icc, or keep raw or jpeg"
        )
    if inside and same_px and slide.native_jpegs(grid.xy, grid.spec.tile_px, grid.level) is not None:
        return
    width, height = slide.info.tile_px
    if width != height:
        raise SpecError("pixels native", f"its tiles are not square ({width} x {height} px)", "keep raw or jpeg")
    scales = [one.mpp for one in slide.levels if one.stored and one.mpp is not None]
    nearest = min(scales, key=lambda mpp: abs(log(mpp / grid.spec.mpp)), default=grid.mpp)
    asked = f"tiles of {grid.spec.tile_px} px at {grid.spec.mpp:g} µm/px"
    if same_px and grid.spec.tile_px == grid.spec.stride == width and abs(grid.mpp / nearest - 1) <= SAME_SCALE:
        problem = f"{asked} are as large as the slide's, but these begin or end elsewhere than its own"
        raise SpecError("pixels native", problem, "keep the pixels as raw or jpeg")
    raise SpecError(
        "pixels native",
        f"{asked} every {grid.spec.stride} px are not the slide's",
        f"take --tile-px {width} --tile-mpp {nearest:g} without overlap: the slide's own tiles",
    )


def _copy(slide: Slide, grid: TileGrid, tiles: slice, ok: NDArray[np.bool_], write: Write) -> int:
    """Copy stored JPEG tiles; one that does not decode is left out."""
    assert isinstance(slide, NativeTiles)
    size, chunks = grid.spec.tile_px, list[Chunk | None]()
    for data in slide.native_jpegs(grid.xy[tiles], size, grid.level) or ():
        chunks.append(data if data is not None and is_sound(data, size) else None)
    ok[tiles] = [chunk is not None for chunk in chunks]
    return write(tiles.start, chunks)


def _store(
    batch: PatchBatch, ok: NDArray[np.bool_], encode: Callable[[PatchBatch], list[Chunk | None]], write: Write
) -> int:
    ok[batch.start : batch.start + len(batch.ok)] = batch.ok
    return write(batch.start, encode(batch))


def _as_it_is(batch: PatchBatch) -> list[Chunk | None]:
    batch.patches[~batch.ok] = 0
    return list(batch.patches)


def _encode(quality: int, encoders: Executor, parts: int, batch: PatchBatch) -> list[Chunk | None]:
    """The patches as JPEG, None for those that are not ok; the encoders share a batch, so that few batches wait."""

    def encode(part: slice) -> list[Chunk | None]:
        patches, ok = batch.patches[part], batch.ok[part].tolist()
        return [encode_patch(pixels, quality) if good else None for pixels, good in zip(patches, ok, strict=True)]

    step = -(-len(batch.ok) // parts)
    slices = [slice(at, at + step) for at in range(0, len(batch.ok), step)]
    return [chunk for part in encoders.map(encode, slices) for chunk in part]


def _run(jobs: Iterable[Callable[[], int]], threads: int, waiting: int) -> Iterator[int]:
    """Run jobs on threads, taking the next one only when fewer than `waiting` are unfinished; yields what they return,
    in order. Their errors come out here."""
    with ThreadPoolExecutor(threads, "write") as pool:
        pending: deque[Future[int]] = deque()
        for job in jobs:
            pending.append(pool.submit(job))
            del job  # it holds a batch
            while len(pending) >= waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
