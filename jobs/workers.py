"""Worker processes that may crash, hang or run out of memory: each death costs the one slide it is of, and says why.

Not concurrent.futures: its pool calls every task in flight failed when one process dies, cannot tell which of them was
the cause nor by which signal, and has no deadline.
"""

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import progress
from .executors import start_worker
from .last_words import Death, explain_death

_START_S = 600  # for a worker to load its modules, from a slow network disk too; no slide is at fault then
_POLL_S = 0.2
_END_S = 10  # for a worker to end when it is told so
_log = logging.getLogger(__name__)

# spawn: a forked child inherits locked locks of threads and a CUDA context that does not survive the fork
_context = get_context("spawn")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may take.

    deadline_s  seconds without a sign of life (progress.advance), None for any time
    memory_mib  private memory beyond what the process has when it starts, None for any; enforced on Linux
    """

    deadline_s: float | None = None
    memory_mib: int | None = None


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    board: Any
    notes: Path
    key: str | None = None  # of the task at work
    begun: float = field(default_factory=time.monotonic)
    signs: int = 0
    since: float = field(default_factory=time.monotonic)

    def seconds_still(self) -> tuple[float, bool]:
        """(seconds since its last sign of life, whether it has begun its task)."""
        signs, is_busy = progress.signs_of_life(self.board)
        if signs != self.signs or is_busy:
            self.signs, self.since = signs, time.monotonic()
        return time.monotonic() - self.since, signs > 0


class Workers:
    """At most `count` processes that run `work`, one task each at a time. As a context manager it leaves none behind.

    work   importable function (or partial of one) of the arguments given to `submit`; what it raises is a death
    notes  a folder for what the workers write to stderr
    """

    def __init__(self, count: int, work: Callable[..., Any], notes: Path, limits: Limits):
        self.count, self._work, self._notes, self._limits = count, work, notes, limits
        self._workers: list[_Worker] = []
        self._made = 0

    @property
    def busy(self) -> int:
        return sum(worker.key is not None for worker in self._workers)

    def submit(self, key: str, *arguments: object) -> None:
        """Give a task to an idle worker, or to a new one. There must be fewer than `count` tasks at work."""
        for worker in [worker for worker in self._workers if worker.key is None]:
            if self._give(worker, key, arguments):
                return
            self._bury(worker)  # it died idle: the system took it, no task did
        if not self._give(self._start(), key, arguments):
            raise RuntimeError("a worker process ended before it began")

    def results(self) -> list[tuple[str, Any]]:
        """Wait a moment; (key, what `work` returned, or a Death) of each task that ended meanwhile."""
        at_work = [worker for worker in self._workers if worker.key is not None]
        ready = wait([worker.pipe for worker in at_work], _POLL_S)
        found = [self._take(worker) for worker in at_work if worker.pipe in ready]
        return found + [late for worker in at_work if (late := self._overdue(worker)) is not None]

    def tiles(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) tiles of the tasks that count them."""
        counts = {worker.key: progress.tiles_done(worker.board) for worker in self._workers if worker.key is not None}
        return {key: count for key, count in counts.items() if count[1]}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.pipe.close()  # an idle worker ends by itself
            if kind is not None or worker.key is not None:
                worker.process.kill()  # stores are published whole, so nothing half is left
        for worker in workers:
            worker.process.join(_END_S)
            self._bury(worker)
            said = _read(worker.notes)
            if said:
                _log.warning("%s", said)

    def _start(self) -> _Worker:
        ours, theirs = _context.Pipe()
        notes = self._notes / f"{self._made}.txt"
        self._made += 1
        board = progress.make_board(_context)
        arguments = (theirs, board, notes, os.getpid(), self._limits.memory_mib, self._work)
        process = _context.Process(target=_serve, args=arguments)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, board, notes)
        self._workers.append(worker)
        return worker

    def _give(self, worker: _Worker, key: str, arguments: tuple[object, ...]) -> bool:
        try:
            worker.pipe.send(arguments)
        except OSError:
            return False
        worker.key = key
        worker.begun = worker.since = time.monotonic()
        return True

    def _take(self, worker: _Worker) -> tuple[str, Any]:
        key, worker.key = str(worker.key), None
        try:
            return key, worker.pipe.recv()
        except (EOFError, OSError):
            return key, self._explain(worker, self._bury(worker))

    def _overdue(self, worker: _Worker) -> tuple[str, Death] | None:
        """Kill a worker that gave no sign of life for too long."""
        if self._limits.deadline_s is None or worker.key is None:
            return None
        still, begun = worker.seconds_still()
        if still < (self._limits.deadline_s if begun else max(_START_S, self._limits.deadline_s)):
            return None
        if begun and hasattr(signal, "SIGUSR1"):
            os.kill(worker.process.pid or 0, signal.SIGUSR1)  # it writes down what each of its threads is at
            worker.process.join(0.5)
        self._bury(worker)
        problem = f"timeout: no tile for {still:.0f} s" if begun else f"timeout: no start within {still:.0f} s"
        return worker.key, self._explain(worker, None, problem)

    def _explain(self, worker: _Worker, code: int | None, problem: str = "") -> Death:
        death = explain_death(code, _read(worker.notes), self._limits.memory_mib, problem)
        return replace(death, seconds=time.monotonic() - worker.begun)

    def _bury(self, worker: _Worker) -> int | None:
        """End a process for certain; its exit code, None if it cannot be ended (it waits for a dead disk)."""
        if worker in self._workers:
            self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(1)  # its pipe closes a moment before it ends
        worker.process.kill()
        worker.process.join(_END_S)
        return worker.process.exitcode


def _read(notes: Path) -> str:
    """The end of what a worker wrote to stderr."""
    try:
        return notes.read_text(errors="replace")[-20_000:].strip()
    except FileNotFoundError:
        return ""


def _serve(
    pipe: Connection, board: Any, notes: Path, parent: int, memory_mib: int | None, work: Callable[..., Any]
) -> None:
    """A worker's life: one task after the other until the run closes the pipe."""
    start_worker(parent)
    with notes.open("wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    if memory_mib is not None:
        _limit_memory(memory_mib)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        progress.report_to(board)
        result = work(*arguments)
        progress.report_to(None)
        pipe.send(result)


def _limit_memory(mib: int) -> None:
    """Let allocations fail beyond `mib` MiB more than now; on Linux, where private memory can be limited.

    RLIMIT_DATA counts private writable memory only: an address space limit would also count what libraries reserve
    and never touch.
    """
    if sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text()
    used_kib = int(status.partition("VmData:")[2].split()[0])
    limit = (used_kib << 10) + (mib << 20)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
