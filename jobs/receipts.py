"""What became of each slide at each stage: one JSON line each, appended, never rewritten."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from wsi.publish import append_line, read_lines

DONE, EMPTY, SKIPPED, FAILED = "done", "empty", "skipped", "failed"
STATUSES = (DONE, EMPTY, SKIPPED, FAILED)


@dataclass(frozen=True, slots=True)
class Receipt:
    """slide_id, stage and what came of it.

    status        done; empty: the slide has no tissue, a finished state; skipped: already there; failed
    seconds       wall time
    fingerprint   of what was made or found
    tiles         tiles of the slide; failed_tiles: those that could not be read
    problem       of a failed slide, or why it is empty, one clause
    remedy        what to do; trace: where it happened, for the maintainers
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
    """All receipts of a stage, oldest first; a line cut short by a kill is left out, as are fields not known here."""
    known = {field.name for field in fields(Receipt)}
    lines = [{key: value for key, value in line.items() if key in known} for line in read_lines(path)]
    return [Receipt(**line) for line in lines if {"slide_id", "stage", "status"} <= line.keys()]


def latest(receipts: list[Receipt]) -> dict[str, Receipt]:
    """The last receipt of each slide."""
    return {receipt.slide_id: receipt for receipt in receipts}
