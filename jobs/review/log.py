"""The log of reviews: a file for each writer, appended to and never rewritten.

review/log/<session>.jsonl holds a JSON object a line, each with a checksum. An event is on the disk before its reviewer
is answered, so that a process killed at any moment loses nothing that it had confirmed. Writers on several machines do
not share a file, as two hosts that append to one file on a network disk lose lines.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from wsi.errors import StoreError
from wsi.machine import machine_id
from wsi.publish import append_line, line_fits

from .event import Event

_MAX_AHEAD = timedelta(days=1)  # that a time of another machine is believed to be ahead of ours


@dataclass
class _Read:
    """What was read of a file: its bytes to the end of the last whole line, and how many lines could not be used."""

    inode: int
    end: int = 0
    lines: int = 0
    damaged: list[int] = field(default_factory=list)


class ReviewLog:
    """The events in `folder`, those of other writers too. Not for several threads at once."""

    def __init__(self, folder: Path):
        self.folder = folder
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
        self.session = f"{begun}-{machine_id()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._read: dict[str, _Read] = {}
        self._written = 0
        self._newest = ""

    def fetch(self) -> tuple[list[Event], bool]:
        """(events that were not given before, whether they are all: a file was changed, and all are read again)."""
        places = {path.name: path for path in self._files()}
        again = any(name not in places or self._is_another(places[name], read) for name, read in self._read.items())
        if again:
            self._read.clear()
        found = [event for path in places.values() for event in self._tail(path)]
        self._newest = max([self._newest, *(event.time for event in found)])
        return found, again

    def append(self, event: Event) -> Event:
        """Keep an event, with its time and writer; it is on the disk when this returns. StoreError where it is not."""
        kept = replace(event, time=self._time(), session=self.session, number=self._written + 1)
        try:
            append_line(self.folder / f"{self.session}.jsonl", kept.as_dict(), checked=True, flush=True)
        except OSError as error:
            problem = f"the review could not be kept ({error.strerror or error})"
            raise StoreError(self.folder, problem, "make room there, or make it writable, and try again") from error
        self._written += 1
        self._newest = kept.time
        return kept

    def damaged(self) -> dict[Path, list[int]]:
        """Numbers of the lines, from 1, that are not as they were written, by file."""
        return {self.folder / name: read.damaged for name, read in self._read.items() if read.damaged}

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".jsonl")
        except FileNotFoundError:
            return []

    def _is_another(self, path: Path, read: _Read) -> bool:
        known = path.stat()
        return known.st_ino != read.inode or known.st_size < read.end

    def _tail(self, path: Path) -> Iterator[Event]:
        """Events of the whole lines that were written since the last look; one that is being written waits."""
        with path.open("rb") as stream:
            known = os.fstat(stream.fileno())
            read = self._read.setdefault(path.name, _Read(known.st_ino))
            if known.st_size == read.end:
                return
            stream.seek(read.end)
            text = stream.read()
        whole, _, _ = text.rpartition(b"\n")
        if not whole and not text.startswith(b"\n"):
            return
        read.end += len(whole) + 1
        for line in whole.split(b"\n"):
            read.lines += 1
            event = Event.from_dict(json.loads(line)) if line and line_fits(line) else None
            if event is not None:
                yield event
            elif line:
                read.damaged.append(read.lines)

    def _time(self) -> str:
        """Now, or just after the newest event that is known, where the clock of its writer is ahead."""
        time = datetime.now(UTC)
        if self._newest and (newest := datetime.fromisoformat(self._newest)) >= time and newest - time < _MAX_AHEAD:
            time = newest + timedelta(microseconds=1)
        return time.isoformat(timespec="microseconds")
