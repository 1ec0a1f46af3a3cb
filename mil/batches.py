"""Bags → batches on the device, read, drawn and cast by one thread while the model works on those before."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi.errors import SpecError

from .bag import Bag

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = 1 << 18  # values cast and standardised at a time: 1 MiB of float32 stays in a core's cache

Prepare = Callable[[Tensor], Tensor]
"""What is done to real tiles' vectors once drawn, float32 (n, D) → the same shape; may work in place, row by row."""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """How bags become batches.

    size              bags per batch, padded to the longest
    instances         tiles drawn anew from each bag, without replacement; None for all
    instance_dropout  chance of each drawn tile to be left out, [0, 1); one always stays
    views             draw each tile's vector from its views, where a bag holds several
    positions         whether batches carry where tiles lie
    dtype             of features: float32, bfloat16 or float16
    device            as torch names it
    prefetch          batches made ahead of the one in use; 0 makes each when it is asked for, without a thread
    """

    size: int = 1
    instances: int | None = None
    instance_dropout: float = 0.0
    views: bool = False
    positions: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.size < 1 or self.prefetch < 0 or (self.instances is not None and self.instances < 1):
            problem = f"size {self.size}, instances {self.instances} and prefetch {self.prefetch} make no batches"
            raise SpecError("batches", problem, "give size and instances of at least 1, prefetch of at least 0")
        if not 0 <= self.instance_dropout < 1:
            raise SpecError("instance_dropout", f"{self.instance_dropout!r} is not in [0, 1)", "0 is the default")
        if self.dtype not in DTYPES:
            raise SpecError("dtype", f"{self.dtype!r} is unknown", f"choose {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some bags on the device.

    features  (B, N, D) in the type asked for; 0 on padding
    mask      bool (B, N), True is a real tile
    xy        float32 (B, N, 2), in tiles (Bag.positions), 0 on padding; None where not asked for
    index     int64 (B,) on the CPU, the bags' places in the list they came from
    """

    features: Tensor
    mask: Tensor
    xy: Tensor | None
    index: NDArray[np.int64]


def batches(
    bags: Sequence[Bag],
    order: Sequence[int] | NDArray[np.int64],
    spec: BatchSpec,
    rng: np.random.Generator,
    prepare: Prepare | None = None,
) -> Generator[Batch, None, None]:
    """The bags at the places `order`, in that order, `spec.size` at a time; the last batch may be smaller.

    rng      gives one number, from which all tiles are drawn: batches, and what the caller draws besides, are the same
             however the thread is timed and wherever the caller stops
    prepare  such as Network.standardise_, done where it is cheapest: in the thread, block by block in the core's cache,
             or on the device
    Raises ValueError for a bag without tiles. What fails in the thread is raised where its batch is asked for. Closing
    the generator ends the thread.
    """
    places = np.asarray(order, np.int64)
    for place in places:
        if not bags[place].tiles:
            raise ValueError(f"bag {bags[place].name} has no tiles; leave it out of the order")
    return _stream(_Maker(bags, spec, np.random.default_rng(int(rng.integers(1 << 62))), prepare), places)


def _stream(maker: "_Maker", places: NDArray[np.int64]) -> Generator[Batch, None, None]:
    size, prefetch = maker.spec.size, maker.spec.prefetch
    parts = [places[start : start + size] for start in range(0, len(places), size)]
    if not prefetch:
        yield from (maker.make(part).here() for part in parts)
        return
    # A single worker makes batches in the order they are submitted in: random numbers are drawn in order, too.
    worker = ThreadPoolExecutor(1, "batches")
    waiting: deque[Future[_Sent]] = deque()
    try:
        for part in parts[:prefetch]:
            waiting.append(worker.submit(maker.make, part))
        for place in range(len(parts)):
            batch = waiting.popleft().result().here()
            if place + prefetch < len(parts):
                waiting.append(worker.submit(maker.make, parts[place + prefetch]))
            yield batch
    finally:
        worker.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A batch on its way to the device; `arrival` is None where nothing is to be waited for."""

    batch: Batch
    arrival: Any = None

    def here(self) -> Batch:
        """The batch, for the caller's stream."""
        if self.arrival is not None:
            stream = torch.cuda.current_stream(self.batch.features.device)
            stream.wait_event(self.arrival)
            for tensor in (self.batch.features, self.batch.mask, self.batch.xy):
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory was taken on the copying stream
        return self.batch


class _Maker:
    """Makes batches one after the other; used by one thread."""

    def __init__(self, bags: Sequence[Bag], spec: BatchSpec, rng: np.random.Generator, prepare: Prepare | None):
        self.bags, self.spec, self._rng, self._prepare = bags, spec, rng, prepare
        self._device, self._dtype = torch.device(spec.device), DTYPES[spec.dtype]
        self._pinned = self._device.type == "cuda"
        self._copying = torch.cuda.Stream(self._device) if self._pinned else None

    def make(self, places: NDArray[np.int64]) -> _Sent:
        """The batch of these bags. A bag whose vectors are of another length than its neighbours' is a ValueError."""
        bags = [self.bags[place] for place in places]
        rows = [_draw(bag.tiles, self.spec, self._rng) for bag in bags]
        counts = [len(row) if row is not None else bag.tiles for bag, row in zip(bags, rows, strict=True)]
        if len({bag.dim for bag in bags}) > 1:
            raise ValueError(f"vectors of {' and '.join(f'{bag.name} ({bag.dim})' for bag in bags)} differ in length")
        shape = (len(bags), max(counts))
        features = self._memory((*shape, bags[0].dim), self._host_dtype(bags))
        mask = torch.zeros(shape, dtype=torch.bool, pin_memory=self._pinned)
        xy = torch.zeros(*shape, 2, pin_memory=self._pinned) if self.spec.positions else None
        for place, (bag, row, count) in enumerate(zip(bags, rows, counts, strict=True)):
            self._fill(features[place, :count], bag, row)
            features[place, count:] = 0
            mask[place, :count] = True
            if xy is not None:
                where = bag.positions()
                xy[place, :count] = torch.from_numpy(where if row is None else where[row])
        return self._send(Batch(features, mask, xy, places))

    def _host_dtype(self, bags: Sequence[Bag]) -> torch.dtype:
        """What is built on the CPU: for an accelerator the stored type, so that float16 travels as such."""
        if self._device.type == "cpu":
            return self._dtype
        return torch.float32 if any(bag.features.dtype == np.float32 for bag in bags) else torch.float16

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a batch on the CPU, not yet written. numpy asks for huge pages, torch does not: with 4 KiB pages
        the kernel takes longer to give 40 MB than the vectors to be cast into them.
        """
        if self._pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        values = np.empty(shape, np.float32 if dtype is torch.float32 else np.int16)
        return torch.from_numpy(values).view(dtype)

    def _fill(self, target: Tensor, bag: Bag, rows: NDArray[np.int64] | None) -> None:
        """Write the drawn vectors into `target` (n, D)."""
        step = max(1, _BLOCK // bag.dim)
        prepare = self._prepare if self._device.type == "cpu" else None
        chosen = self._views(bag, len(target))
        for start in range(0, len(target), step):
            part = slice(start, start + step)
            block: NDArray[Any] = bag.features[part if rows is None else rows[part]]
            if chosen is not None and bag.views is not None:
                view = chosen[part]
                other = np.flatnonzero(view)
                tiles = (np.arange(start, start + len(block)) if rows is None else rows[part])[other]
                block = np.array(block)
                block[other] = bag.views[tiles, view[other] - 1]
            elif not block.flags.writeable:
                block = block.copy()  # torch takes no read-only arrays
            into, vectors = target[part], torch.from_numpy(block)
            if prepare is None:
                into.copy_(vectors)
            elif target.dtype is torch.float32:
                into.copy_(prepare(into.copy_(vectors)))  # of itself where it worked in place: torch then does nothing
            else:
                into.copy_(prepare(vectors.to(torch.float32, copy=True)))  # they may be the bag's own

    def _views(self, bag: Bag, tiles: int) -> NDArray[np.int64] | None:
        """Which view of each drawn tile, 0 for the first; None where there is nothing to choose."""
        if not self.spec.views or bag.views is None:
            return None
        return self._rng.integers(bag.views.shape[1] + 1, size=tiles)

    def _send(self, batch: Batch) -> _Sent:
        if self._device.type == "cpu":
            return _Sent(batch)
        if self._copying is None:
            return _Sent(self._on_device(batch))
        with torch.cuda.stream(self._copying):  # beside the model's kernels, not behind them
            batch = self._on_device(batch)
            return _Sent(batch, self._copying.record_event())

    def _on_device(self, batch: Batch) -> Batch:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=self._pinned)

        features, mask = moved(batch.features), moved(batch.mask)
        if self._prepare is not None:
            features = self._prepare(features.float()).masked_fill_(~mask.unsqueeze(-1), 0)
        return Batch(features.to(self._dtype), mask, None if batch.xy is None else moved(batch.xy), batch.index)


def _draw(tiles: int, spec: BatchSpec, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Ascending places of the tiles that are drawn from `tiles`, so that a file is read forwards; None for all.

    A binomial number of tiles without replacement: the same as leaving out each by chance on its own.
    """
    count = tiles if spec.instances is None else min(tiles, spec.instances)
    if spec.instance_dropout:
        count = max(1, int(rng.binomial(count, 1 - spec.instance_dropout)))
    return None if count == tiles else np.sort(rng.choice(tiles, count, replace=False, shuffle=False))
