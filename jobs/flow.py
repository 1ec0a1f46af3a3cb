"""Slides on their way from stage to stage: which unit is next, who is at it, and what became of it.

There is no list of tasks. A unit is begun when there is room for it, when its slide came through the stages before, and
when no other session is at it; what a run holds in memory is a name and a receipt for each slide.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wsi.errors import EngineError

from .halt import Halt
from .interrupt import heed
from .last_words import Death
from .lines import Line
from .outcome import Split, Unit
from .pools import Pool
from .receipts import DONE, FAILED, SKIPPED, Receipt
from .record import Record

LOOK_S = 0.5  # between two looks at what other sessions hold
TICK_S = 0.5  # between two words to those who watch
_WAIT_S = 0.2
_IDLE_S = 0.05
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watcher:
    """Who wants to know of a stage: of each receipt; twice a second of the tiles done in the slides at work, and of
    units that other sessions hold; and of all receipts and seconds when the stage has nothing more to do."""

    receipt: Callable[[Receipt], None] = lambda receipt: None
    tiles: Callable[[dict[str, tuple[int, int]]], None] = lambda tiles: None
    held: Callable[[int], None] = lambda units: None
    over: Callable[[list[Receipt], float], None] = lambda receipts, seconds: None


@dataclass
class Flow:
    """One run of stages over slides.

    lines     of the stages, in order; a slide that failed at one does not come to the next
    pools     opens the pool of a line when its first unit is begun
    phased    whether a stage begins when the ones before have nothing left to begin: where they share processors
    watchers  one for each line; tick: called twice a second
    """

    lines: Sequence[Line]
    pools: Callable[[Line], Pool]
    record: Record
    halt: Halt
    watchers: Sequence[Watcher]
    phased: bool = True
    tick: Callable[[], None] | None = None
    _open: dict[str, Pool] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _looked: float = 0.0
    _ticked: float = 0.0

    def run(self) -> None:
        """Until every slide is through, or the run was halted. Pools are closed however it ends."""
        kill = True
        try:
            for slide_id in self.lines[0].records:
                self.lines[0].add(slide_id)
            self._tell(last=True)
            self._beat()
            while not self._is_done():
                heed()
                self.step()
            kill = False
        finally:
            for pool in self._open.values():
                pool.close(kill)
            self._free_all(tidy=not kill and self.halt.why is None)
        self._tell(last=True)

    def _free_all(self, tidy: bool) -> None:
        """Give up all claims; `tidy`: also take away those that dead sessions left."""
        try:
            if tidy:
                self.record.claims.clear()
            self.record.claims.free_all()
        except OSError as error:  # the run folder is gone, which is said already; this session ends, so they are void
            _log.warning("claims could not be given up: %s", error)

    def _beat(self) -> None:
        """Who looks now, or after a kill in the next seconds, knows what was to be done."""
        try:
            self.record.session.beat()
        except OSError as error:
            self.halt.stop_for(error)

    def step(self) -> None:
        """Begin what can be begun, and wait a moment for what ends."""
        try:
            if self.halt.why is None:
                for line in reversed(self.lines):  # slides that are further first: few are half done at a time
                    if self._may_begin(line):
                        self._fill(line)
            self._collect()
            if time.monotonic() - self._looked >= LOOK_S:
                self._looked = time.monotonic()
                for line in self.lines:
                    self._look_at_held(line)
        except OSError as error:  # of the books: what slides throw is in their receipts
            self.halt.stop_for(error)
        except EngineError as error:  # of a pool: the cluster is gone, or no worker can be begun
            self.halt.stop(f"{error.args[0]}: {error.problem}", str(error.args[2]))
            for line in self.lines:
                line.running.clear()
        self._tell()

    def _is_done(self) -> bool:
        if any(line.running for line in self.lines):
            return False
        return self.halt.why is not None or all(line.is_over for line in self.lines)

    def _may_begin(self, line: Line) -> bool:
        if not self.phased:
            return True
        return all(before.is_quiet for before in self.lines[: self.lines.index(line)])

    def _fill(self, line: Line) -> None:
        """Give the stage's pool as many units as it has room for."""
        while line.waiting and self._room(line):
            unit = line.waiting.popleft()
            if not self._settled_elsewhere(line, unit) and self._claimed(line, unit):
                self._submit(line, unit)
        if line.name in self._open:
            self._open[line.name].expect(len(line.waiting))
        if line.suspects and not line.waiting and not line.running:
            unit = next(iter(line.suspects))
            del line.suspects[unit]
            line.tried.add(unit)
            self._submit(line, unit, alone=True)

    def _room(self, line: Line) -> bool:
        pool = self._open.get(line.name)
        if pool is None:
            pool = self._open[line.name] = self.pools(line)
        return pool.busy < pool.room

    def _settled_elsewhere(self, line: Line, unit: Unit) -> bool:
        """Whether a peer, or an earlier run, has said what became of the slide."""
        receipt = self.record.known(line.name, line.records[unit.slide_id])
        if receipt is None:
            return False
        self._adopt(line, receipt)
        return True

    def _claimed(self, line: Line, unit: Unit) -> bool:
        holder = self.record.claims.take(unit)
        if holder is not None:
            line.held[unit] = holder
            line.contested.add(unit)
            return False
        # a peer may have ended it between the last look and the claim
        peers = self.record.peers
        peers.look(line.name, now=peers.are_few or unit in line.contested)
        if self._settled_elsewhere(line, unit):
            self.record.claims.free(unit)
            return False
        parted = line.parted.get(unit.slide_id)
        if unit.part is None or parted is None:
            return True
        if parted.split.has(unit.part):
            self.record.claims.free(unit)
            line.part_done(unit)
            return False
        if parted.is_gone():  # another session joined the parts a moment ago, or threw them away
            self.record.claims.free(unit)
            line.again(unit.slide_id)
            return False
        return True

    def _submit(self, line: Line, unit: Unit, alone: bool = False) -> None:
        parted = line.parted.get(unit.slide_id)
        split = parted.split if parted is not None and (unit.join or unit.part is not None) else None
        line.running[unit.name] = unit, time.monotonic()
        self._open[line.name].submit(unit.name, unit, line.records[unit.slide_id], split, alone=alone)

    def _collect(self) -> None:
        """Take what ended, of all pools; wait only where nothing could be begun meanwhile."""
        busy = [line for line in self.lines if line.running]
        if not busy and not any(line.waiting for line in self.lines):
            time.sleep(_IDLE_S)  # others are at what is left
        for line in busy:
            results = self._open[line.name].results(_WAIT_S / len(busy))
            # all of them are no longer at work, whatever happens when the first is recorded
            for (unit, begun), result in [(line.running.pop(name), result) for name, result in results]:
                line.busy_s += time.monotonic() - begun
                self._take(line, unit, result)

    def _take(self, line: Line, unit: Unit, result: Any) -> None:
        if isinstance(result, Split):
            line.part(unit.slide_id, result)
        elif isinstance(result, Death):
            has_failed = unit.slide_id in line.receipts  # another part of the slide did
            if unit not in line.tried and not has_failed:
                line.suspects[unit] = result
                return  # still claimed: it is tried again here
            self._keep(line, self.record.post_mortem(unit, line.records[unit.slide_id], result))
        elif unit.part is not None and result.status != FAILED:
            self.record.append(result)
            line.tiles += result.tiles
            line.part_done(unit, result.seconds)
        else:
            self._keep(line, result)
        self.record.claims.free(unit)

    def _keep(self, line: Line, receipt: Receipt) -> None:
        """What this session says of a slide: recorded before its claim is given up, so that others see it."""
        if receipt.part is not None:  # a part that failed: so has its slide
            receipt = replace(receipt, part=None)
        if receipt.slide_id in line.receipts:
            return
        self._give_up(line, receipt.slide_id)
        receipt = line.settle(receipt)
        self.record.append(receipt)
        self.halt.judge(receipt, line.records[receipt.slide_id], self.lines)
        self._pass_on(line, receipt)

    def _adopt(self, line: Line, receipt: Receipt) -> None:
        """What another says of a slide."""
        if receipt.slide_id not in line.receipts:
            self._give_up(line, receipt.slide_id)
            line.drop(receipt.slide_id)
            status = SKIPPED if receipt.status == DONE else receipt.status
            self._pass_on(line, line.settle(replace(receipt, status=status)))

    def _give_up(self, line: Line, slide_id: str) -> None:
        """Parts that were to be tried again are not: others may want them."""
        for unit in line.suspects:
            if unit.slide_id == slide_id:
                self.record.claims.free(unit)

    def _pass_on(self, line: Line, receipt: Receipt) -> None:
        """The slide goes to the next stage, and so do slides whose bag it is in, where they waited for it only."""
        place = self.lines.index(line)
        self.watchers[place].receipt(receipt)
        stop = len(self.lines) if receipt.status == FAILED else place + 2
        for number, after in enumerate(self.lines[place + 1 : stop], place + 1):
            mine = after.records.get(receipt.slide_id)
            for record in () if mine is None else (mine, *mine.others):
                if self._is_ready(record.slide_id, number):
                    after.add(record.slide_id)

    def _is_ready(self, slide_id: str, number: int) -> bool:
        """Whether a slide, and all slides of its bag, are through with the stage before."""
        before, record = self.lines[number - 1], self.lines[number].records.get(slide_id)
        mine = before.receipts.get(slide_id)
        if record is None or mine is None or mine.status == FAILED:
            return False
        return all(self._is_settled(other.slide_id, number - 1) for other in record.others)

    def _is_settled(self, slide_id: str, number: int) -> bool:
        """Whether nothing more is to come of the slide at that stage: it may have failed before, or not be wanted."""
        lines = self.lines[: number + 1]
        failed = any(slide_id in line.receipts and line.receipts[slide_id].status == FAILED for line in lines)
        return failed or slide_id in lines[-1].receipts or slide_id not in lines[-1].records

    def _look_at_held(self, line: Line) -> None:
        """Try units again that other sessions were at, and are not any more: they are done, or free, or the session is
        dead. One look at the folder tells: to try each of them would keep a network disk busy."""
        if not line.held:
            return
        self.record.peers.look(line.name)
        taken = self.record.claims.taken(line.name)
        lives = {holder: self.record.session.lives(holder) for holder in set(line.held.values())}
        again = [unit for unit, holder in line.held.items() if unit.name not in taken or not lives[holder]]
        for unit in again:
            del line.held[unit]
        line.waiting.extendleft(again)

    def _tell(self, last: bool = False) -> None:
        """Watchers and other sessions learn how far it is."""
        passed = time.monotonic() - self._ticked
        if passed < TICK_S and not last:
            return
        counts = {line.name: self._tiles(line) for line in self.lines}
        for place, (line, watcher) in enumerate(zip(self.lines, self.watchers, strict=True)):
            line.active_s += passed if self._ticked and line.running else 0.0
            if line.running:
                watcher.tiles({key.partition("+")[0]: count for key, count in counts[line.name].items()})
            elif line.held:
                watcher.held(len(line.held))
            if line.name not in self._over and all(one.is_over for one in self.lines[: place + 1]):
                self._over.add(line.name)
                watcher.over(line.ordered(), line.active_s)
        self._ticked = time.monotonic()
        rooms = {name: pool.room for name, pool in self._open.items()}
        self.record.session.tell(
            halted=self.halt.why,
            stages={line.name: line.summary(rooms.get(line.name, 0)) for line in self.lines},
            running=[word for line in self.lines for word in line.words(counts[line.name])],
        )
        if self.tick is not None:
            self.tick()

    def _tiles(self, line: Line) -> dict[str, tuple[int, int]]:
        pool = self._open.get(line.name)
        return {} if pool is None or not line.running else pool.tiles()
