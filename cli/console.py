"""What the commands print: a bar on a terminal, a line per slide in a log, tables, and the outcome."""

import logging
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
PACKAGES = ("wsi", "tiling", "embedding", "mil", "heatmaps", "jobs", "cli")  # what -v shows the log of
MOST_FAILURES = 30  # listed on the terminal
WORDS = {"done": "done", "empty": "empty", "skipped": "already there", "failed": "failed"}
VERBS = {
    "make": "Making slides",
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
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what our own check of the file then says better


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar; the function it gives is told how much is done and a word on what is at work."""
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task: TaskID = progress.add_task(VERBS.get(name, name), total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


class StageView:
    """Shows one stage of a job: a bar that moves, or in a log a line a slide."""

    def __init__(self, name: str, total: int, show: Callable[[int, str], None]):
        self.name, self.total, self.show, self.done, self.note = name, total, show, 0, ""

    def receipt(self, receipt: "Receipt") -> None:
        self.done += 1
        self.show(self.done, self.note)
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
        if slides:
            share = sum(done / max(1, total) for done, total in counts.values())
            self.show(self.done, f"{self.note} ({share:.0%})" if len(slides) == 1 else self.note)


def run_shown(job: "Job", stage: Callable) -> "list[Receipt]":
    """Run one stage of a job with a bar, and print what became of it."""
    import time

    from jobs.run import Watcher, stage_name

    started = time.monotonic()
    name = stage_name(stage)
    with bar(name, len(job.records) - len(job.failed())) as show:

        def watch(name: str, total: int) -> "Watcher":
            view = StageView(name, total, show)
            return Watcher(view.receipt, view.tiles)

        try:
            receipts = job.do(stage, watch)
        except KeyboardInterrupt:
            err.print("stopped; the same command goes on from here")
            raise
    print_stage(name, receipts, time.monotonic() - started)
    return receipts


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
    """List the failed slides with their remedy; returns the exit code, 1 if there are any."""
    failed = list(job.failed().values())
    if not failed:
        return 0
    out.print(f"\n[bold red]{len(failed)} of {len(job.records)} slides failed[/]")
    for receipt in failed[:MOST_FAILURES]:
        out.print(f"  [bold]{receipt.slide_id}[/] ({receipt.stage}): ", end="")
        out.print(receipt.problem, markup=False)
        out.print(f"    → {receipt.remedy}", markup=False, style="dim")
    if len(failed) > MOST_FAILURES:
        say(f"  … and {len(failed) - MOST_FAILURES} more: see {job.folder.root / 'receipts'} and the report")
    return 1
