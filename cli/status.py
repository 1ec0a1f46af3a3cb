"""wsi status: how a run stands, told from its folder."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from jobs.follow import Follower
    from jobs.status import Status

_WIDE = 110  # columns from which there is room for bars
_MOST = 12  # sessions, and kinds of failures, that are listed
_NEWEST = 5  # failed slides that are shown in full
_LENGTH = 240  # characters of a problem
_DIED = 3  # dead sessions that are listed
_SLOW, _LONG_S = 3, 30  # a unit that takes so many times the median, and so long, is shown as slow
_DULL, _LOUD = "dim", "bold red"


def status(
    run: Annotated[Path, typer.Argument(help="Folder of the run: what was given as --out", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs to read", metavar="")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until the run ends", metavar="")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks", min=0.5, metavar="S")] = 5.0,
    openmetrics: Annotated[
        Path | None, typer.Option(help="Also write the figures there as OpenMetrics text", metavar="FILE")
    ] = None,
) -> None:
    """How a run stands: while it runs, from any machine that sees its folder, and after it ended or died.

    Exit code 0: it runs, or is complete without a failure; 1: slides failed or are missing; 2: there is no run.
    """
    import json

    from jobs.follow import Follower
    from jobs.status import as_plain

    from .console import out, say

    follower = Follower(run)
    found = _look(follower, openmetrics)
    if watch and not as_json and out.is_terminal:
        found = _watch(follower, found, every, openmetrics)
    elif as_json:
        say(json.dumps(as_plain(found), indent=2, ensure_ascii=False))
    else:
        while True:
            out.print(_shown(found, out.width), soft_wrap=False)
            if not watch or found.state != "running":
                break
            time.sleep(every)
            out.print()
            found = _look(follower, openmetrics)
    raise typer.Exit(found.exit_code)


def _look(follower: "Follower", openmetrics: Path | None) -> "Status":
    from jobs.metrics import write_metrics
    from jobs.status import read_status
    from wsi.errors import StoreError

    found = read_status(follower)
    if found.state == "absent":
        raise StoreError(follower.root, "no run there", "give the folder that a command was given as --out")
    if openmetrics is not None:
        try:
            write_metrics(found, openmetrics)
        except OSError as error:
            raise StoreError(openmetrics, f"it cannot be written ({error.strerror})", "give another file") from error
    return found


def _watch(follower: "Follower", found: "Status", every: float, openmetrics: Path | None) -> "Status":
    """Show it anew in its place until the run ends, or the reader has seen enough."""
    from rich.console import Console
    from rich.live import Live

    from .console import out

    console = Console(highlight=False)  # not `out`, whose lines are not broken
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while found.state == "running":
                live.update(_shown(found, console.width, brief=True), refresh=True)
                time.sleep(every)
                found = _look(follower, openmetrics)
    except KeyboardInterrupt:
        pass
    out.print(_shown(found, out.width), soft_wrap=False)
    return found


def _shown(found: "Status", width: int, brief: bool = False) -> "Group":
    """All of it; brief: what fits on a terminal, where it is shown in its place."""
    from rich.console import Group
    from rich.text import Text

    def parts() -> Iterator["RenderableType"]:
        yield _head(found)
        yield ""
        if found.stages:
            yield _stages(found, width)
            yield ""
        if found.limits:
            yield _fact("limits", f"{found.limits[0]}: {found.limits[1]}")
        yield from _sessions(found)
        yield from _slow(found)
        yield from _failures(found, brief)
        yield from _missing(found)
        for words in found.notes:
            yield Text(f"note: {words}", style="yellow")
        yield ""
        fine = "bold yellow" if found.slides["failed"] else "bold green"
        yield Text(found.verdict, style=_LOUD if found.state == "incomplete" else fine)

    return Group(*parts())


def _head(found: "Status") -> "RenderableType":
    from rich.text import Text

    live = [one for one in found.sessions if one.state == "at work"]
    words = [{"running": "at work", "complete": "ended", "incomplete": "nobody is at work"}[found.state]]
    if live:
        words[0] = "1 command at work" if len(live) == 1 else f"{len(live)} commands at work"
        room = sum(one.room for one in live)
        words.append(f"{room} units at a time" if room else "starting")
        known = [stage.remaining_s for stage in found.stages if stage.remaining_s]
        if found.eta_s is not None:
            words.append(f"about {span(found.eta_s)} left")
        elif known:
            words.append(f"at least {span(max(known))} left")
    return Text.assemble((found.folder, "bold"), " · ", " · ".join(words))


def _stages(found: "Status", width: int) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0) if wide else (0, 1, 0, 0), header_style=_DULL)
    table.add_column("stage")
    if wide:
        table.add_column("")
    live = found.state == "running"
    for name in ("slides", "done", "empty", "failed", "running", "queued", "tiles/s", "busy", "left" if live else ""):
        table.add_column(name, justify="right", no_wrap=True)

    def count(number: int, style: str = "") -> Text:
        return Text(f"{number:,}", style=style if number else _DULL)

    for stage in found.stages:
        is_going = stage.left > 0 or not live
        left = "" if not live else "?" if stage.remaining_s is None else span(stage.remaining_s) if stage.left else "–"
        table.add_row(
            Text(stage.stage, style="bold"),
            *([ProgressBar(max(1, stage.total), stage.settled, width=20, complete_style="cyan")] if wide else []),
            count(stage.total),
            count(stage.done, "green"),
            count(stage.empty),
            count(stage.failed, _LOUD),
            count(stage.running, "cyan"),
            count(stage.queued),
            f"{stage.tiles_per_s:,.0f}" if stage.tiles_per_s and is_going else Text("–", style=_DULL),
            Text("–", style=_DULL) if stage.busy is None else f"{stage.busy:.0%}",
            left,
        )
    return table


def _fact(name: str, words: str, style: str = "") -> "RenderableType":
    """A name, and what there is to say of it, whose further lines begin where the first one does."""
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=9, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(Text(name, style="bold"), Text(words, style=style))
    return line


def _sessions(found: "Status") -> "Iterator[RenderableType]":
    live = [one for one in found.sessions if one.state == "at work"]
    for place, one in enumerate(live[:_MOST]):
        sign = f"{'about ' if one.about else ''}{span(one.seen_s)} ago"
        words = f"{one.host}, process {one.pid}, since {clock(one.started)}, seen {sign}"
        yield _fact("" if place else "at work", f"{words} · {one.executor or '?'}, {one.room} at a time")
    if len(live) > _MOST:
        yield _fact("", f"and {len(live) - _MOST} more")
    for address in sorted({one.dashboard for one in live if one.dashboard}):
        yield _fact("dashboard", address, "cyan")
    last = found.sessions[-1] if found.sessions else None
    for one in [*live, *([last] if last is not None and not live else [])]:
        if one.halted:
            yield _fact("halted", one.halted, _LOUD)
    if last is not None and not live and last.state == "ended":
        code = "" if last.exit is None else f", exit code {last.exit}"
        yield _fact("ended", f"{clock(last.ended or '')}{code}, on {last.host}")
    yield from _died(found)


def _died(found: "Status") -> "Iterator[RenderableType]":
    """Sessions that died without saying so, where no later command has made up for it."""
    dead = []
    for one in reversed(found.sessions):
        if found.state == "complete" or (one.state == "ended" and one.exit in (0, 1)):
            break
        if one.state == "lost":
            dead.append(one)
    for place, one in enumerate(dead[:_DIED]):
        sign = f"{'about ' if one.about else ''}{span(one.seen_s)} ago"
        words = f"{one.host}, process {one.pid}, last seen {sign}; what it was at is free for others"
        yield _fact("" if place else "died", words, "yellow")
    if len(dead) > _DIED:
        yield _fact("", f"and {len(dead) - _DIED} more", "yellow")


def _slow(found: "Status") -> "Iterator[RenderableType]":
    for place, one in enumerate(found.slow):
        what = f"{one.slide_id} ({one.stage}{'' if one.part is None else f', part {one.part}'})"
        words = f"{what} {span(one.seconds)}"
        ratio = one.seconds / one.median_s if one.median_s else 0.0
        if one.median_s:
            words += f", {ratio:.1f} × the median"
        if one.of:
            words += f", {one.tiles:,} of {one.of:,} tiles"
        is_slow = ratio >= _SLOW and one.seconds >= _LONG_S
        yield _fact("" if place else "longest", f"{words}, on {one.host}", "yellow" if is_slow else "")


def _failures(found: "Status", brief: bool) -> "Iterator[RenderableType]":
    from rich.padding import Padding
    from rich.text import Text

    if not found.causes:
        return
    yield ""
    count = found.slides["failed"]
    yield Text("1 slide failed" if count == 1 else f"{count:,} slides failed", style=_LOUD)
    for kind, number in list(found.causes.items())[:_MOST]:
        yield Padding(Text(f"{number:>5,} × {kind}"), (0, 0, 0, 2))
    if len(found.causes) > _MOST:
        yield Padding(Text(f"and {len(found.causes) - _MOST} kinds more"), (0, 0, 0, 10))
    if brief:
        return
    more = sum(found.causes.values()) - _NEWEST
    if more > 0:
        yield Text("the newest:", style=_DULL)
    told = set()
    for failure in found.failures[:_NEWEST]:
        words = Text.assemble((failure.slide_id, "bold"), f" ({failure.stage}): {_cut(failure.problem)}")
        yield Padding(words, (0, 0, 0, 2))
        if failure.remedy and failure.kind not in told:  # once for all that failed in the same way
            yield Padding(Text(f"→ {failure.remedy}", style=_DULL), (0, 0, 0, 4))
        told.add(failure.kind)
    if more > 0:
        yield Text(f"all of them: {Path(found.folder) / 'receipts'}", style=_DULL)


def _cut(words: str) -> str:
    return words if len(words) <= _LENGTH else f"{words[:_LENGTH].rstrip()} …"


def _missing(found: "Status") -> "Iterator[RenderableType]":
    if found.missing:
        more = found.slides["missing"] - _MOST
        words = ", ".join(found.missing[:_MOST]) + (f" and {more:,} more" if more > 0 else "")
        yield _fact("missing", words, "yellow")


def span(seconds: float) -> str:
    """A time that a person reads: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def clock(written: str) -> str:
    """A time in ISO 8601 as a clock here shows it; with the day where that is not today's."""
    from datetime import datetime

    try:
        then = datetime.fromisoformat(written).astimezone()
    except ValueError:
        return "?"
    return f"{then:%H:%M}" if then.date() == datetime.now().astimezone().date() else f"{then:%Y-%m-%d %H:%M}"
