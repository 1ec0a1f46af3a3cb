"""What a run would do and cost, from thumbnails alone (and quality, where tiles are left out): for --dry-run."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from statistics import median
from typing import Any

from tiling.grid import TileGrid
from tiling.patches import PatchStore, open_patches
from tiling.pixels import check_native
from tiling.thumbnail import base_mpp
from wsi.errors import BackboneError, EngineError
from wsi.identity import slide_identity
from wsi.publish import fingerprint
from wsi.resample import pick_level
from wsi.slide import Slide

from .agreed import agreed
from .attempt import problem_of
from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .outcome import Stage, stage_name
from .pipeline import Job
from .receipts import DONE, read_receipts
from .staging import files_of
from .stored import find_stored
from .throughput import Cost, estimate
from .tile_stage import grid_fingerprint, open_record, plan_slide, tiles_there

_PATCH_BYTES = {"none": 0.0, "raw": 3.0, "jpeg": 0.5, "native": 0.4}  # per pixel of a patch, about


@dataclass
class Plan:
    """What there is to do, and what it takes.

    slides    that can be read, and their tiles; there: of the slides, those tiled already
    embedded  slide_ids of those embedded already; left: tiles of the others
    bytes     to write, about; read: of the slides, of whose `whole` bytes
    tiling_s  wall time of tiling what is left, by the slides of this run folder that were; None where none was
    embedding None where it is not asked for
    failed    slide_id → problem
    """

    slides: int = 0
    tiles: int = 0
    there: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    embedded: list[str] = field(default_factory=list)
    left: int = 0
    read: int = 0
    whole: int = 0
    tiling_s: float | None = None
    tiled_before: int = 0
    embedding: Cost | None = None

    def words(self, spec: RunSpec) -> list[str]:
        """All of it, for a person, a line each."""
        tile = spec.tile
        return [
            f"{self.slides:,} slides with {self.tiles:,} tiles of {tile.tile_px} px at {tile.mpp:g} µm/px; "
            f"{self.there:,} of them are tiled already, {len(self.failed)} cannot be read. "
            f"It would write about {size_words(self.bytes)}; nothing was done.",
            *self.costs(),
        ]

    def costs(self) -> list[str]:
        """What reading and computing take, a line each; for `words`, and after what `ready_for` found."""
        lines = []
        if self.whole:
            lines.append(f"  reading    about {size_words(self.read)}; the slides' files are {size_words(self.whole)}")
        if self.slides > self.there and self.tiling_s is not None:
            known = f"by the {self.tiled_before:,} slides of this run folder that were tiled"
            lines.append(f"  tiling     about {time_words(self.tiling_s)}, {known}")
        if self.embedding is not None:
            first, *more = self._embedding_words(self.embedding)
            lines += [f"  embedding  {first}", *(f"             {line}" for line in more)]
        return lines

    def _embedding_words(self, cost: Cost) -> list[str]:
        done = [f"{len(self.embedded):,} of {self.slides:,} slides are embedded already"] if self.embedded else []
        tiles = f"{cost.tiles:,} tiles"
        if not cost.tiles:
            return [f"{done[0]}: nothing is left"] if done else ["nothing to embed"]
        if cost.device_s is None:
            return [f"{tiles}; no figure of the time:", cost.source, *done]
        hours = f"{cost.device_s / 3600:,.2g} {'GPU-hours' if cost.is_gpu else 'hours of one worker'}"
        if cost.seconds is None:
            takes = f"about {hours} of {cost.device} for {tiles}"
        else:
            many = f"{cost.devices} x {cost.device}" if cost.devices > 1 else cost.device
            takes = f"about {time_words(cost.seconds)} on {many}{f' ({hours})' if cost.is_gpu else ''} for {tiles}"
        speed = cost.tiles / cost.device_s
        shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        return [takes, f"at {shown} tiles/s{' each' if cost.devices > 1 else ''}, {cost.source}", *done]


@dataclass(frozen=True)
class _Look:
    """One slide: its tiles, whether they are there, whether they are embedded, and bytes to read, of its `whole`."""

    tiles: int
    there: bool
    embedded: bool
    read: int
    whole: int


def plan_run(
    records: Sequence[SlideRecord],
    spec: RunSpec,
    folder: RunFolder,
    progress: Callable[[int], None],
    embeds: bool = False,
) -> Plan:
    """Plan every slide's grid without writing anything to the run folder; `embeds`: and how embedding it goes."""
    plan, known = Plan(), _Contracts(spec) if embeds else None
    per_tile = 60 + _PATCH_BYTES[spec.patches] * spec.tile.tile_px**2
    for done, (record, look) in enumerate(_looks(records, spec, folder, known), start=1):
        if isinstance(look, str):
            plan.failed[record.slide_id] = look
        else:
            plan.slides, plan.tiles, plan.there = plan.slides + 1, plan.tiles + look.tiles, plan.there + look.there
            plan.read, plan.whole = plan.read + look.read, plan.whole + look.whole
            plan.bytes += 0 if look.there else round(look.tiles * per_tile)
            _count_embedding(plan, record, look)
        progress(done)
    _add_tiling(plan, spec, folder)
    if embeds:
        plan.bytes += plan.left * vector_bytes(spec)
        plan.embedding = estimate(spec, plan.left, folder, plan.embedded)
    return plan


def ready_for(job: Job, stage: Stage) -> Plan:
    """What embedding, predicting or drawing has to work on: tiles for the first, embeddings for the others."""
    from .bags import bag_for
    from .model_stages import open_model

    plan = Plan(failed={slide_id: receipt.problem for slide_id, receipt in job.failed().items()})
    embeds = stage_name(stage) == "embed"
    model = open_model(job.spec.model) if job.spec.model else None
    known = _Contracts(job.spec) if embeds else None
    for record in job.records:
        if record.slide_id in plan.failed:
            continue
        try:
            if embeds or model is None:
                store = open_patches(job.folder.tiles(record.slide_id))
                tiles = len(store.grid)
                embedded = known is not None and known.has(record, job.folder, store)
                _count_embedding(plan, record, _Look(tiles, True, embedded, 0, 0))
            else:
                tiles = len(bag_for(model, record, job.folder)[1].ok)
        except EngineError as error:
            plan.failed[record.slide_id] = problem_of(error, record)
        else:
            plan.slides, plan.tiles = plan.slides + 1, plan.tiles + tiles
    if embeds:
        plan.embedding = estimate(job.spec, plan.left, job.folder, plan.embedded)
    return plan


def _count_embedding(plan: Plan, record: SlideRecord, look: _Look) -> None:
    if look.embedded:
        plan.embedded.append(record.slide_id)
    else:
        plan.left += look.tiles


def _add_tiling(plan: Plan, spec: RunSpec, folder: RunFolder) -> None:
    """How long tiling takes, where slides of this run folder were tiled."""
    receipts = read_receipts(folder.receipts("tile"))
    took = [receipt.seconds for receipt in receipts if receipt.status == DONE]
    left = plan.slides - plan.there
    if took and left:
        plan.tiled_before = len(took)
        plan.tiling_s = left * median(took) / spec.jobs.worker_count(left)


class _Contracts:
    """Whether slides are embedded as they are to be: known where the weights are on this machine."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self._kept: dict[str, dict[str, Any] | None] = {}

    def has(self, record: SlideRecord, folder: RunFolder, store: PatchStore) -> bool:
        from embedding.contract import contract_name
        from embedding.store import open_embeddings

        from .stages import EMBED_VERSION, lossy_pixels

        pixels = lossy_pixels(store)
        kind = fingerprint(store.grid.spec, pixels)
        if kind not in self._kept:
            self._kept[kind] = self._make(store, pixels, folder)
        contract = self._kept[kind]
        if contract is None:
            return False
        mark = fingerprint(EMBED_VERSION, contract["hash"], store.attrs["grid_fingerprint"])
        path = folder.embeddings(contract_name(contract), record.slide_id)
        return find_stored(path, mark, self.spec.tile.max_failed_tiles, open_embeddings) is not None

    def _make(self, store: PatchStore, pixels: str | None, folder: RunFolder) -> dict[str, Any] | None:
        from .stages import contract_of

        try:
            embed = agreed(self.spec.embed, folder)
            return contract_of(replace(embed, offline=True), store.grid.spec, pixels)
        except BackboneError:  # no weights, no embeddings
            return None


def _looks(
    records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, known: _Contracts | None
) -> Iterator[tuple[SlideRecord, "_Look | str"]]:
    """Each slide with what was seen of it, or with its problem; several are looked at at a time."""

    def look(record: SlideRecord) -> _Look | str:
        try:
            return _look(record, spec, folder, known)
        except EngineError as error:
            return problem_of(error, record)
        except OSError as error:
            return str(error)

    several = spec.jobs.executor != "serial" and spec.tile.tissue.method != "learned"  # that one shares a model
    workers = spec.jobs.worker_count(len(records)) if several else 1
    with ThreadPoolExecutor(workers, "plan") as pool:
        waiting = deque[tuple[SlideRecord, Future[_Look | str]]]()
        for record in records:
            waiting.append((record, pool.submit(look, record)))
            if len(waiting) > 2 * workers:
                first, found = waiting.popleft()
                yield first, found.result()
        for last, found in waiting:
            yield last, found.result()


def _look(record: SlideRecord, spec: RunSpec, folder: RunFolder, known: _Contracts | None) -> _Look:
    whole = files_of(record.path).bytes
    with open_record(record, spec) as slide:
        mark = grid_fingerprint(record, spec, slide_identity(record.path), slide)
        there = tiles_there(folder.tiles(record.slide_id), mark, spec)
        if there is not None:
            store = open_patches(folder.tiles(record.slide_id))
            embedded = known is not None and known.has(record, folder, store)
            reads = known is not None and not embedded and not store.has_patches
            read = min(whole, read_bytes(slide, store.grid, whole)) if reads else 0
            return _Look(there.tiles, True, embedded, _copied(read, whole, spec), whole if reads else 0)
        quality = spec.tile.quality
        looked = replace(quality, measure=bool(quality.exclude))  # it reads the tiles: only where it decides
        grid = plan_slide(record, replace(spec, tile=replace(spec.tile, quality=looked)), slide).grid
        if spec.patches == "native":
            check_native(slide, grid)
        read = read_bytes(slide, grid, whole) if known is not None or spec.patches != "none" else 0
        read += _quality_bytes(slide, grid, whole) if quality.measure else 0
        return _Look(len(grid), False, False, _copied(read, whole, spec), whole)


def _copied(read: int, whole: int, spec: RunSpec) -> int:
    """Bytes that come from where the slides lie: all of them where slides are copied before they are read."""
    return whole if spec.jobs.stage_to is not None else read


def read_bytes(slide: Slide, grid: TileGrid, whole: int) -> int:
    """Bytes of the slide's file that reading the tiles of `grid` takes, of `whole` in all.

    Exact where the reader knows its stored tiles; else the share of the level among all levels' pixels, and of the
    tiles on it: less than is read where tissue compresses worse than glass.
    """
    if len(grid) == 0:
        return 0
    level, base = slide.levels[grid.level], slide.levels[0]
    tell = getattr(slide, "bytes_under", None)
    found = None if tell is None else tell(grid.xy, max(1, round(grid.span_px / level.downsample)), grid.level)
    if found is not None:
        return int(found)
    stored = next((one for one in reversed(slide.levels[: grid.level + 1]) if one.stored), base)
    pixels = sum(one.width * one.height for one in slide.levels if one.stored)
    stride_px = min(grid.span_px, grid.spec.stride * grid.span_px / grid.spec.tile_px)
    covered = min(1.0, len(grid) * stride_px**2 / (base.width * base.height))
    return round(whole * covered * stored.width * stored.height / pixels)


def _quality_bytes(slide: Slide, grid: TileGrid, whole: int) -> int:
    """The same for a look at the tiles' sharpness, which is taken at a coarser level."""
    base, mpp = base_mpp(slide), grid.spec.quality.blur_mpp
    side = max(16, round(grid.span_px * base / max(mpp, base)))
    level = pick_level(slide.levels, grid.span_px * base / side)
    return read_bytes(slide, replace(grid, spec=replace(grid.spec, tile_px=side), level=level), whole)


def vector_bytes(spec: RunSpec) -> int:
    """Of what is stored of one embedded tile."""
    width = 4 if spec.embed.dtype == "float32" else 2
    return width * spec.embed.views * prod(spec.embed.entry().row_shape)


def size_words(count: int) -> str:
    """Bytes for a person: 0.0 MB, 13.4 GB, 2.1 TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def time_words(seconds: float) -> str:
    """A duration for a person: 40 s, 12 min, 3.1 h, 2.4 days."""
    for unit, size, least in (("days", 86_400, 2 * 86_400), ("h", 3_600, 2 * 3_600)):
        if seconds >= least:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{max(1, round(seconds))} s"
