"""Work is named by all that shaped it, and appears whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

OLD = "old"


def fingerprint(*parts: object) -> str:
    """Twelve hex digits over every field of the given spec dataclasses (and plain values)."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


@contextmanager
def appear(target: Path) -> Iterator[Path]:
    """Write into a draft folder beside `target`; it takes the name only when the block ends well.

    An older folder of that name stays whole until then. A killed process leaves its draft behind, never a half
    result; `clear_drafts` removes those of dead processes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(target, uuid4().hex[:6])
    draft.mkdir()
    try:
        yield draft
        _sync(draft)
        aside = draft_of(target, OLD)
        if target.exists():
            target.rename(aside)  # rename cannot replace a folder that is not empty
        draft.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def appear_file(target: Path, flush: bool = True) -> Iterator[Path]:
    """The same for a single file; `flush` False for one in a folder that is flushed when it is published."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(target, uuid4().hex[:6])
    try:
        yield draft
        if flush:
            _sync(draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_json(target: Path, content: object) -> None:
    with appear_file(target) as draft:
        text = json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n"
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_line(target: Path, content: object) -> None:
    """Append one line of JSON, in ASCII: no character of a file's name can break a line or fail to be written.

    A killed process leaves whole lines, but for at most the last; the next one begins on a line of its own.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(content, default=str).encode() + b"\n"
    with target.open("a+b") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)


def read_lines(target: Path) -> list[dict[str, Any]]:
    """What `append_line` wrote, oldest first; lines cut short by a kill are left out."""
    found = []
    for line in target.read_bytes().split(b"\n") if target.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def clear_drafts(folder: Path) -> int:
    """Remove drafts in `folder` whose process no longer lives on this machine; returns how many there were.

    A result that had been put aside for a newer one that did not come takes its name again.
    """
    cleared = 0
    for draft in folder.glob(f".draft-{_host()}-*-*-*"):  # of another host's processes nothing is known here
        _, _, pid, kind, name = draft.name.split("-", 4)
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if kind == OLD and not (folder / name).exists():
            draft.rename(folder / name)
        elif draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
        cleared += 1
    return cleared


def draft_of(target: Path, kind: str) -> Path:
    """Name of a draft beside `target`; `clear_drafts` knows it as this process's."""
    return target.with_name(f".draft-{_host()}-{os.getpid()}-{kind}-{target.name}")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that was killed, and whose end nobody has asked for, still has its number
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


def _sync(path: Path) -> None:
    """Flush files to the disk before the rename that publishes them: a crashed machine must not lose renamed data."""
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    for entry in files:
        with entry.open("r+b") as stream:
            os.fsync(stream.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        for folder in [path, *(entry for entry in path.rglob("*") if entry.is_dir())] if path.is_dir() else []:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
