"""Worker processes that may crash, hang or run out of memory: each death costs the one slide it is of, and says why.

A process may have slots for several tasks, where they share what is large: a model. Its death is then of all of them,
as nobody can tell which was the cause.

Not concurrent.futures: its pool calls every task in flight failed when one process dies, cannot tell which of them was
the cause nor by which signal, and has no deadline.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsi.errors import EngineError

from . import progress
from .executors import start_worker
from .last_words import Death, explain_death
from .receipts import CRASH, KILLED

_START_S = 600  # for a worker to load its modules, from a slow network disk too; no slide is at fault then
_POLL_S = 0.2
_END_S = 10  # for a worker to end when it is told so
_log = logging.getLogger(__name__)

_NOT_BEGUN = "see in the receipts what it said: a package may be missing or damaged on that machine"
_LIMITS = "see this machine's limits of processes, open files and memory, or give fewer --workers"

# spawn: a forked child inherits locked locks of threads and a CUDA context that does not survive the fork
_context = get_context("spawn")


class WorkerError(EngineError):
    """No process can be begun here."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may take.

    deadline_s  seconds without a sign of life (progress.advance), None for any time
    memory_mib  private memory beyond what the process has when it starts, None for any; enforced on Linux
    """

    deadline_s: float | None = None
    memory_mib: int | None = None


@dataclass
class _Slot:
    """Room for one task; key None: idle."""

    board: Any
    key: str | None = None
    begun: float = field(default_factory=time.monotonic)
    signs: int = 0
    since: float = field(default_factory=time.monotonic)

    def seconds_still(self) -> tuple[float, bool]:
        """(seconds since its last sign of life, whether it has begun its task)."""
        signs, is_busy = progress.signs_of_life(self.board)
        if signs != self.signs or is_busy:
            self.signs, self.since = signs, time.monotonic()
        return time.monotonic() - self.since, signs > 0


@dataclass
class _Worker:
    number: int  # 0 to the number of processes - 1; a successor gets it again
    process: BaseProcess
    pipe: Connection
    notes: Path
    slots: list[_Slot]

    @property
    def at_work(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot.key is not None]


class Workers:
    """At most `count` processes that run `work`, each `slots` tasks at a time, in threads where they are several. As a
    context manager it leaves none behind.

    work   importable function (or partial of one) of the arguments given to `submit`; what it raises is a death
    notes  a folder for what the workers write to stderr
    """

    def __init__(self, count: int, work: Callable[..., Any], notes: Path, limits: Limits, slots: int = 1):
        self.count, self._slots, self._work, self._notes, self._limits = count, slots, work, notes, limits
        self._workers: list[_Worker] = []
        self._made = 0

    @property
    def room(self) -> int:
        """Tasks that may be at work at a time."""
        return self.count * self._slots

    @property
    def busy(self) -> int:
        return sum(len(worker.at_work) for worker in self._workers)

    def submit(self, key: str, *arguments: object, alone: bool = False) -> None:
        """Give a task to the worker that has least to do. There must be fewer than `room` tasks at work.

        alone  nothing here: who asks for it waits until nothing else is at work
        Raises WorkerError where no process can be begun.
        """
        while self._workers:
            worker = min(self._workers, key=lambda worker: len(worker.at_work))
            if worker.at_work and len(self._workers) < self.count:
                break
            if self._give(worker, key, arguments):
                return
            if worker.at_work:  # it died, which is seen when results are asked for: it is of the tasks at work, too
                break
            self._bury(worker)  # it died idle: the system took it, no task did
        try:
            begun = self._give(self._start(), key, arguments)
        except OSError as error:
            raise WorkerError("workers", f"none can be begun ({error.strerror})", _LIMITS) from error
        if not begun:
            raise WorkerError("workers", "a process ended before it began", _LIMITS)

    def expect(self, waiting: int) -> None:
        """Nothing here: processes are as many as were asked for."""

    def results(self, wait_s: float = _POLL_S) -> list[tuple[str, Any]]:
        """Wait a moment; (key, what `work` returned, or a Death) of each task that ended meanwhile."""
        at_work = [worker for worker in self._workers if worker.at_work]
        ready = wait([worker.pipe for worker in at_work], wait_s)
        found = [result for worker in at_work if worker.pipe in ready for result in self._take(worker)]
        return found + [late for worker in at_work for late in self._overdue(worker)]

    def tiles(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) tiles of the tasks that count them."""
        slots = [slot for worker in self._workers for slot in worker.at_work]
        counts = {str(slot.key): progress.tiles_done(slot.board) for slot in slots}
        return {key: count for key, count in counts.items() if count[1]}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kind is not None)

    def close(self, kill: bool) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.pipe.close()  # an idle worker ends by itself
            if kill or worker.at_work:
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
        number = min(set(range(len(self._workers) + 1)) - {worker.number for worker in self._workers})
        boards = [progress.make_board(_context) for _ in range(self._slots)]
        life = _Life(boards, notes, os.getpid(), self._limits.memory_mib, number)
        process = _context.Process(target=_serve, args=(theirs, life, self._work))
        with spared():
            process.start()
        theirs.close()
        worker = _Worker(number, process, ours, notes, [_Slot(board) for board in boards])
        self._workers.append(worker)
        return worker

    def _give(self, worker: _Worker, key: str, arguments: tuple[object, ...]) -> bool:
        place, slot = next((place, slot) for place, slot in enumerate(worker.slots) if slot.key is None)
        try:
            worker.pipe.send((place, arguments))
        except OSError:
            return False
        slot.key, slot.signs = key, progress.signs_of_life(slot.board)[0]
        slot.begun = slot.since = time.monotonic()
        return True

    def _take(self, worker: _Worker) -> list[tuple[str, Any]]:
        try:
            place, result = worker.pipe.recv()
        except (EOFError, OSError):
            slots = worker.at_work
            code = self._bury(worker)
            return [(str(slot.key), self._explain(worker, slot, code)) for slot in slots]
        slot = worker.slots[place]
        key, slot.key = str(slot.key), None
        return [(key, result)]

    def _overdue(self, worker: _Worker) -> list[tuple[str, Death]]:
        """Kill a worker one of whose tasks gave no sign of life for too long."""
        if self._limits.deadline_s is None or worker not in self._workers:
            return []
        for slot in worker.at_work:
            still, begun = slot.seconds_still()
            if still >= (self._limits.deadline_s if begun else max(_START_S, self._limits.deadline_s)):
                break
        else:
            return []
        if begun and hasattr(signal, "SIGUSR1"):
            os.kill(worker.process.pid or 0, signal.SIGUSR1)  # it writes down what each of its threads is at
            worker.process.join(0.5)
        slots = worker.at_work
        self._bury(worker)
        problem = f"timeout: no tile for {still:.0f} s" if begun else f"timeout: no start within {still:.0f} s"
        return [(str(slot.key), self._explain(worker, slot, None, problem)) for slot in slots]

    def _explain(self, worker: _Worker, slot: _Slot, code: int | None, problem: str = "") -> Death:
        death = explain_death(code, _read(worker.notes), self._limits.memory_mib, problem)
        if death.cause == CRASH and not progress.signs_of_life(slot.board)[0]:
            # no slide is at fault, so it is tried again by the next run
            death = replace(death, problem=f"{death.problem}, before it began", remedy=_NOT_BEGUN, cause=KILLED)
        return replace(death, seconds=time.monotonic() - slot.begun)

    def _bury(self, worker: _Worker) -> int | None:
        """End a process for certain; its exit code, None if it cannot be ended (it waits for a dead disk)."""
        if worker in self._workers:
            self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(1)  # its pipe closes a moment before it ends
        worker.process.kill()
        worker.process.join(_END_S)
        return worker.process.exitcode


@contextmanager
def spared() -> Iterator[None]:
    """A process that is begun meanwhile hears no Ctrl-C, also before it can say that it leaves that to the run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(notes: Path) -> str:
    """The end of what a worker wrote to stderr."""
    try:
        return notes.read_text(errors="replace")[-20_000:].strip()
    except FileNotFoundError:
        return ""


@dataclass(frozen=True)
class _Life:
    """What a worker is told at its start: a board for each of its slots, where to write, who started it, limits."""

    boards: list[Any]
    notes: Path
    parent: int
    memory_mib: int | None
    number: int


_number = 0


def worker_number() -> int:
    """Of the worker processes of a run, which this is, counted from 0; 0 in the run's own process."""
    return _number


def _serve(pipe: Connection, life: _Life, work: Callable[..., Any]) -> None:
    """A worker's life: one task after the other, or several at a time, until the run closes the pipe."""
    global _number
    _number = life.number
    start_worker(life.parent)
    with suppress(OSError), life.notes.open("wb") as file:  # without room for them, its last words are not known
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    if life.memory_mib is not None:
        limit_memory(life.memory_mib)
    threading.excepthook = _die
    sending = threading.Lock()

    def act(place: int, arguments: tuple[object, ...]) -> None:
        shared = len(life.boards) > 1
        progress.report_to(life.boards[place], own=shared)
        result = work(*arguments)
        progress.report_to(None, own=shared)
        with sending:
            pipe.send((place, result))

    while True:
        try:
            place, arguments = pipe.recv()
        except EOFError:
            return
        if len(life.boards) == 1:
            act(place, arguments)
        else:
            threading.Thread(target=act, args=(place, arguments), name=f"slot-{place}", daemon=True).start()


def _die(raised: threading.ExceptHookArgs) -> None:
    """A task's thread that raises is the end of the worker, as it is where there is one task at a time."""
    threading.__excepthook__(raised)
    sys.stderr.flush()
    os._exit(1)


def limit_memory(mib: int) -> None:
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
