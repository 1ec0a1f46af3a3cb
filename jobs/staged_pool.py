"""Units that read slides from copies on a local disk, which are made while others are at work."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from .attempt import run_there
from .config import RunSpec
from .executors import ExecSpec
from .folder import RunFolder
from .last_words import Death
from .manifest import SlideRecord
from .outcome import Split, Stage, Unit
from .pools import Pool
from .progress import alive
from .receipts import Receipt
from .stager import Stager
from .staging import NoRoomError, SlideCache, original_words

READING = ("tile", "embed")  # stages that read slides
_GIB = 1 << 30


@dataclass(frozen=True)
class _Task:
    record: SlideRecord
    arguments: tuple[object, ...]
    alone: bool


@dataclass
class StagedPool:
    """A pool in front of another one of this machine, where units wait until their slide is copied."""

    pool: Pool
    stager: Stager
    ahead: int
    _waiting: deque[tuple[str, _Task]] = field(default_factory=deque)
    _reading: dict[str, tuple[SlideRecord, SlideRecord]] = field(default_factory=dict)  # key → (slide, its copy)

    @property
    def room(self) -> int:
        return self.pool.room + self.ahead

    @property
    def busy(self) -> int:
        return self.pool.busy + len(self._waiting)

    def submit(self, key: str, *arguments: object, alone: bool = False) -> None:
        unit, record, *rest = arguments
        assert isinstance(record, SlideRecord)
        self.stager.want(record)
        self._waiting.append((key, _Task(record, (unit, *rest), alone)))
        self._begin()

    def expect(self, waiting: int) -> None:
        self.pool.expect(waiting)

    def results(self, wait_s: float = 0.2) -> list[tuple[str, Any]]:
        self._begin()
        if not self.pool.busy:
            time.sleep(min(wait_s, 0.05))  # all wait for their copies
        found = [(key, self._restored(key, result)) for key, result in self.pool.results(min(wait_s, 0.05))]
        self._begin()
        return found

    def tiles(self) -> dict[str, tuple[int, int]]:
        return self.pool.tiles()

    def close(self, kill: bool) -> None:
        self.pool.close(kill)
        for record, _ in self._reading.values():
            self.stager.release(record)
        for _, task in self._waiting:
            self.stager.release(task.record)

    def _begin(self) -> None:
        """Hand over what is copied, in any order: a large slide is not waited for."""
        for _ in range(len(self._waiting)):
            if self.pool.busy >= self.pool.room:
                return
            key, task = self._waiting.popleft()
            if not self.stager.ready(task.record):
                self._waiting.append((key, task))
                continue
            copy = self.stager.take(task.record)
            self._reading[key] = task.record, copy
            unit, *rest = task.arguments
            self.pool.submit(key, unit, copy, *rest, alone=task.alone)

    def _restored(self, key: str, result: Any) -> Any:
        """What is said of a copy, as of the slide."""
        record, copy = self._reading.pop(key)
        self.stager.release(record)
        return in_words_of(record, copy, result)


def in_words_of(record: SlideRecord, copy: SlideRecord, result: Any) -> Any:
    """A receipt or a death whose words name the slide's own file, not its copy."""

    def said(text: str) -> str:
        return original_words(text, record, copy)

    if not isinstance(result, Receipt | Death):
        return result
    return replace(result, problem=said(result.problem), remedy=said(result.remedy), trace=said(result.trace))


def cache_of(jobs: ExecSpec) -> SlideCache:
    """The copies of this machine. Raises StoreError where none can be made."""
    return _cache(str(jobs.stage_to), round(jobs.stage_gib * _GIB))


@lru_cache(maxsize=1)
def _cache(folder: str, limit_bytes: int) -> SlideCache:
    cache = SlideCache(folder, limit_bytes)
    if parent_process() is not None:  # a worker of another machine: nobody else removes its copies at the end
        Finalize(None, cache.clear, exitpriority=1)
    return cache


def run_copied(
    here: Path, stage: Stage, spec: RunSpec, folder: RunFolder, unit: Unit, record: SlideRecord, *more: Any
) -> Receipt | Split:
    """`run_there` from a copy on that machine's disk, made first where it is not there."""
    try:
        hold = cache_of(spec.jobs).hold(record, _tick)
    except NoRoomError:
        hold = None
    if hold is None:
        return run_there(here, stage, spec, folder, unit, record, *more)
    try:
        return in_words_of(record, hold.record, run_there(here, stage, spec, folder, unit, hold.record, *more))
    finally:
        hold.release()


def _tick() -> bool:
    """Asked while a slide is copied, whether that should end: it is a sign of life, too."""
    alive()
    return False
