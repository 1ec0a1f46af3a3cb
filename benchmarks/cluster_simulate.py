"""A cluster in virtual time under the real scheduler: flow, lines, claims, sessions, receipts and attempts are the
engine's own, on real files; only the clock, the workers and the seconds that their work takes are not.

What the scheduler itself takes, in seconds of this processor, passes on the virtual clock, too: workers wait for it.
"""

import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import flow, sessions
from jobs.config import RunSpec
from jobs.flow import Flow, Watcher
from jobs.folder import RunFolder
from jobs.halt import Halt
from jobs.lines import Line
from jobs.receipts import FAILED
from jobs.record import Record

from .cluster_overhead import many_records
from .cluster_virtual import (
    SHARDS,
    Clock,
    Cluster,
    Ledger,
    Machines,
    VirtualPool,
    embed_slide,
    tile_slide,
    virtual,
)

BEAT_S = 10.0  # of a session


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
        wanted = {"tile": asked.slides, "shard": asked.slides * SHARDS, "join": asked.slides}
        twice = sum(count - 1 for (kind, _), count in ledger.ended.items() if kind in wanted)
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
            "looks": work["look"],
            "killed": ledger.killed,
            "begun_again": sum(ledger.begun.values()) - units,
            "lost_sessions": self.lost_sessions,
            "scheduler_ms_per_unit": 1e3 * self.scheduler_s / units,
            "claims_left": sum(path.is_file() for path in (self.folder.root / "claims").rglob("*")),
        }


KINDS = ("tile", "split", "shard", "join", "look")


def simulate(asked: Cluster, root: Path) -> dict[str, Any]:
    """Run it to its end; what came of it. Deterministic but for the scheduler's own seconds."""
    world = World(asked, root)
    world.live()
    return world.found()
