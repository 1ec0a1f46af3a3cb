"""The model of a process and the threads that compute with it: batches of pixels in, embeddings out, in order.

Several slides may be embedded at a time, each in a lane. The lane that was opened first goes first, the others fill the
gaps that it leaves, so that the model does not wait while a slide is opened, ends, or is written. A batch holds patches
of one slide only: results do not depend on what else is embedded.
"""

import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tiling.stream import PatchBatch
from wsi.errors import BackboneError

from .loader import Embedder
from .tune import compile_pays, find_batch

BATCH = {"cpu": 16, "cuda": 128}  # a CPU's caches hold 16; a GPU's is found, 128 where nothing can be tried
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How an Extractor computes.

    batch    patches a step; None suits the device: on CUDA it is found by trying
    threads  of a CPU, each computing a batch of its own
    compile  torch.compile: on, off, or auto: on CUDA where `tiles` take long enough
    tiles    to embed in all, as far as is known
    views    of each patch, see EmbedSpec
    waiting  entered by a lane while it waits for the model
    """

    batch: int | None = None
    threads: int = 1
    compile: str = "off"
    tiles: int = 0
    views: int = 1
    waiting: Callable[[], AbstractContextManager[Any]] = nullcontext


def usable_threads(granted: int) -> int:
    """Threads to compute with on a CPU, of so many processors: OMP_NUM_THREADS may say fewer."""
    return min(granted, torch.get_num_threads())


@dataclass
class _Batch:
    """Patches on their way: `count` of `pixels` uint8 (size, t, t, 3) and of `places` int64 (size,) are filled."""

    pixels: Tensor
    places: Tensor
    count: int = 0

    def take(self, group: PatchBatch, rows: NDArray[np.intp]) -> int:
        """Copy as many of the group's `rows` as there is room for; returns how many."""
        rows = rows[: len(self.pixels) - self.count]
        part = slice(self.count, self.count + len(rows))
        whole = rows[-1] - rows[0] + 1 == len(rows)
        self.pixels.numpy()[part] = group.patches[rows[0] : rows[-1] + 1] if whole else group.patches[rows]
        self.places.numpy()[part] = group.start + rows
        self.count = part.stop
        return len(rows)


class Extractor:
    """Computes embeddings on one device. Thread-safe; as a context manager it ends its threads.

    On a CPU each thread computes a batch of its own, alone: threads that share the work of one layer wait for each
    other dozens of times a batch, and for as long as anything else wants a core. Other devices have one thread, which
    hands them the next batch while they compute.
    """

    def __init__(self, embedder: Embedder, plan: Plan | None = None):
        self.embedder, self.plan = embedder, plan or Plan()
        self.device = embedder.device
        on_cpu, threads = self.device.type == "cpu", torch.get_num_threads()
        self._pool = _Pool(self.plan.threads if on_cpu else 1, self._begin)
        torch.set_num_threads(threads)  # of all others: what a thread sets for itself is what new ones begin with
        self.window = 2 * self.plan.threads + 1 if on_cpu else 3  # batches of a lane at work or waiting for it
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._numbers = itertools.count()
        self._turn = threading.Lock()
        self._spare: list[tuple[int, list[_Batch]]] = []  # tile side, batches: pinned memory is dear to get
        self._ready = False
        self._most: int | None = None  # patches that fit into the device's memory, once it ran out
        self.batch = self.plan.batch or BATCH.get(self.device.type, 32)

    @contextmanager
    def lane(self, tile_px: int, stain: nn.Module | None = None) -> Iterator["Lane"]:
        """The way of one slide's patches through the model. Of several at a time the first goes first."""
        with self.plan.waiting(), self._turn:
            if not self._ready:
                self._pool.submit(-1, self._prepare, tile_px).result()
                self._ready = True
            fitting = next((spare for spare in self._spare if spare[0] == tile_px), None)
            if fitting is not None:
                self._spare.remove(fitting)
            self._spare = [spare for spare in self._spare if spare[0] == tile_px]  # of another run's size
        with self._on_device():
            batches = fitting[1] if fitting else [self._new_batch(tile_px) for _ in range(self.window)]
            lane = Lane(self, next(self._numbers), batches, stain)
            try:
                yield lane
            finally:
                lane.drop()
                with self._turn:
                    self._spare.append((tile_px, batches))

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _on_device(self) -> AbstractContextManager[Any]:
        """Pinned memory and waiting for events are of the thread's device, too; without this each process would also
        take some memory of the first."""
        return nullcontext() if self._copying is None else torch.cuda.device(self.device)

    def _new_batch(self, tile_px: int) -> _Batch:
        pinned, shape = self._copying is not None, (self.batch, tile_px, tile_px, 3)
        # zeros, as the last batch of a slide goes to a GPU in full size
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        return _Batch(pixels, torch.zeros(self.batch, dtype=torch.int64, pin_memory=pinned))

    def _prepare(self, tile_px: int) -> None:
        """Find the batch size and whether compiling pays, where the device is one that asks for it."""
        plan, speed = self.plan, 0.0
        if self.device.type == "cuda" and (plan.batch is None or plan.compile == "auto"):
            sizes = (plan.batch,) if plan.batch else None
            self.batch, speed = find_batch(self._embed, tile_px, plan.views, sizes)
        compiled = plan.compile == "on" or (plan.compile == "auto" and compile_pays(plan.tiles, speed))
        if compiled:
            if plan.compile == "auto":  # where there is no compiler it goes on without
                torch._dynamo.config.suppress_errors = True
            self.embedder.compile_network()
        name, precision = self.embedder.backbone.name, self.embedder.precision
        how = ", compiled" if compiled else ""
        _log.info("%s on %s in %s, batches of %d%s", name, self.device, precision, self.batch, how)

    def _start(self, number: int, batch: _Batch, stain: nn.Module | None) -> Future[tuple[Any, Tensor]]:
        return self._pool.submit(number, self._compute, batch, stain)

    def _compute(self, batch: _Batch, stain: nn.Module | None) -> tuple[Any, Tensor]:
        """(event after which they are there or None, embeddings float32 (count, views, *row_shape) in host memory)."""
        if self._copying is None:
            part = slice(0, batch.count)
            pixels, places = batch.pixels[part].to(self.device), batch.places[part].to(self.device)
            return None, self._forward(pixels, places, stain).cpu()
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copying):
            sent = [host.to(self.device, non_blocking=True) for host in (batch.pixels, batch.places)]
        computing.wait_stream(self._copying)
        for arrived in sent:
            arrived.record_stream(computing)  # or its memory would be given away while the model reads it
        vectors = self._forward(sent[0], sent[1], stain)
        found = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        found.copy_(vectors, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # others spin while they wait: a core a lane that could read
        event.record(computing)
        return event, found[: batch.count]

    def _forward(self, pixels: Tensor, places: Tensor, stain: nn.Module | None = None) -> Tensor:
        """As `Embedder.embed_views`, in smaller parts from when the device's memory ran out."""
        while True:
            size = min(self._most or len(pixels), len(pixels))
            parts = [slice(at, at + size) for at in range(0, len(pixels), size)]
            try:
                found = [self._embed(pixels[part], places[part], stain) for part in parts]
                return found[0] if len(found) == 1 else torch.cat(found)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                said = str(error).partition("\n")[0] or type(error).__name__
            self._fewer(size, said)

    def _embed(self, pixels: Tensor, places: Tensor, stain: nn.Module | None = None) -> Tensor:
        with torch.inference_mode():
            return self.embedder.embed_views(pixels, self.plan.views, stain, places)

    def _fewer(self, size: int, said: str) -> None:
        name = self.embedder.backbone.name
        if size == 1:
            problem = f"memory: not even one patch at a time fits ({said})"
            raise BackboneError(name, problem, "free memory on the device, or choose a smaller backbone")
        if self._most is None:
            _log.warning("%s: no memory for %d patches at a time (%s): going on with fewer", name, size, said)
        self._most = size // 2 if self._most is None else min(self._most, size // 2)
        if self._copying is not None:
            torch.cuda.empty_cache()


class Lane:
    """One slide's way through an Extractor; made by `Extractor.lane`, used by one thread."""

    def __init__(self, extractor: Extractor, number: int, batches: list[_Batch], stain: nn.Module | None):
        self._extractor, self._number, self._stain = extractor, number, stain
        self._free = deque(batches)
        self._sent: deque[tuple[_Batch, Future[tuple[Any, Tensor]]]] = deque()

    def run(self, patches: Iterable[PatchBatch]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(places (b,), embeddings (b, views, *row_shape)) of the patches that are ok, in order, as they are ready."""
        filling: _Batch | None = None
        for group in patches:
            rows = np.flatnonzero(group.ok)
            while len(rows):
                if filling is None:
                    while not self._free:
                        yield self._receive()
                    filling = self._free.popleft()
                    filling.count = 0
                rows = rows[filling.take(group, rows) :]
                if filling.count == len(filling.pixels):
                    self._send(filling)
                    filling = None
            while self._sent and _is_there(self._sent[0][1]):
                yield self._receive()
        if filling is not None:
            self._send(filling)
        while self._sent:
            yield self._receive()

    def drop(self) -> None:
        """Wait for what is at work, and forget it: its memory is used again."""
        for _, future in self._sent:
            future.cancel()
        for _, future in self._sent:
            if not future.cancelled() and future.exception() is None and future.result()[0] is not None:
                future.result()[0].synchronize()
        self._sent.clear()

    def _send(self, batch: _Batch) -> None:
        self._sent.append((batch, self._extractor._start(self._number, batch, self._stain)))

    def _receive(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        batch = self._sent[0][0]
        with self._extractor.plan.waiting():
            # no name for the future: with its error and this frame it would be a ring, which keeps a failed slide's
            # readers and their memory until Python looks for rings
            event, vectors = self._sent[0][1].result()
            if event is not None:
                event.synchronize()
        self._sent.popleft()
        places = batch.places.numpy()[: batch.count].copy()
        self._free.append(batch)
        return places, vectors.numpy()


def _is_there(future: Future[tuple[Any, Tensor]]) -> bool:
    """Whether its result can be taken, or its error raised, at once: a GPU may still be at what is only begun."""
    if not future.done() or future.exception() is not None:
        return future.done()
    event = future.result()[0]
    return event is None or bool(event.query())


class _Pool:
    """Threads that do what was submitted with the least number first, then what was submitted first."""

    def __init__(self, threads: int, begin: Callable[[], None]):
        self._waiting: queue.PriorityQueue[tuple[float, int, Any]] = queue.PriorityQueue()
        self._order, self._turn, self._closed = itertools.count(), threading.Lock(), False
        self._threads = [threading.Thread(target=self._run, args=(begin,), daemon=True) for _ in range(threads)]
        self._begun = threading.Barrier(threads + 1)
        for thread in self._threads:
            thread.start()
        self._begun.wait()

    def submit(self, number: int, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Raises RuntimeError after `close`: nobody would ever do it."""
        future: Future[Any] = Future()
        with self._turn:
            if self._closed:
                raise RuntimeError("the extractor is closed")
            self._waiting.put((number, next(self._order), (future, work, arguments)))
        return future

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for _ in self._threads:
                self._waiting.put((float("inf"), next(self._order), None))
        for thread in self._threads:
            thread.join()

    def _run(self, begin: Callable[[], None]) -> None:
        begin()
        self._begun.wait()
        while (task := self._waiting.get()[2]) is not None:
            future, work, arguments = task
            if future.set_running_or_notify_cancel():
                with _Settling(future):
                    future.set_result(work(*arguments))
            del task, future, work, arguments  # a batch's memory is not to wait for the next task


@dataclass(frozen=True)
class _Settling:
    """What is raised in the block is raised where the future's result is waited for instead."""

    future: Future[Any]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None:
            self.future.set_exception(error)
        return True


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    said = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")  # the last: cuBLAS, cuDNN
    return any(part in words for part in said)
