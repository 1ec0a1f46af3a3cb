"""What a worker is at, told to the run through shared memory: tiles done, and that it is alive at all.

A worker with several tasks at a time has a board for each: a thread that was given one tells on it, all others on the
process's.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

_DONE, _TOTAL, _SIGNS, _BUSY = range(4)

_board: Any = None
_own = threading.local()
_lock = threading.Lock()


def make_board(context: BaseContext) -> Any:
    """Shared numbers of one task at a time: hand it over when the process is made."""
    return context.RawArray("q", 4)


def report_to(board: Any, own: bool = False) -> None:
    """From now on what this process does (`own`: this thread) is told on `board`, from a fresh start; None ends it."""
    global _board
    if own:
        _own.board = board
    else:
        _board = board
    if board is not None:
        board[_DONE] = board[_TOTAL] = board[_BUSY] = 0
        board[_SIGNS] += 1


def _current() -> Any:
    board = getattr(_own, "board", None)
    return _board if board is None else board


def advance(done: int, total: int) -> None:
    """Say that `done` of `total` tiles of the slide at work are done. A sign of life: the deadline counts from here."""
    board = _current()
    if board is not None:
        board[_DONE], board[_TOTAL] = done, total
        board[_SIGNS] += 1


def alive() -> None:
    """A sign of life where no tiles are counted."""
    board = _current()
    if board is not None:
        board[_SIGNS] += 1


@contextmanager
def busy() -> Iterator[None]:
    """The time of this block is not the slide's: the deadline does not run while a model is loaded or computes."""
    board = _current()
    _count_busy(board, 1)
    try:
        yield
    finally:
        _count_busy(board, -1)


def _count_busy(board: Any, change: int) -> None:
    if board is not None:
        with _lock:
            board[_BUSY] += change
            board[_SIGNS] += 1


def tiles_done(board: Any) -> tuple[int, int]:
    """(done, total) of the slide at work, (0, 0) where nothing is counted."""
    return int(board[_DONE]), int(board[_TOTAL])


def signs_of_life(board: Any) -> tuple[int, bool]:
    """(signs so far, whether the worker is in a `busy` block)."""
    return int(board[_SIGNS]), board[_BUSY] > 0
