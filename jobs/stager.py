"""The next slides are copied to a local disk while others are read."""

import threading
from collections import deque
from dataclasses import dataclass

from .manifest import SlideRecord
from .staging import Hold, NoRoomError, SlideCache

_END_S = 10.0
_RETRY_S = 1.0  # for room that another process frees, of which nobody tells


@dataclass
class _Wanted:
    """A slide that is to be read soon or is being read.

    units    that want it and have not released it; taken: one of them has begun
    settled  it can be read, from the copy or where it lies
    """

    record: SlideRecord
    hold: Hold | None = None
    settled: bool = False
    units: int = 0
    taken: bool = False


class Stager:
    """Copies slides in the order in which they are wanted, so that at most `ahead` copies wait to be read.

    All methods return at once, and may be called from any thread. As a context manager it ends its threads and frees
    what it holds; with `keep` copies stay for the next command, else those that nobody uses are removed.
    """

    def __init__(self, cache: SlideCache, ahead: int = 4, threads: int = 2, keep: bool = False):
        self.cache, self._ahead, self._keep = cache, ahead, keep
        self._wanted: dict[str, _Wanted] = {}
        self._queue: deque[_Wanted] = deque()
        self._copying = 0
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="stage", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def want(self, record: SlideRecord) -> None:
        """Say that a unit of work will read the slide: it is copied when its turn comes. Needs its `release`."""
        with self._changed:
            wanted = self._wanted.get(record.slide_id)
            if wanted is None:
                wanted = self._wanted[record.slide_id] = _Wanted(record)
                self._queue.append(wanted)
                self._changed.notify_all()
            wanted.units += 1

    def ready(self, record: SlideRecord) -> bool:
        """Whether it need not be waited for: its copy is there, or there will be none."""
        with self._changed:
            wanted = self._wanted.get(record.slide_id)
            return wanted is None or wanted.settled or not any(thread.is_alive() for thread in self._threads)

    def take(self, record: SlideRecord) -> SlideRecord:
        """The record that a unit that wanted it is to read from: of the copy, or where there is none, the same."""
        with self._changed:
            wanted = self._wanted.get(record.slide_id)
            if wanted is None or not wanted.settled:  # nobody waited for it
                units = 1 if wanted is None else wanted.units
                wanted = self._wanted[record.slide_id] = _Wanted(record, settled=True, units=units)
            wanted.taken = True
            self._changed.notify_all()
            return record if wanted.hold is None else wanted.hold.record

    def release(self, record: SlideRecord) -> None:
        """Say that a unit that wanted the slide has read it, or will not; after the last one its copy may go."""
        with self._changed:
            wanted = self._wanted.get(record.slide_id)
            if wanted is None:
                return
            wanted.units -= 1
            if wanted.units <= 0:
                del self._wanted[record.slide_id]
                if wanted.hold is not None:
                    wanted.hold.release()
            self._changed.notify_all()

    def close(self) -> None:
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_END_S)  # a file system that does not answer is not waited for
        with self._changed:
            for wanted in self._wanted.values():
                if wanted.hold is not None:
                    wanted.hold.release()
            self._wanted.clear()
            self._queue.clear()
        if not self._keep:
            self.cache.clear()

    def __enter__(self) -> "Stager":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while (wanted := self._next()) is not None:
            hold, settled = None, True  # also should what is below raise: the slide is not to be waited for
            try:
                hold, settled = self._hold(wanted)
            finally:
                self._settle(wanted, hold, settled)

    def _settle(self, wanted: _Wanted, hold: Hold | None, settled: bool) -> None:
        with self._changed:
            self._copying -= 1
            if self._wanted.get(wanted.record.slide_id) is not wanted:  # released, or taken as it was, meanwhile
                if hold is not None:
                    hold.release()
            elif settled:
                wanted.hold, wanted.settled = hold, True
            else:
                self._queue.appendleft(wanted)
                self._changed.wait(_RETRY_S)
            self._changed.notify_all()

    def _hold(self, wanted: _Wanted) -> tuple[Hold | None, bool]:
        """(its copy, whether that is settled): without room it waits for slides of ours that are read to their end."""

        def stopped() -> bool:
            return self._ended.is_set() or self._wanted.get(wanted.record.slide_id) is not wanted

        try:
            return self.cache.hold(wanted.record, stopped), True
        except NoRoomError:
            with self._changed:
                others = self._copying > 1 or any(one.hold is not None for one in self._wanted.values())
            if not others:
                self.cache.say("no room", f"{self.cache.folder} is full of slides that others read, or of other files")
            return None, not others

    def _next(self) -> _Wanted | None:
        """The next slide to copy, once so few copies wait that it may be; None at the end."""
        with self._changed:
            while not self._ended.is_set():
                waiting = sum(one.hold is not None and not one.taken for one in self._wanted.values())
                while self._queue and self._wanted.get(self._queue[0].record.slide_id) is not self._queue[0]:
                    self._queue.popleft()
                if self._queue and waiting + self._copying < self._ahead:
                    self._copying += 1
                    return self._queue.popleft()
                self._changed.wait()
            return None
