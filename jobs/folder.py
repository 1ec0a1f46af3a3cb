"""The run folder: where everything lies."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wsi.errors import StoreError
from wsi.publish import append_line, clear_drafts, write_json
from wsi.source import shown

_STALE_S = 600.0  # that a draft of another machine is left alone, beyond the lease of who wrote it
VERSIONED = (
    "slidestream",
    "torch",
    "timm",
    "zarr",
    "numpy",
    "openslide-bin",
    "openslide-python",
    "tifffile",
    "simplejpeg",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run; nothing is made until it is written."""

    root: Path

    def tiles(self, slide_id: str) -> Path:
        return self.root / "tiles" / f"{slide_id}.zarr"

    def embeddings(self, contract: str, slide_id: str) -> Path:
        return self.root / "embeddings" / contract / f"{slide_id}.zarr"

    def features(self, name: str, slide_id: str) -> Path:
        """Embeddings of that name, or the slide's own vector where slides were encoded under it."""
        vectors = self.root / "slide_embeddings" / name
        return vectors / f"{slide_id}.zarr" if vectors.is_dir() else self.embeddings(name, slide_id)

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def predictions(self, model: str) -> Path:
        return self.root / "predictions" / f"{model}.csv"

    def evaluation(self, model: str) -> Path:
        return self.root / "predictions" / f"{model}.evaluation.json"

    def heatmap(self, model: str, slide_id: str, score: str = "prediction") -> Path:
        return self.root / "heatmaps" / model / f"{slide_id}{_of(score)}.geojson.gz"

    def overlay(self, model: str, slide_id: str, score: str = "prediction") -> Path:
        return self.root / "heatmaps" / model / f"{slide_id}{_of(score)}.png"

    def scores(self, model: str, slide_id: str, score: str = "prediction") -> Path:
        return self.root / "heatmaps" / model / f"{slide_id}{_of(score)}.scores.npz"

    @property
    def review(self) -> Path:
        """Where what people said of the slides is kept, and what the engine suggests that they look at."""
        return self.root / "review"

    def tissue_picture(self, slide_id: str) -> Path:
        return self.root / "tissue" / f"{slide_id}.jpg"

    def tissue_outlines(self, slide_id: str) -> Path:
        return self.root / "tissue" / f"{slide_id}.geojson"

    def receipts(self, stage: str) -> Path:
        return self.root / "receipts" / f"{stage}.jsonl"

    def evaluation_page(self, model: str) -> Path:
        return self.root / "report" / f"evaluation-{model}.html"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def contact_sheet(self) -> Path:
        return self.root / "report" / "tissue.html"

    def prepare(self) -> None:
        """Make the folder, and clear what a killed run left there. Raises StoreError where nothing can be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_text("a full disk takes names, but no bytes")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                self.root, f"nothing can be written there ({error.strerror})", "give another --out"
            ) from error
        self.clear()

    def clear(self) -> None:
        """Remove the drafts of processes that are no more, here or on a machine that no session is at work on."""
        for folder in (self.root, *_folders(self.root)):
            clear_drafts(folder, self._is_gone, _STALE_S)
            for below in _folders(folder) if folder != self.root else ():
                clear_drafts(below, self._is_gone, _STALE_S)

    def _is_gone(self, machine: str) -> bool:
        """Whether all sessions of a machine have ended, or lost their lease by the clock of the file system."""
        from .follow import file_clock, session_age

        sessions = self.root / "sessions"
        time = file_clock(sessions)
        return time is not None and all(session_age(path, time) > 1 for path in sessions.glob(f"*-{machine}-*.json"))


def _folders(place: Path) -> list[Path]:
    """Folders in which results appear, by one look at the names: of stores there may be tens of thousands."""
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return [Path(one.path) for one in entries if one.is_dir() and not one.name.endswith((".zarr", ".tiles"))]


def _of(score: str) -> str:
    return "" if score == "prediction" else f".{score}"


def run_facts(command: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What shaped this run: command, settings, versions, machine."""
    return {
        "command": command,
        "started": now(),
        "settings": settings,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "revision": _revision(),
        "machine": {"system": platform.platform(terse=True), "processor": platform.machine(), "cpus": os.cpu_count()},
    }


def write_run(folder: RunFolder, facts: dict[str, Any], ended: bool = True) -> None:
    """run.json of this command: at its start, so that a killed one leaves a trace, and at its end.

    Commands that ended are also kept, a line each, in receipts/commands.jsonl.
    """
    facts = {**facts, "ended": now() if ended else None}
    write_json(folder.root / "run.json", facts)
    if ended:
        folder.clear()  # again: a worker killed just before this run began may have been dying then
        append_line(folder.receipts("commands"), facts, checked=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def command_line() -> str:
    return " ".join(["wsi", *map(shown, sys.argv[1:])])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Git revision, when the engine runs from a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
