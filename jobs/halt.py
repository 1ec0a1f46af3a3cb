"""What ends a run early, with its slides left as they are: where more of it would fail for the same reason."""

import logging
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi.source import is_url

from .attempt import explain_os_error
from .lines import Line
from .manifest import SlideRecord
from .receipts import FAILED, FULL, IO, MISSING, TIMEOUT, Receipt

IN_A_ROW = 5  # slides that cannot be reached, before it is the disk that is asked about and not the slides
ALIKE = 20  # slides in a row that fail for one reason, before that is said aloud
_log = logging.getLogger(__name__)
_PROBES, _PROBE_S = 3, 5.0


@dataclass
class Halt:
    """Judges failures as they come.

    why           what ended the run, None while it goes on; remedy: what to do
    warning       what should be said aloud, once
    max_failures  of slides, after which it ends; None for never
    """

    max_failures: int | None = None
    why: str | None = None
    remedy: str = ""
    warning: str | None = None
    _lost: int = 0
    _failed: int = 0
    _alike: tuple[str, int] = ("", 0)

    def stop(self, why: str, remedy: str) -> None:
        if self.why is None:
            self.why, self.remedy = why, remedy

    def stop_for(self, error: OSError) -> None:
        """The run's own books cannot be kept."""
        problem, remedy, _ = explain_os_error(error)
        self.stop(problem, remedy)

    def judge(self, receipt: Receipt, record: SlideRecord, lines: Sequence[Line]) -> None:
        """Learn of one more slide."""
        if receipt.status != FAILED:
            self._lost, self._alike = 0, ("", 0)
            return
        self._failed += 1
        if receipt.cause == FULL:
            self.stop(receipt.problem, receipt.remedy)
        self._lost = self._lost + 1 if receipt.cause in (IO, MISSING, TIMEOUT) else 0
        if self._lost >= IN_A_ROW and not _others_are_there(record, lines[0]):
            problem = f"the slides cannot be reached: {self._lost} in a row, the last {receipt.problem}"
            self.stop(problem, f"see that the disk of {_place(record)} is mounted and answers, then run again")
        self._count_alike(receipt)
        if self.max_failures is not None and self._failed > self.max_failures:
            self.stop(
                f"{self._failed} slides failed, more than max_failures allows", "mend their cause, then run again"
            )

    def _count_alike(self, receipt: Receipt) -> None:
        reason = _reason(receipt)
        self._alike = (reason, self._alike[1] + 1) if reason == self._alike[0] else (reason, 1)
        if self._alike[1] == ALIKE:
            self.warning = f"{ALIKE} slides in a row failed for one reason: {receipt.problem}"
            _log.warning("%s", self.warning)


def _reason(receipt: Receipt) -> str:
    """What failed, without the numbers and names that differ between slides."""
    return receipt.cause or receipt.problem.partition(":")[0].partition("(")[0]


def _place(record: SlideRecord) -> str:
    return str(record.path) if is_url(record.path) else str(Path(record.path).parent)


def _others_are_there(record: SlideRecord, line: Line) -> bool:
    """Whether one of some other slides can be found, of those to come or else of those that did not fail: then what
    cannot be reached is gone, and the disk is not."""
    others = [line.records[unit.slide_id] for unit in list(line.waiting)[:1000]]
    if not others:
        failed = {slide_id for slide_id, receipt in line.receipts.items() if receipt.status == FAILED}
        others = [one for slide_id, one in line.records.items() if slide_id not in failed and one is not record]
    few = random.Random(record.slide_id).sample(others, min(_PROBES, len(others)))
    found: list[SlideRecord] = []

    def look() -> None:  # in a thread of its own: a mount that hangs does not answer this either
        found.extend(other for other in few if not is_url(other.path) and os.path.exists(other.path))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_PROBE_S)
    return bool(found)
