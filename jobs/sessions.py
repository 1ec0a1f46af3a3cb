"""Who is at work on a run folder: every command that works there is a session, with a sign of life others can see.

A session's file is replaced every few seconds, by whatever file system the folder is on; its time of change is the sign
of life. Ages are differences between times that this one file system gave, so the clocks of hosts do not matter. A
session of the same machine is dead as soon as its process is.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsi.errors import SpecError
from wsi.machine import is_alive, machine_id, process_start
from wsi.publish import fingerprint, write_json

from .config import RunSpec
from .executors import ExecSpec
from .folder import RunFolder, command_line, now
from .interrupt import exit_code

BEATS = 8  # in the time of a lease: some may come late or be lost
_LONGEST_BEAT_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a session works for; sessions of the same `all` share their results.

    all   fingerprint of every setting but how the work is spread
    tile  of those that decide what is in tiles/
    """

    all: str
    tile: str

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        plain = replace(spec, jobs=ExecSpec())
        return cls(fingerprint(plain), fingerprint(spec.tile, spec.patches, spec.coords))


class Session:
    """This process at work on `folder`. As a context manager it says so at its start and at its end.

    each  called as often as there are signs of life, and after the last one, in a thread of its own; an OSError of it
          is logged
    """

    def __init__(
        self,
        folder: RunFolder,
        spec: RunSpec,
        stages: tuple[str, ...] = (),
        each: Callable[["Session"], None] = lambda session: None,
    ):
        self.root, self.lease_s, self.asked = folder.root / "sessions", spec.jobs.lease_s, Asked.of(spec)
        self._each = each
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        self.id = f"{begun[:-3].replace('.', '')}-{machine_id()}-{os.getpid()}"
        self.facts: dict[str, Any] = {
            "session": self.id,
            "host": socket.gethostname(),
            "machine": machine_id(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "command": command_line(),
            "started": now(),
            "ended": None,
            "exit": None,
            "lease_s": self.lease_s,
            "executor": spec.jobs.executor,
            "dashboard": None,
            "halted": None,
            "asked": self.asked.all,
            "tile": self.asked.tile if "tile" in stages else None,
            "stages": {},
            "running": [],
        }
        self._over, self._ended, self._turn = threading.Event(), threading.Event(), threading.Lock()
        # two, as signs of life must not wait for what reads everybody's receipts, nor end with it
        self._threads = [
            threading.Thread(target=work, name="session", daemon=True) for work in (self._live, self._keep_telling)
        ]
        self._beat_at, self._beat_mtime = 0.0, 0.0
        self._seen: dict[str, tuple[float, dict[str, Any]]] = {}  # session → (time of change, what it says)
        self._unread: dict[str, float] = {}  # session → since when its file cannot be read

    @property
    def path(self) -> Path:
        return self.root / f"{self.id}.json"

    def __enter__(self) -> Self:
        self.beat()
        self._refuse_conflict()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._threads[0].join()
        if value is not None:
            self.tell(exit=exit_code(value))
        self.tell(ended=now(), running=[])
        self._try_beat()
        self._ended.set()
        self._threads[1].join()

    def tell(self, **facts: Any) -> None:
        """What the next sign of life says."""
        with self._turn:
            self.facts = {**self.facts, **facts}

    def beat(self) -> None:
        """A sign of life. Raises OSError where nothing can be written."""
        with self._turn:
            facts = self.facts
        write_json(self.path, facts)
        self._note()

    @property
    def is_first(self) -> bool:
        """Whether no older session is at work: one does what needs to be done once."""
        return not any(session < self.id and self.lives(session) for session in self.ids())

    def ids(self) -> list[str]:
        """Of all other sessions that the folder has seen, oldest first."""
        names = sorted(name for name in os.listdir(self.root) if name.endswith(".json") and name[0] != ".")
        return [name.removesuffix(".json") for name in names if name != self.path.name]

    def lives(self, session: str) -> bool:
        """Whether the session is at work: it has not ended, its process is there as far as that can be seen, and its
        last sign of life is not older than its lease."""
        if session == self.id:
            return True
        try:
            facts = self._load(session)
            self._unread.pop(session, None)
        except OSError:  # a network disk that does not answer says nothing of who is at work
            return time.monotonic() - self._unread.setdefault(session, time.monotonic()) <= self.lease_s
        if facts is None or facts.get("ended"):
            return False
        if facts.get("machine") == machine_id() and not is_alive(int(facts["pid"]), str(facts.get("start", ""))):
            return False
        return self.age_s(self._seen[session][0]) <= float(facts.get("lease_s", self.lease_s))

    def age_s(self, changed: float) -> float:
        """Seconds since that time by the clock of the file system."""
        return self._beat_mtime + (time.monotonic() - self._beat_at) - changed

    def read(self, session: str) -> dict[str, Any] | None:
        """What a session says of itself; None where its file is gone, damaged, or cannot be read now."""
        try:
            return self._load(session)
        except OSError:
            return None

    def _load(self, session: str) -> dict[str, Any] | None:
        """The same; raises OSError where it is there and cannot be read."""
        path = self.root / f"{session}.json"
        try:
            with path.open(encoding="utf-8") as file:  # opened, as a network disk then asks its server how it is
                changed = os.fstat(file.fileno()).st_mtime
                known = self._seen.get(session)
                if known is not None and known[0] == changed:
                    return known[1]
                facts = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(facts, dict) or "pid" not in facts:
            return None
        self._seen[session] = changed, facts
        return facts

    @property
    def _pause_s(self) -> float:
        return min(_LONGEST_BEAT_S, self.lease_s / BEATS)

    def _live(self) -> None:
        while not self._over.wait(self._pause_s):
            self._try_beat()

    def _keep_telling(self) -> None:
        while not self._ended.wait(self._pause_s):
            self._do_each()
        self._do_each()

    def _do_each(self) -> None:
        try:
            self._each(self)
        except OSError as error:
            _log.warning("how the run stands could not be written: %s", error)

    def _try_beat(self) -> None:
        try:
            self.beat()
        except OSError as error:
            try:
                os.utime(self.path)  # on a full disk there is no room for a new file, but for a new time there is
                self._note()
            except OSError:
                _log.warning("no sign of life could be given in %s: %s", self.root, error)

    def _note(self) -> None:
        self._beat_at = time.monotonic()
        self._beat_mtime = self.path.stat().st_mtime

    def _refuse_conflict(self) -> None:
        """Two sessions that cut the same slides in two ways would each undo what the other did."""
        for session in self.ids() if self.facts["tile"] else ():
            facts = self.read(session)
            if facts is not None and facts.get("tile") not in (None, self.asked.tile) and self.lives(session):
                self.path.unlink(missing_ok=True)
                who = f"process {facts['pid']} on {facts['host']} is at work there since {facts['started']}"
                raise SpecError(
                    self.root.parent,
                    f"{who}, and tiles the slides in another way ({facts['command']})",
                    "wait for it, give the same settings to share its work, or give another --out",
                )
