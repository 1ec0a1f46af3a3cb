"""What other sessions did meanwhile: a slide that is done, or has failed, elsewhere is not tried here as well."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folder import RunFolder
from .receipts import FAILED, Receipt, parse_receipts
from .sessions import Session

_PAUSE_S = 1.0
_FEW = 8  # sessions, that can be asked before each unit


@dataclass
class Peers:
    """Receipts of the sessions that work for the same as this one at the same time.

    What was done before this one began is not taken from receipts: the stages look at what is there, as it may have
    been put aside since. What living sessions failed at is, so that it is not tried by each that comes.
    """

    folder: RunFolder
    session: Session
    _known: dict[str, dict[str, Receipt]] = field(default_factory=dict)  # stage → slide_id → its receipt
    _read: dict[tuple[str, str], int] = field(default_factory=dict)  # (stage, session) → bytes read
    _met: dict[str, bool] | None = None  # session → whether it is a peer
    _before: dict[Path, int] = field(default_factory=dict)  # file of receipts → bytes there when this session began
    _looked: dict[str, float] = field(default_factory=dict)

    def receipt(self, stage: str, slide_id: str) -> Receipt | None:
        return self._known.get(stage, {}).get(slide_id)

    @property
    def are_few(self) -> bool:
        """Whether all can be asked before each unit; else one that failed there a moment ago may be tried here, too."""
        return sum((self._met or {}).values()) <= _FEW

    def look(self, stage: str, now: bool = False) -> None:
        """Read what is new: not more often than once a second unless `now`, and less often where sessions are many."""
        since = time.monotonic() - self._looked.get(stage, float("-inf"))
        if not now and since < _PAUSE_S * (1 + len(self._met or ()) / 16):
            return
        self._looked[stage] = time.monotonic()
        known = self._known.setdefault(stage, {})
        for session in self._peers():
            for receipt in self._news(stage, session):
                known[receipt.slide_id] = receipt

    def _peers(self) -> list[str]:
        """Sessions that lived when this one looked first, and all that came later."""
        first = self._met is None
        met = self._met = self._met or {}
        for session in self.session.ids():
            facts = None if session in met else self.session.read(session)
            if facts is not None:
                same = facts.get("asked") == self.session.asked.all
                met[session] = same and (not first or self.session.lives(session))
                if first and met[session]:
                    files = self.folder.receipts("*").parent.glob(f"*.{session}.jsonl")
                    self._before |= {path: path.stat().st_size for path in files}
        return [session for session, is_peer in met.items() if is_peer]

    def _news(self, stage: str, session: str) -> list[Receipt]:
        path = self.folder.receipts(stage).with_suffix(f".{session}.jsonl")
        start = self._read.get((stage, session), 0)
        try:
            with path.open("rb") as file:
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read[stage, session] = start + len(whole)
        old = max(0, self._before.get(path, 0) - start)
        failed = [receipt for receipt in parse_receipts(list(_objects(whole[:old]))) if receipt.status == FAILED]
        return [one for one in (*failed, *parse_receipts(list(_objects(whole[old:])))) if one.part is None]


def _objects(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(found, dict):
            yield found
