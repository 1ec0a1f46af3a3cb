"""What a reader answers when asked whether it takes a file."""

from typing import NamedTuple


class Match(NamedTuple):
    """takes: the reader can read this file; why: a clause for `SlideInfo.why`, or the reason for declining."""

    takes: bool
    why: str
