"""Faults made for real, for tests of runs: slides that do what they are told, processes that die at a counted moment,
disks that are full, sick, slow or away, and machines whose name and clock are others.

Nothing is pretended to the code under test: a kill is SIGKILL, a full disk is a small file system, a read error comes
out of the C library (a shim before it, compiled when it is asked for), and a run is a process of its own.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.halt import Halt
from jobs.interrupt import listen
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split
from jobs.receipts import DONE, SKIPPED, latest, read_receipts
from jobs.run import Watcher, run_stages
from wsi.publish import appear, appear_file

ROOT = Path(__file__).resolve().parent.parent
SHIM = Path(__file__).with_name("faults.c")
MIB = 1 << 20


# --- slides that do what they are told -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cohort:
    """Small files that stand for slides, in `folder`/slides, and a log of each time that a stage began one.

    acts  slide_id → what befalls it: words of `misbehave`, "parts=4", "seconds=0.1" (of each unit), "at=2" (only part
          2 misbehaves), "stage=read" (only there)
    """

    folder: Path
    acts: Mapping[str, str]

    @classmethod
    def make(cls, folder: Path, acts: Mapping[str, str]) -> "Cohort":
        (folder / "slides").mkdir(parents=True)
        for name in acts:
            (folder / "slides" / f"{name}.svs").write_text(f"the pixels of {name}")
        return cls(folder, acts)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def records(self) -> list[SlideRecord]:
        extra = {name: {"act": act, "log": str(self.log)} for name, act in self.acts.items()}
        place = self.folder / "slides"
        return [SlideRecord(name, place / f"{name}.svs", name, name, extra=extra[name]) for name in self.acts]

    def begun(self) -> list[str]:
        """The units that were begun, each as often as it was: "read a 0" of a part, "read a -" of a slide or join."""
        return [" ".join(words[1:4]) for words in self._lines() if words[0] == "begin"]

    def overlaps(self) -> list[str]:
        """Units that two processes were at, at one time; one that was killed was at it to its last line."""
        open_by: dict[str, str] = {}
        found, last = [], {words[4]: number for number, words in enumerate(self._lines())}
        for number, (what, *unit, pid, _) in enumerate(self._lines()):
            name = " ".join(unit)
            other = open_by.get(name)
            if what == "begin":
                if other not in (None, pid) and last[other] > number:
                    found.append(name)
                open_by[name] = pid
            elif other == pid:
                del open_by[name]
        return found

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []


def read_slide(record: SlideRecord, spec: object, folder: RunFolder) -> Outcome | Split:
    """A stage: a file of a few bytes from each slide; slides of several parts are done in parts."""
    return _stage("read", record, folder)


def draw_slide(record: SlideRecord, spec: object, folder: RunFolder) -> Outcome | Split:
    """Another stage of the same kind."""
    return _stage("draw", record, folder)


STAGES = {"read": read_slide, "draw": draw_slide}


def _stage(stage: str, record: SlideRecord, folder: RunFolder) -> Outcome | Split:
    words = _words(record)
    target = folder.root / stage / record.slide_id
    parts = target.parent / ".parts" / record.slide_id
    if (target / "value").is_file():
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed when it had just joined them
        return Outcome(SKIPPED, "mark", 1)
    if "parts" in words:
        count = int(words["parts"])
        return Split(parts, count, count, partial(_do_part, stage), partial(_join_parts, stage))
    with _unit(stage, record, "-"):
        value = _value(stage, record, 0)
        with appear(target) as draft:
            (draft / "value").write_bytes(value)
    return Outcome(DONE, "mark", 1)


def _do_part(stage: str, record: SlideRecord, spec: object, folder: RunFolder, number: int) -> tuple[int, int]:
    if (folder.root / stage / record.slide_id / "value").is_file():  # others joined it a moment ago
        return 1, 0
    with _unit(stage, record, str(number)):
        value = _value(stage, record, number)
        path = folder.root / stage / ".parts" / record.slide_id / Split.name_of(number)
        with appear_file(path) as draft:
            draft.write_bytes(value)
    return 1, 0


def _join_parts(stage: str, record: SlideRecord, spec: object, folder: RunFolder) -> Outcome:
    target = folder.root / stage / record.slide_id
    parts = target.parent / ".parts" / record.slide_id
    if (target / "value").is_file():
        return Outcome(SKIPPED, "mark", 1)
    with _unit(stage, record, "-"):
        values = [(parts / Split.name_of(number)).read_bytes() for number in range(int(_words(record)["parts"]))]
        with appear(target) as draft:
            (draft / "value").write_bytes(b"".join(values))
    shutil.rmtree(parts)
    return Outcome(DONE, "mark", len(values))


def _words(record: SlideRecord) -> dict[str, str]:
    pairs = (word.partition("=") for word in record.extra["act"].split())
    return {name: value for name, _, value in pairs}


def _value(stage: str, record: SlideRecord, number: int) -> bytes:
    seed = Path(record.path).read_bytes() + f"{stage} {number}".encode()
    return hashlib.sha256(seed).digest() * 4


@contextmanager
def _unit(stage: str, record: SlideRecord, part: str) -> Iterator[None]:
    words, log = _words(record), Path(record.extra["log"])
    _say(log, "begin", stage, record.slide_id, part)
    try:
        if words.get("stage", stage) == stage and words.get("at", part) == part:
            misbehave(words, log.with_name(f"tries-{stage}-{record.slide_id}"))
        time.sleep(float(words.get("seconds", 0)))
        yield
    finally:
        _say(log, "end", stage, record.slide_id, part)


def _say(log: Path, *words: str) -> None:
    line = " ".join([*words, f"{socket.gethostname()}/{os.getpid()}", str(time.monotonic_ns())])
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def misbehave(words: Mapping[str, str], tries: Path) -> None:
    """Do what the words say: abort, segfault, killed, hang, loop, hog=MiB, full, eio (for ever), eio=2 (twice, then
    it is well), fault, gone."""
    if "abort" in words:
        os.abort()
    if "segfault" in words:
        ctypes.string_at(0)
    if "killed" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in words:
        time.sleep(3600)
    if "loop" in words:  # in C, without letting another Python thread run
        re.match(r"(a*)*b", "a" * 64)
    if "hog" in words:
        np.ones(int(words["hog"]) * MIB, np.uint8)
    if "fault" in words:
        raise ZeroDivisionError("division by zero")
    if "gone" in words:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(tries))
    if "full" in words:
        raise OSError(errno.ENOSPC, "No space left on device", str(tries))
    if "eio" in words:
        with tries.open("ab") as file:
            file.write(b".")
        if not words["eio"] or tries.stat().st_size <= int(words["eio"]):
            raise OSError(errno.EIO, "Input/output error", str(tries))


# --- runs in processes of their own ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Faults:
    """What befalls a process that is started with these.

    host      name of its machine, so that it is another machine's; None for this one
    clock_s   how far its clock is ahead
    die_at    SIGKILL to its process group when this many files have been renamed or linked; None for never
    shim      what the C library does: variables of faults.c, without FAULT_
    """

    host: str | None = None
    clock_s: int = 0
    die_at: int | None = None
    shim: Mapping[str, object] = field(default_factory=dict)

    def environment(self, scratch: Path) -> dict[str, str]:
        found = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        if self.host is not None:
            found["FAULT_HOST"] = self.host
        if self.die_at is not None:
            found["FAULT_DIE_AT"], found["FAULT_DEATHS"] = str(self.die_at), str(scratch / f"moments-{time.time_ns()}")
        shim = {**self.shim, **({"CLOCK_S": self.clock_s} if self.clock_s else {})}
        if shim:
            found["LD_PRELOAD"] = str(compile_shim())
            found["FAULT_COUNTER"] = str(scratch / f"calls-{time.time_ns()}")
            found |= {f"FAULT_{name}": str(value) for name, value in shim.items()}
        return found


NONE = Faults()


def start(cohort: Cohort, run: Path, *stages: str, faults: Faults = NONE, **jobs: object) -> subprocess.Popen:
    """A run of stages over the cohort, as a process group of its own; `finish` says how it ended."""
    job = {"folder": str(cohort.folder), "acts": dict(cohort.acts), "run": str(run)}
    job |= {"stages": stages or ("read",), "jobs": {"workers": 2, **jobs}}
    return start_python("from tests.faults import main; main()", json.dumps(job), scratch=cohort.folder, faults=faults)


def start_wsi(*arguments: object, scratch: Path, faults: Faults = NONE) -> subprocess.Popen:
    """The command line, likewise."""
    return start_python("from cli.main import main; main()", *map(str, arguments), scratch=scratch, faults=faults)


def start_python(code: str, *arguments: str, scratch: Path, faults: Faults = NONE) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **faults.environment(scratch)},
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 120) -> tuple[int, str]:
    """(exit code, what was printed)."""
    try:
        text, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"it did not end: {process.communicate()[0]}")
    return process.returncode, text


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """To its whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def is_group_alive(process: subprocess.Popen, wait_s: float = 10) -> bool:
    """Whether any process of the group is left after a while."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def wait_until(happened: Callable[[], object], timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > until:
            pytest.fail("it did not happen")
        time.sleep(0.02)


def main() -> None:
    """What `start` starts: prints as JSON what became of the slides, and how the run ended."""
    job = json.loads(sys.argv[1])
    listen()
    cohort = Cohort(Path(job["folder"]), job["acts"])
    lines, halt = _run(cohort, RunFolder(Path(job["run"])), job["stages"], job["jobs"])
    found = {line.name: {one.slide_id: [one.status, one.problem] for one in line.ordered()} for line in lines}
    print(json.dumps({"found": found, "why": halt.why, "remedy": halt.remedy, "warning": halt.warning}))
    sys.exit(int(halt.why is not None))


def _run(
    cohort: Cohort, folder: RunFolder, stages: Sequence[str], jobs: Mapping[str, object]
) -> tuple[list[Line], Halt]:
    records = {record.slide_id: record for record in cohort.records()}
    folder.prepare()
    lines = [Line(STAGES[stage], records) for stage in stages]
    return lines, run_stages(lines, resolve({"jobs": dict(jobs)}), folder, [Watcher() for _ in lines])


def fork(cohort: Cohort, run: Path, *stages: str, dies_at: int | None = None) -> int:
    """A serial run in a copy of this process, without the seconds that starting one takes; returns its number.

    dies_at  as `die_at`, for this process alone
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        if dies_at is not None:
            die_at(dies_at, cohort.folder / f"moments-{os.getpid()}")
        code = int(_run(cohort, RunFolder(run), stages, {"executor": "serial"})[1].why is not None)
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """Exit code of a forked run, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def told(text: str) -> dict[str, Any]:
    """What `main` printed."""
    return dict(json.loads(text.splitlines()[-1]))


# --- what is left of a run -------------------------------------------------------------------------------------------
def results(run: Path, *stages: str) -> dict[str, bytes]:
    """All files that stages published."""
    files = [path for stage in stages or ("read",) for path in sorted((run / stage).rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def litter(run: Path) -> list[str]:
    """Drafts, parts and claims that nobody took away."""
    found = [*run.rglob(".draft-*"), *run.rglob(".parts/*"), *(p for p in (run / "claims").rglob("*") if p.is_file())]
    return sorted(str(path.relative_to(run)) for path in found)


def statuses(run: Path, stage: str = "read") -> dict[str, str]:
    return {key: one.status for key, one in latest(read_receipts(run / "receipts" / f"{stage}.jsonl")).items()}


def times_done(run: Path, stage: str = "read") -> dict[str, int]:
    """How often each slide was done, by the receipts of all sessions."""
    found: dict[str, int] = defaultdict(int)
    for receipt in read_receipts(run / "receipts" / f"{stage}.jsonl"):
        found[receipt.slide_id] += receipt.status == DONE
    return dict(found)


# --- disks -----------------------------------------------------------------------------------------------------------
@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of so many KiB at `folder`; skips the test where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={kib}k,nr_inodes=100k", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write until nothing more can be written; returns the file, to be removed."""
    path = disk / "filling"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path


@contextmanager
def unpluggable(folder: Path) -> Iterator[Callable[[], None]]:
    """`folder` as a mounted disk; what is given takes it away, at once, and the end of the block too."""
    store = folder.with_name(f"{folder.name}-disk")
    folder.rename(store)
    folder.mkdir()
    _mount("--bind", str(store), str(folder))

    def unplug() -> None:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)

    try:
        yield unplug
    finally:
        unplug()
        folder.rmdir()
        store.rename(folder)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@lru_cache(maxsize=1)
def compile_shim() -> Path:
    """faults.c as a library that goes before the C library; skips the test where there is no compiler, or no Linux."""
    if sys.platform != "linux":
        pytest.skip("the C library can be preceded by another on Linux")
    import tempfile

    target = Path(tempfile.mkdtemp(prefix="faults-")) / "faults.so"
    try:
        done = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(target), str(SHIM), "-ldl"], capture_output=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no compiler for the shim: {error}")
    assert done.returncode == 0, done.stderr.decode()
    return target


# --- what befalls this process, where it was started with faults -----------------------------------------------------
def die_at(number: int, counter: Path) -> None:
    """From now on, SIGKILL to this process's group just before the `number`-th time that one of the processes that
    share `counter` renames, replaces or links a file."""

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            with counter.open("ab", buffering=0) as file:
                file.write(b".")
                if file.tell() == number:
                    os.killpg(0, signal.SIGKILL)
            return call(*arguments, **options)

        return act

    for name in ("rename", "replace", "link"):
        setattr(os, name, counted(getattr(os, name)))


if "FAULT_HOST" in os.environ:
    socket.gethostname = lambda: os.environ["FAULT_HOST"]
if "FAULT_DIE_AT" in os.environ:
    die_at(int(os.environ["FAULT_DIE_AT"]), Path(os.environ["FAULT_DEATHS"]))
