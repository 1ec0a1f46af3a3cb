"""A remote file read by place: few large requests instead of many small ones, bytes kept in bounded memory.

What will be needed is announced (`prefetch`), put together into runs of blocks and fetched by several threads while
the first tiles are decoded already. In a batch of tiles a row of the slide is about one request.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .remote_store import HEAD_BYTES, Store, connect

BLOCK_BYTES = 4 << 10
CACHE_BYTES = 64 << 20
_RUN_BLOCKS = (4 << 20) // BLOCK_BYTES  # in one request, at most: larger ones would arrive one after the other
_GAP_BLOCKS = (1 << 20) // BLOCK_BYTES  # between two pieces of one request, at most
_GAP_SHARE = 0.1  # of the wanted bytes: what gaps may add
_UNASKED_BLOCKS = (64 << 10) // BLOCK_BYTES  # fetched unannounced: directories and their tables lie close together
_KEPT_CLOSED_BYTES = 4 << 20  # of a file that is closed, which is often opened again at once
_KEPT_FILES = 4
_REQUESTS = 16  # at a time, over all files

Fetch = Callable[[int, int], bytes]


class _Flight(NamedTuple):
    """A run of blocks under way."""

    run: range
    data: "Future[bytes]"


class BlockCache:
    """Blocks of one remote file: kept, under way, or announced. Thread-safe.

    fetch        bytes from start to end of a file of `size` bytes
    limit_bytes  that are kept, 64 KiB or more; half of it at most are fetched ahead of their use
    """

    def __init__(self, fetch: Fetch, size: int, limit_bytes: int = CACHE_BYTES):
        self.size = size
        self._fetch = fetch
        self._limit = limit_bytes // BLOCK_BYTES
        self._window, self._longest = self._limit // 2, min(_RUN_BLOCKS, self._limit // 4)
        self._recent: OrderedDict[int, bytes] = OrderedDict()  # have been read; the longest unused first
        self._ahead: dict[int, bytes] = {}  # have not been read yet
        self._flying: dict[int, _Flight] = {}
        self._planned: dict[int, range] = {}  # block → the run that will bring it
        self._turn = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; fewer where the file ends."""
        start, end = min(offset, self.size), min(offset + count, self.size)
        first, after = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        with self._turn:
            found = {block: data for block in range(first, after) if (data := self._take(block)) is not None}
            flights = self._send_for(block for block in range(first, after) if block not in found)
            self._fly_ahead()
        for run, coming in flights:
            arrived = coming.result()
            for block in range(max(run.start, first), min(run.stop, after)):
                found[block] = _block_of(arrived, block - run.start)
        if flights:
            with self._turn:
                for block in found:
                    self._take(block)
                self._fly_ahead()
        whole = b"".join(found[block] for block in range(first, after))
        return whole[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Plan requests for what is not here of these ranges (offset, count), and send the first of them."""
        if not ranges:
            return
        wanted = _blocks_of(np.array(ranges, np.int64), self.size)
        with self._turn:
            places = (self._recent, self._ahead, self._flying, self._planned)
            missing = [block for block in wanted.tolist() if not any(block in place for place in places)]
            for run in plan_runs(np.array(missing, np.int64), self._longest):
                self._planned.update(dict.fromkeys(run, run))
            self._fly_ahead()

    def keep(self, blocks: bytes) -> None:
        """Take the file's first bytes, which came with its opening."""
        with self._turn:
            for number in range(-(-len(blocks) // BLOCK_BYTES)):
                data = _block_of(blocks, number)
                if len(data) == BLOCK_BYTES or len(blocks) == self.size:
                    self._recent[number] = data

    def rest(self) -> None:
        """Forget what was planned, and most of what is kept."""
        with self._turn:
            self._planned.clear()
            self._ahead.clear()
            self._trim(_KEPT_CLOSED_BYTES // BLOCK_BYTES)

    def _take(self, block: int) -> bytes | None:
        data = self._ahead.pop(block, None)
        if data is not None:
            self._recent[block] = data
        elif block in self._recent:
            self._recent.move_to_end(block)
        return self._recent.get(block)

    def _send_for(self, blocks: Iterable[int]) -> list[_Flight]:
        """The flights that bring these blocks; those that nobody has asked for start now, with a few that follow."""
        flights: dict[int, _Flight] = {}
        unasked: list[int] = []
        for block in blocks:
            if block in self._planned and block not in self._flying:
                self._send(self._planned[block])
            if block in self._flying:
                flights[self._flying[block].run.start] = self._flying[block]
            else:
                unasked.append(block)
        if unasked:
            end = max(unasked[-1] + 1, min(unasked[0] + _UNASKED_BLOCKS, -(-self.size // BLOCK_BYTES)))
            spare = [block for block in range(unasked[-1] + 1, end) if self._take(block) is None]
            for run in plan_runs(np.array(unasked + spare, np.int64), self._longest):
                flights[run.start] = self._send(run)
        return list(flights.values())

    def _send(self, run: range) -> _Flight:
        flight = _Flight(run, _pool().submit(self._land, run))
        for block in run:
            self._planned.pop(block, None)
            self._flying[block] = flight
        return flight

    def _land(self, run: range) -> bytes:
        data: bytes | None = None
        try:
            data = self._fetch(run.start * BLOCK_BYTES, min(run.stop * BLOCK_BYTES, self.size))
            return data
        finally:  # an error goes to whoever reads one of these blocks; a later read asks again
            with self._turn:
                for number, block in enumerate(run):
                    self._flying.pop(block, None)
                    if data is not None and block not in self._recent:
                        self._ahead[block] = _block_of(data, number)
                if data is not None:
                    self._trim(self._limit)
                    self._fly_ahead()

    def _fly_ahead(self) -> None:
        """Send the planned runs, in order, as long as what was fetched ahead of its use stays within bounds."""
        while self._planned:
            run = next(iter(self._planned.values()))
            if len(self._ahead) + len(self._flying) + len(run) > self._window:
                return
            self._send(run)

    def _trim(self, limit: int) -> None:
        """Drop the longest unused blocks; those that nobody has read yet only if they are too many by themselves."""
        while len(self._recent) + len(self._ahead) > limit and self._recent:
            self._recent.popitem(last=False)
        while len(self._ahead) > min(limit, self._window + self._longest):
            del self._ahead[next(iter(self._ahead))]


def plan_runs(blocks: NDArray[np.int64], longest: int) -> list[range]:
    """Requests for these blocks, int64 (n,), sorted and unique: runs of at most `longest` blocks, in the file's order.

    Gaps between blocks are closed, the smallest first, while they add a tenth to the bytes at most.
    """
    if not blocks.size:
        return []
    gaps = np.diff(blocks) - 1
    order = np.argsort(gaps, kind="stable")
    closed = np.zeros(gaps.size, np.bool_)
    closed[order] = (np.cumsum(gaps[order]) <= _GAP_SHARE * blocks.size) & (gaps[order] <= _GAP_BLOCKS)
    breaks = np.flatnonzero(~closed)
    starts = blocks[np.concatenate(([0], breaks + 1))].tolist()
    stops = (blocks[np.concatenate((breaks, [blocks.size - 1]))] + 1).tolist()
    return [
        range(piece, min(piece + longest, stop))
        for start, stop in zip(starts, stops, strict=True)
        for piece in range(start, stop, longest)
    ]


def _blocks_of(ranges: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Numbers of the blocks under ranges (n, 2) of offset and count: sorted, unique."""
    start, end = ranges[:, 0].clip(0, size), (ranges[:, 0] + ranges[:, 1]).clip(0, size)
    first, counts = start // BLOCK_BYTES, np.where(end > start, -(-end // BLOCK_BYTES) - start // BLOCK_BYTES, 0)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(first, counts) + within)


def _block_of(data: bytes, number: int) -> bytes:
    return data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


class RemoteFile:
    """A slide behind a URL; see source.ByteSource. Network failures raise RemoteError, a changed file SlideError."""

    def __init__(self, url: str, version: str, blocks: BlockCache):
        self.name: Path | str = url
        self.version = version
        self.size = blocks.size
        self._blocks: BlockCache | None = blocks

    def read_at(self, offset: int, count: int) -> bytes:
        if self._blocks is None:
            raise ValueError("the slide is closed")
        return self._blocks.read(offset, count)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        if self._blocks is not None:
            self._blocks.prefetch(ranges)

    def close(self) -> None:
        if self._blocks is not None:
            self._blocks.rest()
        self._blocks = None


class _Known(NamedTuple):
    store: Store
    blocks: BlockCache


_known: OrderedDict[str, _Known] = OrderedDict()  # the files opened last; a slide is opened several times in a row
_known_turn = threading.Lock()


def open_remote(url: str) -> RemoteFile:
    """Open a file by URL. It is asked for anew each time; what is still here of the same version is used again."""
    store = connect(url, 1 if url in _known else HEAD_BYTES)
    with _known_turn:
        known = _known.pop(url, None)
        if known is None or not store.version or (store.size, store.version) != (known.store.size, known.store.version):
            known = _Known(store, BlockCache(store.fetch, store.size))
        known.blocks.keep(store.head)
        _known[url] = known
        while len(_known) > _KEPT_FILES:
            _known.popitem(last=False)
    return RemoteFile(url, store.version, known.blocks)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS, thread_name_prefix="fetch")
