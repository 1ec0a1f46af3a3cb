"""One stage over many slides. The only place that catches whatever a slide throws."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from wsi.errors import EngineError

from . import progress
from .config import RunSpec
from .executors import open_executor
from .folder import RunFolder, now
from .manifest import SlideRecord
from .receipts import FAILED, Receipt, append_receipt


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of one slide it has finished."""

    status: str
    fingerprint: str = ""
    tiles: int = 0
    failed_tiles: int = 0


Stage = Callable[[SlideRecord, RunSpec, RunFolder], Outcome]


@dataclass(frozen=True)
class Watcher:
    """Who wants to know: of each receipt, and twice a second of the tiles done in the slides at work."""

    receipt: Callable[[Receipt], None] = lambda receipt: None
    tiles: Callable[[dict[str, tuple[int, int]]], None] = lambda tiles: None


def stage_name(stage: Stage) -> str:
    """tile_slide → tile."""
    return stage.__name__.removesuffix("_slide")


def run_one(
    stage: Stage, record: SlideRecord, spec: RunSpec, folder: RunFolder, counter: Path | None = None
) -> Receipt:
    """Run `stage` on one slide; whatever it throws becomes a failed receipt."""
    started = time.monotonic()
    name = stage_name(stage)
    progress.count_into(counter)
    try:
        outcome = stage(record, spec, folder)
    except Exception as error:  # noqa: BLE001  (the one place: a failed slide is a receipt, never a stop)
        error.add_note(f"stage={name} slide={record.slide_id}")
        problem, remedy = _explain(error)
        trace = "".join(traceback.format_exception(error))
        return Receipt(
            record.slide_id,
            name,
            FAILED,
            time.monotonic() - started,
            problem=problem,
            remedy=remedy,
            trace=trace,
            finished=now(),
        )
    finally:
        progress.count_into(None)
    return Receipt(
        record.slide_id,
        name,
        outcome.status,
        time.monotonic() - started,
        outcome.fingerprint,
        outcome.tiles,
        outcome.failed_tiles,
        finished=now(),
    )


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, EngineError):
        return error.problem, str(error.args[2])
    if isinstance(error, FileNotFoundError):
        return f"a file is missing: {error.filename}", "check the path; was the slide moved while it was read?"
    if isinstance(error, OSError):
        return (
            f"{error.strerror or error} ({error.filename or 'no file named'})",
            "check the disk and the network mount",
        )
    return f"{type(error).__name__}: {error}", "this is a fault of slidestream: please report the trace in the receipts"


def run_stage(
    stage: Stage, records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, watcher: Watcher | None = None
) -> list[Receipt]:
    """Run `stage` over all slides and return their receipts, in the order of `records`.

    In worker processes, a slide that kills its process is tried once more alone and then failed; the others go on.
    """
    watcher = watcher or Watcher()
    receipts: dict[str, Receipt] = {}
    with progress.counters(folder.root) as counters:

        def keep(receipt: Receipt) -> None:
            append_receipt(folder.receipts(receipt.stage), receipt)
            receipts[receipt.slide_id] = receipt
            watcher.receipt(receipt)

        pool = _Pool(stage, spec, folder, counters)
        queue = deque(records)
        while queue:
            suspects = pool.drain(queue, keep, watcher.tiles)
            for record in suspects:  # their process died: alone, so that only the guilty can fail
                keep(pool.alone(record, watcher.tiles))
    return [receipts[record.slide_id] for record in records]


@dataclass(frozen=True)
class _Pool:
    stage: Stage
    spec: RunSpec
    folder: RunFolder
    counters: Path

    def drain(
        self,
        queue: deque[SlideRecord],
        keep: Callable[[Receipt], None],
        tell: Callable[[dict[str, tuple[int, int]]], None],
    ) -> list[SlideRecord]:
        """Work through `queue` until it is empty or a worker dies; then returns the slides that were in flight."""
        workers = 1 if stage_name(self.stage) == "embed" else self.spec.jobs.worker_count(len(queue))
        flying: dict[Future[Receipt], SlideRecord] = {}
        suspects: list[SlideRecord] = []
        with open_executor(self.spec.jobs.executor, workers) as executor:
            while flying or (queue and not suspects):
                # no more than the workers can hold: those in flight when one dies are few
                while queue and not suspects and len(flying) < workers + 1:
                    self._submit(executor, queue, flying, suspects)
                done, _ = wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)
                tell(progress.read_counters(self.counters))
                for future in done:
                    record = flying.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(record)
                    else:
                        keep(future.result())
        return suspects

    def _submit(
        self,
        executor: Executor,
        queue: deque[SlideRecord],
        flying: dict[Future[Receipt], SlideRecord],
        suspects: list[SlideRecord],
    ) -> None:
        record = queue.popleft()
        try:
            future = executor.submit(
                run_one, self.stage, record, self.spec, self.folder, self.counters / record.slide_id
            )
        except BrokenProcessPool:  # it died between two submissions
            suspects.append(record)
        else:
            flying[future] = record

    def alone(self, record: SlideRecord, tell: Callable[[dict[str, tuple[int, int]]], None]) -> Receipt:
        kept: list[Receipt] = []
        single = replace(self, spec=replace(self.spec, jobs=replace(self.spec.jobs, workers=1)))
        crashed = single.drain(deque([record]), kept.append, tell)
        if not crashed:
            return kept[0]
        return Receipt(
            record.slide_id,
            stage_name(self.stage),
            FAILED,
            finished=now(),
            problem="its worker process died twice: a decoder crashed, or memory ran out",
            remedy="check the file with `wsi info`; give more memory; leave the slide out",
        )
