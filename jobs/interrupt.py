"""Ctrl-C that is not lost: what is raised while a library is imported, or in a destructor, may be swallowed.

A batch system that wants its node back sends SIGTERM, and some seconds later SIGKILL: it is heeded as Ctrl-C is.
"""

import os
import signal
from types import FrameType

_asked: type[KeyboardInterrupt] | None = None
_times = 0
_terminated = False


class Terminated(KeyboardInterrupt):
    """Somebody asked this process to end."""


def exit_code(error: BaseException) -> int:
    """Of a command that this ended, as shells expect it."""
    if isinstance(error, Terminated):
        return 143
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked, _times, _terminated
    _times += 1
    _terminated = _terminated or number == signal.SIGTERM
    if _times > 1 and number == signal.SIGINT:
        os._exit(130)  # who asks twice does not want to wait for what is tidied up
    _asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    raise _asked


def was_terminated() -> bool:
    """Whether this process was asked to end, by other means than Ctrl-C, since it listens."""
    return _terminated


def listen() -> None:
    """From now on remember an interrupt, beside raising it where the program is. For a command's main thread."""
    global _asked, _times, _terminated
    _asked, _times, _terminated = None, 0, False
    signal.signal(signal.SIGINT, _ask)
    signal.signal(signal.SIGTERM, _ask)


def heed() -> None:
    """Raise what was asked for, if anything was, whatever became of it then."""
    global _asked
    asked, _asked = _asked, None
    if asked is not None:
        raise asked
