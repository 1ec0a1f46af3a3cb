"""Drawn regions that tiles must lie in, or must not, and the exact share of every tile inside them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.annotations import Annotation, read_annotations
from wsi.errors import AnnotationError, SpecError

from .spec import RegionSpec

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SUFFIXES = tuple(f"{kind}{packed}" for kind in (".geojson", ".json", ".xml") for packed in ("", ".gz", ".zip"))
EDGES = 1 << 20  # edges of polygons that are worked on at once


@dataclass(frozen=True)
class Regions:
    """Where tiles may be on one slide. Geometries are valid, in level-0 pixels; None is no such limit.

    min_share  share of a tile inside `include` and outside `exclude` that it needs
    digest     of the files they were read from, for a fingerprint
    """

    include: "BaseGeometry | None"
    exclude: "BaseGeometry | None"
    min_share: float = 0.5
    digest: str = ""

    def share(self, columns: NDArray[np.int64], rows: NDArray[np.int64], span_px: int) -> NDArray[np.float64]:
        """Share of every tile at (columns[i], rows[j]) that is allowed, exactly: (rows, columns) in [0, 1]."""
        include, exclude = self.include, self.exclude
        if include is None or exclude is None:
            share = lattice_share(include if include is not None else exclude, columns, rows, span_px)
            return share if include is not None else 1 - share
        # less what is in both, rather than of the difference: GEOS makes a small intersection much faster
        both = lattice_share(include.intersection(exclude), columns, rows, span_px)
        return lattice_share(include, columns, rows, span_px) - both


def load_regions(spec: RegionSpec, slide_id: str, size: tuple[int, int] | None = None) -> Regions | None:
    """The regions of one slide, or None where `spec` names no file.

    A folder has one file for each slide, `slide_id` and a suffix such as .geojson, .xml or .geojson.gz; `[]` in a
    .geojson says that nothing is drawn. Class names are compared without regard to case; one that no object of the
    file has, or of the folder's files, is an error. Objects without an area do not count. With `size`, the slide's
    (width, height) at level 0, objects that all lie beside the slide are an error.
    Raises SpecError, and AnnotationError where a file cannot be read.
    """
    shapes = {}
    for name, place in _places(spec):
        path = region_file(place, slide_id, f"regions.{name}")
        found = of_classes(path, getattr(spec, f"{name}_classes"), place, f"regions.{name}_classes")
        shapes[name] = _union(found)
        if found and shapes[name].is_empty:
            problem = f"none of the {len(found)} objects of {path} encloses an area"
            raise SpecError(f"regions.{name}", problem, "draw polygons, or choose other classes")
        if size is not None:
            check_place(shapes[name], size, f"regions.{name}", path)
    if not shapes:
        return None
    return Regions(shapes.get("include"), shapes.get("exclude"), spec.min_share, regions_digest(spec, slide_id) or "")


def check_place(drawn: "BaseGeometry", size: tuple[int, int], setting: str, path: Path) -> None:
    """Raise SpecError where something is drawn, and all of it beside a slide of `size`, (width, height) at level 0."""
    import shapely

    width, height = size
    if drawn.is_empty or shapely.intersects(drawn, shapely.box(0, 0, width, height)):
        return
    problem = f"{path}: none of it lies on this slide of {width} x {height} px"
    raise SpecError(setting, problem, "is it of another slide, or in other units than level-0 pixels?")


def regions_digest(spec: RegionSpec, slide_id: str) -> str | None:
    """Twelve hex digits over the content of the slide's region files, for a fingerprint; None where there are none.

    Raises SpecError where a folder has no file for the slide, AnnotationError where a file is missing.
    """
    digest, named = hashlib.sha256(), False
    for name, place in _places(spec):
        path = region_file(place, slide_id, f"regions.{name}")
        if not path.is_file():
            raise AnnotationError(path, "no such file", f"correct `regions.{name}`")
        with path.open("rb") as stream:
            digest.update(name.encode() + hashlib.file_digest(stream, "sha256").digest())
        named = True
    return digest.hexdigest()[:12] if named else None


def _places(spec: RegionSpec) -> list[tuple[str, Path]]:
    given = (("include", spec.include), ("exclude", spec.exclude))
    return [(name, Path(place)) for name, place in given if place is not None]


def region_file(place: Path, slide_id: str, setting: str) -> Path:
    """The file that `place` is, or the one in it that is named by the slide. Raises SpecError for none or several."""
    if not place.is_dir():
        return place
    found = [path for path in (place / f"{slide_id}{suffix}" for suffix in SUFFIXES) if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(path.name for path in found)
        raise SpecError(setting, f"{place} has {names} for one slide", "keep one of them")
    problem = f"{place} has no file for slide {slide_id!r}"
    raise SpecError(setting, problem, f"add {slide_id}.geojson; `[]` in it says that nothing is drawn")


def of_classes(path: Path, wanted: Sequence[str], place: Path, setting: str) -> list[Annotation]:
    """Objects of `path` that have one of the wanted classes; all of them if none is named."""
    annotations = read_annotations(path)
    if not wanted:
        return annotations
    there = {name for annotation in annotations for name in _names(annotation)}
    missing = {name.casefold() for name in wanted} - {name.casefold() for name in there}
    if missing and place.is_dir():  # a class may be rare: that this slide has none of it is no mistake
        for other in sorted(entry for entry in place.iterdir() if entry.name.endswith(SUFFIXES)):
            there |= _class_names(other, other.stat().st_mtime_ns)
            missing -= {name.casefold() for name in there}
            if not missing:
                break
    if missing:
        named = ", ".join(sorted(name for name in wanted if name.casefold() in missing))
        known = ", ".join(sorted(there)) or "none at all"
        raise SpecError(setting, f"no object in {place} has the class {named}", f"the classes there are: {known}")
    keep = {name.casefold() for name in wanted}
    return [one for one in annotations if keep & {name.casefold() for name in _names(one)}]


def _names(annotation: Annotation) -> set[str]:
    """Its classes, and all of them as QuPath joins them."""
    return {*annotation.classes, ": ".join(annotation.classes)} - {""}


@lru_cache(maxsize=100_000)  # a folder is looked through once in a process, not once for each slide
def _class_names(path: Path, _changed_ns: int) -> frozenset[str]:
    try:
        return frozenset(name for annotation in read_annotations(path) for name in _names(annotation))
    except AnnotationError:  # another slide's problem
        return frozenset()


def _union(annotations: Sequence[Annotation]) -> "BaseGeometry":
    import shapely

    shapes = [annotation.geometry for annotation in annotations if annotation.geometry.area > 0]
    return shapely.disjoint_subset_union_all(shapes) if shapes else shapely.MultiPolygon()


def lattice_share(
    geometry: "BaseGeometry | None", columns: NDArray[np.int64], rows: NDArray[np.int64], span_px: int
) -> NDArray[np.float64]:
    """Share of each tile at (columns[i], rows[j]) inside a valid geometry (None is empty): (rows, columns) in [0, 1].

    columns, rows  ascending left and upper edges in level-0 pixels; tiles may overlap and have gaps
    Exact up to rounding: the plane is cut at all tile edges, and the area in each cell is the integral along the
    polygons' edges (Green's theorem), as renderers of fonts compute coverage. The work is that of the edges and the
    cells, not their product: 100,000 of each take a fraction of a second.
    """
    if geometry is None or not len(columns) or not len(rows):
        return np.zeros((len(rows), len(columns)))
    across, down = (np.unique(np.concatenate((edges, edges + span_px))) for edges in (columns, rows))
    cells = _cell_areas(geometry, across.astype(np.float64), down.astype(np.float64))
    total = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    x0, x1 = np.searchsorted(across, columns), np.searchsorted(across, columns + span_px)
    y0, y1 = np.searchsorted(down, rows)[:, None], np.searchsorted(down, rows + span_px)[:, None]
    area = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return np.clip(area / span_px**2, 0, 1)


def _cell_areas(
    geometry: "BaseGeometry", across: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area of `geometry` in each cell between the lines x = across[i] and y = down[j]: (len(down) - 1, ...)."""
    import shapely

    shape = len(down) - 1, len(across) - 1
    inside, beyond = np.zeros(shape[0] * shape[1]), np.zeros(shape[0] * shape[1])
    polygons = shapely.orient_polygons(shapely.get_parts(geometry), exterior_cw=True)
    points, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    first = np.flatnonzero(ring[1:] == ring[:-1])  # edges, by the number of their first point
    for start in range(0, len(first), EDGES):
        part = first[start : start + EDGES]
        begin, end = _pieces(points[part], points[part + 1], across, down)
        middle = (begin + end) / 2
        column = np.clip(np.searchsorted(across, middle[:, 0], side="right") - 1, 0, shape[1] - 1)
        row = np.clip(np.searchsorted(down, middle[:, 1], side="right") - 1, 0, shape[0] - 1)
        cell = row * shape[1] + column
        rise = end[:, 1] - begin[:, 1]
        # right of a rising piece everything is inside: the rest of its own cell, and all cells further right
        inside += np.bincount(cell, rise * (across[column + 1] - middle[:, 0]), inside.size)
        beyond += np.bincount(cell, rise, beyond.size)
    left = beyond.reshape(shape).cumsum(1) - beyond.reshape(shape)
    return inside.reshape(shape) + left * np.diff(across)


def _pieces(
    begin: NDArray[np.float64], end: NDArray[np.float64], across: NDArray[np.float64], down: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges (n, 2) cut where they cross a line: (begin, end) of the pieces, moved onto the lattice where outside.

    Moving sideways keeps what a piece has to its right; a piece above or below becomes flat and counts nothing.
    """
    owners, ways = [np.arange(len(begin))] * 2, [np.zeros(len(begin)), np.ones(len(begin))]
    for axis, lines in enumerate((across, down)):
        low, high = np.minimum(begin[:, axis], end[:, axis]), np.maximum(begin[:, axis], end[:, axis])
        first, last = np.searchsorted(lines, low, side="right"), np.searchsorted(lines, high, side="left")
        count = np.maximum(last - first, 0)
        owner = np.repeat(np.arange(len(begin)), count)
        number = np.arange(len(owner)) - np.repeat(count.cumsum() - count, count)
        line = lines[first[owner] + number]
        owners.append(owner)
        ways.append((line - begin[owner, axis]) / (end[owner, axis] - begin[owner, axis]))
    owner, way = np.concatenate(owners), np.concatenate(ways)
    order = np.lexsort((way, owner))
    owner, way = owner[order], way[order, None]
    points = begin[owner] * (1 - way) + end[owner] * way
    points = np.clip(points, (across[0], down[0]), (across[-1], down[-1]))
    same = owner[1:] == owner[:-1]
    return points[:-1][same], points[1:][same]
