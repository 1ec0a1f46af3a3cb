"""Stages over many slides, in one flow."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from wsi.publish import draft_of

from .attempt import problem_of, run_there
from .config import RunSpec
from .flow import Flow, Watcher
from .folder import RunFolder
from .follow import Follower
from .halt import Halt
from .lines import Line
from .manifest import SlideRecord
from .metrics import write_metrics
from .outcome import Outcome, Stage, stage_name
from .pools import EMBED_SLOTS, Pool, limits_of, open_pool
from .receipts import Receipt
from .record import Record
from .sessions import Session
from .slide_list import keep_list
from .slide_table import keep_records
from .staged_pool import READING, StagedPool, cache_of, run_copied
from .stager import Stager
from .status import write_status

__all__ = ["Outcome", "Stage", "Watcher", "problem_of", "run_stage", "run_stages", "stage_name"]

COPIES_AHEAD = 4  # of slides, where they are copied to a local disk
_log = logging.getLogger(__name__)


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
) -> Halt:
    """Bring all slides of the first line through the stages; what became of them is in the lines.

    Raises SpecError where another session is tiling the same slides in another way, ClusterError where there is no
    cluster to work on.
    """
    halt = Halt(spec.jobs.max_failures)
    if not any(line.records for line in lines):
        return halt
    names, keep_status = tuple(line.name for line in lines), _StatusKeeper(folder.root, spec.jobs.metrics)
    with Session(folder, spec, names, keep_status) as session, _notes(folder.root) as notes:
        session.tell(slides=keep_list(folder.root, lines[0].records))
        keep_records(folder, lines[0].records.values())
        session.beat()  # so that who looks now, or after a kill, knows what was asked for
        with ExitStack() as stack:
            if spec.jobs.executor == "dask":
                pools = _on_cluster(spec, folder, session, stack)
            else:
                pools = _here(spec, folder, notes, stack)
            Flow(lines, pools, Record.of(session, spec, folder), halt, watchers, _take_turns(lines, spec)).run()
        session.tell(exit=int(halt.why is not None or any(line.has_failed for line in lines)))
        if any(line.tried for line in lines):
            folder.clear()  # of what workers that died had begun to write
    return halt


class _StatusKeeper:
    """Keeps status.json, and a file of metrics, up to date; of several sessions the oldest does."""

    def __init__(self, root: Path, metrics: str | None):
        self._follower, self._metrics = Follower(root), metrics

    def __call__(self, session: Session) -> None:
        if self._metrics is None and not session.is_first:
            return
        status = write_status(self._follower)
        if self._metrics is not None:
            write_metrics(status, Path(self._metrics))


def _take_turns(lines: Sequence[Line], spec: RunSpec) -> bool:
    """Whether a stage waits until the ones before have nothing left to begin, as they would share processors.

    On a cluster each has workers of its own; a GPU should not wait until the last slide is tiled; and a slide that was
    copied should be read again while the copy is there.
    """
    if spec.jobs.stage_to is not None:
        return False
    if spec.jobs.executor != "processes" or len(lines) == 1 or "embed" not in {line.name for line in lines}:
        return spec.jobs.executor != "dask"
    from embedding.devices import find_devices

    return "cpu" in find_devices(spec.embed.device)


def _here(spec: RunSpec, folder: RunFolder, notes: Path, stack: ExitStack) -> Callable[[Line], Pool]:
    """What opens the pool of a line on this machine."""
    stager = None if spec.jobs.stage_to is None else stack.enter_context(Stager(cache_of(spec.jobs), COPIES_AHEAD))

    def open_here(line: Line) -> Pool:
        pool = open_pool(line.stage, len(line.records), spec, folder, notes)
        return pool if stager is None or line.name not in READING else StagedPool(pool, stager, COPIES_AHEAD)

    return open_here


def _on_cluster(spec: RunSpec, folder: RunFolder, session: Session, stack: ExitStack) -> Callable[[Line], Pool]:
    """What opens the pool of a line on the workers of a Dask cluster."""
    from .cluster.connection import open_cluster

    connection = stack.enter_context(open_cluster(spec.jobs, folder))
    _log.info("%s", connection.describe())
    session.tell(dashboard=connection.dashboard)

    def open_there(line: Line) -> Pool:
        slots = EMBED_SLOTS if line.name == "embed" else 1
        run = run_copied if spec.jobs.stage_to is not None and line.name in READING else run_there
        work = partial(run, Path.cwd(), line.stage, spec, RunFolder(folder.root.resolve()))
        return connection.pool(line.name, work, limits_of(line.name, spec), slots)

    return open_there


@contextmanager
def _notes(root: Path) -> Iterator[Path]:
    """A folder for what workers write to stderr: a draft, so that the next run clears that of a killed one."""
    folder = draft_of(root / "workers", uuid4().hex[:6])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
