"""The processes that read slides for the server: one that crashes, hangs or eats memory is replaced, and costs the
picture that it was at."""

import asyncio
import faulthandler
import logging
import os
import queue
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jobs.executors import start_worker
from jobs.last_words import explain_death
from jobs.workers import limit_memory, spared

from .fault import Fault, without_paths
from .place import Place

START_S, DEADLINE_S, LONG_S = 60.0, 10.0, 60.0  # to load modules; for a picture; for numbers of a million tiles
MOST_WAITING = 512
ANSWER = "viewer.reading:answer"
_LONG = ("scores", "grid", "annotations")
_FULL = Fault(503, "No reader can be begun", "the machine has no room for a process; try again")
_context = get_context("spawn")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    words: tuple[Any, ...]
    loop: asyncio.AbstractEventLoop
    reply: "asyncio.Future[Any]"


@dataclass(frozen=True, slots=True)
class Limits:
    """memory_mib: private memory of a reader beyond what it has when it starts."""

    memory_mib: int = 2048
    deadline_s: float = DEADLINE_S


class Readers:
    """`count` processes, each with a thread that hands it one question at a time.

    notes  a folder for what they write to stderr; work: "module:function" that they answer with
    """

    def __init__(self, count: int, notes: Path, limits: Limits | None = None, work: str = ANSWER):
        self._notes, self._limits, self._work = notes, limits or Limits(), work
        self._questions: queue.Queue[_Question | None] = queue.Queue()
        self._asked: dict[tuple[Any, ...], asyncio.Future[Any]] = {}
        self._closed = False
        self._processes: dict[int, BaseProcess] = {}
        self._threads = [
            threading.Thread(target=self._attend, args=(number,), name=f"reader-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def ask(self, *words: Any) -> Any:
        """What `work` returns for these words, or a Fault. Who asks the same at the same time shares the answer."""
        reply = self._asked.get(words)
        if reply is None:
            if self._closed or self._questions.qsize() >= MOST_WAITING:
                return Fault(503, "Too much is asked at once", "try again in a moment")
            loop = asyncio.get_running_loop()
            reply = self._asked[words] = loop.create_future()
            reply.add_done_callback(lambda _: self._asked.pop(words, None))
            self._questions.put(_Question(words, loop, reply))
        return await asyncio.shield(reply)

    def close(self) -> None:
        """End the processes at once."""
        self._closed = True
        for _ in self._threads:
            self._questions.put(None)
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join(5)

    def _attend(self, number: int) -> None:
        """A thread's life: keep one process, and hand it questions."""
        reader = self._try_start(number)  # before it is needed: loading modules takes a second
        try:
            while True:
                question = self._questions.get()
                if question is None or self._closed:
                    return
                reader = reader or self._try_start(number)
                said, lives = (_FULL, False) if reader is None else self._put(reader, question.words)
                with suppress(RuntimeError):  # the server has ended meanwhile
                    question.loop.call_soon_threadsafe(_tell, question.reply, said)
                if not lives:
                    reader = self._try_start(number)
        finally:
            if reader is not None:
                reader.end()

    def _try_start(self, number: int) -> "_Reader | None":
        """A new process; None where the machine has no room for one now."""
        try:
            return None if self._closed else self._start(number)
        except OSError as error:
            _log.warning("no reader can be begun: %s", error.strerror)
            return None

    def _start(self, number: int) -> "_Reader":
        ours, theirs = _context.Pipe()
        notes = self._notes / f"reader-{number}.txt"
        arguments = (theirs, os.getpid(), notes, self._limits.memory_mib, self._work)
        process = _context.Process(target=_serve, args=arguments, daemon=True)
        with spared():
            process.start()
        theirs.close()
        self._processes[number] = process
        if self._closed:
            process.kill()
        return _Reader(process, ours, notes)

    def _put(self, reader: "_Reader", words: tuple[Any, ...]) -> tuple[Any, bool]:
        """(the answer, whether the process is still there)."""
        limit = LONG_S if words[0] in _LONG or _is_far(words) else self._limits.deadline_s
        try:
            reader.wait_until_ready()
            reader.pipe.send(words)
            if reader.pipe.poll(limit):
                return reader.pipe.recv(), True
        except (EOFError, OSError):
            reader.process.join(2)
            death = explain_death(reader.process.exitcode, reader.said(), self._limits.memory_mib)
            reader.end()
            if not self._closed:
                _log.warning("a reader ended at a %s: %s\n%s", words[0], death.problem, death.trace)
            said = without_paths(f"{death.problem}; {death.remedy}")
            return Fault(502, "The slide's reader ended", said), False
        reader.dump()
        if not self._closed:
            _log.warning("a reader hung at a %s\n%s", words[0], reader.said())
        reader.end()
        return Fault(503, "The slide does not answer", f"nothing came within {limit:.0f} s; try again"), False


@dataclass
class _Reader:
    """A process that reads."""

    process: BaseProcess
    pipe: Connection
    notes: Path
    ready: bool = False

    def wait_until_ready(self) -> None:
        """Loading modules does not count as the time of a question. Raises EOFError where it ended meanwhile."""
        if not self.ready:
            if not self.pipe.poll(START_S):
                raise EOFError
            self.ready = bool(self.pipe.recv())

    def dump(self) -> None:
        """Let it write down what each of its threads is at."""
        if hasattr(signal, "SIGUSR1"):
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            self.process.join(0.3)

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        try:
            return self.notes.read_text(errors="replace")[-20_000:].strip()
        except OSError:
            return ""

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join(5)


def _is_far(words: tuple[Any, ...]) -> bool:
    """Whether the question is of a slide behind a URL, which takes its time to open."""
    return any(isinstance(word, Place) and isinstance(word.path, str) for word in words)


def _tell(reply: "asyncio.Future[Any]", said: Any) -> None:
    if not reply.done():
        reply.set_result(said)


def _serve(pipe: Connection, parent: int, notes: Path, memory_mib: int, work: str) -> None:
    """A reader's life: one question after the other, until the server closes the pipe."""
    start_worker(parent)
    with suppress(OSError), notes.open("wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    module, _, name = work.partition(":")
    answer = getattr(import_module(module), name)  # here, as the server itself needs none of what it loads
    limit_memory(memory_mib)
    pipe.send(True)
    while True:
        try:
            words = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(*words))
