"""Stages over many slides, in one flow."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from wsi.publish import draft_of

from .attempt import problem_of
from .config import RunSpec
from .flow import Flow, Watcher
from .folder import RunFolder
from .halt import Halt
from .lines import Line
from .manifest import SlideRecord
from .outcome import Outcome, Stage, stage_name
from .pools import Pool, open_pool
from .receipts import Receipt
from .record import Record
from .sessions import Session

__all__ = ["Outcome", "Stage", "Watcher", "problem_of", "run_stage", "run_stages", "stage_name"]


def run_stage(
    stage: Stage, records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, watcher: Watcher | None = None
) -> list[Receipt]:
    """Run `stage` over all slides and return their receipts, in the order of `records`.

    In worker processes, a slide whose worker crashes, hangs or runs out of memory is tried once more, alone, when the
    others are done, and then failed. It costs the others nothing. Slides that another session on the folder is at are
    left to it, and awaited. Where the run was halted, slides that were not tried have no receipt.
    """
    lines = [Line(stage, {record.slide_id: record for record in records})]
    run_stages(lines, spec, folder, [watcher or Watcher()])
    return lines[0].ordered()


def run_stages(
    lines: Sequence[Line],
    spec: RunSpec,
    folder: RunFolder,
    watchers: Sequence[Watcher],
    begun: Callable[[Session], None] = lambda session: None,
) -> Halt:
    """Bring all slides of the first line through the stages; what became of them is in the lines.

    begun  is told the session when it is at work
    Raises SpecError where another session is tiling the same slides in another way.
    """
    halt = Halt(spec.jobs.max_failures)
    if not any(line.records for line in lines):
        return halt
    with Session(folder, spec, tuple(line.name for line in lines)) as session, _notes(folder.root) as notes:
        with ExitStack() as stack:
            pools, phased = _pools(spec, folder, notes, stack)
            begun(session)
            flow = Flow(lines, pools, Record.of(session, spec, folder), halt, watchers, phased)
            flow.run()
        if any(line.tried for line in lines):
            folder.prepare()  # clears what workers that died had begun to write
    return halt


def _pools(spec: RunSpec, folder: RunFolder, notes: Path, stack: ExitStack) -> tuple[Callable[[Line], Pool], bool]:
    """(what opens the pool of a line, whether the stages take turns): here they share processors."""

    def open_here(line: Line) -> Pool:
        return open_pool(line.stage, len(line.records), spec, folder, notes)

    return open_here, True


@contextmanager
def _notes(root: Path) -> Iterator[Path]:
    """A folder for what workers write to stderr: a draft, so that the next run clears that of a killed one."""
    folder = draft_of(root / "workers", uuid4().hex[:6])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
