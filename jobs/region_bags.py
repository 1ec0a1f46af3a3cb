"""Drawn regions of a run's slides as bags to learn from, beside the slides: what review gives back to training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiling.regions import SUFFIXES, check_place, region_file
from wsi.annotations import Annotation, read_annotations
from wsi.errors import SpecError, StoreError
from wsi.publish import fingerprint

from .bags import slide_bag
from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .slide_sizes import slide_sizes

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from mil.bag import Bag


@dataclass(frozen=True, slots=True)
class RegionCount:
    """What a folder of regions held: by class those that are learnt from, and by reason those that are not."""

    learnt: Counter[str]
    left_out: Counter[str]


def region_bags(
    records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, count: RegionCount | None = None
) -> "list[Bag]":
    """A bag of each region in the files of `spec.train.regions` that has a class of the task; [] without any files.

    A region's tiles are those whose centre lies in it; where it is smaller than a tile, the one that it lies in. Slides
    need no label of their own. Points and lines are left out, as are classes that no slide has.

    count  is told what was found, and what was left out for which reason
    Raises SpecError for a folder without a file of any of these slides, for a task without classes and for regions
    beside their slide; StoreError where such a slide has no embeddings.
    """
    task = spec.train.task
    if spec.train.regions is None:
        return []
    if task.name not in ("classification", "ordinal"):
        raise SpecError("--regions", f"a region's class cannot teach {task.name}", "leave it out")
    place, count = Path(spec.train.regions), count or RegionCount(Counter(), Counter())
    drawn = [(record, path) for record in records if (path := _file_of(place, record.slide_id)) is not None]
    if not drawn:
        problem = f"{place} has no file of any of these slides"
        raise SpecError("--regions", problem, f"name files after slides: {records[0].slide_id}.geojson")
    classes = task.classes or tuple(sorted({text for record in records if (text := _truth(record, task.target))}))
    return [bag for record, path in drawn for bag in _of_slide(record, path, (spec, folder), classes, count)]


def regions_mark(bags: "Sequence[Bag]") -> list[object]:
    """What tells these regions from others, for a fingerprint: names, classes and places of their tiles."""
    return [(bag.region, bag.label, dict(bag.columns), fingerprint(bag.xy.tolist())) for bag in bags]


def tiles_inside(geometry: "BaseGeometry", xy: NDArray[np.int64], span_px: int) -> NDArray[np.int64]:
    """Numbers of the tiles whose centre lies in an area, int64 (k,); of a small one, the tile that it lies in.

    xy  (n, 2), top-left corners in level-0 pixels; span_px is the tiles' side there
    """
    import shapely

    if not len(xy):
        return np.empty(0, np.int64)
    centres = xy + span_px / 2
    inside = np.flatnonzero(shapely.contains_xy(geometry, centres[:, 0], centres[:, 1]))
    if len(inside):
        return inside
    point = geometry.representative_point()
    away = np.abs(centres - (point.x, point.y)).max(axis=1)
    nearest = int(away.argmin())
    return np.array([nearest] if away[nearest] <= span_px / 2 else [], np.int64)


def _of_slide(
    record: SlideRecord,
    path: Path,
    run: tuple[RunSpec, RunFolder],
    classes: Sequence[str],
    count: RegionCount,
) -> "Iterator[Bag]":
    from .training import embeddings_of

    spec, folder = run
    target = spec.train.task.target
    found = read_annotations(path)
    if not found:
        return
    names = embeddings_of(spec)
    if not all(folder.features(name, record.slide_id).exists() for name in names):
        problem = f"slide {record.slide_id} has regions, but no embeddings"
        raise StoreError(folder.root / "embeddings", problem, "run `wsi embed` on it first, or remove its file")
    whole = slide_bag(record, names, folder)
    size = slide_sizes(folder, [record.slide_id])[record.slide_id]
    for number, one in enumerate(found, start=1):
        label = _class_of(one, classes)
        if one.geometry.area == 0 or label is None:
            count.left_out["no area" if one.geometry.area == 0 else "no class of the task"] += 1
            continue
        if size is not None:
            check_place(one.geometry, size, "--regions", path)
        inside = tiles_inside(one.geometry, whole.bag.xy, whole.bag.span_px)
        if not len(inside):
            count.left_out["no tile"] += 1
            continue
        count.learnt[label] += 1
        views = None if whole.bag.views is None else whole.bag.views[inside]
        part = replace(whole.bag, features=whole.bag.features[inside], xy=whole.bag.xy[inside], views=views)
        columns = dict(whole.bag.columns) if target == "label" else {**whole.bag.columns, target: label}
        text = label if target == "label" else None
        yield replace(part, label=text, columns=columns, region=f"{record.slide_id} {number}")


def _file_of(place: Path, slide_id: str) -> Path | None:
    if not place.is_dir():
        raise SpecError("--regions", f"{place} is no folder", "give a folder with a file of regions for each slide")
    return region_file(place, slide_id, "--regions") if _has_file(place, slide_id) else None


def _has_file(place: Path, slide_id: str) -> bool:
    return any((place / f"{slide_id}{suffix}").is_file() for suffix in SUFFIXES)


def _truth(record: SlideRecord, target: str) -> str | None:
    return record.label if target == "label" else record.extra.get(target)


def _class_of(one: Annotation, classes: Sequence[str]) -> str | None:
    """The class of the task that the drawn object has, without regard to case."""
    names = {name.casefold() for name in (": ".join(one.classes), *one.classes)}
    return next((name for name in classes if name.casefold() in names), None)
