"""The figures of a run's status: per stage how many slides are where, how fast it goes, what limits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .follow import AT_WORK, RECENT_S, Follower, Line, Seen, number, text
from .receipts import DONE, EMPTY, FAILED, SKIPPED, STATUSES

ORDER = ("tile", "embed", "encode", "zero_shot", "predict", "heatmap")
SLOWEST = 5  # units at work that are listed
_NEAR = 0.8  # stages whose time left is at least this share of the longest are looked at for which limits


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage of a run. Slides: total, of which done (or there already), empty, failed, running, queued.

    total          without those that failed at a stage before
    tiles          done by the sessions of this run, not counting what was there already
    tiles_per_s, slides_per_s   in the last ten minutes; of a run that ended, over its last sessions
    remaining_s    seconds until all are through at that rate, None where that is not known
    busy           share [0, 1] of its workers' time that was work, None where there was no work
    room           units of work that the sessions can have at work at a time
    """

    stage: str
    total: int
    done: int
    empty: int
    failed: int
    running: int
    queued: int
    tiles: int
    tiles_per_s: float | None
    slides_per_s: float | None
    remaining_s: float | None
    busy: float | None
    room: int

    @property
    def settled(self) -> int:
        return self.done + self.empty + self.failed

    @property
    def left(self) -> int:
        return max(0, self.total - self.settled)


@dataclass(frozen=True, slots=True)
class Slow:
    """A unit at work; part: its number, None for a slide; median_s of its like, None where none has ended."""

    slide_id: str
    stage: str
    part: int | None
    seconds: float
    median_s: float | None
    tiles: int
    of: int
    host: str


@dataclass(frozen=True)
class Group:
    """The sessions that the newest one belongs to, oldest first: those that asked for the same, and all at work.

    live    those at work; last: these, or where there are none the newest, and those at work at the same time as it
    slides  ids that the newest of them work for, None where that is not known; lists: how many lists these are of
    """

    sessions: tuple[Seen, ...]
    live: tuple[Seen, ...]
    last: tuple[Seen, ...]
    slides: frozenset[str] | None = None
    lists: int = 0

    @classmethod
    def of(cls, follower: Follower) -> "Group":
        seen = follower.sessions
        if not seen:
            return cls((), (), ())
        newest = seen[-1]
        asked = newest.facts.get("asked")
        group = tuple(one for one in seen if one.facts.get("asked") == asked or one.state == AT_WORK)
        live = tuple(one for one in group if one.state == AT_WORK)
        # of an array of jobs, each with slides of its own, all but the last may have ended
        last = live or tuple(one for one in group if one is newest or one.changed >= newest.begun > 0)
        names = {text(one.facts, "slides") for one in last}
        lists = [follower.slides(name) for name in names]
        known = [ids for ids in lists if ids is not None]
        complete = len(known) == len(lists)
        return cls(group, live, last, frozenset().union(*known) if complete else None, len(lists))

    def latest(self, follower: Follower, stage: str, of_live: bool = False) -> dict[str, Line]:
        """slide_id → its last receipt at a stage from these sessions, or those at work; from all where a run knows no
        sessions."""
        wanted = {session.id for session in (self.live if of_live else self.sessions)}
        found: dict[str, Line] = {}
        for (session, name), lines in follower.latest.items():
            if name != stage or (self.sessions and session not in wanted):
                continue
            for slide_id, line in lines.items():
                if slide_id not in found or found[slide_id].ended <= line.ended:
                    found[slide_id] = line
        return found if self.slides is None else {key: line for key, line in found.items() if key in self.slides}

    def missing(self, follower: Follower, stages: Sequence[str]) -> list[str] | None:
        """Ids of slides that neither came through the last stage nor failed at one; None where no list is known."""
        if self.slides is None or not stages:
            return None
        lines = {stage: self.latest(follower, stage) for stage in stages}
        have = set(lines[stages[-1]])
        have |= {key for found in lines.values() for key, line in found.items() if line.status == FAILED}
        return sorted(self.slides - have)


def figures(follower: Follower, group: Group) -> list[StageFigures]:
    """One for each stage, in the order of work."""
    found: list[StageFigures] = []
    for stage in _stages(follower, group):
        found.append(_figures(follower, group, stage, sum(before.failed for before in found)))
    return found


def _stages(follower: Follower, group: Group) -> list[str]:
    names = set() if group.sessions else {name for _, name in follower.latest}
    for session in group.sessions:
        stages = session.facts.get("stages")
        names |= stages.keys() if isinstance(stages, dict) else set()
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _figures(follower: Follower, group: Group, stage: str, lost: int) -> StageFigures:
    """lost: slides that failed at a stage before, and do not come to this one."""
    lines = group.latest(follower, stage)
    total, counts = _counts(follower, lines, group, stage)
    settled = counts.total()
    total = max(settled, total - lost)
    at_work = {text(unit, "slide_id") for _, unit in units(follower, group.live) if unit.get("stage") == stage}
    running = min(len(at_work), total - settled)
    rates = _recent(follower, group, stage) if group.live else _average(group, stage)
    return StageFigures(
        stage=stage,
        total=total,
        done=counts[DONE] + counts[SKIPPED],
        empty=counts[EMPTY],
        failed=counts[FAILED],
        running=running,
        queued=total - settled - running,
        tiles=int(sum(number(session.stage(stage), "tiles") for session in group.sessions)),
        tiles_per_s=rates[0],
        slides_per_s=rates[1],
        remaining_s=_remaining(follower, lines, group, (stage, total - settled), rates) if group.live else None,
        busy=_busy(group.live or group.sessions, stage),
        room=int(sum(number(session.stage(stage), "room") for session in group.live)),
    )


def _counts(follower: Follower, lines: dict[str, Line], group: Group, stage: str) -> tuple[int, Counter[str]]:
    """(slides in all, slides by what became of them).

    Of the sessions at work, the one that knows of most results is right, but for what they wrote since their last sign
    of life. Where none is, or where they have different slides, receipts know more.
    """
    written = Counter(line.status for line in lines.values())
    live = [session for session in group.live if session.stage(stage)]
    asked = [session.stage(stage) for session in live or group.sessions if session.stage(stage)]
    if group.slides is not None and (not live or group.lists > 1):
        return len(group.slides), written
    if not asked:
        return len(lines), written
    told = [Counter({status: int(number(one, status)) for status in STATUSES}) for one in asked]
    if live:
        since = Counter(line.status for line in group.latest(follower, stage, of_live=True).values())
        return max(int(number(one, "total")) for one in asked), max([*told, since], key=Counter.total)
    total = int(number(asked[-1], "total"))
    return total, written if told[-1].total() <= written.total() <= total else told[-1]


def units(follower: Follower, sessions: Iterable[Seen]) -> list[tuple[Seen, dict[str, Any]]]:
    """What these sessions are at: what they said they were, without what they have ended since."""
    found = []
    for session in sessions:
        running = session.facts.get("running")
        for unit in running if isinstance(running, list) else []:
            if isinstance(unit, dict) and not _has_ended(follower, session, unit):
                found.append((session, unit))
    return found


def _has_ended(follower: Follower, session: Seen, unit: dict[str, Any]) -> bool:
    stage, slide_id = text(unit, "stage"), text(unit, "slide_id")
    ended = slide_id in follower.latest.get((session.id, stage), ())
    return ended or unit.get("part") in follower.split.get((stage, slide_id), ())


def _recent(follower: Follower, group: Group, stage: str) -> tuple[float, float]:
    """(tiles, slides) per second in the last minutes: the work of a unit is spread over the time that it took."""
    windows = {one.id: min(RECENT_S, max(1.0, number(one.stage(stage), "active_s"))) for one in group.live}
    tiles = slides = 0.0
    for name, session, line in follower.work:
        window = windows.get(session)
        if name != stage or window is None:
            continue
        inside = min(line.ended, follower.now) - max(line.ended - line.seconds, follower.now - window)
        share = min(1.0, max(0.0, inside) / line.seconds) if line.seconds > 0 else 1.0
        is_part, is_split = line.part is not None, (stage, line.slide_id) in follower.split
        tiles += line.tiles * share / window if is_part or not is_split else 0.0
        slides += 0.0 if is_part else share / window
    for seen, unit in units(follower, group.live):
        if unit.get("stage") == stage:
            window = windows[seen.id]
            share = min(1.0, window / max(window, number(unit, "seconds")))
            tiles += number(unit, "tiles") * share / window
    return tiles, slides


def _average(group: Group, stage: str) -> tuple[float | None, float | None]:
    """(tiles, slides) per second over the last sessions' time at the stage."""
    last = [session.stage(stage) for session in group.last]
    active = max((number(one, "active_s") for one in last), default=0.0)
    if not active:
        return None, None
    made = sum(number(one, DONE) + number(one, EMPTY) for one in last)
    return sum(number(one, "tiles") for one in last) / active, made / active


def _remaining(
    follower: Follower,
    lines: dict[str, Line],
    group: Group,
    to_do: tuple[str, int],
    rates: tuple[float | None, float | None],
) -> float | None:
    """Seconds until the slides that are left at a stage are through; to_do: the stage, slides that are left."""
    stage, left = to_do
    tiles_per_s, slides_per_s = rates
    if left <= 0:
        return 0.0
    like = [lines] if lines else follower.latest.values()  # while none came through, as at the stages before
    known = [line.tiles for found in like for line in found.values() if line.status != FAILED]
    mean = sum(known) / len(known) if known else 0.0
    if tiles_per_s and mean:
        begun = sum(number(unit, "tiles") for _, unit in units(follower, group.live) if unit.get("stage") == stage)
        parts = (parts for (name, slide), parts in follower.split.items() if name == stage and slide not in lines)
        begun += sum(sum(tiles.values()) for tiles in parts)
        return max(0.0, left * mean - begun) / tiles_per_s
    return left / slides_per_s if slides_per_s else None


def _busy(sessions: Sequence[Seen], stage: str) -> float | None:
    stages = [session.stage(stage) for session in sessions]
    possible = sum(number(one, "active_s") * number(one, "room") for one in stages)
    return min(1.0, sum(number(one, "busy_s") for one in stages) / possible) if possible else None


def limiting(stages: Sequence[StageFigures], group: Group) -> tuple[str, str] | None:
    """(the stage that limits, why); None where nothing is left to do.

    All stages work at the same time, so those behind the slowest have as much time left as it has: of the stages with
    about the longest time left it is the one whose workers have least rest.
    """
    left = [stage for stage in stages if stage.left]
    if not left:
        return None
    first = left[0]
    if not any(stage.room for stage in left):
        return first.stage, "waiting for workers"
    held = sum(number(session.stage(first.stage), "held") for session in group.live)
    if held and not any(stage.running for stage in left):
        return first.stage, "waiting for other sessions"
    timed = [(stage.remaining_s, stage) for stage in left if stage.remaining_s is not None]
    if not timed:
        return first.stage, "no slide has come through yet"
    longest = max(seconds for seconds, _ in timed)
    near = [stage for seconds, stage in timed if seconds >= _NEAR * longest]
    slowest = max(near, key=lambda stage: stage.busy or 0.0)
    words = f"its workers are busy {slowest.busy:.0%} of the time, " if slowest.busy is not None else ""
    return slowest.stage, f"{words}and it has the longest time left".removeprefix("and ")


def slowest(follower: Follower, group: Group) -> list[Slow]:
    """The units at work that take longest, against the median of their like: parts, or whole slides."""
    found = []
    medians: dict[tuple[str, bool, bool], float | None] = {}
    for session, unit in units(follower, group.live):
        stage, slide_id, part = text(unit, "stage"), text(unit, "slide_id"), unit.get("part")
        like = stage, isinstance(part, int), (stage, slide_id) in follower.split
        if like not in medians:
            medians[like] = _median(follower, *like)
        found.append(
            Slow(
                slide_id,
                stage,
                part if isinstance(part, int) else None,
                number(unit, "seconds") + session.age_s,
                medians[like],
                int(number(unit, "tiles")),
                int(number(unit, "of")),
                text(session.facts, "host"),
            )
        )
    return sorted(found, key=lambda unit: unit.seconds / (unit.median_s or 1e9), reverse=True)[:SLOWEST]


def _median(follower: Follower, stage: str, is_part: bool, is_split: bool) -> float | None:
    """Of parts, or of whole slides; a join's receipt has the time of the parts in it, too, and says nothing."""
    if is_split and not is_part:
        return None
    slides = (line for (_, name), lines in follower.latest.items() if name == stage for line in lines.values())
    whole = (one.seconds for one in slides if one.status == DONE and (stage, one.slide_id) not in follower.split)
    spent = list(follower.spent.get(stage, ()) if is_part else whole)
    return median(spent) if spent else None
