"""On a Dask worker: units of work run in child processes of it, never in the worker itself.

A slide that crashes, hangs or eats memory then costs its child, and the Dask worker, its other tasks and its connection
live on. Dask itself has no deadline of a task, and blames whatever ran on a worker that died.
"""

import asyncio
import queue
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from distributed import Reschedule, Worker, WorkerPlugin, get_worker

from ..last_words import Death
from ..receipts import KILLED
from ..workers import Limits, Workers

IDLE_S = 60.0  # a child without work for so long ends, and frees the memory of its model
_SOON_S = 0.02  # for a child with several slots: how late the second task may be seen
_POLL_S = 0.2


@dataclass(frozen=True)
class Task:
    """What is sent for one unit of work. A class of its own, as Dask looks into lists and tuples for its own keys."""

    host: str
    key: str
    arguments: tuple[object, ...]
    alone: bool


def attempt(task: Task) -> Any:
    """Runs in a thread of a Dask worker: what the work returned, or the Death of the child that did it."""
    plugin = get_worker().plugins.get(task.host)
    if not isinstance(plugin, HostPlugin):
        raise Reschedule()  # this worker is about to end, or the run is
    return plugin.host.do(task)


class HostPlugin(WorkerPlugin):
    """Gives every worker of a cluster, also those that come later, the host of one stage of one run."""

    def __init__(self, name: str, work: Callable[..., Any], limits: Limits, slots: int):
        self.name, self._work, self._limits, self._slots = name, work, limits, slots

    def setup(self, worker: Worker) -> None:
        # Dask starts its workers as daemons, which may have no children; these end with it all the same (start_worker)
        current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        self.host = Host(self._work, self._limits, self._slots)
        worker.metrics[self.name] = lambda worker: self.host.at_work()

    async def teardown(self, worker: Worker) -> None:
        worker.metrics.pop(self.name, None)
        await asyncio.to_thread(self.host.close)


class Host:
    """Child processes for one stage, as many as there are tasks at a time; the number is the Dask worker's to limit.

    slots  tasks that one child does at a time, where they share what is large: a model
    """

    def __init__(self, work: Callable[..., Any], limits: Limits, slots: int):
        self._make = lambda slots, notes: Workers(1, work, notes, limits, slots)
        self._slots = slots
        self._lanes: list[_Lane] = []
        self._lock = threading.Lock()
        self._closed = False
        self._notes: tempfile.TemporaryDirectory[str] | None = None

    def do(self, task: Task) -> Any:
        """Run one task in a child, and wait for it."""
        with self._lock:
            if self._closed:
                return _killed()
            lane = None if task.alone else next((lane for lane in self._lanes if lane.has_room), None)
            ended = (lane or self._open_lane(task.alone)).take(task)
        return ended.result()

    def _open_lane(self, alone: bool) -> "_Lane":
        if self._notes is None:
            self._notes = tempfile.TemporaryDirectory(prefix="wsi-host-", ignore_cleanup_errors=True)
        notes = Path(tempfile.mkdtemp(dir=self._notes.name))
        lane = _Lane(lambda slots: self._make(slots, notes), 1 if alone else self._slots, alone, self._lock)
        self._lanes = [*(other for other in self._lanes if not other.ended), lane]
        lane.start()
        return lane

    def at_work(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) tiles of each task at work, (0, 0) where it does not count them."""
        return {key: counts for lane in self._lanes for key, counts in lane.at_work().items()}

    def close(self) -> None:
        """End all children; who waits for a task gets a Death."""
        with self._lock:
            self._closed = True
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.join(5)
        if self._notes is not None:
            self._notes.cleanup()


class _Lane(threading.Thread):
    """One child and the thread that starts it, feeds it and listens to it.

    The thread must live as long as the child does: the system ends a child when the thread that started it ends.
    """

    def __init__(self, make: Callable[[int], Workers], slots: int, once: bool, lock: threading.Lock):
        super().__init__(name="wsi-lane", daemon=True)
        self._make, self._slots, self._once, self._lock = make, slots, once, lock
        self._orders: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._workers: Workers | None = None
        self.ended = False

    @property
    def has_room(self) -> bool:
        """Under the host's lock."""
        return not (self.ended or self._once) and len(self._waiting) < self._slots

    def take(self, task: Task) -> "Future[Any]":
        """Under the host's lock."""
        future: Future[Any] = Future()
        self._waiting[task.key] = future
        self._orders.put(task)
        return future

    def at_work(self) -> dict[str, tuple[int, int]]:
        counts = self._workers.tiles() if self._workers is not None else {}
        return {key: counts.get(key, (0, 0)) for key in list(self._waiting)}

    def stop(self) -> None:
        self._orders.put(None)

    def run(self) -> None:
        try:
            with self._make(self._slots) as workers:
                self._workers = workers
                while self._step(workers):
                    pass
        finally:
            with self._lock:
                self.ended = True
                waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                future.set_result(_killed())

    def _step(self, workers: Workers) -> bool:
        """Take what is asked for and give back what is done; False at the end."""
        try:
            task = self._orders.get_nowait() if workers.busy else self._orders.get(timeout=IDLE_S)
        except queue.Empty:
            if not workers.busy:
                with self._lock:
                    self.ended = not self._waiting
                return not self.ended
        else:
            if task is None:
                workers.close(kill=True)  # an idle one with a large model takes seconds to end by itself
                return False
            workers.submit(task.key, *task.arguments)
        for key, result in workers.results(_POLL_S if self._slots == 1 else _SOON_S):
            with self._lock:
                self.ended = self._once  # before its result is seen: nobody gives it another task
                future = self._waiting.pop(key)
            future.set_result(result)
        return not self.ended


def _killed() -> Death:
    problem = "killed: its worker was told to end"
    return Death(problem, "run again: what is done stays done", "", cause=KILLED)
