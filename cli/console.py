"""What the commands print: a bar on a terminal, a line per slide in a log, tables, and the outcome."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from jobs.pipeline import Job
    from jobs.receipts import Receipt
    from jobs.run import Watcher

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
PACKAGES = ("wsi", "tiling", "embedding", "mil", "heatmaps", "jobs", "viewer", "cli")  # what -v shows the log of
MOST_FAILURES = 30  # listed on the terminal
WORDS = {"done": "done", "empty": "empty", "skipped": "already there", "failed": "failed"}
VERBS = {
    "make": "Making slides",
    "verify": "Verifying",
    "inputs": "Reading slides",
    "tile": "Tiling",
    "embed": "Embedding",
    "encode": "Encoding",
    "zero_shot": "Scoring",
    "train": "Training",
    "finetune": "Fine-tuning",
    "predict": "Predicting",
    "heatmap": "Drawing",
}


def say(text: str, style: str | None = None) -> None:
    """Print text as it is: a path may hold what rich would take for markup."""
    out.print(text, markup=False, style=style)


def note(text: str) -> None:
    """What the reader must know; on a terminal its lines end between words."""
    out.print(f"note: {text}", markup=False, style="yellow", soft_wrap=not out.is_terminal)


def start_logging(verbose: bool) -> None:
    handler = RichHandler(console=err, show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", handlers=[handler], force=True)
    for package in PACKAGES:  # those of others log hundreds of lines, which would hide ours
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.NOTSET)
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # what matters of a cluster is said by the run itself
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what our own check of the file then says better


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar; the function it gives is told how much is done and a word on what is at work."""
    with _progress() as progress:
        task: TaskID = progress.add_task(VERBS.get(name, name), total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def bars(names: Sequence[str], total: int) -> "Iterator[dict[str, StageView]]":
    """A bar for each stage of a flow, which appears when the stage has begun and goes when it is over."""
    with _progress() as progress:
        tasks = {name: progress.add_task(VERBS.get(name, name), total=total, note="", visible=False) for name in names}
        yield {name: StageView(name, progress, task) for name, task in tasks.items()}


class StageView:
    """Shows one stage of a job: a bar that moves, or in a log a line a slide."""

    def __init__(self, name: str, progress: Progress, task: TaskID):
        self.name, self.total, self.done, self.note = name, 0, 0, ""
        self._progress, self._task = progress, task

    def watcher(self, total: int) -> "Watcher":
        from jobs.run import Watcher

        self.total = total
        self._progress.update(self._task, total=total)
        return Watcher(self.receipt, self.tiles, self.held, self.over)

    def receipt(self, receipt: "Receipt") -> None:
        self.done += 1
        self._show()
        if not err.is_terminal:
            tiles = f", {receipt.tiles:,} tiles" if receipt.tiles else ""
            problem = f": {receipt.problem}" if receipt.problem else ""
            word = WORDS[receipt.status]
            err.print(
                f"{self.name} {self.done}/{self.total} {receipt.slide_id}: "
                f"{word}{problem}{tiles}, {receipt.seconds:.1f} s",
                markup=False,
            )

    def tiles(self, counts: dict[str, tuple[int, int]]) -> None:
        slides = [f"{slide} {done:,}/{total:,} tiles" for slide, (done, total) in sorted(counts.items())]
        self.note = slides[0] if slides else ""
        if len(slides) == 1:
            self.note += f" ({sum(done / max(1, total) for done, total in counts.values()):.0%})"
        self._show()

    def held(self, units: int) -> None:
        self.note = f"{units} at work in other runs on this folder"
        self._show()

    def over(self, receipts: "Sequence[Receipt]", seconds: float) -> None:
        self._progress.update(self._task, visible=False)
        print_stage(self.name, receipts, seconds)

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.note, visible=True)


def run_shown(job: "Job", *stages: Callable) -> None:
    """Bring a job's slides through the stages with a bar for each, and print what became of them."""
    from jobs.run import stage_name

    names = [stage_name(stage) for stage in stages]
    with bars(names, len(job.records) - len(job.failed())) as views:
        try:
            job.do(*stages, watch=lambda name, total: views[name].watcher(total))
        except KeyboardInterrupt:
            err.print("stopped; the same command goes on from here")
            raise


def print_stage(name: str, receipts: "Sequence[Receipt]", seconds: float) -> None:
    counts = Counter(receipt.status for receipt in receipts)
    words = [f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status]]
    tiles = sum(receipt.tiles for receipt in receipts)
    lost = sum(receipt.failed_tiles for receipt in receipts)
    facts = [
        " · ".join(words) or "nothing to do",
        f"{tiles:,} tiles" if tiles else "",
        f"{lost} tiles unreadable" if lost else "",
    ]
    out.print(f"[bold]{VERBS[name]:<13}[/] {', '.join(fact for fact in facts if fact)}  [dim]{seconds:.1f} s[/]")


def print_failures(job: "Job") -> int:
    """List the failed slides with their remedy, and what ended the run early; returns the exit code, 1 if there is
    anything to list."""
    failed = list(job.failed().values())
    if job.halted is not None:
        out.print("\n[bold red]The run was ended early[/]: ", end="")
        out.print(f"{job.halted.why}", markup=False)
        out.print(f"    → {job.halted.remedy}", markup=False, style="dim")
        say(f"  {job.left()} slides were not brought to their end; the same command goes on from here")
    if not failed:
        return int(job.halted is not None)
    out.print(f"\n[bold red]{len(failed)} of {len(job.records)} slides failed[/]")
    for receipt in failed[:MOST_FAILURES]:
        out.print(f"  [bold]{receipt.slide_id}[/] ({receipt.stage}): ", end="")
        out.print(receipt.problem, markup=False)
        out.print(f"    → {receipt.remedy}", markup=False, style="dim")
    if len(failed) > MOST_FAILURES:
        say(f"  … and {len(failed) - MOST_FAILURES} more: see {job.folder.root / 'receipts'} and the report")
    return 1
