"""The workers of a simulated cluster, in virtual time, and the stages that they pretend to do."""

import heapq
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import flow, lines, peers, sessions
from jobs.attempt import run_one
from jobs.config import RunSpec
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split, Stage, Unit
from jobs.receipts import DONE, SKIPPED

SHARDS = 3  # of a slide
AHEAD = 1.25  # tasks that a pool takes for each worker, so that none waits for the next


@dataclass(frozen=True)
class Cluster:
    """What is simulated. Seconds are medians; their logarithms vary by `spread` (standard deviation).

    sessions   independent runs on one folder; workers: of each
    tile_s     of a slide; shard_s: of a part; small_s: of the unit that splits a slide, and of that which joins it
    preempted  share of the workers that are lost in an hour, and of the sessions, where they are several
    back_s     until another takes the place of a lost one
    files_s    that the run folder takes for the claims and receipts of a unit beyond what this machine's memory takes
    """

    slides: int = 10_000
    sessions: int = 1
    workers: int = 128
    tile_s: float = 8.0
    shard_s: float = 20.0
    small_s: float = 0.1
    spread: float = 0.3
    preempted: float = 0.02
    session_preempted: float = 0.0
    back_s: float = 120.0
    files_s: float = 0.0
    seed: int = 0


class Clock:
    """Stands for the module `time` in the scheduler."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Nothing: who simulates lets the time pass."""


@contextmanager
def virtual(clock: Clock) -> Iterator[None]:
    modules = (flow, lines, peers, sessions)
    try:
        for module in modules:
            module.time = clock  # type: ignore[attr-defined]
        yield
    finally:
        for module in modules:
            module.time = time


class Ledger:
    """What the workers did, each unit's work beginning and ending, across sessions that come and go."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, str]] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.useful_s = 0.0
        self.killed = 0


def kind_of(unit: Unit, split: Split | None, folder: RunFolder) -> str:
    """tile, split, shard or join; look: a stage that finds its result there."""
    if split is None and _place(folder, unit.stage, unit.slide_id).exists():
        return "look"
    if unit.stage == "tile":
        return "tile"
    return "shard" if unit.part is not None else "split" if split is None else "join"


def _place(folder: RunFolder, stage: str, slide_id: str) -> Path:
    return folder.root / stage / slide_id


def tile_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    return _publish(folder, "tile", record.slide_id)


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome | Split:
    if _place(folder, "embed", record.slide_id).exists():
        return Outcome(SKIPPED, "mark", 1000 * SHARDS)
    return Split(folder.root / "parts" / record.slide_id, SHARDS, 1000 * SHARDS, embed_part, embed_join)


def embed_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    place = folder.root / "parts" / record.slide_id
    place.mkdir(parents=True, exist_ok=True)
    (place / Split.name_of(number)).touch()
    return 1000, 0


def embed_join(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Raises FileNotFoundError where a part is missing: the slide is then failed, and so is the benchmark."""
    place = folder.root / "parts" / record.slide_id
    for number in range(SHARDS):
        (place / Split.name_of(number)).unlink()
    place.rmdir()
    return _publish(folder, "embed", record.slide_id)


def _publish(folder: RunFolder, stage: str, slide_id: str) -> Outcome:
    place = _place(folder, stage, slide_id)
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        return Outcome(SKIPPED, "mark", 1000 * SHARDS)
    place.touch()
    return Outcome(DONE, "mark", 1000 * SHARDS)


@dataclass(order=True)
class _Task:
    ends: float
    number: int
    worker: int = field(compare=False)
    pool: "VirtualPool" = field(compare=False)
    key: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    kind: str = field(compare=False)
    seconds: float = field(compare=False)


class Machines:
    """The workers of one session. One that is preempted takes its task with it, which another is given, as Dask does;
    after a while there is a new one in its place."""

    def __init__(self, asked: Cluster, clock: Clock, ledger: Ledger, chance: random.Random):
        self.asked, self.clock, self.ledger, self.chance = asked, clock, ledger, chance
        self.idle: list[int] = list(range(asked.workers))
        self.queue: deque[tuple[VirtualPool, str, tuple[Any, ...]]] = deque()
        self.working: list[_Task] = []
        self.events: list[tuple[float, int, str]] = []  # (when, worker, lost or back)
        self.here = asked.workers
        self.available_s, self._counted, self._made = 0.0, clock.now, 0
        for worker in self.idle:
            self._doom(worker)

    def _doom(self, worker: int) -> None:
        if self.asked.preempted > 0:
            rate = -math.log(1 - self.asked.preempted) / 3600
            heapq.heappush(self.events, (self.clock.now + self.chance.expovariate(rate), worker, "lost"))

    def next_event(self) -> float:
        ends = self.working[0].ends if self.working else math.inf
        return min(ends, self.events[0][0] if self.events else math.inf)

    def advance(self) -> None:
        """Up to the clock's time: tasks end, workers go and come, and who is idle takes what waits."""
        while self.next_event() <= self.clock.now:
            if self.working and self.working[0].ends <= self.next_event():
                task = heapq.heappop(self.working)
                self._end(task)
                self.idle.append(task.worker)
            else:
                when, worker, what = heapq.heappop(self.events)
                self._count(when)
                self._lose(worker) if what == "lost" else self._return(worker)
            self._feed()
        self._feed()

    def _count(self, when: float) -> None:
        self.available_s += self.here * (when - self._counted)
        self._counted = when

    def close(self) -> None:
        """All of it is gone, with what was at work there."""
        self._count(self.clock.now)
        self.ledger.killed += len(self.working)

    def _lose(self, worker: int) -> None:
        self.here -= 1
        heapq.heappush(self.events, (self._counted + self.asked.back_s, worker, "back"))
        if worker in self.idle:
            self.idle.remove(worker)
            return
        task = next(task for task in self.working if task.worker == worker)
        self.working.remove(task)
        heapq.heapify(self.working)
        self.ledger.killed += 1
        self.queue.appendleft((task.pool, task.key, task.arguments))

    def _return(self, worker: int) -> None:
        self.here += 1
        self.idle.append(worker)
        self._doom(worker)

    def _feed(self) -> None:
        asked = self.asked
        while self.queue and self.idle:
            pool, key, arguments = self.queue.popleft()
            unit, _, split = arguments
            kind = kind_of(unit, split, pool.folder)
            middle = {"tile": asked.tile_s, "shard": asked.shard_s}.get(kind, asked.small_s)
            seconds = middle * self.chance.lognormvariate(0, asked.spread)
            self.ledger.begun[kind, unit.name] += 1
            self._made += 1
            ends = self.clock.now + seconds
            heapq.heappush(self.working, _Task(ends, self._made, self.idle.pop(), pool, key, arguments, kind, seconds))

    def _end(self, task: _Task) -> None:
        name = task.kind, task.arguments[0].name
        self.ledger.ended[name] += 1
        if self.ledger.ended[name] == 1:
            self.ledger.useful_s += task.seconds
        task.pool.take(task.key, task.arguments)


class VirtualPool:
    """A Pool of the engine (jobs/pools.py) on machines that other pools share."""

    def __init__(self, machines: Machines, stage: Stage, spec: RunSpec, folder: RunFolder):
        self._machines, self._stage, self._spec, self.folder = machines, stage, spec, folder
        self._ended: list[tuple[str, Any]] = []
        self._busy: set[str] = set()
        self.works_s = 0.0  # of this processor, for what workers do: not the scheduler's

    @property
    def room(self) -> int:
        return math.ceil(AHEAD * self._machines.here)

    @property
    def busy(self) -> int:
        return len(self._busy)

    def expect(self, waiting: int) -> None:
        pass

    def submit(self, key: str, *arguments: Any, alone: bool = False) -> None:
        self._busy.add(key)
        self._machines.queue.append((self, key, arguments))
        self._machines.clock.now += self._machines.asked.files_s

    def take(self, key: str, arguments: tuple[Any, ...]) -> None:
        begun = time.process_time()
        self._ended.append((key, run_one(self._stage, self._spec, self.folder, *arguments)))
        self.works_s += time.process_time() - begun

    def results(self, wait_s: float = 0.2) -> list[tuple[str, Any]]:
        ended, self._ended = self._ended, []
        self._busy -= {key for key, _ in ended}
        return ended

    def tiles(self) -> dict[str, tuple[int, int]]:
        return {}

    def close(self, kill: bool) -> None:
        pass
