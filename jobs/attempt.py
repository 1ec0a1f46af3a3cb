"""One attempt at one unit of work. The only place that catches whatever a slide throws."""

import errno
import os
import socket
import time
import traceback
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from wsi.errors import EngineError
from wsi.source import shown

from .config import RunSpec
from .folder import RunFolder, now
from .last_words import MORE_MEMORY, out_of_memory
from .manifest import SlideRecord
from .outcome import Outcome, Split, Stage, Unit
from .progress import alive
from .receipts import DONE, FAILED, FULL, IO, MEMORY, MISSING, Receipt

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what a network disk says while it is away, or a disk that is dying: not the slide's fault, and it may pass
_PASSING = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO")
    if hasattr(errno, name)
)
_TRIES, _FIRST_WAIT_S = 3, 0.5


def run_one(
    stage: Stage, spec: RunSpec, folder: RunFolder, unit: Unit, record: SlideRecord, split: Split | None = None
) -> Receipt | Split:
    """Do one unit of a slide; whatever it throws becomes a failed receipt. A slide that is large may say Split.

    split  what the stage said of the whole slide, for its parts and their join
    """
    started = time.monotonic()
    try:
        outcome = _insist(stage, spec, folder, unit, record, split)
    except Exception as error:
        if type(error).__name__ == "AcceleratorError" and parent_process() is not None:
            raise  # a GPU's context is lost for this process: it ends, and its slides are tried again in another
        error.add_note(f"stage={unit.stage} slide={record.slide_id}")
        problem, remedy, cause = _explain(error, record, spec)
        return Receipt(
            record.slide_id,
            unit.stage,
            FAILED,
            time.monotonic() - started,
            problem=problem,
            remedy=remedy,
            trace="".join(traceback.format_exception(error)),
            finished=now(),
            part=unit.part,
            cause=cause,
            worker=worker_name(),
        )
    if isinstance(outcome, Split):
        return outcome
    return Receipt(
        record.slide_id,
        unit.stage,
        outcome.status,
        time.monotonic() - started,
        outcome.fingerprint,
        outcome.tiles,
        outcome.failed_tiles,
        outcome.problem,
        finished=now(),
        part=unit.part,
        worker=worker_name(),
    )


def run_there(here: Path, stage: Stage, spec: RunSpec, folder: RunFolder, *task: Any) -> Receipt | Split:
    """`run_one` in a process of another machine, whose paths begin where the run's do: `here`."""
    if here.is_dir():
        os.chdir(here)
    return run_one(stage, spec, folder, *task)


def _insist(
    stage: Stage, spec: RunSpec, folder: RunFolder, unit: Unit, record: SlideRecord, split: Split | None
) -> Outcome | Split:
    """Do the unit, again after a while where a disk did not answer."""
    waits = wait_exponential(multiplier=_FIRST_WAIT_S, max=10)
    for attempt in Retrying(
        stop=stop_after_attempt(_TRIES), wait=waits, retry=retry_if_exception(_may_pass), reraise=True
    ):
        with attempt:
            alive()
            if split is None:
                return stage(record, spec, folder)
            if unit.part is None:
                return split.join(record, spec, folder)
            tiles, failed = split.part(record, spec, folder, unit.part)
            return Outcome(DONE, tiles=tiles, failed_tiles=failed)
    raise AssertionError("an attempt either returns or raises")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _PASSING


def problem_of(error: EngineError, record: SlideRecord) -> str:
    """What is wrong, after the place it is about, where that is not the slide itself."""
    where = str(error.args[0]).removeprefix(shown(record.path)).strip(" ,:")
    return f"{where}: {error.problem}" if where and where != record.slide_id else error.problem


def explain_os_error(error: OSError) -> tuple[str, str, str]:
    """(problem, remedy, cause) of what the system refused."""
    if error.errno in FULL_DISK:
        words = f"{os.strerror(error.errno or 0)} ({error.filename or 'where results are written'})"
        return f"nothing more can be written: {words}", "free space there and run again: what is done stays done", FULL
    if isinstance(error, FileNotFoundError):
        problem = f"a file is missing: {error.filename}"
        return problem, "check the path; was the slide moved while it was read?", MISSING
    problem = f"{error.strerror or error} ({error.filename or 'no file named'})"
    return problem, "check the disk and the network mount", IO


def _explain(error: Exception, record: SlideRecord, spec: RunSpec) -> tuple[str, str, str]:
    if isinstance(error, EngineError):
        gone = error.problem == "there is no such file"
        return problem_of(error, record), str(error.args[2]), MISSING if gone else ""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded here: the model itself does not fit
        problem = f"memory: the device has no room for the model ({str(error).partition('. ')[0]})"
        return problem, "free memory on the device, give another --device, or choose a smaller backbone", MEMORY
    if isinstance(error, MemoryError):
        return out_of_memory(str(error), spec.jobs.memory_mib), MORE_MEMORY, MEMORY
    if isinstance(error, OSError):
        return explain_os_error(error)
    problem = f"{type(error).__name__}: {error}"
    return problem, "this is a fault of slidestream: please report the trace in the receipts", ""


@lru_cache(maxsize=1)
def worker_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"
