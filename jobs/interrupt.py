"""Ctrl-C that is not lost: what is raised while a library is imported, or in a destructor, may be swallowed."""

import signal
from types import FrameType

_asked = False


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def listen() -> None:
    """From now on remember an interrupt, beside raising it where the program is. For a command's main thread."""
    global _asked
    _asked = False
    signal.signal(signal.SIGINT, _ask)


def heed() -> None:
    """Raise KeyboardInterrupt if there was one, whatever became of it then."""
    global _asked
    if _asked:
        _asked = False
        raise KeyboardInterrupt
