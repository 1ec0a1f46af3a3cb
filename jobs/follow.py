"""What sessions and receipts of a run folder say, read again and again at little cost: only what was added since.

Reads sessions/*.json and receipts/*.jsonl, opens no store, and takes whatever state a kill or a full disk left there.
"""

import json
import os
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

from wsi.machine import is_alive, machine_id

from .receipts import DONE, SKIPPED
from .slide_list import read_list

AT_WORK, ENDED, LOST = "at work", "ended", "lost"
RECENT_S = 600.0  # what is meant by the rate of work now
_LEASE_S = 120.0  # of sessions that do not say theirs
_NO_STAGE = "commands"  # receipts/commands.jsonl: a line per command that ended
_AT_ONCE = 1 << 20  # bytes of lines
_END = 64 << 10  # bytes, in which the last line is
_SKEW_S = 2.0  # clocks nearer than that are taken for equal


class Line(NamedTuple):
    """A receipt, as far as it is looked at here. ended: seconds since 1970 by the file system's clock."""

    slide_id: str
    status: str
    seconds: float
    tiles: int
    ended: float
    part: int | None = None
    problem: str = ""
    remedy: str = ""
    cause: str = ""
    worker: str = ""


class Work(NamedTuple):
    """A unit of work that ended: a slide, a part of it, or the join of its parts."""

    stage: str
    session: str
    line: Line


@dataclass(frozen=True)
class Seen:
    """A session as it is seen from here.

    facts   what its file says; changed: its last sign of life, seconds since 1970 by the file system's clock
    age_s   seconds since then; exact: by the file system's clock, otherwise about, by this machine's
    state   at work, ended, or lost: it died without saying so
    """

    facts: dict[str, Any]
    changed: float
    age_s: float
    exact: bool
    state: str

    @property
    def id(self) -> str:
        return text(self.facts, "session")

    @property
    def begun(self) -> float:
        """Seconds since 1970 by its own machine's clock, 0 where it does not say."""
        return epoch(text(self.facts, "started"))

    def stage(self, name: str) -> dict[str, Any]:
        stages = self.facts.get("stages")
        found = stages.get(name) if isinstance(stages, dict) else None
        return found if isinstance(found, dict) else {}


@dataclass
class _File:
    """A file of receipts that is read on where it was left."""

    place: int = 0
    lines: int = 0
    receipts: int = 0


@dataclass
class Follower:
    """The run folder at `root`, as it was when `look` was called last.

    sessions  oldest first
    latest    (session, stage) → slide_id → its last receipt there; session "" in runs of earlier versions
    work      what ended in the last ten minutes
    spent     stage → seconds of each part that went well
    split     (stage, slide_id) of slides that are done in parts → number of a part that is done → its tiles
    notes     what could not be read
    """

    root: Path
    sessions: list[Seen] = field(default_factory=list)
    latest: dict[tuple[str, str], dict[str, Line]] = field(default_factory=lambda: defaultdict(dict))
    work: list[Work] = field(default_factory=list)
    spent: dict[str, array] = field(default_factory=lambda: defaultdict(lambda: array("f")))
    split: dict[tuple[str, str], dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    notes: list[str] = field(default_factory=list)
    now: float = 0.0
    _files: dict[str, _File] = field(default_factory=lambda: defaultdict(_File))
    _lists: dict[str, frozenset[str] | None] = field(default_factory=dict)
    _told: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)

    def look(self) -> None:
        """Read what is new."""
        self.notes = []
        for path in _listed(self.root / "receipts", ".jsonl"):
            self._read_receipts(path)
        self._read_sessions()
        self.work = [unit for unit in self.work if unit.line.ended > self.now - RECENT_S]

    @property
    def is_run(self) -> bool:
        """Whether anything of a run is there."""
        return bool(self.sessions or self.latest or (self.root / "run.json").is_file())

    def slides(self, name: str) -> frozenset[str] | None:
        """Ids of a list of slides that a session named, None where it is not there."""
        if name and self._lists.get(name) is None:
            self._lists[name] = read_list(self.root, name)
        return self._lists.get(name)

    def _read_receipts(self, path: Path) -> None:
        stage, _, session = path.name.removesuffix(".jsonl").partition(".")
        if stage == _NO_STAGE:
            return
        known, receipts = self._files[path.name], 0
        try:
            with path.open("rb") as file:
                ahead = _ahead(file)
                file.seek(known.place)
                while lines := file.readlines(_AT_ONCE):  # not all at once: of a long run it is hundreds of megabytes
                    for line in lines:
                        if line.endswith(b"\n"):  # else it is being written
                            known.place += len(line)
                            receipts += self._read_line(stage, session, line, ahead)
                            known.lines += 1
        except OSError as error:
            self.notes.append(f"receipts/{path.name} cannot be read: {error.strerror}")
        known.receipts += receipts
        damaged = known.lines - known.receipts
        if damaged:
            count = "a line" if damaged == 1 else f"{damaged} lines"
            self.notes.append(f"receipts/{path.name}: {count} cannot be read, cut short by a kill or damaged")

    def _read_line(self, stage: str, session: str, line: bytes, ahead: float) -> bool:
        receipt = _object(line)
        if receipt is None or not {"slide_id", "status"} <= receipt.keys():
            return False
        self._take(stage, session, receipt, ahead)
        return True

    def _take(self, stage: str, session: str, receipt: dict[str, Any], ahead: float) -> None:
        part = receipt.get("part")
        line = Line(
            sys.intern(str(receipt["slide_id"])),  # lines are many, and what they name is not
            sys.intern(str(receipt["status"])),
            number(receipt, "seconds"),
            int(number(receipt, "tiles")),
            epoch(text(receipt, "finished")) - ahead,
            part if isinstance(part, int) else None,
            text(receipt, "problem"),
            text(receipt, "remedy"),
            text(receipt, "cause"),
            sys.intern(text(receipt, "worker")),
        )
        if line.part is not None:
            parts = self.split[stage, line.slide_id]
            if line.status == DONE:
                parts[line.part] = line.tiles
                self.spent[stage].append(line.seconds)
        else:
            self.latest[session, stage][line.slide_id] = line
        if line.status != SKIPPED:
            self.work.append(Work(stage, session, line))

    def _read_sessions(self) -> None:
        told, self._told = self._told, {}
        for path in _listed(self.root / "sessions", ".json"):
            try:
                with path.open("rb") as file:  # opened, as a network disk then asks its server how it is
                    changed = os.fstat(file.fileno()).st_mtime
                    known = told.get(path.stem)
                    facts = known[1] if known and known[0] == changed else _object(file.read())
            except OSError:
                facts = None
            if facts is None:
                self.notes.append(f"sessions/{path.name} cannot be read: it is left out")
                continue
            self._told[path.stem] = changed, {**facts, "session": path.stem}
        newest = max((changed for changed, _ in self._told.values()), default=0.0)
        here = machine_id()
        afar = [f for _, f in self._told.values() if not f.get("ended") and f.get("machine") != here]
        probed = file_clock(self.root / "sessions") if afar else None
        self.now = max(time.time(), newest) if probed is None else probed
        seen = [self._judge(facts, changed, probed is not None) for changed, facts in self._told.values()]
        self.sessions = sorted(seen, key=lambda one: (one.begun, one.id))

    def _judge(self, facts: dict[str, Any], changed: float, exact: bool) -> Seen:
        age = max(0.0, self.now - changed)
        state = AT_WORK
        if facts.get("ended"):
            state = ENDED
        elif age > (number(facts, "lease_s") or _LEASE_S):
            state = LOST
        elif facts.get("machine") == machine_id():
            pid = int(number(facts, "pid"))
            state = AT_WORK if pid and is_alive(pid, text(facts, "start")) else LOST
        return Seen(facts, changed, age, exact or facts.get("machine") == machine_id(), state)


def _ahead(file: BinaryIO) -> float:
    """Seconds that the clock of who writes a file of receipts is before the file system's, by its last line."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
    text_of_end = file.read()
    whole = text_of_end[: text_of_end.rfind(b"\n")].rpartition(b"\n")[2]
    last = _object(whole) or {}
    if "finished" not in last:
        return 0.0
    ahead = epoch(text(last, "finished")) - os.fstat(file.fileno()).st_mtime
    return ahead if abs(ahead) > _SKEW_S else 0.0


def session_age(path: Path, now: float) -> float:
    """Age of a session's last sign of life in leases; infinite where it ended or its file cannot be read."""
    try:
        facts, changed = _object(path.read_bytes()), path.stat().st_mtime
    except OSError:
        facts, changed = None, 0.0
    if facts is None or facts.get("ended"):
        return float("inf")
    return (now - changed) / (number(facts, "lease_s") or _LEASE_S)


def file_clock(folder: Path) -> float | None:
    """Seconds since 1970 by the clock of the file system that `folder` is on; None where nothing can be written."""
    probe = folder / f".probe-{os.getpid()}-{uuid4().hex[:6]}"
    try:
        probe.touch(exist_ok=False)
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return None


def number(facts: dict[str, Any], key: str) -> float:
    """A number of what a file says, 0 where it says none."""
    value = facts.get(key)
    return float(value) if isinstance(value, int | float) and value == value else 0.0


def text(facts: dict[str, Any], key: str) -> str:
    value = facts.get(key)
    return value if isinstance(value, str) else ""


def epoch(written: str) -> float:
    """Seconds since 1970 of a time in ISO 8601, 0 where it is none."""
    try:
        return datetime.fromisoformat(written).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _listed(folder: Path, suffix: str) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    yield from (folder / name for name in names if name.endswith(suffix) and not name.startswith("."))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
