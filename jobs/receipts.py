"""What became of each slide at each stage: one JSON line each, appended, never rewritten."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from wsi.publish import append_line

DONE, EMPTY, SKIPPED, FAILED = "done", "empty", "skipped", "failed"
STATUSES = (DONE, EMPTY, SKIPPED, FAILED)


@dataclass(frozen=True, slots=True)
class Receipt:
    """slide_id, stage and what came of it.

    status        done; empty: the slide has no tissue, a finished state; skipped: already there; failed
    seconds       wall time
    fingerprint   of what was made or found
    tiles         tiles of the slide; failed_tiles: those that could not be read
    problem       of a failed slide, one clause; remedy: what to do; trace: where it happened, for the maintainers
    finished      UTC time, ISO 8601
    """

    slide_id: str
    stage: str
    status: str
    seconds: float = 0.0
    fingerprint: str = ""
    tiles: int = 0
    failed_tiles: int = 0
    problem: str = ""
    remedy: str = ""
    trace: str = ""
    finished: str = ""


def append_receipt(path: Path, receipt: Receipt) -> None:
    append_line(path, asdict(receipt))


def read_receipts(path: Path) -> list[Receipt]:
    """All receipts of a stage, oldest first; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    receipts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):
            receipts.append(Receipt(**json.loads(line)))
    return receipts


def latest(receipts: list[Receipt]) -> dict[str, Receipt]:
    """The last receipt of each slide."""
    return {receipt.slide_id: receipt for receipt in receipts}
