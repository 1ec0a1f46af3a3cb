"""Work is named by all that shaped it, and appears whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from .machine import is_alive, machine_id

OLD, UNSEALED = "old", "00000000"
_FLUSHERS = 4  # more are not faster
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what some network file systems answer
_SEAL = re.compile(rb'"checksum": "([0-9a-f]{8})"')
_NEARLY_SEAL = re.compile(rb'".{8}":.".{8}"\s*\}+\s*$', re.DOTALL)
_CHECKED = re.compile(rb', "crc": "([0-9a-f]{8})"\}$')
_NEARLY = re.compile(rb',."...":.".{8}"\}$', re.DOTALL)  # the same, damaged


def fingerprint(*parts: object) -> str:
    """Twelve hex digits over every field of the given spec dataclasses (and plain values)."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


@contextmanager
def appear(target: Path, flushed: bool = False) -> Iterator[Path]:
    """Write into a draft folder beside `target`; it takes the name only when the block ends well.

    An older folder of that name stays whole until then. A killed process leaves its draft behind, never a half
    result; `clear_drafts` removes those of dead processes.

    flushed  the block itself flushes the files to the disk
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, aside = draft_of(target, uuid4().hex[:6]), draft_of(target, OLD)
    draft.mkdir()
    try:
        yield draft
        flush_path(draft) if flushed else flush_tree(draft)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)  # an older one that could not be removed
            os.rename(target, aside)  # rename cannot replace a folder that is not empty
        os.rename(draft, target)
        flush_path(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if aside.exists() and not target.exists():
            os.rename(aside, target)  # the new one did not come after all


@contextmanager
def appear_file(target: Path, flush: bool = True) -> Iterator[Path]:
    """The same for a single file; `flush` False for one in a folder that is flushed when it is published."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(target, uuid4().hex[:6])
    try:
        yield draft
        if flush:
            flush_path(draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_json(target: Path, content: object, sealed: bool = False) -> None:
    """sealed: an object gets `checksum` as its last member, a checksum of the file: see `seal_fits`."""
    if sealed and isinstance(content, dict):
        content = {**content, "checksum": UNSEALED}
    text = (json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    with appear_file(target) as draft:
        draft.write_bytes(seal(text) if sealed else text)


def seal(text: bytes) -> bytes:
    """JSON whose last `checksum` is UNSEALED, with the crc32c of the whole text there."""
    before, mark, after = text.rpartition(b'"checksum": "%s"' % UNSEALED.encode())
    return before + mark.replace(UNSEALED.encode(), b"%08x" % _crc32c(text)) + after if mark else text


def seal_fits(text: bytes) -> bool | None:
    """Whether JSON is as it was sealed; None where it was not."""
    found = list(_SEAL.finditer(text))
    if not found:
        return False if _NEARLY_SEAL.search(text) else None
    start, end = found[-1].span(1)
    return int(found[-1][1], 16) == _crc32c(text[:start] + UNSEALED.encode() + text[end:])


def append_line(target: Path, content: dict[str, Any], checked: bool = False, flush: bool = False) -> None:
    """Append one line of JSON, in ASCII: no character of a file's name can break a line or fail to be written.

    A killed process leaves whole lines, but for at most the last; the next one begins on a line of its own.

    checked  with a checksum, `crc`, of the line without it: see `damaged_lines`
    flush    the line, and the name of a new file, are on the disk when this returns
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    is_new = flush and not target.exists()
    line = json.dumps(content, default=str).encode()
    if checked:
        line = b'%s, "crc": "%08x"}' % (line[:-1], _crc32c(line))
    line += b"\n"
    with target.open("a+b") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())
    if is_new:
        flush_path(target.parent)


def read_lines(target: Path) -> list[dict[str, Any]]:
    """What `append_line` wrote, oldest first; lines cut short by a kill are left out."""
    found = []
    for line in target.read_bytes().split(b"\n") if target.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            content.pop("crc", None)
            found.append(content)
    return found


def damaged_lines(target: Path) -> list[int]:
    """Numbers, from 1, of the lines that are not as `append_line` wrote them.

    Of lines without a checksum nothing is known, unless they are no JSON. A last line that was cut short by a kill
    counts, too: what it said is lost.
    """
    lines = target.read_bytes().split(b"\n") if target.exists() else []
    return [number for number, line in enumerate(lines, start=1) if not line_fits(line)]


def line_fits(line: bytes) -> bool:
    """Whether a line, without its end, is as `append_line` wrote it, as far as can be told."""
    checked = _CHECKED.search(line)
    if checked:
        return int(checked[1], 16) == _crc32c(line[: checked.start()] + b"}")
    return not line or (_is_json(line) and not _NEARLY.search(line))


def clear_drafts(folder: Path, gone: Callable[[str], bool] = lambda machine: False, stale_s: float = 3600.0) -> int:
    """Remove drafts in `folder` whose process no longer lives; returns how many there were.

    A result that had been put aside for a newer one that did not come takes its name again.

    gone     says of another machine, by its `machine_id`, that nobody is at work there any more
    stale_s  a draft of such a machine is left alone for so long after something was last written into it
    """
    cleared = 0
    for draft in sorted(folder.glob(".draft-*-*-*-*")):
        _, machine, pid, kind, name = draft.name.split("-", 4)
        if machine == machine_id():
            dead = pid.isdigit() and not is_alive(int(pid))
        else:  # of its processes nothing can be seen here
            dead = gone(machine) and _age_s(draft) > stale_s
        if not dead:
            continue
        if kind == OLD and not (folder / name).exists():
            _take_back(draft, folder / name)
        elif draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        cleared += 1
    return cleared


def draft_of(target: Path, kind: str) -> Path:
    """Name of a draft beside `target`; `clear_drafts` knows it as this process's."""
    return target.with_name(f".draft-{machine_id()}-{os.getpid()}-{kind}-{target.name}")


def flush_tree(folder: Path) -> None:
    """Flush all files in a folder, then the folders, to the disk: a crashed machine must not lose renamed data.

    Several at a time: a disk flushes them together, and on one that is slow to answer this is what publishing costs.
    """
    files, folders = [], []
    for place, _, names in os.walk(folder, topdown=False):
        folders.append(place)
        files += [f"{place}/{name}" for name in names]
    with ThreadPoolExecutor(_FLUSHERS, "flush") as pool:
        list(pool.map(_flush_files, (files[first::_FLUSHERS] for first in range(_FLUSHERS))))
        list(pool.map(_flush_folders, (folders[first::_FLUSHERS] for first in range(_FLUSHERS))))


def flush_path(path: Path) -> None:
    """Flush one file, or the names in a folder, to the disk."""
    if path.is_dir():
        _flush_folders([str(path)])
    else:
        _flush_files([str(path)])


def _flush_files(files: list[str]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_folders(folders: list[str]) -> None:
    for folder in folders if os.name == "posix" else ():  # elsewhere a folder cannot be opened to be flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NOT_FOR_FOLDERS:
                raise
        finally:
            os.close(descriptor)


def _take_back(aside: Path, target: Path) -> None:
    try:
        os.rename(aside, target)
    except OSError:  # another process took it back, or published a newer one, just now
        if not target.exists():
            raise


def _age_s(path: Path) -> float:
    """Seconds since something was last written into a draft, by the clock of its file system."""
    probe = draft_of(path.with_name("age"), uuid4().hex[:6])
    probe.touch()
    try:
        places = [path, *path.rglob("*")] if path.is_dir() else [path]
        return probe.stat().st_mtime - max(place.stat().st_mtime for place in places)
    except FileNotFoundError:  # somebody is at it, if only to clear it
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _crc32c(data: bytes) -> int:
    from google_crc32c import value

    return int(value(data))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
