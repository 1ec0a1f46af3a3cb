"""Run folders as sessions and receipts leave them, in any state, for tests of what is said of them."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jobs.receipts import Receipt, append_receipt
from wsi.machine import machine_id, process_start

AFAR = "0123abcd"  # a machine that is not this one


def at(seconds: float) -> str:
    """Seconds since 1970 as sessions and receipts write them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def stage(total: int, **counts: float) -> dict[str, float]:
    """A stage as a session's file tells of it."""
    names = ("done", "empty", "skipped", "failed", "running", "queued", "held", "tiles", "active_s", "busy_s", "room")
    return {"total": total, **{name: counts.get(name, 0) for name in names}}


@dataclass
class Writer:
    """A session on the run folder `root`; skew_s: how far its machine's clock is ahead."""

    root: Path
    id: str
    skew_s: float = 0.0
    facts: dict = field(default_factory=dict)

    def say(self, ago_s: float = 0.0, **facts: object) -> "Writer":
        """Its sign of life, given so many seconds ago."""
        start = time.time() + self.skew_s - 3600
        mine = {"machine": machine_id(), "pid": os.getpid(), "start": process_start(os.getpid())}
        first = {"session": self.id, "host": "node01", **mine, "command": "wsi run", "started": at(start)}
        more = {"ended": None, "exit": None, "lease_s": 120, "executor": "processes", "dashboard": None, "asked": "a"}
        self.facts = {**first, **more, "stages": {}, "running": [], **self.facts, **facts}
        path = self.root / "sessions" / f"{self.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.facts))
        os.utime(path, (time.time() - ago_s,) * 2)
        return self

    def write(self, stage: str, slide_id: str, status: str, ago_s: float = 0.0, **more: object) -> "Writer":
        """A receipt that it wrote so many seconds ago."""
        path = self.root / "receipts" / f"{stage}.jsonl"
        finished = at(time.time() + self.skew_s - ago_s)
        append_receipt(path, Receipt(slide_id, stage, status, finished=finished, **more), self.id)
        file = path.with_suffix(f".{self.id}.jsonl") if self.id else path
        os.utime(file, (time.time() - ago_s,) * 2)
        return self

    def write_many(self, stage: str, slides: list[str], status: str = "done", **more: object) -> "Writer":
        """Receipts of many slides at once, of a second each, written just now."""
        path = self.root / "receipts" / f"{stage}.{self.id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        now = at(time.time() + self.skew_s)
        receipts = (Receipt(slide, stage, status, 1.0, finished=now, **more) for slide in slides)
        with path.open("a") as file:
            file.writelines(json.dumps(asdict(receipt)) + "\n" for receipt in receipts)
        return self
