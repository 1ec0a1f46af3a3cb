"""What became of each slide at each stage: one JSON line each, appended, never rewritten.

Every session appends to a file of its own, receipts/<stage>.<session>.jsonl: two hosts that append to one file on a
network disk lose lines. Who reads receipts/<stage>.jsonl gets those of all sessions.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wsi.publish import append_line, read_lines

DONE, EMPTY, SKIPPED, FAILED = "done", "empty", "skipped", "failed"
STATUSES = (DONE, EMPTY, SKIPPED, FAILED)
# causes of failures that are looked at by programs, too; of others only the problem in words is kept
FULL, IO, MISSING, TIMEOUT, MEMORY, CRASH, KILLED = "full", "io", "missing", "timeout", "memory", "crash", "killed"


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
    part          number of the part that this is of, None where it is of the slide: parts are no slides
    cause         of a failure: full, io, missing, timeout, memory, crash, killed, or "" for others
    worker        host/process that did it
    mark          of a failure that is not tried again unless this changes: the slide's file, the limits, the version
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
    part: int | None = None
    cause: str = ""
    worker: str = ""
    mark: str = ""


def append_receipt(path: Path, receipt: Receipt, session: str = "") -> None:
    """Append to the stage's receipts at `path`: to the file beside it that is the session's, where there is one."""
    append_line(path.with_suffix(f".{session}.jsonl") if session else path, asdict(receipt), checked=True)


def read_receipts(path: Path, parts: bool = False) -> list[Receipt]:
    """All receipts of a stage, of all sessions, oldest first; those of parts only where they are asked for.

    A line cut short by a kill is left out, as are fields not known here.
    """
    files = sorted(path.parent.glob(f"{path.stem}.*jsonl")) if path.parent.is_dir() else []
    found = [receipt for file in files for receipt in parse_receipts(read_lines(file))]
    found.sort(key=lambda receipt: receipt.finished)
    return [receipt for receipt in found if parts or receipt.part is None]


def parse_receipts(lines: list[dict[str, Any]]) -> list[Receipt]:
    known = {field.name for field in fields(Receipt)}
    lines = [{key: value for key, value in line.items() if key in known} for line in lines]
    return [Receipt(**line) for line in lines if {"slide_id", "stage", "status"} <= line.keys()]


def latest(receipts: list[Receipt]) -> dict[str, Receipt]:
    """The last receipt of each slide."""
    return {receipt.slide_id: receipt for receipt in receipts}
