"""What is said to the person at the browser where there is no answer."""

import re
from dataclasses import dataclass

# from a root to the last slash or dot before the clause's end: names of folders and files hold spaces and commas
_PATH = re.compile(r"(?:(?<![\w.])(?:[A-Za-z]:)?[/\\]|\w+://)(?:(?:[^'\";:\n]|:(?=\S))*[/\\.])?[^\s'\",;:()]*")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no answer. status: of HTTP; detail: a sentence without places on this machine."""

    status: int
    title: str
    detail: str


def without_paths(words: str) -> str:
    """A sentence without the folders and files that it names: a file's name may be a patient's."""
    return _PATH.sub("(a file)", words)
