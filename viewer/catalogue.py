"""What is there to show: the slides of a run, a folder or a file, and what the models said of each.

A run that is at work is followed: `look` reads what is new, at most every other second.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.folder import RunFolder
from jobs.follow import Follower
from jobs.manifest import SlideRecord
from jobs.receipts import DONE, EMPTY, FAILED, SKIPPED

from .fault import without_paths
from .place import Place
from .said import read_said

EVERY_S = 2.0
SCORES = ("prediction", "attention", "gradient", "occlusion")
_STAGES = ("tile", "embed", "encode", "zero_shot", "predict")  # in the order of the road
_DEMO_MODEL = "synthetic-tumor"

Card = dict[str, Any]  # of api.ts, without its review


@dataclass(frozen=True)
class Snapshot:
    """The slides at one moment.

    cards    slide_id → card, in the order of ids
    classes  that a model predicts or the manifest labels, in the models' order
    version  grows whenever something changed
    """

    cards: Mapping[str, Card]
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    version: int = 0


@dataclass
class _Table:
    """What one model said, by the files in its folder of predictions."""

    changed: int = -1  # mtime of the folder, ns
    files: dict[str, int] = field(default_factory=dict)  # name → mtime, ns
    said: dict[str, dict[str, Any]] = field(default_factory=dict)


class Catalogue:
    """The slides that the viewer shows. Thread-safe.

    folder   of the run, None without one
    records  slide_id → where its file lies now, as --slides or the run's own lists say
    urgent   the class whose probability is a slide's urgency; None: the last one
    channels how fluorescence slides are shown; None: as the run was told
    again    looks for the records again, when a run has come to slides that are in none
    """

    def __init__(
        self,
        folder: RunFolder | None,
        records: Mapping[str, SlideRecord],
        urgent: str | None = None,
        channels: str | None = None,
        again: Callable[[], Mapping[str, SlideRecord]] | None = None,
    ):
        self.folder, self.records = folder, records
        self._urgent, self._channels, self._again = urgent, channels, again
        self._follower = None if folder is None else Follower(folder.root)
        self._tables: dict[str, _Table] = {}
        self._stores: dict[str, tuple[int, dict[str, Any]]] = {}
        self._looked, self._stamp = -EVERY_S, ()
        self._lock = threading.Lock()
        self._now = Snapshot({})

    def look(self) -> Snapshot:
        """The slides as they are now, or were a moment ago."""
        if time.monotonic() - self._looked < EVERY_S and self._now.version:
            return self._now
        if not self._lock.acquire(blocking=not self._now.version):
            return self._now  # somebody else is at it
        try:
            if time.monotonic() - self._looked >= EVERY_S or not self._now.version:
                self._look()
                self._looked = time.monotonic()
        finally:
            self._lock.release()
        return self._now

    def place(self, slide_id: str) -> Place | None:
        """Where a slide lies; None for one that is not among those shown."""
        if slide_id not in (self._now if self._now.version else self.look()).cards:
            return None
        record = self.records.get(slide_id)
        path = None if record is None else record.path
        mpp = None if record is None else record.mpp
        if self.folder is None:
            return Place(slide_id, path, mpp, channels=self._channels)
        attrs, channels = self._attrs(slide_id), self._channels
        if attrs is not None and channels is None:
            channels = attrs["spec"].get("channels")
        identity = None if attrs is None else attrs["identity"]
        return Place(slide_id, path, mpp, identity, self.folder.tiles(slide_id), channels)

    def scores(self, slide_id: str) -> dict[str, list[str]]:
        """Model → the scores that heatmaps of this slide were drawn of."""
        if self.folder is None:
            return {}
        folder, found = self.folder, {}
        for model in self.look().models:
            names = [
                score for score in SCORES if any(path.is_file() for path in _drawn(folder, model, slide_id, score))
            ]
            if names:
                found[model] = names
        return found

    def score_files(self, slide_id: str, model: str, score: str) -> tuple[Path | None, Path | None] | None:
        """(file of numbers, file of tiles) of a heatmap, as far as they are there; None where there is none."""
        if self.folder is None or score not in self.scores(slide_id).get(model, ()):
            return None
        numbers, tiles = _drawn(self.folder, model, slide_id, score)
        return numbers if numbers.is_file() else None, tiles if tiles.is_file() else None

    def _attrs(self, slide_id: str) -> dict[str, Any] | None:
        """What the slide's store says of it."""
        assert self.folder is not None
        path = self.folder.tiles(slide_id) / "zarr.json"
        try:
            changed = path.stat().st_mtime_ns
            known = self._stores.get(slide_id)
            if known is None or known[0] != changed:
                attrs = json.loads(path.read_bytes())["attributes"]
                attrs = {key: attrs[key] for key in ("spec", "identity", "tissue_um2", "slide")}
                known = self._stores[slide_id] = changed, attrs
        except (OSError, ValueError, KeyError):
            return None
        return known[1]

    def size(self, slide_id: str) -> tuple[int, int] | None:
        """(width, height) of a slide in level-0 pixels, as the run found them; None where it has not tiled it."""
        attrs = None if self.folder is None else self._attrs(slide_id)
        return None if attrs is None else (attrs["slide"]["width"], attrs["slide"]["height"])

    def tissue_um2(self, slide_id: str) -> float | None:
        attrs = None if self.folder is None else self._attrs(slide_id)
        return None if attrs is None else attrs["tissue_um2"]

    def _look(self) -> None:
        folder, follower = self.folder, self._follower
        if folder is None or follower is None:
            cards = {slide_id: _card(slide_id) for slide_id in sorted(self.records)}
            self._now = Snapshot(cards, version=1)
            return
        changed, stamp = self._read_tables(folder), _stamp(folder)
        if not changed and stamp == self._stamp:
            return
        follower.look()
        receipts = _newest(follower)
        ids = set(receipts) | {slide_id for table in self._tables.values() for slide_id in table.said}
        for session in follower.sessions:
            ids |= follower.slides(str(session.facts.get("slides", ""))) or frozenset()
        if not ids:
            ids = _stored(folder) | set(self.records)
        if self._again is not None and not ids <= self.records.keys():
            self.records = self._again()
        cards = {slide_id: self._card(slide_id, receipts.get(slide_id, {})) for slide_id in sorted(ids)}
        self._stamp = stamp
        classes = dict.fromkeys(name for table in self._tables.values() for name in _classes(table))
        classes |= dict.fromkeys(sorted({one.label for one in self.records.values() if one.label} - set(classes)))
        models = tuple(sorted(self._tables))
        self._now = Snapshot(cards, models, tuple(classes), self._now.version + 1)

    def _card(self, slide_id: str, receipts: Mapping[str, Any]) -> Card:
        said = {name: table.said[slide_id] for name, table in sorted(self._tables.items()) if slide_id in table.said}
        facts = {model: {key: value for key, value in one.items() if key[0] != "_"} for model, one in said.items()}
        tiles = next((one["_tiles"] for one in said.values()), None)
        failed = next((one["_failed"] for one in said.values()), 0)
        if tiles is None:
            tiles = next(
                (line.tiles for stage, line in receipts.items() if line.status in (DONE, SKIPPED, EMPTY)), None
            )
        failure = _failure(receipts)
        problem = None
        if failure is not None:
            words = f"{failure.problem}; {failure.remedy}" if failure.remedy else failure.problem
            status, problem = "failed", without_paths(words)
        elif said:
            status = next(iter(facts.values()))["status"]
        else:
            status = self._stands(receipts)
        flags = list(dict.fromkeys(flag for one in facts.values() for flag in one["flags"]))
        return _card(slide_id) | {
            "status": status,
            "problem": problem,
            "said": facts,
            "tiles": tiles,
            "failed_tiles": failed,
            "flags": flags,
        }

    def _stands(self, receipts: Mapping[str, Any]) -> str:
        """Of a slide without a prediction: done is what came through the last stage that any slide came to."""
        assert self._follower is not None
        seen = {stage for (_, stage), lines in self._follower.latest.items() if lines}
        if not seen:
            return "done"  # a folder without receipts: made by another tool
        last = max((stage for stage in _STAGES if stage in seen), key=_STAGES.index, default="")
        if any(line.status == EMPTY for line in receipts.values()):
            return "empty"
        return "done" if last in receipts else "waiting"

    def _read_tables(self, folder: RunFolder) -> bool:
        """Read predictions that are new. Returns whether there were any."""
        root, changed = folder.root / "predictions", False
        names = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
        heatmaps = folder.root / "heatmaps"
        names |= {path.name for path in heatmaps.iterdir() if path.is_dir()} if heatmaps.is_dir() else set()
        names = {name for name in names if not name.startswith(".")}
        for gone in set(self._tables) - names:
            del self._tables[gone]
            changed = True
        for name in names:
            changed |= self._read_table(root / name, self._tables.setdefault(name, _Table()))
        return changed

    def _read_table(self, path: Path, table: _Table) -> bool:
        """Files appear by renaming, which changes the folder's time: one that did not change is not listed again."""
        try:
            stamp = path.stat().st_mtime_ns
            if stamp == table.changed:
                return False
            files = {file.name: file.stat().st_mtime_ns for file in _json_files(path)}
        except FileNotFoundError:
            return False
        for name in set(table.files) - set(files):
            table.said.pop(name.removesuffix(".json"), None)
        for name, changed in files.items():
            if table.files.get(name) != changed:
                said = read_said(path / name, self._urgent)
                if said is not None:
                    table.said[name.removesuffix(".json")] = said
        is_new, table.files = files != table.files, files
        recent = time.time_ns() - stamp < 2 * EVERY_S * 1e9  # more may come within the clock's tick
        table.changed = -1 if recent else stamp
        return is_new


def _json_files(path: Path) -> list[Any]:
    with os.scandir(path) as entries:
        return [entry for entry in entries if entry.name.endswith(".json") and not entry.name.startswith(".")]


def _stamp(folder: RunFolder) -> tuple[Any, ...]:
    """Of the files of receipts and sessions: another when something was written there."""
    found = []
    for place in (folder.root / "receipts", folder.root / "sessions"):
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            with suppress(FileNotFoundError):
                facts = os.stat(place / name)
                found.append((name, facts.st_size, facts.st_mtime_ns))
    return (*found, len(_stored(folder)))


def _failure(receipts: Mapping[str, Any]) -> Any | None:
    """The receipt of the stage at which a slide failed, unless it came through it, or a later one, after that."""
    road = [receipts[stage] for stage in (*_STAGES, "heatmap") if stage in receipts]
    for place, line in reversed(list(enumerate(road))):
        if line.status == FAILED and not any(
            later.status != FAILED and later.ended > line.ended for later in road[place + 1 :]
        ):
            return line
    return None


def _newest(follower: Follower) -> dict[str, dict[str, Any]]:
    """slide_id → stage → its newest receipt of all sessions."""
    found: dict[str, dict[str, Any]] = {}
    for (_, stage), lines in follower.latest.items():
        for slide_id, line in lines.items():
            stages = found.setdefault(slide_id, {})
            if stage not in stages or line.ended >= stages[stage].ended:
                stages[stage] = line
    return found


def _stored(folder: RunFolder) -> set[str]:
    root = folder.root / "tiles"
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return {name.removesuffix(".zarr") for name in names if name.endswith(".zarr") and not name.startswith(".")}


def _classes(table: _Table) -> list[str]:
    return list(dict.fromkeys(name for said in list(table.said.values())[:1] for name in said["_classes"]))


def _card(slide_id: str) -> Card:
    blank: Card = {"problem": None, "said": {}, "tiles": None, "failed_tiles": 0, "flags": []}
    return {"id": slide_id, "status": "done", **blank}


def _drawn(folder: RunFolder, model: str, slide_id: str, score: str) -> tuple[Path, Path]:
    return folder.scores(model, slide_id, score), folder.heatmap(model, slide_id, score)
