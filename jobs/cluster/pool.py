"""Units of work on the workers of a Dask cluster, few at a time, each counted by us."""

import asyncio
import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import Future, KilledWorker
from distributed.scheduler import NoWorkerError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from ..last_words import Death
from ..receipts import CRASH, KILLED
from ..workers import Limits
from .fleet import LOST_WORKERS, ClusterError
from .host import HostPlugin, Task, attempt

if TYPE_CHECKING:
    from .connection import Connection

_TRIES = 10  # to tell the workers of a pool


@dataclass
class _Submitted:
    task: Task
    future: Future
    lost: int = 0  # workers that died while it was theirs


class DaskPool:
    """A Pool (jobs/pools.py) for one stage: tasks run in child processes of Dask workers.

    A worker that is lost, preempted or switched off is not the fault of the slides that were on it: they run elsewhere,
    until LOST_WORKERS have gone down with one of them. Results are taken, and forgotten by the cluster, as they come.
    """

    def __init__(self, connection: "Connection", stage: str, work: Callable[..., Any], limits: Limits, slots: int):
        self.stage, self._connection, self._slots = stage, connection, slots
        self._client = connection.client
        self._name = f"wsi-{stage}-{uuid4().hex[:8]}"
        self._tasks: dict[str, _Submitted] = {}
        self._ended: queue.SimpleQueue[tuple[str, Future, Any]] = queue.SimpleQueue()
        self._attempts = 0
        self.expected = 0
        self._register(HostPlugin(self._name, work, limits, slots))

    @property
    def room(self) -> int:
        """Tasks that the workers have slots for, and a few more, which wait there: it changes with the workers."""
        return self._connection.room(self.stage, self._slots)

    @property
    def busy(self) -> int:
        return len(self._tasks)

    def expect(self, waiting: int) -> None:
        """Say how many tasks wait beyond those submitted: so many workers are asked for at once, where they can be."""
        self.expected = waiting

    def submit(self, key: str, *arguments: object, alone: bool = False) -> None:
        """Send a task to a worker that may do it.

        alone  in a fresh child process of its own
        """
        self._send(Task(self._name, key, arguments, alone), lost=0)

    def results(self, wait_s: float = 0.2) -> list[tuple[str, Any]]:
        """Wait at most so long; (key, what the work returned, or a Death) of each task that ended meanwhile.

        Raises ClusterError where the scheduler is gone, or no worker is there for longer than the recipe's wait_s.
        """
        self._connection.tend()
        found: list[tuple[str, Any]] = []
        try:
            ended = self._ended.get(timeout=wait_s if self._tasks else 0)
            while True:
                found += self._take(*ended)
                ended = self._ended.get_nowait()
        except queue.Empty:
            return found

    def tiles(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) tiles of the tasks that count them, as the workers last said, a second or so ago."""
        return {key: counts for key, counts in self.at_work().items() if counts[1] and key in self._tasks}

    def at_work(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) of the tasks that are with a child process now; the others of `busy` wait for one."""
        found: dict[str, tuple[int, int]] = {}
        for worker in self._connection.workers_now().values():
            found |= {key: (done, total) for key, (done, total) in worker["metrics"].get(self._name, {}).items()}
        return found

    def close(self, kill: bool) -> None:
        """End the pool: nothing of it runs on any worker afterwards, as far as the workers can be reached."""
        self._connection.forget(self)
        if self._client.status != "running":
            return
        if self._tasks:
            self._client.cancel([submitted.future for submitted in self._tasks.values()], force=True)
        self._tasks = {}
        with suppress(OSError):  # a worker that dies meanwhile takes it along
            self._client.unregister_worker_plugin(self._name)

    def _register(self, plugin: HostPlugin) -> None:
        """Give the plugin to all workers there are, and to those that come."""
        for trial in Retrying(
            stop=stop_after_attempt(_TRIES), wait=wait_fixed(1), retry=retry_if_exception_type(OSError), reraise=True
        ):
            with trial:  # it fails where a worker dies just then
                self._connection.refresh()
                self._client.register_plugin(plugin, name=self._name)

    def _send(self, task: Task, lost: int) -> None:
        self._attempts += 1
        # the first part is the group of tasks that the dashboard shows; ids only, as it is logged
        key = (f"wsi_{self.stage}", self._name[-8:], task.key, self._attempts)
        future = self._client.submit(
            attempt, task, key=key, pure=False, resources=self._connection.requirement(self.stage, self._slots) or None
        )
        self._tasks[task.key] = _Submitted(task, future, lost)
        loop = self._client.loop.asyncio_loop  # type: ignore[union-attr]
        asyncio.run_coroutine_threadsafe(self._follow(task.key, future), loop)

    async def _follow(self, key: str, future: Future) -> None:
        """Put what became of a task where `results` finds it. Runs in the client's own thread."""
        outcome: Any = RuntimeError("its result cannot be had")
        try:
            error = await future.exception()
            outcome = await future if error is None else error
        except KilledWorker as error:  # done, and then lost with its worker, and tried again there
            outcome = error
        finally:
            self._ended.put((key, future, outcome))

    def _take(self, key: str, future: Future, outcome: Any) -> list[tuple[str, Any]]:
        submitted = self._tasks.get(key)
        if submitted is None or submitted.future is not future:
            return []
        if isinstance(outcome, KilledWorker) or future.cancelled():  # the latter: the scheduler was away for a moment
            lost = submitted.lost + (1 if future.cancelled() else outcome.allowed_failures + 1)
            if lost < LOST_WORKERS:
                self._send(submitted.task, lost)
                return []
            outcome = _lost_with(lost)
        elif isinstance(outcome, NoWorkerError):
            raise ClusterError(self._connection.address, "it has no workers", "run again: what is done stays done")
        elif isinstance(outcome, BaseException):
            problem = f"crashed: the worker could not do it ({type(outcome).__name__}: {outcome})"
            outcome = Death(problem, "see that all workers have the same packages", "", cause=CRASH)
        del self._tasks[key]  # with it the future: the cluster forgets the task
        return [(key, outcome)]


def _lost_with(workers: int) -> Death:
    problem = f"killed: {workers} workers were lost while it was theirs"
    remedy = "see the cluster's log for why; give its jobs more memory, if they were killed for it"
    return Death(problem, remedy, "", cause=KILLED)
