"""Where stages run: in this process, or in worker processes that may die without taking the run with them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import Any

from wsi.errors import SpecError


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """How work is spread over this machine.

    executor  processes: slides are read in worker processes, so a decoder that crashes costs one slide; serial: here
    workers   processes that tile and draw; None is one a core, at most one a slide. Embedding runs in one
    threads   reading threads per slide
    """

    executor: str = "processes"
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in ("serial", "processes"):
            raise SpecError("jobs.executor", f"{self.executor!r} is unknown", "choose serial or processes")
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"jobs.{name}", f"{value} is out of range", "give at least 1")

    def thread_count(self) -> int:
        return self.threads or min(8, cpu_count())

    def worker_count(self, slides: int) -> int:
        return max(1, min(slides, self.workers or cpu_count()))


def cpu_count() -> int:
    """Processors this process may use (a container or a batch system may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SerialExecutor(Executor):
    """Runs each task at once, in the calling process: for notebooks and debugging."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def open_executor(name: str, workers: int = 1) -> Iterator[Executor]:
    """Serial, or worker processes that end with the block: at once when the user interrupts it."""
    if name == "serial":
        yield SerialExecutor()
        return
    # spawn: a forked child inherits locked locks of threads and a CUDA context that does not survive the fork
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        yield pool
    except KeyboardInterrupt:
        for worker in active_children():
            worker.kill()  # stores are published whole, so nothing half is left
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    """A worker leaves an interrupt to the run, and does not outlive a run that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
