"""Bytes of a slide file by place, wherever the file lies: readers know nothing of disks and networks.

A slide is named by a Path, or by a URL as a str: `Path` would make one slash of its two.
"""

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote

_USER_INFO = re.compile(r"(://)[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?#]*)[?#][^\s'\")]*")


class ByteSource(Protocol):
    """An open file that is read by place. Reads are thread-safe.

    name  a path, or the URL as given; size in bytes
    """

    name: Path | str
    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; fewer where the file ends."""
        ...

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Say that these ranges (offset, count) will be read next: a remote source fetches them in few requests."""
        ...

    def close(self) -> None: ...


class _Descriptor:
    """An open file; closed when nothing refers to it any more, so not under a read that is at work in a thread."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class LocalFile:
    """A file on this machine or a mounted disk."""

    def __init__(self, path: Path):
        self.name: Path | str = path
        self._descriptor: _Descriptor | None = _Descriptor(path)
        self.size = os.fstat(self._descriptor.number).st_size
        self._turn = threading.Lock()  # only where the system has no read at an offset

    def read_at(self, offset: int, count: int) -> bytes:
        descriptor = self._descriptor
        if descriptor is None:
            raise ValueError(f"{self.name}: the slide is closed")
        if hasattr(os, "pread"):
            return os.pread(descriptor.number, count, offset)
        with self._turn:  # Windows
            os.lseek(descriptor.number, offset, os.SEEK_SET)
            return os.read(descriptor.number, count)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: the system's page cache reads ahead."""

    def close(self) -> None:
        self._descriptor = None


def open_source(path: Path | str) -> ByteSource:
    """Open a file for reading by place; `path` is on this machine, or a URL that fsspec knows.

    Raises OSError for a local file; for a URL SlideError (it is not there, not allowed, or cannot be read in parts) or
    RemoteError (its store does not answer).
    """
    if not is_url(path):
        return LocalFile(Path(path))
    from .remote import open_remote

    return open_remote(str(path))


def is_url(path: Path | str) -> bool:
    return isinstance(path, str) and "://" in path


def place_of(text: Path | str) -> Path | str:
    """What a user wrote, as slides are named: a URL stays text, all else is a Path."""
    return text if is_url(text) else Path(text)


def name_of(path: Path | str) -> str:
    """File name, without folders, host and query: s3://bucket/a/b.svs → b.svs."""
    if isinstance(path, Path) or not is_url(path):
        return Path(path).name
    location = path.partition("::")[0].partition("://")[2]
    return unquote(PurePosixPath(re.split(r"[?#]", location)[0]).name)


def shown(path: Path | str) -> str:
    """A place as messages and records may show it: a URL without user, password and query, which hold secrets.

    Takes a whole message, too.
    """
    return _QUERY.sub(r"\1?…", _USER_INFO.sub(r"\1", str(path)))
