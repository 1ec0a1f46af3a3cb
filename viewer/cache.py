"""Answers kept in memory, at most so many bytes, the longest unused first to go."""

from collections import OrderedDict
from collections.abc import Hashable


class ByteCache:
    """Used in the server's event loop only. limit_bytes: of what is kept; an answer of more than a quarter is not."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, content: bytes) -> None:
        if len(content) > self.limit_bytes // 4:
            return
        old = self._kept.pop(key, None)
        self.bytes += len(content) - (0 if old is None else len(old))
        self._kept[key] = content
        while self.bytes > self.limit_bytes:
            self.bytes -= len(self._kept.popitem(last=False)[1])
