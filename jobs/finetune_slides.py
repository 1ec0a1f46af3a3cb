"""Tiles of a run to fine-tune on: those inside drawn regions with the regions' class, or all of a slide with its label.

Pixels come from the run's stores where it kept them (`wsi tile --patches raw`); else those of the chosen tiles are read
from the slides once, into a file beside the adapter that is removed at the end.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mil.finetune import Cohort, FinetuneSpec
from tiling.patches import PatchStore, open_patches
from tiling.regions import check_place, lattice_share, region_file
from tiling.stream import iter_patches
from wsi.annotations import Annotation, read_annotations
from wsi.errors import ManifestError, SlideError, SpecError
from wsi.identity import slide_identity
from wsi.publish import fingerprint

from .config import RunSpec
from .extraction import TILE_AGAIN, reading_bytes
from .folder import RunFolder
from .manifest import SlideRecord
from .tile_stage import open_record

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True, eq=False)
class Chosen:
    """Tiles of one slide: rows int64 (k,) of its grid, and their label, one for each or one for all."""

    record: SlideRecord
    store: PatchStore
    rows: NDArray[np.int64]
    labels: tuple[str, ...]


def choose_tiles(
    records: Sequence[SlideRecord], folder: RunFolder, spec: FinetuneSpec, regions: Path | None, classes: Sequence[str]
) -> list[Chosen]:
    """The tiles of every slide that has any, at most `spec.max_tiles` of a slide (for each class of regions).

    regions  a file for one slide, or a folder with one for each; slides without one are left out
    classes  of regions that count; () for all there are. For slide labels: the labels that count
    Raises StoreError where a slide is not tiled, ManifestError where nothing is left, SpecError where tiles are of
    several sizes or scales, or one slide's content goes by two patients.
    """
    found = []
    for record in records:
        if regions is None and (record.label is None or (classes and record.label not in classes)):
            continue
        if regions is not None and regions.is_dir() and not _has_regions(regions, record.slide_id):
            continue
        store = open_patches(folder.tiles(record.slide_id))
        rows: NDArray[np.int64] = np.arange(len(store.grid))
        labels: tuple[str, ...] = (record.label or "",)
        if regions is not None:
            path = region_file(regions, record.slide_id, "--regions")
            rows, labels = _in_regions(path, store, classes, spec.min_share)
        if store.has_patches:
            ok = store.array("ok").astype(bool)[rows]
            rows, labels = rows[ok], tuple(np.array(labels)[ok]) if regions is not None else labels
        rows, labels = _drawn(rows, labels, spec, record.slide_id)
        if len(rows):
            found.append(Chosen(record, store, rows, labels))
    if not found:
        what = "a `label` column" if regions is None else "drawn regions with a class"
        raise ManifestError("SOURCE", "no slide has tiles that could be learned from", f"the slides need {what}")
    _check_alike(found)
    return found


def _has_regions(folder: Path, slide_id: str) -> bool:
    try:
        region_file(folder, slide_id, "--regions")
    except SpecError:
        return any(entry.name.startswith(f"{slide_id}.") for entry in folder.iterdir())  # several: an error to be told
    return True


def _in_regions(
    path: Path, store: PatchStore, wanted: Sequence[str], least: float
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(rows of the grid, the class of each): tiles of which at least the share `least` lies in one class's regions.

    A tile with that share in two classes is of neither: drawings that overlap do not say which.
    """
    grid, slide = store.grid, store.attrs["slide"]
    drawn: dict[str, list[Annotation]] = defaultdict(list)
    for one in read_annotations(path):
        name = _class_of(one, wanted)
        if name is not None and one.geometry.area > 0:
            drawn[name].append(one)
    columns, column = np.unique(grid.xy[:, 0], return_inverse=True)
    lines, line = np.unique(grid.xy[:, 1], return_inverse=True)
    names, shares = sorted(drawn), np.zeros((len(drawn), len(grid)))
    for place, name in enumerate(names):
        union = _union(drawn[name])
        check_place(union, (slide["width"], slide["height"]), "--regions", path)
        shares[place] = lattice_share(union, columns, lines, grid.span_px)[line, column]
    inside = shares >= max(least, 1e-9)
    rows = np.flatnonzero(inside.sum(axis=0) == 1) if names else np.empty(0, np.int64)
    return rows, tuple(names[int(place)] for place in inside[:, rows].argmax(axis=0)) if len(rows) else ()


def _union(drawn: Sequence[Annotation]) -> "BaseGeometry":
    import shapely

    return shapely.union_all([one.geometry for one in drawn])


def _class_of(one: Annotation, wanted: Sequence[str]) -> str | None:
    """The class of a drawn object, whole or in part one of `wanted` without regard to case; None where it has none."""
    whole = ": ".join(one.classes)
    if not wanted:
        return whole or None
    names = {name.casefold() for name in (whole, *one.classes)}
    return next((name for name in wanted if name.casefold() in names), None)


def _drawn(
    rows: NDArray[np.int64], labels: tuple[str, ...], spec: FinetuneSpec, slide_id: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """At most `spec.max_tiles` of them, for each class, drawn by the seed and the slide's id."""
    rng = np.random.default_rng([spec.seed, int(fingerprint(slide_id), 16)])
    each = np.array(labels if len(labels) == len(rows) and spec.labels == "regions" else labels * len(rows))
    kept = [rng.permutation(np.flatnonzero(each == name))[: spec.max_tiles] for name in sorted(set(each.tolist()))]
    order = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return rows[order], tuple(each[order].tolist()) if spec.labels == "regions" else labels


def _check_alike(chosen: Sequence[Chosen]) -> None:
    sizes = {(one.store.grid.spec.tile_px, one.store.grid.spec.mpp) for one in chosen}
    if len(sizes) > 1:
        said = " and ".join(f"{side} px at {mpp:g} µm/px" for side, mpp in sorted(sizes))
        raise SpecError("--run", f"its slides have tiles of {said}", "tile all of them alike")
    owner: dict[str, SlideRecord] = {}
    for one in chosen:
        other = owner.setdefault(one.store.identity, one.record)
        if other.patient_id != one.record.patient_id:
            problem = f"it is the same file as {other.slide_id}, but of another patient"
            raise ManifestError(one.record.slide_id, problem, "give both one patient_id, or remove one")


def slides_cohort(chosen: Sequence[Chosen], spec: FinetuneSpec, read: "RunPixels | None" = None) -> Cohort:
    """The chosen tiles as a cohort, of slides or of tiles; without `read` only to be planned with."""
    every = [name for one in chosen for name in one.labels]
    classes = tuple(sorted(set(every)))
    count, first = sum(len(one.rows) for one in chosen), np.cumsum([0, *(len(one.rows) for one in chosen)])
    of_slides = spec.labels == "slides"
    if of_slides:
        groups, names = zip(*((one.record.patient_id, one.record.slide_id) for one in chosen), strict=True)
    else:
        groups = tuple(one.record.patient_id for one in chosen for _ in one.rows)
        names = tuple(
            f"{one.record.slide_id} {x} {y}" for one in chosen for x, y in one.store.grid.xy[one.rows].tolist()
        )
    grid = chosen[0].store.grid
    return Cohort(
        classes,
        np.array([classes.index(name) for name in every], np.int64),
        tuple(groups),
        tuple(names),
        read or _not_read,
        count,
        grid.spec.tile_px,
        grid.spec.mpp,
        tuple(np.arange(first[i], first[i + 1]) for i in range(len(chosen))) if of_slides else None,
    )


def _not_read(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    raise RuntimeError("a cohort that is only planned with has no pixels")


def read_chosen(
    chosen: Sequence[Chosen], spec: RunSpec, file: Path, progress: Callable[[int, int, str], None]
) -> "tuple[list[Chosen], RunPixels]":
    """(the chosen tiles that can be read, their pixels). What no store keeps is read from the slides into `file`.

    Raises SlideError where a slide is not the one that was tiled, or more of its tiles cannot be read than the run
    allows.
    """
    absent = sum(len(one.rows) for one in chosen if not one.store.has_patches)
    side, done = chosen[0].store.grid.spec.tile_px, 0
    mapped = None
    if absent:
        file.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(file, "w+", np.uint8, (absent, side, side, 3))
    kept, starts = [], []
    for one in chosen:
        if one.store.has_patches or mapped is None:
            kept.append(one)
            starts.append(-1)
            continue
        ok = _read_slide(one, spec, mapped, done)
        progress(done + len(one.rows), absent, one.record.slide_id)
        labels = (
            tuple(np.array(one.labels)[ok])
            if len(one.labels) == len(ok) and spec.finetune.labels == "regions"
            else one.labels
        )
        kept.append(replace(one, rows=one.rows[ok], labels=labels))
        starts.append(done)
        done += int(ok.sum())
    return kept, RunPixels(kept, starts, mapped)


def _read_slide(one: Chosen, spec: RunSpec, mapped: NDArray[np.uint8], start: int) -> NDArray[np.bool_]:
    """Put the slide's tiles that can be read into `mapped` from `start` on; returns which those are."""
    grid, record = one.store.grid, one.record
    if slide_identity(record.path) != one.store.identity:
        raise SlideError(record.path, "it is not the slide that was tiled: its content differs", TILE_AGAIN)
    few = replace(grid, xy=grid.xy[one.rows], tissue=grid.tissue[one.rows])
    found = np.zeros(len(few), bool)
    with open_record(record, replace(spec, tile=grid.spec)) as slide:
        for group in iter_patches(slide, few, spec.jobs.thread_count(), reading_bytes(spec.jobs)):
            good = group.patches[group.ok]
            at = start + int(found.sum())
            mapped[at : at + len(good)] = good
            found[group.start : group.start + len(group.ok)] = group.ok
    failed, limit = int((~found).sum()), spec.tile.max_failed_tiles
    if failed > limit * len(found):
        problem = f"damaged: {failed} of {len(found)} chosen tiles cannot be read, limit {limit:.0%}"
        raise SlideError(record.path, problem, "copy the slide again, or leave it out")
    return found


class RunPixels:
    """Pixels of the chosen tiles, numbered through all slides in their order: called with int64 (k,), it returns uint8
    (k, t, t, 3)."""

    def __init__(self, chosen: Sequence[Chosen], starts: Sequence[int], mapped: NDArray[np.uint8] | None):
        self._chosen, self._starts, self._mapped = tuple(chosen), tuple(starts), mapped
        self._first = np.cumsum([0, *(len(one.rows) for one in chosen)])

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        side = self._chosen[0].store.grid.spec.tile_px
        out = np.empty((len(numbers), side, side, 3), np.uint8)
        owner = np.searchsorted(self._first, numbers, side="right") - 1
        for place in np.unique(owner).tolist():
            mine = np.flatnonzero(owner == place)
            inside = numbers[mine] - self._first[place]
            if self._starts[place] >= 0 and self._mapped is not None:
                out[mine] = self._mapped[self._starts[place] + inside]
            else:
                one = self._chosen[place]
                out[mine] = one.store.read_at(one.rows[inside])
        return out
