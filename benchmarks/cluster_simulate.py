"""A cluster in virtual time under the real scheduler: flow, lines, claims, sessions, receipts and attempts are the
engine's own, on real files; only the clock, the workers and the seconds that their work takes are not.

What the scheduler itself takes, in seconds of this processor, passes on the virtual clock, too: workers wait for it.
"""

import heapq
import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs import flow, lines, peers, sessions
from jobs.attempt import run_one
from jobs.config import RunSpec
from jobs.flow import Flow, Watcher
from jobs.folder import RunFolder
from jobs.halt import Halt
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split, Stage, Unit
from jobs.receipts import DONE, FAILED
from jobs.record import Record

from .cluster_overhead import many_records

BEAT_S, AHEAD = 10.0, 1.25  # of a session; tasks that a pool takes for each worker, so that none waits for the next


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
    shards: int = 3
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

    @staticmethod
    def kind(unit: Unit, split: Split | None) -> str:
        """tile, split, shard or join."""
        if unit.stage == "tile":
            return "tile"
        return "shard" if unit.part is not None else "split" if split is None else "join"


_shards = 3  # of a slide; the stages below have no other way to know


def tile_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    return Outcome(DONE, "tiles", 1000 * _shards)


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Split:
    return Split(folder.root / "parts" / record.slide_id, _shards, 1000 * _shards, embed_part, embed_join)


def embed_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    place = folder.root / "parts" / record.slide_id
    place.mkdir(parents=True, exist_ok=True)
    (place / Split.name_of(number)).touch()
    return 1000, 0


def embed_join(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Raises FileNotFoundError where a part is missing: the slide is then failed, and so is the benchmark."""
    place = folder.root / "parts" / record.slide_id
    for number in range(_shards):
        (place / Split.name_of(number)).unlink()
    place.rmdir()
    return Outcome(DONE, "embeddings", 1000 * _shards)


@dataclass(order=True)
class _Task:
    ends: float
    number: int
    worker: int = field(compare=False)
    pool: "VirtualPool" = field(compare=False)
    key: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    seconds: float = field(compare=False)


class Machines:
    """The workers of one session. One that is preempted takes its task with it, which another is given, as Dask does;
    after a while there is a new one in its place."""

    def __init__(self, asked: Cluster, clock: Clock, ledger: Ledger, chance: random.Random):
        self.asked, self.clock, self.ledger, self.chance = asked, clock, ledger, chance
        self.idle: list[int] = list(range(asked.workers))
        self.queue: deque[tuple[VirtualPool, str, tuple[Any, ...], float]] = deque()
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
        self.queue.appendleft((task.pool, task.key, task.arguments, task.seconds))

    def _return(self, worker: int) -> None:
        self.here += 1
        self.idle.append(worker)
        self._doom(worker)

    def _feed(self) -> None:
        while self.queue and self.idle:
            pool, key, arguments, seconds = self.queue.popleft()
            unit, _, split = arguments
            self.ledger.begun[Ledger.kind(unit, split), unit.name] += 1
            self._made += 1
            task = _Task(self.clock.now + seconds, self._made, self.idle.pop(), pool, key, arguments, seconds)
            heapq.heappush(self.working, task)

    def _end(self, task: _Task) -> None:
        unit, _, split = task.arguments
        name = Ledger.kind(unit, split), unit.name
        self.ledger.ended[name] += 1
        if self.ledger.ended[name] == 1:
            self.ledger.useful_s += task.seconds
        task.pool.take(task.key, task.arguments)


class VirtualPool:
    """A Pool of the engine (jobs/pools.py) on machines that other pools share."""

    def __init__(self, machines: Machines, stage: Stage, spec: RunSpec, folder: RunFolder):
        self._machines, self._stage, self._spec, self._folder = machines, stage, spec, folder
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
        asked, chance = self._machines.asked, self._machines.chance
        unit, _, split = arguments
        kind = Ledger.kind(unit, split)
        middle = {"tile": asked.tile_s, "shard": asked.shard_s}.get(kind, asked.small_s)
        self._busy.add(key)
        self._machines.queue.append((self, key, arguments, middle * chance.lognormvariate(0, asked.spread)))
        self._machines.clock.now += asked.files_s

    def take(self, key: str, arguments: tuple[Any, ...]) -> None:
        begun = time.process_time()
        self._ended.append((key, run_one(self._stage, self._spec, self._folder, *arguments)))
        self.works_s += time.process_time() - begun

    def results(self, wait_s: float = 0.2) -> list[tuple[str, Any]]:
        ended, self._ended = self._ended, []
        self._busy -= {key for key, _ in ended}
        return ended

    def tiles(self) -> dict[str, tuple[int, int]]:
        return {}

    def close(self, kill: bool) -> None:
        pass


class VirtualSession(sessions.Session):
    """A session of a machine of its own, whose signs of life come at virtual times."""

    def __init__(self, folder: RunFolder, spec: RunSpec, number: int):
        super().__init__(folder, spec)
        self.id = f"20260101T{number:09d}-{number:08x}-{number}"
        self.facts |= {"session": self.id, "machine": f"{number:08x}", "pid": number, "start": ""}

    def _note(self) -> None:
        os.utime(self.path, (1e9 + self.virtual_s, 1e9 + self.virtual_s))
        super()._note()

    @property
    def virtual_s(self) -> float:
        return sessions.time.monotonic()


class Run:
    """One session at work, with its machines."""

    def __init__(self, world: "World", number: int):
        asked = world.asked
        spec, chance = RunSpec(), random.Random(f"{asked.seed}-{number}")
        self.session = VirtualSession(world.folder, spec, number)
        self.session.beat()
        self.machines = Machines(asked, world.clock, world.ledger, chance)
        self.lines = [Line(stage, dict(world.records)) for stage in (tile_slide, embed_slide)]
        self.pools: list[VirtualPool] = []

        def open_one(line: Line) -> VirtualPool:
            self.pools.append(VirtualPool(self.machines, line.stage, spec, world.folder))
            return self.pools[-1]

        record, watchers = Record.of(self.session, spec, world.folder), [Watcher(), Watcher()]
        self.flow = Flow(self.lines, open_one, record, Halt(), watchers, phased=False)
        for slide_id in world.records:
            self.lines[0].add(slide_id)
        self.beats_at = world.clock.now + BEAT_S
        rate = -math.log(1 - asked.session_preempted) / 3600 if asked.session_preempted else 0.0
        self.dies_at = world.clock.now + chance.expovariate(rate) if rate else math.inf

    @property
    def is_done(self) -> bool:
        return self.flow._is_done()

    def step(self) -> float:
        """A step of the scheduler; seconds of this processor that it took."""
        self.machines.advance()
        begun, works = time.process_time(), sum(pool.works_s for pool in self.pools)
        self.flow.step()
        return time.process_time() - begun - (sum(pool.works_s for pool in self.pools) - works)

    def end(self) -> None:
        self.machines.close()
        self.flow.record.claims.free_all()
        self.session.tell(ended="now", running=[])
        self.session.beat()


class World:
    """All sessions on one folder."""

    def __init__(self, asked: Cluster, root: Path):
        global _shards
        _shards = asked.shards
        self.asked, self.folder, self.clock, self.ledger = asked, RunFolder(root), Clock(), Ledger()
        self.records = {record.slide_id: record for record in many_records(asked.slides)}
        self.over: list[Run] = []
        self.lost_sessions, self.scheduler_s = 0, 0.0

    def live(self) -> None:
        with virtual(self.clock):
            runs = [Run(self, number) for number in range(self.asked.sessions)]
            back: list[float] = []
            while runs:
                for run in list(runs):
                    spent = run.step()
                    self.scheduler_s += spent
                    if self.clock.now >= run.beats_at:
                        run.session.beat()
                        run.beats_at = self.clock.now + BEAT_S
                    if run.is_done:
                        run.end()
                    elif self.clock.now >= run.dies_at:
                        run.machines.close()
                        self.lost_sessions += 1
                        back.append(self.clock.now + self.asked.back_s)
                    else:
                        self.clock.now += spent / len(runs)  # the schedulers of several sessions run side by side
                        continue
                    runs.remove(run)
                    self.over.append(run)
                if back and back[0] <= self.clock.now and runs:
                    back.pop(0)
                    runs.append(Run(self, len(self.over) + len(runs)))
                events = [run.machines.next_event() for run in runs]
                self.clock.now = max(self.clock.now, min([*events, self.clock.now + flow.LOOK_S]))

    def found(self) -> dict[str, Any]:
        ledger, asked = self.ledger, self.asked
        status: dict[str, str] = {}
        for run in self.over:
            for slide_id, receipt in run.lines[-1].receipts.items():
                status[slide_id] = FAILED if receipt.status == FAILED else status.get(slide_id, receipt.status)
        work = {kind: sum(count for (one, _), count in ledger.ended.items() if one == kind) for kind in KINDS}
        wanted = {"tile": asked.slides, "shard": asked.slides * asked.shards, "join": asked.slides}
        twice = sum(count - 1 for (kind, _), count in ledger.ended.items() if kind != "split")
        units, workers = sum(ledger.ended.values()), asked.workers * asked.sessions
        return {
            **asdict(asked),
            "hours": self.clock.now / 3600,
            "utilisation": ledger.useful_s / (workers * self.clock.now),
            "utilisation_of_available": ledger.useful_s / sum(run.machines.available_s for run in self.over),
            "lost": asked.slides - sum(one != FAILED for one in status.values()),
            "unfinished_units": sum(
                wanted[kind] - len([1 for one, _ in ledger.ended if one == kind]) for kind in wanted
            ),
            "twice": twice,
            "splits_again": work["split"] - asked.slides,
            "killed": ledger.killed,
            "begun_again": sum(ledger.begun.values()) - units,
            "lost_sessions": self.lost_sessions,
            "scheduler_ms_per_unit": 1e3 * self.scheduler_s / units,
            "claims_left": sum(path.is_file() for path in (self.folder.root / "claims").rglob("*")),
        }


KINDS = ("tile", "split", "shard", "join")


def simulate(asked: Cluster, root: Path) -> dict[str, Any]:
    """Run it to its end; what came of it. Deterministic but for the scheduler's own seconds."""
    world = World(asked, root)
    world.live()
    return world.found()
