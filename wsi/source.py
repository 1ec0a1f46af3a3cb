"""Bytes of a slide file by place, wherever the file lies: readers know nothing of disks and networks."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


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


class LocalFile:
    """A file on this machine or a mounted disk."""

    def __init__(self, path: Path):
        self.name: Path | str = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._descriptor).st_size
        self._turn = threading.Lock()  # only where the system has no read at an offset

    def read_at(self, offset: int, count: int) -> bytes:
        if self._descriptor < 0:
            raise ValueError(f"{self.name}: the slide is closed")
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._turn:  # Windows
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: the system's page cache reads ahead."""

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def open_source(path: Path | str) -> ByteSource:
    """Open a file for reading by place."""
    return LocalFile(Path(path))
