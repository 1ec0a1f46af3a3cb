"""One stage over many slides. The only place that catches whatever a slide throws."""

import errno
import os
import shutil
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from uuid import uuid4

from wsi.errors import EngineError
from wsi.publish import draft_of
from wsi.source import shown

from .config import RunSpec
from .folder import RunFolder, now
from .interrupt import heed
from .last_words import MORE_MEMORY, Death, out_of_memory
from .manifest import SlideRecord
from .receipts import FAILED, Receipt, append_receipt
from .workers import Limits, Workers

EMBED_SLOTS = 2  # slides that an embedding process works on at a time
# these work on stores: no decoder that could hang, and models of any size
_READS_NO_SLIDE = ("predict", "heatmap", "encode", "zero_shot")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of one slide it has finished; problem: why an empty one is."""

    status: str
    fingerprint: str = ""
    tiles: int = 0
    failed_tiles: int = 0
    problem: str = ""


Stage = Callable[[SlideRecord, RunSpec, RunFolder], Outcome]


@dataclass(frozen=True)
class Watcher:
    """Who wants to know: of each receipt, and twice a second of the tiles done in the slides at work."""

    receipt: Callable[[Receipt], None] = lambda receipt: None
    tiles: Callable[[dict[str, tuple[int, int]]], None] = lambda tiles: None


def stage_name(stage: Stage) -> str:
    """tile_slide → tile."""
    return stage.__name__.removesuffix("_slide")


def run_one(stage: Stage, record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Receipt:
    """Run `stage` on one slide; whatever it throws becomes a failed receipt."""
    started = time.monotonic()
    name = stage_name(stage)
    try:
        outcome = stage(record, spec, folder)
    except Exception as error:
        if type(error).__name__ == "AcceleratorError" and parent_process() is not None:
            raise  # a GPU's context is lost for this process: it ends, and its slides are tried again in another
        error.add_note(f"stage={name} slide={record.slide_id}")
        problem, remedy = _explain(error, record, spec)
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
    return Receipt(
        record.slide_id,
        name,
        outcome.status,
        time.monotonic() - started,
        outcome.fingerprint,
        outcome.tiles,
        outcome.failed_tiles,
        outcome.problem,
        finished=now(),
    )


def problem_of(error: EngineError, record: SlideRecord) -> str:
    """What is wrong, after the place it is about, where that is not the slide itself."""
    where = str(error.args[0]).removeprefix(shown(record.path)).strip(" ,:")
    return f"{where}: {error.problem}" if where and where != record.slide_id else error.problem


def _explain(error: Exception, record: SlideRecord, spec: RunSpec) -> tuple[str, str]:
    if isinstance(error, EngineError):
        return problem_of(error, record), str(error.args[2])
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded here: the model itself does not fit
        problem = f"memory: the device has no room for the model ({str(error).partition('. ')[0]})"
        return problem, "free memory on the device, give another --device, or choose a smaller backbone"
    if isinstance(error, MemoryError):
        return out_of_memory(str(error), spec.jobs.memory_mib), MORE_MEMORY
    if isinstance(error, FileNotFoundError):
        return f"a file is missing: {error.filename}", "check the path; was the slide moved while it was read?"
    if isinstance(error, OSError) and error.errno in _FULL:
        words = f"{os.strerror(error.errno or 0)} ({error.filename or 'where results are written'})"
        return f"nothing more can be written: {words}", "free space there and run again: what is done stays done"
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

    In worker processes, a slide whose worker crashes, hangs or runs out of memory is tried once more, alone, when the
    others are done, and then failed. It costs the others nothing.
    """
    watcher = watcher or Watcher()
    receipts: dict[str, Receipt] = {}

    def keep(receipt: Receipt) -> None:
        append_receipt(folder.receipts(receipt.stage), receipt)
        receipts[receipt.slide_id] = receipt
        watcher.receipt(receipt)

    if spec.jobs.executor == "serial":
        for record in records:
            heed()
            keep(run_one(stage, record, spec, folder))
    elif records:
        with _notes(folder.root) as notes, _workers(stage, len(records), spec, folder, notes) as workers:
            suspects = _drain(workers, records, workers.room, keep, watcher)
            again = [record for record in records if record.slide_id in suspects]
            for slide_id, death in _drain(workers, again, 1, keep, watcher).items():
                keep(_post_mortem(slide_id, stage, death))
            if suspects:
                folder.prepare()  # clears what their workers had begun to write
    return [receipts[record.slide_id] for record in records]


def _workers(stage: Stage, slides: int, spec: RunSpec, folder: RunFolder, notes: Path) -> Workers:
    name = stage_name(stage)
    work = partial(run_one, stage, spec=spec, folder=folder)
    if name in _READS_NO_SLIDE:
        processes = 1 if name == "encode" else spec.jobs.worker_count(slides)  # one large model
        return Workers(processes, work, notes, Limits())
    if name == "embed":  # a model each, which may need any memory; the next slide is read while it computes
        from embedding.devices import find_devices

        devices = len(find_devices(spec.embed.device))
        return Workers(min(slides, devices), work, notes, Limits(spec.jobs.deadline_s), min(slides, EMBED_SLOTS))
    return Workers(spec.jobs.worker_count(slides), work, notes, Limits(spec.jobs.deadline_s, spec.jobs.memory_mib))


def _drain(
    workers: Workers, records: Sequence[SlideRecord], at_once: int, keep: Callable[[Receipt], None], watcher: Watcher
) -> dict[str, Death]:
    """Run all of `records`; slide_id → how its worker died, of those whose worker did."""
    queue = deque(records)
    deaths: dict[str, Death] = {}
    while queue or workers.busy:
        heed()
        while queue and workers.busy < at_once:
            record = queue.popleft()
            workers.submit(record.slide_id, record)
        for slide_id, result in workers.results():
            if isinstance(result, Death):
                deaths[slide_id] = result
            else:
                keep(result)
        watcher.tiles(workers.tiles())
    return deaths


def _post_mortem(slide_id: str, stage: Stage, death: Death) -> Receipt:
    return Receipt(
        slide_id,
        stage_name(stage),
        FAILED,
        death.seconds,
        problem=f"{death.problem} (also when tried again alone)",
        remedy=death.remedy,
        trace=death.trace,
        finished=now(),
    )


@contextmanager
def _notes(root: Path) -> Iterator[Path]:
    """A folder for what workers write to stderr: a draft, so that the next run clears that of a killed one."""
    folder = draft_of(root / "workers", uuid4().hex[:6])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
