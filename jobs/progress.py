"""How many tiles of a slide are done, told across processes through small files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from wsi.publish import draft_of

_counter: Path | None = None


def count_into(path: Path | None) -> None:
    """From now on `advance` in this process writes to `path`; None ends it and removes the file."""
    global _counter
    if path is None and _counter is not None:
        _counter.unlink(missing_ok=True)
    _counter = path


def advance(done: int, total: int) -> None:
    """Say that `done` of `total` tiles of the slide at work are done."""
    if _counter is not None:
        _counter.write_text(f"{done} {total}")


@contextmanager
def counters(run: Path) -> Iterator[Path]:
    """A folder for the counters of one stage: a draft in the run folder, so that the next run clears a killed one's."""
    folder = draft_of(run / "progress", uuid4().hex[:6])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_counters(folder: Path) -> dict[str, tuple[int, int]]:
    """slide_id → (done, total) of the slides at work."""
    found = {}
    for entry in folder.iterdir():
        try:
            words = entry.read_text().split()
        except FileNotFoundError:  # finished between the listing and the look
            continue
        if len(words) == 2:
            found[entry.name] = (int(words[0]), int(words[1]))
    return found
