"""A ByteSource for libraries that read from an open file."""

import io
from typing import Any

from ..errors import EngineError
from ..source import ByteSource


class SourceReader(io.RawIOBase):
    """A ByteSource as an open file, for libraries that read from one; one user at a time.

    fault  the first error of the source: a lenient library takes it for the end of the file and goes on
    """

    def __init__(self, source: ByteSource):
        self._source, self._at = source, 0
        self.fault: EngineError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read_at(self._at, memoryview(buffer).nbytes)
        except EngineError as error:
            self.fault = self.fault or error
            raise
        memoryview(buffer).cast("B")[: len(data)] = data
        self._at += len(data)
        return len(data)

    def check(self) -> None:
        """Raises what the source raised, if a library has swallowed it."""
        if self.fault is not None:
            raise self.fault
