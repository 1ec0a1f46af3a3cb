"""How fast tiles are embedded: measured while a run is at it, kept for the next, and made into what a run will take.

Nothing here is guessed: where nobody has measured, there is no figure.
"""

import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from embedding.devices import device_name, find_devices
from embedding.spec import EmbedSpec
from embedding.weights import weights_digest, weights_home, weights_of
from wsi.errors import BackboneError
from wsi.publish import clear_drafts, write_json

from .config import RunSpec
from .extraction import adapter_of, compute_threads, load_extractor, precision_of
from .folder import RunFolder
from .receipts import DONE, Receipt, read_receipts
from .workers import worker_number

SCHEMA = "throughput/1"
LEAST_TILES, LEAST_S = 64, 2.0  # below, a figure says more of how a run begins than of how it goes on
_GROWN = 1.25  # so many times the tiles of the last time it was written down: a figure of more is a better one
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What embedding so many tiles takes.

    tiles     to embed
    device_s  seconds of one device, None where nobody has measured it
    devices   that share the work, 0 where that is not known: on a cluster
    device    what computes; is_gpu: whether that is none of the machine's own processors
    source    where the figure comes from, or why there is none
    """

    tiles: int
    device_s: float | None
    devices: int
    device: str
    is_gpu: bool
    source: str

    @property
    def seconds(self) -> float | None:
        """Wall time, None where that cannot be told."""
        return None if self.device_s is None or not self.devices else self.device_s / self.devices


@dataclass(frozen=True)
class Rate:
    """Tiles a second of one device, and on what that was measured."""

    tiles: int
    seconds: float
    source: str

    @property
    def tiles_per_s(self) -> float:
        return self.tiles / self.seconds


@dataclass
class _Meter:
    """Counts tiles and the time in which any slide of this process was at work, of one kind of work."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    at_work: int = 0
    since: float = 0.0
    seconds: float = 0.0
    tiles: int = 0
    told: int = 0
    warm: bool = False

    def enter(self, change: int) -> None:
        with self.turn:
            self._add_time()
            self.at_work += change

    def count(self, tiles: int) -> None:
        with self.turn:
            self._add_time()
            self.tiles += tiles if self.warm else 0  # until the first are done, things are set up
            self.seconds, self.warm = self.seconds if self.warm else 0.0, True

    def _add_time(self) -> None:
        now = time.monotonic()
        self.seconds += now - self.since if self.at_work else 0.0
        self.since = now


_meters: dict[str, _Meter] = defaultdict(_Meter)


@contextmanager
def measured(spec: EmbedSpec, tile_px: int) -> Iterator[Callable[[int], None]]:
    """For the time in which a slide is embedded, the model being loaded: call what it gives with each tiles done.

    What is measured is kept for the next run that asks what it will take. Thread-safe.
    """
    devices = find_devices(spec.device)
    work = _work(spec, tile_px, devices[worker_number() % len(devices)])
    meter = _meters[work]
    meter.enter(1)
    try:
        yield meter.count
    finally:
        meter.enter(-1)
        enough = meter.tiles >= LEAST_TILES and meter.seconds >= LEAST_S
        if enough and meter.tiles >= _GROWN * meter.told:
            meter.told = meter.tiles
            _remember(work, meter.tiles, meter.seconds, noise=False)


def estimate(spec: RunSpec, tiles: int, folder: RunFolder, embedded: Sequence[str] = ()) -> Cost:
    """What embedding `tiles` takes, by what was measured: in this run folder, on this machine before, or now, on noise,
    which takes some seconds, where the weights are on this machine.

    embedded  slides of the run folder whose embeddings are of these settings
    """
    devices, embed = find_devices(spec.embed.device), spec.embed
    shared = 0 if spec.jobs.executor == "dask" else len(devices)
    name, is_gpu = device_name(devices[0]), devices[0] != "cpu"
    rate = rate_of(read_receipts(folder.receipts("embed"), parts=True), embedded)
    work = _work(embed, spec.tile.tile_px, devices[0])
    rate = rate or _remembered(work)
    if rate is None and tiles:
        try:
            rate = _measure(spec, folder, work)
        except BackboneError as error:
            why = f"{embed.entry().name} was not measured here yet, nor can it be now: {error.problem}"
            return Cost(tiles, None, shared, name, is_gpu, why)
    if rate is None:
        return Cost(tiles, None, shared, name, is_gpu, "nothing to embed")
    return Cost(tiles, tiles / rate.tiles_per_s, shared, name, is_gpu, rate.source)


def rate_of(receipts: Sequence[Receipt], slides: Sequence[str]) -> Rate | None:
    """Of one worker, by the receipts of slides and parts; None where they are of too few tiles.

    A worker has several slides at a time, so its time is that in which it had any.
    """
    wanted = set(slides)
    done = [one for one in receipts if one.status == DONE and one.slide_id in wanted and one.worker and one.finished]
    split = {one.slide_id for one in done if one.part is not None}
    done = [one for one in done if one.part is not None or one.slide_id not in split]  # the rest is their joining
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in done:
        end = datetime.fromisoformat(one.finished).timestamp()
        spans[one.worker].append((end - one.seconds, end))
    seconds, tiles = sum(map(_covered, spans.values())), sum(one.tiles for one in done)
    if tiles < 4 * LEAST_TILES or seconds < 5 * LEAST_S:  # receipts are of whole seconds, and of loading models, too
        return None
    return Rate(tiles, seconds, f"as {tiles:,} tiles of this run folder took")


def _covered(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _measure(spec: RunSpec, folder: RunFolder, work: str) -> Rate:
    """Raises BackboneError where the weights are not on this machine or do not fit."""
    from embedding.speed import measure_speed

    embed = replace(spec.embed, offline=True)  # a dry run fetches nothing
    extractor = load_extractor(embed, folder, weights_digest(weights_of(embed)), adapter_of(embed))
    tiles, seconds = measure_speed(extractor, spec.tile.tile_px)
    _remember(work, tiles, seconds, noise=True)
    return Rate(tiles, seconds, f"the model alone, measured now on {tiles:,} tiles of noise")


@lru_cache(maxsize=64)
def _work(spec: EmbedSpec, tile_px: int, device: str) -> str:
    """All that decides how fast a device embeds, in words."""
    entry, threads = spec.entry(), compute_threads(find_devices(spec.device))
    granted = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(granted)) if granted.isdigit() and int(granted) else threads
    parts = [device_name(device), f"{threads} threads" if device == "cpu" else "", entry.name, entry.pooling,
             f"{tile_px} px", f"{spec.views} views" if spec.views > 1 else "", precision_of(spec), spec.engine,
             f"batch {spec.batch}" if spec.batch else "", "compiled" if spec.compile == "on" else "",
             "" if spec.stain.method == "none" else spec.stain.method]  # fmt: skip
    return ", ".join(part for part in parts if part)


def memory_file() -> Path:
    """Where figures are kept: throughput.json beside the imported weights, in the user's cache folder."""
    return weights_home().parent / "throughput.json"


def _remembered(work: str) -> Rate | None:
    try:
        found = _read()[work]
        tiles, seconds = int(found["tiles"]), float(found["seconds"])
        when = datetime.fromisoformat(found["when"]).date()
    except (KeyError, ValueError, TypeError):
        return None
    if tiles < 1 or not seconds > 0:
        return None
    noise = "the model alone, " if found.get("noise") else ""
    return Rate(tiles, seconds, f"{noise}measured here on {when} on {tiles:,} tiles{' of noise' if noise else ''}")


def _read() -> dict[str, Any]:
    """Figures by the work they are of; none where the file is damaged or of another version."""
    try:
        content = json.loads(memory_file().read_text(encoding="utf-8"))
        return dict(content["measured"]) if content["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(work: str, tiles: int, seconds: float, noise: bool) -> None:
    """Of two processes that write at once one is forgotten, which does not matter."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    known = _read() | {work: {"tiles": tiles, "seconds": seconds, "noise": noise, "when": when}}
    try:
        clear_drafts(memory_file().parent)
        write_json(memory_file(), {"schema": SCHEMA, "measured": known})
    except OSError as error:
        _log.info("%s cannot be written (%s)", memory_file(), error.strerror)
