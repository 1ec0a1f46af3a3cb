"""The figures of a run's status: per stage how many slides are where, how fast it goes, what limits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .follow import AT_WORK, RECENT_S, Follower, Line, Seen, number, text
from .receipts import DONE, EMPTY, FAILED, SKIPPED

ORDER = ("tile", "embed", "encode", "zero_shot", "predict", "heatmap")
SLOWEST = 5  # units at work that are listed
_NEAR = 0.8  # stages whose time left is at least this share of the longest are looked at for which limits


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage of a run. Slides: total, of which done (or there already), empty, failed, running, queued.

    total          without those that failed at a stage before
    tiles          done by the sessions of this run, not counting what was there already
    tiles_per_s, slides_per_s   in the last ten minutes; of a run that ended, over the last session
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


def group_of(sessions: Sequence[Seen]) -> list[Seen]:
    """The sessions that the newest one belongs to, oldest first: those that asked for the same, and all at work."""
    if not sessions:
        return []
    asked = sessions[-1].facts.get("asked")
    return [one for one in sessions if one.facts.get("asked") == asked or one.state == AT_WORK]


def latest_of(follower: Follower, group: Sequence[Seen], stage: str) -> dict[str, Line]:
    """slide_id → its last receipt at a stage from these sessions; from all where a run knows no sessions."""
    wanted = {session.id for session in group}
    found: dict[str, Line] = {}
    for (session, name), lines in follower.latest.items():
        if name != stage or (group and session not in wanted):
            continue
        for slide_id, line in lines.items():
            if slide_id not in found or found[slide_id].ended <= line.ended:
                found[slide_id] = line
    return found


def figures(follower: Follower, group: Sequence[Seen]) -> list[StageFigures]:
    """One for each stage, in the order of work."""
    found: list[StageFigures] = []
    for stage in _stages(follower, group):
        found.append(_figures(follower, group, stage, sum(before.failed for before in found)))
    return found


def _stages(follower: Follower, group: Sequence[Seen]) -> list[str]:
    names: set[str] = {name for name in (name for _, name in follower.latest)} if not group else set()
    for session in group:
        stages = session.facts.get("stages")
        names |= stages.keys() if isinstance(stages, dict) else set()
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _figures(follower: Follower, group: Sequence[Seen], stage: str, lost: int) -> StageFigures:
    """lost: slides that failed at a stage before, and do not come to this one."""
    lines = latest_of(follower, group, stage)
    live = [session for session in group if session.state == AT_WORK]
    total, counts = _counts(lines, group, live, stage)
    settled = counts.total()
    total = max(settled, total - lost)
    at_work = {text(unit, "slide_id") for _, unit in units(live) if unit.get("stage") == stage}
    running = min(len(at_work), total - settled)
    if live:
        tiles_per_s, slides_per_s = _recent(follower, live, stage)
    else:
        tiles_per_s, slides_per_s = _average(group, lines, stage)
    rates = (tiles_per_s, slides_per_s)
    return StageFigures(
        stage=stage,
        total=total,
        done=counts[DONE] + counts[SKIPPED],
        empty=counts[EMPTY],
        failed=counts[FAILED],
        running=running,
        queued=total - settled - running,
        tiles=int(sum(number(session.stage(stage), "tiles") for session in group)),
        tiles_per_s=tiles_per_s,
        slides_per_s=slides_per_s,
        remaining_s=_remaining(follower, lines, live, (stage, total - settled), rates) if live else None,
        busy=_busy(live or group, stage),
        room=int(sum(number(session.stage(stage), "room") for session in live)),
    )


def _counts(
    lines: dict[str, Line], group: Sequence[Seen], live: Sequence[Seen], stage: str
) -> tuple[int, Counter[str]]:
    """(slides in all, slides by what became of them).

    Of the sessions at work, the one that knows of most results is right. Where none is, receipts may know more than
    what the last one said before it died.
    """
    written = Counter(line.status for line in lines.values())
    live = [session for session in live if session.stage(stage)]
    asked = [session.stage(stage) for session in live or group if session.stage(stage)]
    if not asked:
        return len(lines), written
    told = [Counter({status: int(number(one, status)) for status in (DONE, EMPTY, SKIPPED, FAILED)}) for one in asked]
    best = max(range(len(told)), key=lambda place: told[place].total()) if live else -1
    total = max(int(number(one, "total")) for one in asked) if live else int(number(asked[-1], "total"))
    if live or written.total() < told[best].total():
        return total, told[best]
    return max(total, written.total()), written


def units(sessions: Iterable[Seen]) -> list[tuple[Seen, dict[str, Any]]]:
    """What these sessions are at."""
    found = []
    for session in sessions:
        running = session.facts.get("running")
        found += [(session, unit) for unit in running if isinstance(unit, dict)] if isinstance(running, list) else []
    return found


def _recent(follower: Follower, live: Sequence[Seen], stage: str) -> tuple[float, float]:
    """(tiles, slides) per second in the last minutes: the work of a unit is spread over the time that it took."""
    tiles = slides = 0.0
    for session in live:
        window = min(RECENT_S, max(1.0, number(session.stage(stage), "active_s")))
        for unit in follower.work:
            if unit.session != session.id or unit.stage != stage:
                continue
            inside = min(unit.line.ended, follower.now) - max(unit.begun, follower.now - window)
            share = min(1.0, max(0.0, inside) / unit.line.seconds) if unit.line.seconds > 0 else 1.0
            is_part, is_split = unit.line.part is not None, (stage, unit.line.slide_id) in follower.split
            tiles += unit.line.tiles * share / window if is_part or not is_split else 0.0
            slides += 0.0 if is_part else share / window
        for _, unit_now in units([session]):
            if unit_now.get("stage") == stage:
                share = min(1.0, window / max(window, number(unit_now, "seconds")))
                tiles += number(unit_now, "tiles") * share / window
    return tiles, slides


def _average(group: Sequence[Seen], lines: dict[str, Line], stage: str) -> tuple[float | None, float | None]:
    """(tiles, slides) per second over the last session's time at the stage."""
    last = group[-1].stage(stage) if group else {}
    active = number(last, "active_s")
    if not active:
        return None, None
    made = sum(line.status not in (SKIPPED, FAILED) for line in lines.values())
    return number(last, "tiles") / active, made / active


def _remaining(
    follower: Follower,
    lines: dict[str, Line],
    live: Sequence[Seen],
    to_do: tuple[str, int],
    rates: tuple[float | None, float | None],
) -> float | None:
    """Seconds until the slides that are left at a stage are through; to_do: the stage, slides that are left."""
    stage, left = to_do
    tiles_per_s, slides_per_s = rates
    if left <= 0:
        return 0.0
    known = [line.tiles for line in lines.values() if line.status != FAILED]
    mean = sum(known) / len(known) if known else 0.0
    if tiles_per_s and mean:
        begun = sum(number(unit, "tiles") for _, unit in units(live) if unit.get("stage") == stage)
        parts = (parts for (name, slide), parts in follower.split.items() if name == stage and slide not in lines)
        begun += sum(sum(tiles.values()) for tiles in parts)
        return max(0.0, left * mean - begun) / tiles_per_s
    return left / slides_per_s if slides_per_s else None


def _busy(sessions: Sequence[Seen], stage: str) -> float | None:
    stages = [session.stage(stage) for session in sessions]
    possible = sum(number(one, "active_s") * number(one, "room") for one in stages)
    return min(1.0, sum(number(one, "busy_s") for one in stages) / possible) if possible else None


def limiting(stages: Sequence[StageFigures], group: Sequence[Seen]) -> tuple[str, str] | None:
    """(the stage that limits, why); None where nothing is left to do.

    All stages work at the same time, so those behind the slowest have as much time left as it has: of the stages with
    about the longest time left it is the one whose workers have least rest.
    """
    left = [stage for stage in stages if stage.left]
    if not left:
        return None
    first = left[0]
    live = [session for session in group if session.state == AT_WORK]
    if not any(stage.room for stage in left):
        return first.stage, "waiting for workers"
    held = sum(number(session.stage(first.stage), "held") for session in live)
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


def slowest(follower: Follower, group: Sequence[Seen]) -> list[dict[str, Any]]:
    """The units at work that take longest, against the median of their like: parts, joins, or whole slides."""
    found = []
    medians: dict[tuple[str, bool, bool], float | None] = {}
    for session, unit in units(session for session in group if session.state == AT_WORK):
        stage, slide_id, part = text(unit, "stage"), text(unit, "slide_id"), unit.get("part")
        like = stage, isinstance(part, int), (stage, slide_id) in follower.split
        if like not in medians:
            medians[like] = _median(follower, *like)
        found.append(
            {
                "slide_id": slide_id,
                "stage": stage,
                "part": part if isinstance(part, int) else None,
                "seconds": number(unit, "seconds") + session.age_s,
                "median_s": medians[like],
                "tiles": int(number(unit, "tiles")),
                "of": int(number(unit, "of")),
                "host": text(session.facts, "host"),
            }
        )
    return sorted(found, key=lambda unit: unit["seconds"] / (unit["median_s"] or 1e9), reverse=True)[:SLOWEST]


def _median(follower: Follower, stage: str, is_part: bool, is_split: bool) -> float | None:
    """Of parts, or of whole slides; a join's receipt has the time of the parts in it, too, and says nothing."""
    if is_split and not is_part:
        return None
    spent = follower.spent[stage, is_part]
    return median([s for slide, s in spent if is_part or (stage, slide) not in follower.split] or [0.0]) or None
