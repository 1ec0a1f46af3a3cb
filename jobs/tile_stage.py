"""The tile stage: one slide in, its tissue, tiles and their quality out, and what a person looks at."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.coords import grid_from_coords, read_coords
from tiling.grid import TileGrid, draw, plan_grid, plan_scales
from tiling.outside import read_mask
from tiling.parts import PatchPlan, open_plan, write_plan
from tiling.patches import PatchRequest, PatchStore, open_patches, write_patches
from tiling.quality import TileQuality, measure_quality
from tiling.regions import load_regions, regions_digest
from tiling.spec import FLAGS, QualitySpec, TileSpec
from tiling.stream import Reading
from tiling.thumbnail import base_mpp
from tiling.tissue import Tissue, find_tissue
from wsi import open_slide
from wsi.channels import Channels
from wsi.colour import in_srgb
from wsi.errors import SlideError, SpecError, StoreError
from wsi.identity import slide_identity
from wsi.publish import fingerprint
from wsi.slide import Slide
from wsi.source import is_url

from .config import RunSpec
from .convert import export_slide, remove_stale_exports
from .folder import RunFolder
from .look import look_at_tissue, why_empty
from .manifest import SlideRecord
from .outcome import Outcome, Split
from .parts import PARTS, clear_parts, damaged_part, part_tiles, read_ok, write_ok
from .progress import advance, alive, busy
from .receipts import DONE, EMPTY, SKIPPED
from .stored import Stored, find_stored
from .tile_inputs import coords_digest, coords_file, file_digest, mask_file

TILE_VERSION = 3  # raised when the same settings begin to give other results
_PLACES = 100_000  # of tiles left out that a store keeps, to be drawn


@dataclass(frozen=True)
class Planned:
    """What one slide gets.

    quality   of the grid's tiles, None where it was not measured
    left_out  flag → int64 (k, 2), corners of tiles with it that were left out of the grid; one with several flags is
              in each
    """

    tissue: Tissue
    grid: TileGrid
    quality: TileQuality | None
    left_out: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def notes(self) -> dict[str, Any]:
        """What the store keeps of the tiles left out: how many, and where, unless they are too many for a record."""
        counts = {flag: len(corners) for flag, corners in self.left_out.items()}
        places = {flag: corners.tolist() for flag, corners in self.left_out.items()}
        return {"left_out": counts} | ({"left_out_xy": places} if sum(counts.values()) <= _PLACES else {})


def open_record(record: SlideRecord, spec: RunSpec) -> Slide:
    """The record's slide, with the manifest's pixel size over the file's, and the user's where there is neither.

    A pixel size that the file states but that cannot be true is for the manifest to correct, slide by slide.
    """
    channels = Channels.parse(spec.tile.channels) if spec.tile.channels else None
    slide = open_slide(record.path, mpp=record.mpp, mpp_source="manifest", channels=channels)
    if record.fallback_mpp is not None and slide.info.mpp is None and slide.info.mpp_source is None:
        slide.close()
        slide = open_slide(record.path, mpp=record.fallback_mpp, mpp_source="user", channels=channels)
    return in_srgb(slide) if spec.tile.icc == "srgb" else slide


def tile_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome | Split:
    """Tissue and tile grid of one slide (and its patches, if they are kept) → tiles/<slide_id>.zarr; a slide of which
    many patches are kept is to be split."""
    path = folder.tiles(record.slide_id)
    imported = imported_tiles(path, record)
    if imported is not None:
        return Outcome(SKIPPED, imported.fingerprint, len(imported.grid), int((~imported.array("ok")).sum()))
    with _asking(record, spec, path) as asked:
        made = asked.skipped() or _make(asked)
    return made if isinstance(made, Split) else _show(made, spec, folder, path)


def tile_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    """The pixels of one part of a slide; returns its tiles, and how many of them could not be read."""
    with _asking(record, spec, folder.tiles(record.slide_id)) as asked:
        if asked.skipped() is not None:
            return 0, 0
        try:
            ok = asked.plan().write_part(asked.slide, number, asked.request())
            asked.check_unchanged()
            write_ok(asked.parts / Split.name_of(number), ok)
        except (StoreError, FileNotFoundError):
            if asked.skipped() is None:
                raise
            return 0, 0  # others did the part, too, and joined all: that took the plan away
        asked.skipped()  # so that nothing stays of what came late
    return len(ok), int((~ok).sum())


def join_tiles(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """The tiles of a slide whose parts are all written."""
    path = folder.tiles(record.slide_id)
    with _asking(record, spec, path) as asked:
        made = asked.skipped() or _join(asked)
    return _show(made, spec, folder, path)


@dataclass(frozen=True)
class _Asked:
    """What is to be made at `path` of a slide that is open; its fingerprints and its content's digest."""

    record: SlideRecord
    spec: RunSpec
    slide: Slide
    path: Path
    identity: str
    grid_mark: str

    @property
    def mark(self) -> str:
        return store_fingerprint(self.grid_mark, self.spec, self.spec.patches)

    @property
    def parts(self) -> Path:
        """The folder of its plan and its parts, of whatever size: of other settings' it is another."""
        return self.path.parent / PARTS / f"{self.mark}-plan-{self.record.slide_id}"

    def request(self, **more: Any) -> PatchRequest:
        jobs, record = self.spec.jobs, self.record
        return PatchRequest(
            record.slide_id,
            self.mark,
            self.grid_mark,
            self.identity,
            self.spec.patches,
            jobs.thread_count(),
            memory=jobs.read_bytes,
            progress=advance,
            **more,
        )

    def skipped(self) -> Outcome | None:
        """That the store is there already, if it is; then nothing is left of its parts."""
        there = tiles_there(self.path, self.grid_mark, self.spec)
        if there is None:
            return None
        rmtree(self.parts, ignore_errors=True)  # of a process that was killed when it had joined them, or came late
        return Outcome(SKIPPED, self.mark, there.tiles, there.failed)

    def plan(self) -> PatchPlan:
        """Raises StoreError where there is no plan any more, as when the slide was replaced."""
        plan = open_plan(self.parts)
        if plan is None:
            raise StoreError(self.parts, "the plan of its parts is gone, or the slide is another by now", "run again")
        return plan

    def check_unchanged(self, made: Path | None = None) -> None:
        """Raise SlideError where the slide's file is no longer what it was when it was opened.

        made  is removed then: it may be of both, and none of it may pass for the old slide's
        """
        if slide_identity(self.record.path) != self.identity:
            if made is not None:
                rmtree(made, ignore_errors=True)
            raise SlideError(
                self.record.path, "it changed while it was read", "run again when it is no longer written to"
            )


@contextmanager
def _asking(record: SlideRecord, spec: RunSpec, path: Path) -> Iterator[_Asked]:
    with open_record(record, spec) as slide:
        identity = slide_identity(record.path)
        yield _Asked(record, spec, slide, path, identity, grid_fingerprint(record, spec, identity, slide))


def _make(asked: _Asked) -> Outcome | Split:
    """Write the store, or where it is to hold the pixels of many tiles plan it."""
    spec, slide = asked.spec, asked.slide
    plan = None if spec.patches == "none" else open_plan(asked.parts)
    clear_parts(asked.parts)
    if plan is None:
        planned, size = plan_slide(asked.record, spec, slide), part_tiles(spec.tile.tile_px, spec.jobs.shard_tiles)
        grid, tissue, extra = planned.grid, planned.tissue, _quality_arrays(planned, spec.tile)
        request = asked.request(notes=planned.notes(), part_tiles=size)
        if spec.patches == "none" or len(grid) <= size:
            failed = write_patches(asked.path, slide, grid, tissue, request, extra)
            asked.check_unchanged(asked.path)
            return Outcome(DONE if len(grid) else EMPTY, asked.mark, len(grid), failed)
        write_plan(asked.parts, slide, grid, tissue, request, extra)
        asked.check_unchanged(asked.parts)
        plan = asked.plan()
    return Split(asked.parts, plan.parts, len(plan.grid), tile_part, join_tiles)


def _join(asked: _Asked) -> Outcome:
    """Publish the store of all parts, and remove them."""
    plan, found = asked.plan(), []
    for number in range(plan.parts):
        file = asked.parts / Split.name_of(number)
        found.append(read_ok(file))
        try:
            plan.check_part(number)
        except StoreError as error:
            raise damaged_part(file, error.problem) from error
    ok = np.concatenate(found)
    try:
        failed = plan.publish(asked.path, asked.slide, ok, tile_spec(asked.record, asked.spec.tile))
    except SlideError:  # too few could be read: they are read again when somebody asks again
        rmtree(asked.parts, ignore_errors=True)
        raise
    except OSError:
        skipped = asked.skipped()
        if skipped is None:
            raise
        return skipped  # another process published it meanwhile
    rmtree(asked.parts, ignore_errors=True)
    return Outcome(DONE, asked.mark, len(ok), failed)


def _show(made: Outcome, spec: RunSpec, folder: RunFolder, path: Path) -> Outcome:
    """What a person looks at, and the files that were asked for, of a store that is there."""
    store = open_patches(path)
    look_at_tissue(store, folder)
    remove_stale_exports(store, folder)
    if spec.export is not None:
        with busy():  # reads no slide any more
            export_slide(store, folder, spec.export, spec.jobs.thread_count())
    return replace(made, problem=why_empty(store))


def imported_tiles(path: Path, record: SlideRecord) -> PatchStore | None:
    """The tiles of the record, where they are pictures that were imported and are there: there is no slide to tile."""
    try:
        said = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["notes"].get("imported")
    except (OSError, ValueError, KeyError, AttributeError):  # not there, or damaged: it is to be made
        return None
    if not said or is_url(record.path):
        return None
    store = open_patches(path)
    return store if slide_identity(record.path) == store.identity else None


def plan_slide(record: SlideRecord, spec: RunSpec, slide: Slide) -> Planned:
    """Tissue, grid and quality of one slide; writes nothing."""
    tile = tile_spec(record, spec.tile)
    tissue = find_tissue(slide, tile.tissue, _outside(record, tile, slide))
    alive()
    if spec.coords is not None:
        grid = _given_grid(record, spec.coords, tile, slide, tissue)
    else:
        size = slide.levels[0].width, slide.levels[0].height
        regions = load_regions(tile.regions, record.slide_id, size)
        # the cap counts tiles that stay: where some may be left out, it is drawn from the others
        whole = replace(tile, max_tiles=None) if tile.quality.exclude else tile
        grid = replace(plan_grid(slide.levels, whole, tissue, regions), spec=tile)
    if not tile.quality.measure or len(grid) == 0:
        return Planned(tissue, grid, None)
    reading = Reading(spec.jobs.thread_count(), spec.jobs.read_bytes, alive)
    quality = measure_quality(slide, grid, tissue, tile.quality, reading)
    if spec.coords is not None:  # tiles that were given are all kept
        return Planned(tissue, grid, quality)
    gone, flags = quality.excluded(tile.quality), quality.flags(tile.quality)
    left_out = {flag: grid.xy[flags[flag]] for flag in FLAGS if flag in tile.quality.exclude and flags[flag].any()}
    kept = np.flatnonzero(~gone)
    found = grid.found
    if tile.max_tiles is not None and len(kept) > tile.max_tiles:
        found, kept = len(kept), kept[draw(len(kept), tile.max_tiles, tile.seed)]
    chosen = replace(grid, xy=grid.xy[kept], tissue=grid.tissue[kept], found=found)
    rows = np.zeros(len(grid), np.bool_)
    rows[kept] = True
    return Planned(tissue, chosen, quality.of(rows), left_out)


def tile_spec(record: SlideRecord, spec: TileSpec) -> TileSpec:
    """The settings for this slide: the manifest's `tissue` column, a method or a file, overrides the run's."""
    if record.tissue is None:
        return spec
    if record.tissue_mask is not None:
        return replace(spec, tissue=replace(spec.tissue, method="mask", mask=str(record.tissue_mask)))
    return replace(spec, tissue=replace(spec.tissue, method=record.tissue))


def grid_fingerprint(record: SlideRecord, spec: RunSpec, identity: str, slide: Slide) -> str:
    """Of what determines which tiles a slide gets and how their pixels look, and so their embeddings.

    Whether the pixels are kept does not count, nor what is only measured: that is in `store_fingerprint`.
    """
    tile, info = tile_spec(record, spec.tile), slide.info
    files = {
        "regions": regions_digest(tile.regions, record.slide_id),
        "mask": file_digest(mask_file(record, tile)),
        "weights": file_digest(Path(tile.tissue.weights)) if tile.tissue.weights else None,
        "coords": coords_digest(record, spec.coords),
    }
    # the files count by their content, not by where they lie
    plain = replace(
        tile,
        max_failed_tiles=0.0,
        seed=tile.seed if tile.max_tiles is not None else 0,
        quality=tile.quality if tile.quality.exclude else QualitySpec(),
        tissue=replace(tile.tissue, mask=tile.tissue.mask and "", weights=tile.tissue.weights and ""),
        regions=replace(tile.regions, include=tile.regions.include and "", exclude=tile.regions.exclude and ""),
    )
    return fingerprint(TILE_VERSION, plain, identity, info.mpp, info.mpp_source, info.channels, info.colour, files)


def store_fingerprint(grid_mark: str, spec: RunSpec, pixels: str) -> str:
    """Of all that is in the store of a slide's tiles."""
    return fingerprint(grid_mark, spec.tile.quality, pixels)


def tiles_there(path: Path, grid_mark: str, spec: RunSpec) -> Stored | None:
    """What the store at `path` holds if it is what is asked for; with pixels it serves also where none are."""
    wanted = [spec.patches] if spec.patches != "none" else ["none", "raw", "native", "jpeg"]
    marks = (store_fingerprint(grid_mark, spec, pixels) for pixels in wanted)
    found = (find_stored(path, mark, spec.tile.max_failed_tiles, open_patches) for mark in marks)
    return next((stored for stored in found if stored is not None), None)


def _quality_arrays(planned: Planned, tile: TileSpec) -> Mapping[str, NDArray[Any]]:
    if planned.quality is None:
        return {}
    flags = planned.quality.flags(tile.quality)
    return planned.quality.arrays() | {f"flag_{name}": values for name, values in flags.items()}


def _outside(record: SlideRecord, tile: TileSpec, slide: Slide) -> NDArray[np.bool_] | None:
    """The tissue mask that another file or model gives, if the method wants one."""
    if tile.tissue.method == "learned":
        from embedding.segmenter import segment_tissue

        return segment_tissue(slide, Path(str(tile.tissue.weights)), progress=alive)
    file = mask_file(record, tile)
    if file is None:
        return None
    scale = max(1, round(tile.tissue.mpp / (slide.levels[0].mpp or tile.tissue.mpp)))
    return read_mask(file, slide, scale)


def _given_grid(record: SlideRecord, place: str, tile: TileSpec, slide: Slide, tissue: Tissue) -> TileGrid:
    """The tiles that another tool cut, or about the same centres as those of another run."""
    file = coords_file(record, place)
    if file is None:
        own = plan_grid(slide.levels, tile, tissue)
        return replace(own, xy=own.xy[:0], tissue=own.tissue[:0])
    if file.suffix == ".zarr":
        other, base = open_patches(file), slide.levels[0]
        if (other.attrs["slide"]["width"], other.attrs["slide"]["height"]) != (base.width, base.height):
            problem = f"its tiles are not of this slide, of {base.width} x {base.height} px"
            raise SpecError(file, problem, "name a run on this slide")
        if other.identity != slide_identity(record.path):
            raise SpecError(file, "it is of another slide: the content differs", "name a run on this slide")
        given = replace(other.grid, spec=tile, mpp=base_mpp(slide) * other.grid.span_px / tile.tile_px)
        return replace(plan_scales(given, slide.levels, [tile.mpp])[0], spec=tile)
    return grid_from_coords(slide.levels, read_coords(file, slide.levels[0].mpp), tile, tissue)
