"""Why a worker died, from its exit code and from what it wrote to stderr: the stacks that faulthandler dumps."""

import re
import signal
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from .receipts import CRASH, KILLED, MEMORY, TIMEOUT

_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line \d+ in (?P<name>\S+)', re.MULTILINE)
_NO_MEMORY = re.compile(r"^.*(failed to allocate|bad_alloc|MemoryError|annot allocate memory|ut of memory).*$", re.M)
_COMPILED = {"openslide": "openslide-bin"}  # package → the distribution that holds its compiled library
MORE_MEMORY = "raise jobs.memory_mib if the slide is sound and the machine has more; or leave the slide out"
_CHECK = "copy the file again and compare the sizes; look at it with `wsi info`; or leave the slide out"


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended before its task did.

    problem  one clause; remedy: what to do; trace: the worker's last words, for the maintainers
    seconds  since it had begun
    cause    as in a receipt
    """

    problem: str
    remedy: str
    trace: str
    seconds: float = 0.0
    cause: str = ""


def out_of_memory(words: str, memory_mib: int | None) -> str:
    limit = f"limit {memory_mib:,} MiB" if memory_mib else "no limit was set"
    return f"memory: {words or 'an allocation failed'} ({limit})"


def explain_death(code: int | None, said: str, memory_mib: int | None, problem: str = "") -> Death:
    """code: of multiprocessing, negative for a signal; problem: what the run killed it for, if it did."""
    place = _place(said)
    allocation = _NO_MEMORY.search(said)
    if problem:
        remedy = f"see that the slide's disk answers; raise jobs.deadline_s where it is only slow; {_CHECK}"
        return Death(problem + place, remedy, said, cause=TIMEOUT)
    if allocation:
        words = re.sub(r"^.*?:\d+: |\(process:\d+\): ", "", allocation.group().strip())  # GLib names its source file
        return Death(out_of_memory(words, memory_mib) + place, MORE_MEMORY, said, cause=MEMORY)
    if code == -getattr(signal, "SIGKILL", 9):
        remedy = "give the machine more memory or the run fewer workers"
        problem = "killed: SIGKILL from outside, as the system does when memory runs out"
        return Death(problem, remedy, said, cause=KILLED)
    if code is not None and code < 0:
        return Death(f"crashed: {_signal_name(-code)}{place}", _CHECK, said, cause=CRASH)
    return Death(f"crashed: its process ended with exit code {code}{place}", _CHECK, said, cause=CRASH)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _place(said: str) -> str:
    """In which library and reader: of the thread that reads the slide, else of the one that the signal hit."""
    threads = [
        part for part in re.split(r"^(?=Current thread |Thread )", said, flags=re.MULTILINE) if _FRAME.search(part)
    ]
    reading = [part for part in threads if "/wsi/formats/" in part.replace("\\", "/")]
    current = [part for part in threads if part.startswith("Current thread")]
    chosen = next(iter(reading or current or threads), "")
    frames = [(match["file"].replace("\\", "/"), match["name"]) for match in _FRAME.finditer(chosen)]
    if not frames:
        return ""
    file, name = frames[0]
    library = _library(file)
    reader = next((f"wsi/formats/{Path(path).name}" for path, _ in frames if "/wsi/formats/" in path), None)
    where = f"{name} of {library or '/'.join(Path(file).parts[-2:])}"
    return f", in {where}" + (f", reader {reader}" if library and reader else "")


def _library(file: str) -> str | None:
    """Name and version of the installed distribution that a source file belongs to."""
    package = file.partition("/site-packages/")[2].partition("/")[0]
    if not package:
        return None
    for name in (_COMPILED.get(package, package), *packages_distributions().get(package, [])):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return package
