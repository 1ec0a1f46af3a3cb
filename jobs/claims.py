"""Claims on units of work: of all sessions on a run folder, one at a time is at a unit.

A claim is the file claims/<stage>/<unit>~<number> with the session's id in it. It holds for as long as the session
lives. Where it does not, another session makes the file of the next number: files are only ever made where there was
none, which every file system does for one process only, and the highest number counts. No clock and no lock is needed.

A file is made by a hard link to one that has the content already: atomic on NFS since its second version. Where there
are no hard links it is created exclusively and then written; between the two it is somebody's, for as long as a lease.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from .outcome import Unit
from .sessions import Session

_UNSAID = ""  # what is in a claim's file that was made but not yet written


@dataclass
class Claims:
    """The claims of one session.

    root  the folder claims/ of the run
    """

    root: Path
    session: Session
    _mine: dict[Unit, Path] = field(default_factory=dict)
    _ready: set[Path] = field(default_factory=set)
    _links: bool = True

    @property
    def _token(self) -> Path:
        return self.root / f".{self.session.id}"

    def take(self, unit: Unit) -> str | None:
        """Claim the unit: None where it is this session's now, else the id of the session that is at it, "" where that
        is about to say who it is."""
        if unit in self._mine:
            return None
        folder = self._prepare(unit.stage)
        number, before = 0, None
        while True:
            path = folder / f"{unit.name}~{number}"
            if self._make(path):
                if before is not None and _holder(before[0]) != before[1]:
                    path.unlink()  # the file below was taken away meanwhile: whoever comes now begins with it again
                    number, before = 0, None
                    continue
                self._mine[unit] = path
                return None
            holder = _holder(path)
            if holder == self.session.id:  # made by a call whose answer was lost on the network
                self._mine[unit] = path
                return None
            if holder is None:  # it was given up just now
                number, before = 0, None
                continue
            if self.session.lives(holder) if holder != _UNSAID else self._is_young(path):
                return holder
            number, before = number + 1, (path, holder)

    def taken(self, stage: str) -> set[str]:
        """Names of the units of a stage that any session has claimed, living or dead; on a network disk as they were
        up to a minute ago."""
        try:
            names = os.listdir(self.root / stage)
        except FileNotFoundError:
            return set()
        return {name.rpartition("~")[0] for name in names}

    def free(self, unit: Unit) -> None:
        """Give the unit up: it is done, or will not be done here."""
        path = self._mine.pop(unit, None)
        if path is None:
            return
        name, _, number = path.name.rpartition("~")
        for below in range(int(number) + 1):  # the lowest first: who comes then sees this one or begins with the first
            (path.parent / f"{name}~{below}").unlink(missing_ok=True)

    def free_all(self) -> None:
        for unit in list(self._mine):
            self.free(unit)
        self._token.unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away what sessions left here that are no more; each claim is taken first, as by who wants the unit."""
        for token in self.root.glob(".*"):
            if not self.session.lives(token.name[1:]):
                token.unlink(missing_ok=True)
        for path in self.root.glob("*/*~*"):
            slide_id, _, part = path.name.rpartition("~")[0].partition("+")
            unit = Unit(path.parent.name, slide_id, int(part) if part else None)
            if unit not in self._mine and self.take(unit) is None:
                self.free(unit)

    def _prepare(self, stage: str) -> Path:
        folder = self.root / stage
        if folder not in self._ready:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._ready:  # once: every claim is a link to it, and would be empty while it is written again
                self._token.write_text(self.session.id, encoding="utf-8")
            self._ready.add(folder)
        return folder

    def _make(self, path: Path) -> bool:
        """Make the claim's file; False where it is there already."""
        if self._links:
            try:
                os.link(self._token, path)
                return True
            except FileExistsError:
                return False
            except OSError:  # no hard links here, or too many of this file: the other way shows what else is wrong
                self._links = False
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self.session.id)
        except OSError:  # a full disk: a claim that says nothing would keep others waiting
            path.unlink(missing_ok=True)
            raise
        return True

    def _is_young(self, path: Path) -> bool:
        try:
            return self.session.age_s(path.stat().st_mtime) <= self.session.lease_s
        except FileNotFoundError:
            return True  # it was given up just now: the next look begins anew


def _holder(path: Path) -> str | None:
    """Id of the session in a claim's file, None where the file is gone."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
