"""What a worker is at, told to the run through shared memory: tiles done, and that it is alive at all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

_DONE, _TOTAL, _SIGNS, _BUSY = range(4)

_board: Any = None
_lock = threading.Lock()


def make_board(context: BaseContext) -> Any:
    """Shared numbers of one worker: hand it over when the process is made."""
    return context.RawArray("q", 4)


def report_to(board: Any) -> None:
    """From now on what this process does is told on `board`, from a fresh start; None ends it."""
    global _board
    _board = board
    if board is not None:
        board[_DONE] = board[_TOTAL] = board[_BUSY] = 0
        board[_SIGNS] += 1


def advance(done: int, total: int) -> None:
    """Say that `done` of `total` tiles of the slide at work are done. A sign of life: the deadline counts from here."""
    if _board is not None:
        _board[_DONE], _board[_TOTAL] = done, total
        _board[_SIGNS] += 1


def alive() -> None:
    """A sign of life where no tiles are counted."""
    if _board is not None:
        _board[_SIGNS] += 1


@contextmanager
def busy() -> Iterator[None]:
    """The time of this block is not the slide's: the deadline does not run while a model is loaded or computes."""
    begin_busy()
    try:
        yield
    finally:
        end_busy()


def begin_busy() -> None:
    """As entering `busy`; any number of threads may be in it."""
    if _board is not None:
        with _lock:
            _board[_BUSY] += 1


def end_busy() -> None:
    """As leaving `busy`."""
    if _board is not None:
        with _lock:
            _board[_BUSY] -= 1
            _board[_SIGNS] += 1


def tiles_done(board: Any) -> tuple[int, int]:
    """(done, total) of the slide at work, (0, 0) where nothing is counted."""
    return int(board[_DONE]), int(board[_TOTAL])


def signs_of_life(board: Any) -> tuple[int, bool]:
    """(signs so far, whether the worker is in a `busy` block)."""
    return int(board[_SIGNS]), board[_BUSY] > 0
