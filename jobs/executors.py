"""Where stages run: in this process, or in worker processes that may die without taking the run with them."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

from wsi.errors import SpecError

_M_ARENA_MAX, _HEAPS = -8, 2
EXECUTORS = ("serial", "processes", "dask")
_LEAST = {"workers": 1, "threads": 1, "deadline_s": 1, "read_mib": 256, "memory_mib": 256, "shard_tiles": 1,
          "lease_s": 1, "stage_gib": 0.001, "max_failures": 0}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """How work is spread over this machine, or over a cluster.

    executor    processes: slides are read in worker processes, so a decoder that crashes, hangs or eats memory costs
                one slide; serial: here, unprotected; dask: in worker processes of the workers of a Dask cluster
    scheduler   address of a Dask scheduler that is there already; cluster: recipe of one to start (a YAML file, or the
                name of one that ships); with neither, dask starts workers on this machine
    workers     processes that tile and draw; None is one a core, at most one a slide. Embedding runs in one a device
    threads     reading threads per slide
    deadline_s  a slide of which no tile gets done for so long is given up, None for never; loading and running a model
                does not count
    read_mib    memory that reading one slide's patches may hold, beyond the process itself: batches and shared tiles;
                the two slides that an embedding process works on share it
    memory_mib  memory that a worker may take to tile a slide, beyond what it has when it starts, None for any amount
                (Linux). Not for embedding, which needs what its model needs
    shard_tiles a slide of more tiles is embedded, and its pixels are kept, in parts of about so many; a part that is
                done is not done again
    lease_s     a process that gave no sign of life for so long has lost what it was at to others; its own machine
                sees at once that it ended
    stage_to    folder on a local disk to which slides are copied ahead of reading; stage_gib: of at most so much
    max_failures  the run ends when more slides than these have failed, None for never
    retry_failed  also try slides again that crashed or took too much memory in an earlier run, and are unchanged
    metrics     file that is kept up to date with the run's figures as OpenMetrics text
    """

    executor: str = "processes"
    workers: int | None = None
    threads: int | None = None
    deadline_s: float | None = 120.0
    read_mib: int = 1024
    memory_mib: int | None = 4096
    scheduler: str | None = None
    cluster: str | None = None
    shard_tiles: int = 1024
    lease_s: float = 120.0
    stage_to: str | None = None
    stage_gib: float = 100.0
    max_failures: int | None = None
    retry_failed: bool = False
    metrics: str | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise SpecError("jobs.executor", f"{self.executor!r} is unknown", "choose serial, processes or dask")
        if self.executor != "dask" and (self.scheduler or self.cluster):
            raise SpecError("jobs.executor", f"{self.executor} takes no cluster", "add --executor dask")
        if self.scheduler and self.cluster:
            raise SpecError("jobs.cluster", "a scheduler is given, too", "give --scheduler or --cluster")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # so that NaN is refused, too
                raise SpecError(f"jobs.{name}", f"{value} is out of range", f"give at least {least}")

    @property
    def read_bytes(self) -> int:
        return self.read_mib << 20

    def thread_count(self) -> int:
        return self.threads or min(8, cpu_count())

    def worker_count(self, slides: int) -> int:
        return max(1, min(slides, self.workers or cpu_count()))


def cpu_count() -> int:
    """Processors this process may use: a container or a batch system may grant fewer than the machine has."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit():
        counts.append(int(slurm))
    quota = cpu_quota()
    if quota is not None:
        counts.append(round(quota))
    return max(1, min(counts))


def cpu_quota(system: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control group of this process may use, None for any; Linux, versions 1 and 2.

    A limit of a group above counts, too. `system` is where /proc and /sys are.
    """
    try:
        groups = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):  # in a container, the path may be the host's, which is not seen
                quotas.append(_quota_of(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


@contextmanager
def open_executor(workers: int = 1) -> Iterator[Executor]:
    """Worker processes for work on sound files, which end with the block: at once when the user interrupts it."""
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(os.getpid(),))
    try:
        yield pool
    except KeyboardInterrupt:
        for worker in active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(parent: int) -> None:
    """A worker leaves an interrupt to the run, and does not outlive a run that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGINT}
        )  # what was begun with it blocked ignores it from here

    if sys.platform == "linux":  # the system's own way works also while a hanging decoder keeps threads from running
        import ctypes

        system = ctypes.CDLL(None)
        if hasattr(system, "mallopt"):  # glibc keeps a heap for each of the threads that come and go with every slide
            system.mallopt(_M_ARENA_MAX, _HEAPS)
        system.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when the thread that started this process ends
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
