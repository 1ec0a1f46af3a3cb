"""How a run stands, told from its folder alone: while it runs, from another machine, and after it ended or died."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi.publish import write_json

from .follow import Follower, Line, Seen, number, text
from .receipts import FAILED
from .status_figures import Group, Slow, StageFigures, figures, limiting, slowest

SCHEMA = "status/1"
NAMED = 1000  # slides without a result that are named
NEWEST = 10  # failed slides that are listed; the receipts have all
_SHORT, _LONG = 40, 70  # characters
_CAUSES = {
    "full": "no room to write",
    "io": "the disk or the network did not answer",
    "missing": "a file is missing",
    "timeout": "hung: given up at the deadline",
    "memory": "too much memory",
    "crash": "crashed the reader",
    "killed": "killed from outside",
}


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A command at work on the run, or that was. seen_s: seconds since its last sign of life; about: by this machine's
    clock, not by the file system's; room: units that it can have at work at a time."""

    session: str
    state: str
    host: str
    pid: int
    command: str
    started: str
    ended: str | None
    seen_s: float
    about: bool
    executor: str
    room: int
    exit: int | None
    halted: str | None
    dashboard: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide that failed; kind: what it is counted under."""

    slide_id: str
    stage: str
    kind: str
    problem: str
    remedy: str
    finished: str
    worker: str


@dataclass(frozen=True)
class Status:
    """A run folder at one moment.

    state     running; complete: every slide has a result, if only that it failed; incomplete: nobody is at work, and
              slides are missing; absent: there is no run
    slides    total, done (or empty, which is a result), failed, missing
    limits    the stage that limits, and why; eta_s: seconds until all is done, None where that is not known
              of every stage
    missing   ids of slides without a result, where nobody is at work any more: at most the first 1,000
    verdict   one line that says whether anything is missing
    """

    folder: str
    state: str
    verdict: str
    slides: dict[str, int] = field(default_factory=dict)
    stages: list[StageFigures] = field(default_factory=list)
    limits: tuple[str, str] | None = None
    eta_s: float | None = None
    sessions: list[SessionStatus] = field(default_factory=list)
    slow: list[Slow] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: str = ""
    schema: str = SCHEMA

    @property
    def exit_code(self) -> int:
        """0 running, or complete without failures; 1 failed or missing slides; 2 no run."""
        if self.state in ("running", "absent"):
            return 0 if self.state == "running" else 2
        return int(self.state != "complete" or self.slides["failed"] > 0)


def read_status(follower: Follower) -> Status:
    """How the run stands now. Opens no store."""
    follower.look()
    folder, written = str(follower.root), datetime.now(UTC).isoformat(timespec="milliseconds")
    if not follower.is_run:
        return Status(folder, "absent", "no run there", notes=follower.notes, written=written)
    group = Group.of(follower)
    stages = figures(follower, group)
    names = [stage.stage for stage in stages]
    failures = _failures(follower, group, stages)
    slides = _slides(stages, len({failure.slide_id for failure in failures}))
    missing = None if group.live else group.missing(follower, names)
    if missing is not None:
        done = slides["total"] - slides["failed"] - len(missing)
        slides = {**slides, "done": done, "missing": len(missing)}
    state = "running" if group.live else "incomplete" if slides["missing"] or not stages else "complete"
    times = [stage.remaining_s for stage in stages]
    return Status(
        folder=folder,
        state=state,
        verdict=_verdict(state, slides),
        slides=slides,
        stages=stages,
        limits=limiting(stages, group) if group.live else None,
        eta_s=max(time for time in times if time is not None) if group.live and times and None not in times else None,
        sessions=[_session(seen) for seen in follower.sessions],
        slow=slowest(follower, group) if group.live else [],
        causes=dict(Counter(failure.kind for failure in failures).most_common()),
        failures=failures[:NEWEST],
        missing=(missing or [])[:NAMED],
        notes=follower.notes + _doubts(follower),
        written=written,
    )


def write_status(follower: Follower) -> Status:
    """Replace status.json in the run folder, in one step; what a session does every few seconds.

    Raises OSError where nothing can be written.
    """
    status = read_status(follower)
    write_json(Path(follower.root) / "status.json", as_plain(status))
    return status


def as_plain(status: Status) -> dict[str, Any]:
    """For JSON; `exit_code` is what `wsi status` ends with."""
    return {**asdict(status), "exit_code": status.exit_code}


def _slides(stages: list[StageFigures], failed: int) -> dict[str, int]:
    """Slides of the whole run. A slide that failed at a stage does not come to the next, so none is counted twice."""
    total = max((stage.total for stage in stages), default=0)
    failed = min(total, max(failed, sum(stage.failed for stage in stages)))
    missing = min(max((stage.left for stage in stages), default=0), total - failed)
    return {"total": total, "done": max(0, total - missing - failed), "failed": failed, "missing": missing}


def _verdict(state: str, slides: dict[str, int]) -> str:
    if not slides["total"]:
        return "not complete: work has not begun" if state == "running" else "not complete: nothing was begun"
    have = slides["total"] - slides["missing"]
    words = f"{have:,} of {slides['total']:,} slides have a result"
    words += f" ({slides['done']:,} done or empty, {slides['failed']:,} failed)"
    if state == "complete":
        return f"complete: {words}"
    if state == "running":
        return f"running: {words}, {slides['missing']:,} to come"
    return f"not complete: {words}, {slides['missing']:,} missing; the same command goes on from here"


def _doubts(follower: Follower) -> list[str]:
    """What cannot be told of this run."""
    if follower.sessions:
        return []
    return ["no command that worked here said so: of slides that were never begun nothing is known"]


def _failures(follower: Follower, group: Group, stages: list[StageFigures]) -> list[Failure]:
    """Slides whose last receipt at a stage says that they failed, newest first."""
    failed = []
    for stage in stages:
        lines = [line for line in group.latest(follower, stage.stage).values() if line.status == FAILED]
        lines.sort(key=lambda line: line.ended, reverse=True)
        for line in lines[: stage.failed]:  # older ones are of slides no longer asked for, or tried again just now
            what = line.slide_id, stage.stage, _kind(line), line.problem, line.remedy
            failed.append((line.ended, Failure(*what, _utc(line.ended), line.worker)))
    return [failure for _, failure in sorted(failed, key=lambda one: one[0], reverse=True)]


def _kind(line: Line) -> str:
    """What a failure is counted under: its cause, or what its problem says before the particulars of the slide."""
    if line.cause in _CAUSES:
        return _CAUSES[line.cause]
    head, colon, _ = line.problem.partition(": ")
    words = head if colon and len(head) <= _SHORT else line.problem
    words = re.split(r" \(|; |, ", words)[0]
    words = re.sub(r"\S*[/\\]\S+|\d[\d.,]*", "…", words)  # paths, numbers
    return words if len(words) <= _LONG else f"{words[:_LONG].rstrip()} …"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(max(0.0, seconds), UTC).isoformat(timespec="seconds")


def _session(seen: Seen) -> SessionStatus:
    facts = seen.facts
    rooms = [number(stage, "room") for stage in map(seen.stage, facts.get("stages") or {})]
    code = facts.get("exit")
    return SessionStatus(
        session=seen.id,
        state=seen.state,
        host=text(facts, "host") or "?",
        pid=int(number(facts, "pid")),
        command=text(facts, "command"),
        started=text(facts, "started"),
        ended=text(facts, "ended") or None,
        seen_s=seen.age_s,
        about=not seen.exact,
        executor=text(facts, "executor"),
        room=int(max(rooms, default=0)),
        exit=code if isinstance(code, int) else None,
        halted=text(facts, "halted") or None,
        dashboard=text(facts, "dashboard") or None,
    )
