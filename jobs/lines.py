"""The line of units that wait for one stage, are at work there, or are at work in other sessions."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .last_words import Death
from .manifest import SlideRecord
from .outcome import Split, Stage, Unit, stage_name
from .receipts import DONE, FAILED, STATUSES, Receipt


@dataclass
class Parted:
    """A slide that was split: which of its parts are still to be done, and what they took."""

    split: Split
    missing: set[int]
    seconds: float = 0.0


@dataclass
class Line:
    """One stage's units.

    records   all slides that may come, by id, in order
    waiting   units to be done; held: those that another session is at, and which; contested: that ever were
    added     slides that came
    running   key → (unit, when it began)
    suspects  units whose worker died: tried again, alone, when all others are done
    receipts  what became of the slides
    """

    stage: Stage
    records: dict[str, SlideRecord]
    waiting: deque[Unit] = field(default_factory=deque)
    held: dict[Unit, str] = field(default_factory=dict)
    contested: set[Unit] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    running: dict[str, tuple[Unit, float]] = field(default_factory=dict)
    suspects: dict[Unit, Death] = field(default_factory=dict)
    tried: set[Unit] = field(default_factory=set)
    parted: dict[str, Parted] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    tiles: int = 0
    busy_s: float = 0.0
    active_s: float = 0.0

    @property
    def name(self) -> str:
        return stage_name(self.stage)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing can be begun or awaited here now; others may be at some of its units."""
        return not (self.waiting or self.running or self.suspects)

    @property
    def is_over(self) -> bool:
        return self.is_quiet and not self.held

    @property
    def has_failed(self) -> bool:
        return any(receipt.status == FAILED for receipt in self.receipts.values())

    def add(self, slide_id: str) -> None:
        """The slide comes, if it did not yet."""
        if slide_id not in self.added:
            self.added.add(slide_id)
            self.waiting.append(Unit(self.name, slide_id))

    def part(self, slide_id: str, split: Split) -> None:
        """The slide is to be done in parts: those that are missing wait first, so that few slides are half done."""
        missing = {number for number in range(split.parts) if not split.has(number)}
        self.parted[slide_id] = Parted(split, missing)
        if missing:
            self.waiting.extendleft(Unit(self.name, slide_id, number) for number in sorted(missing, reverse=True))
        else:
            self.waiting.appendleft(Unit(self.name, slide_id, join=True))

    def part_done(self, unit: Unit, seconds: float = 0.0) -> None:
        """When it was the last of its slide, the join waits next."""
        parted = self.parted.get(unit.slide_id)
        if parted is None or unit.part not in parted.missing:
            return
        parted.missing.discard(unit.part)
        parted.seconds += seconds
        if not parted.missing:
            self.waiting.appendleft(Unit(self.name, unit.slide_id, join=True))

    def drop(self, slide_id: str) -> None:
        """Nothing more of this slide in parts: it has failed, or others have done it."""
        if self.parted.pop(slide_id, None) is None:
            return
        self.waiting = deque(unit for unit in self.waiting if unit.slide_id != slide_id)
        for units in (self.held, self.suspects):
            for unit in [unit for unit in units if unit.slide_id == slide_id]:
                del units[unit]

    def settle(self, receipt: Receipt) -> Receipt:
        """Keep what became of a slide; one that was done in parts took the time of all of them."""
        parted = self.parted.get(receipt.slide_id)
        if parted is not None:
            receipt = replace(receipt, seconds=receipt.seconds + parted.seconds)
        elif receipt.status == DONE:
            self.tiles += receipt.tiles
        self.drop(receipt.slide_id)
        self.receipts[receipt.slide_id] = receipt
        return receipt

    def ordered(self) -> list[Receipt]:
        """Receipts in the order of the records."""
        return [self.receipts[slide_id] for slide_id in self.records if slide_id in self.receipts]

    def summary(self, room: int) -> dict[str, Any]:
        """How far it is, as the session's file says it."""
        counts = Counter(receipt.status for receipt in self.receipts.values())
        return {
            "total": len(self.records),
            **{status: counts[status] for status in STATUSES},
            "running": len(self.running),
            "queued": len(self.waiting) + len(self.suspects),
            "held": len(self.held),
            "tiles": self.tiles,
            "active_s": round(self.active_s, 1),
            "busy_s": round(self.busy_s + sum(seconds for _, seconds in self._at_work()), 1),
            "room": room,
        }

    def words(self, tiles: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
        """What is at work, as the session's file says it."""
        found = []
        for unit, seconds in self._at_work():
            done, total = tiles.get(unit.name, (0, 0))
            facts = {"stage": unit.stage, "slide_id": unit.slide_id, "part": unit.part, "seconds": round(seconds, 1)}
            found.append({**facts, "tiles": done, "of": total})
        return found

    def _at_work(self) -> Iterator[tuple[Unit, float]]:
        now = time.monotonic()
        return ((unit, now - begun) for unit, begun in self.running.values())
