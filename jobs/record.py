"""What a run knows and says of its slides: receipts, its own and others', and claims."""

import os
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from wsi.publish import fingerprint
from wsi.source import is_url

from .claims import Claims
from .config import RunSpec
from .folder import RunFolder, now
from .last_words import Death
from .manifest import SlideRecord
from .outcome import Unit
from .peers import Peers
from .receipts import (
    CRASH,
    FAILED,
    FULL,
    IO,
    KILLED,
    MEMORY,
    MISSING,
    Receipt,
    append_receipt,
    latest,
    read_receipts,
)
from .sessions import Session

_LASTING = (CRASH, MEMORY)  # what happens again to the same slide, and costs a process each time

_LOCAL = (FULL, IO, KILLED, MISSING)  # what may be so on one machine only


@dataclass
class Record:
    """The books of one session."""

    spec: RunSpec
    folder: RunFolder
    session: Session
    claims: Claims
    peers: Peers
    _past: dict[str, dict[str, Receipt]] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, spec: RunSpec, folder: RunFolder) -> "Record":
        return cls(spec, folder, session, Claims(folder.root / "claims", session), Peers(folder, session))

    def append(self, receipt: Receipt) -> None:
        append_receipt(self.folder.receipts(receipt.stage), receipt, self.session.id)

    def known(self, stage: str, record: SlideRecord) -> Receipt | None:
        """What is known of the slide without trying: a peer did it, or it would only crash or fill the memory
        again as it did in an earlier run.

        Of a slide whose bag has others in it, what a peer made is looked at: it may have lacked one that is there now.
        """
        found = self.peers.receipt(stage, record.slide_id)
        if found is not None and not (found.cause in _LOCAL if found.status == FAILED else record.others):
            return found
        past = self._lasting(stage).get(record.slide_id)
        if past is None or past.mark != self._mark(record):
            return None
        return replace(past, remedy=f"{past.remedy}; not tried again as nothing changed, but with --retry-failed")

    def post_mortem(self, unit: Unit, record: SlideRecord, death: Death) -> Receipt:
        """Of a unit whose worker died twice."""
        return Receipt(
            unit.slide_id,
            unit.stage,
            FAILED,
            death.seconds,
            problem=f"{death.problem} (also when tried again alone)",
            remedy=death.remedy,
            trace=death.trace,
            finished=now(),
            part=unit.part,
            cause=death.cause,
            mark=self._mark(record),
        )

    def _lasting(self, stage: str) -> dict[str, Receipt]:
        if stage not in self._past:
            past = {} if self.spec.jobs.retry_failed else latest(read_receipts(self.folder.receipts(stage)))
            lasting = {
                key: one for key, one in past.items() if one.status == FAILED and one.cause in _LASTING and one.mark
            }
            self._past[stage] = lasting
        return self._past[stage]

    def _mark(self, record: SlideRecord) -> str:
        """Of what may make another try end otherwise: the slide's file, what a worker may take, and the version."""
        jobs = self.spec.jobs
        try:
            status = None if is_url(record.path) else os.stat(record.path)
        except OSError:
            status = None
        file = None if status is None else (status.st_size, status.st_mtime_ns)
        return fingerprint(file, jobs.deadline_s, jobs.memory_mib, self.session.asked.all, version("slidestream"))
