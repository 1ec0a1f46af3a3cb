"""Where units of work run: in this process, in worker processes here, or on the workers of a cluster."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from .attempt import run_one
from .config import RunSpec
from .folder import RunFolder
from .outcome import Stage, stage_name
from .workers import Limits, Workers

EMBED_SLOTS = 2  # units that an embedding process works on at a time
# these work on stores: no decoder that could hang, and models of any size
_READS_NO_SLIDE = ("predict", "heatmap", "encode", "zero_shot")


class Pool(Protocol):
    """Runs tasks, each under a key, and gives back what became of them.

    room  tasks that may be at work at a time: it may grow and shrink; busy: tasks that are
    """

    @property
    def room(self) -> int: ...

    @property
    def busy(self) -> int: ...

    def submit(self, key: str, *arguments: object, alone: bool = False) -> None:
        """Begin a task; alone: with no other task in its process. There must be room."""
        ...

    def expect(self, waiting: int) -> None:
        """How many tasks wait beyond those at work: where workers can be asked for, so many are."""
        ...

    def results(self, wait_s: float = 0.2) -> list[tuple[str, Any]]:
        """Wait at most so long; (key, what the task returned, or a Death) of each task that ended meanwhile."""
        ...

    def tiles(self) -> dict[str, tuple[int, int]]:
        """key → (done, total) tiles of the tasks that count them."""
        ...

    def close(self, kill: bool) -> None:
        """End it, at once where `kill`, and leave no process behind."""
        ...


class SerialPool:
    """Tasks in this process, one at a time, when their results are asked for."""

    room = 1

    def __init__(self, work: Callable[..., Any]):
        self._work = work
        self._task: tuple[str, tuple[object, ...]] | None = None

    @property
    def busy(self) -> int:
        return int(self._task is not None)

    def submit(self, key: str, *arguments: object, alone: bool = False) -> None:
        self._task = key, arguments

    def expect(self, waiting: int) -> None:
        pass

    def results(self, wait_s: float = 0.0) -> list[tuple[str, Any]]:
        if self._task is None:
            return []
        (key, arguments), self._task = self._task, None
        return [(key, self._work(*arguments))]

    def tiles(self) -> dict[str, tuple[int, int]]:
        return {}

    def close(self, kill: bool) -> None:
        pass


def open_pool(stage: Stage, slides: int, spec: RunSpec, folder: RunFolder, notes: Path) -> Pool:
    """A pool of this machine for a stage of so many slides.

    notes  a folder for what worker processes write to stderr
    """
    name, jobs = stage_name(stage), spec.jobs
    work = partial(run_one, stage, spec, folder)
    if jobs.executor == "serial":
        return SerialPool(work)
    if name in _READS_NO_SLIDE:
        processes = 1 if name == "encode" else jobs.worker_count(slides)  # one large model
        return Workers(processes, work, notes, Limits())
    if name == "embed":  # a model each, which may need any memory; the next unit is read while it computes
        from embedding.devices import find_devices

        return Workers(len(find_devices(spec.embed.device)), work, notes, limits_of(name, spec), EMBED_SLOTS)
    units = sys.maxsize if name == "tile" and spec.patches != "none" else slides  # one slide may be many parts
    return Workers(jobs.worker_count(units), work, notes, limits_of(name, spec))


def limits_of(name: str, spec: RunSpec) -> Limits:
    """What one process may take at this stage."""
    if name in _READS_NO_SLIDE:
        return Limits()
    return Limits(spec.jobs.deadline_s, None if name == "embed" else spec.jobs.memory_mib)
