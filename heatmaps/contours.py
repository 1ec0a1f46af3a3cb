"""The light form of a heatmap: outlines instead of tiles, a hundred objects where there were a hundred thousand.

Regions are unions of tiles, exact to the pixel edge before they are simplified; iso-contours run smoothly between the
tiles' middles, by linear interpolation (marching squares, contourpy's), and end where the tiles end. Both are
simplified by Douglas and Peucker's rule (Cartographica 1973), which moves no point of an outline further than the
tolerance; rounding to whole level-0 pixels adds at most 0.71 px. Tiles without data are an object of their own, and
in no outline: what simplifying has moved over them is cut out again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.publish import appear_file

from .colour import NO_DATA, colour_table, colours_of
from .geojson import NO_DATA_CLASS, SUFFIXES, open_bytes
from .heatmap import Heatmap
from .raster import FAILED, SCORED, Raster, tile_raster

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

KINDS = ("regions", "contours")
_SPACE = UUID("5c1c5b3e-6d4d-4a0e-9a5f-0d2f0c6a7b11")


@dataclass(frozen=True, slots=True)
class OutlineSpec:
    """How outlines are drawn.

    kind          regions: unions of tiles; contours: smooth lines of equal score
    levels        what is outlined is where the score is at least so much; () for the middle of the display range
                  (regions), or a quarter, half and three quarters of it (contours)
    min_area_um2  smaller outlines are left out
    tolerance_um  that an outline may be moved by when it is simplified; 0 for not at all, None for that with regions,
                  and for a quarter of a tile's step with contours
    """

    kind: str = "regions"
    levels: tuple[float, ...] = ()
    min_area_um2: float = 0.0
    tolerance_um: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError("outlines.kind", f"{self.kind!r} is unknown", f"choose {' or '.join(KINDS)}")
        if list(self.levels) != sorted(set(self.levels)) or not np.isfinite(self.levels).all():
            raise SpecError("outlines.levels", f"{self.levels} do not rise", "give each once, lowest first")
        if not self.min_area_um2 >= 0 or not (self.tolerance_um is None or self.tolerance_um >= 0):
            raise SpecError("outlines", "an area or tolerance below 0", "give 0 or more")


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """One outline.

    shape   shapely Polygon in whole level-0 pixels, holes kept, valid; of tiles without data all, a MultiPolygon
    level   the score is at least so much inside; None for tiles without data
    area_um2, tiles, mean, highest   of the outline as drawn, and of the tiles whose middle lies in it (NaN without any)
    """

    shape: "BaseGeometry"
    level: float | None
    area_um2: float
    tiles: int = 0
    mean: float = float("nan")
    highest: float = float("nan")


def outlines(
    heatmap: Heatmap, mpp: float, spec: OutlineSpec = OutlineSpec(), display: tuple[float, float] | None = None
) -> list[Outline]:
    """Outlines of a heatmap by level, lowest first, and last that of tiles without data. mpp: µm per level-0 pixel."""
    import shapely

    raster = tile_raster(heatmap)
    low, high = display or heatmap.limits
    shares = (0.5,) if spec.kind == "regions" else (0.25, 0.5, 0.75)
    found: list[Outline] = []
    lost = shapely.MultiPolygon(
        _simplified(_edges_of(raster.state == FAILED, raster), raster, mpp, OutlineSpec(tolerance_um=0))
    )
    for level in spec.levels or tuple(low + share * (high - low) for share in shares):
        area = _area_of(raster, level) if spec.kind == "regions" else _within(raster, level)
        shapes = _without(_simplified(area, raster, mpp, spec), lost)
        found += _measured(shapes, float(level), heatmap, mpp)
    return found if lost.is_empty else [*found, Outline(lost, None, lost.area * mpp**2)]


def write_outlines(
    heatmap: Heatmap,
    path: Path,
    mpp: float,
    spec: OutlineSpec = OutlineSpec(),
    display: tuple[float, float] | None = None,
) -> int:
    """Write the outlines as QuPath annotations: class and colour by level, measurements of area, tiles and score.

    display  range that colours are spread over, `heatmap.limits` by default
    Returns the number of objects. Raises SpecError for a file name that QuPath would not read.
    """
    if not path.name.endswith(SUFFIXES):
        raise SpecError(path, "QuPath does not read a file of this name", f"end it in one of {', '.join(SUFFIXES)}")
    found = outlines(heatmap, mpp, spec, display)
    head = {"type": "FeatureCollection"}
    facts = {"schema": "outlines/1", "slide_id": heatmap.slide_id, "name": heatmap.name, "origin": heatmap.origin}
    with appear_file(path) as draft, open_bytes(draft, packed=path.name.endswith(".gz")) as out:
        out.write(json.dumps({**head, "slidestream": facts}, ensure_ascii=False)[:-1].encode() + b',\n"features":[\n')
        for number, feature in enumerate(_features(found, heatmap, spec, display or heatmap.limits)):
            text = json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            out.write((b",\n" if number else b"") + text.encode())
        out.write(b"\n]}\n")
    return len(found)


def _features(
    found: Sequence[Outline], heatmap: Heatmap, spec: OutlineSpec, display: tuple[float, float]
) -> Iterator[dict[str, Any]]:
    import shapely

    plain = " ".join(heatmap.class_name.replace(":", " ").split())
    for one in found:
        if one.level is None:
            name, rgb = NO_DATA_CLASS, list(NO_DATA)
            measured = {"area µm²": one.area_um2}
        else:
            name = f"{plain} at least {one.level:.4g}"
            rgb = colours_of(np.array(one.level), display, colour_table()).tolist()
            measured = {"area µm²": one.area_um2, "tiles": one.tiles}
            measured |= {f"mean {heatmap.name}": one.mean, f"highest {heatmap.name}": one.highest} if one.tiles else {}
        key = [heatmap.slide_id, heatmap.name, heatmap.origin, spec.kind, name, shapely.to_wkb(one.shape, hex=True)]
        properties = {
            "objectType": "annotation",
            "classification": {"name": name, "color": rgb},
            "isLocked": True,
            "measurements": {name: round(value, 6) for name, value in measured.items()},
        }
        ident = str(uuid5(_SPACE, json.dumps(key)))
        yield {"type": "Feature", "id": ident, "geometry": _geometry(one.shape), "properties": properties}


def _geometry(shape: "BaseGeometry") -> dict[str, Any]:
    """A Polygon or MultiPolygon of whole pixels as GeoJSON."""
    parts = [
        [np.asarray(ring.coords).astype(np.int64).tolist() for ring in (part.exterior, *part.interiors)]
        for part in getattr(shape, "geoms", [shape])
    ]
    if shape.geom_type == "Polygon":
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _area_of(raster: Raster, level: float) -> "NDArray[Any]":
    with np.errstate(invalid="ignore"):
        return _edges_of((raster.state == SCORED) & (raster.mean >= np.float32(level)), raster)


def _edges_of(mask: NDArray[np.bool_], raster: Raster) -> "NDArray[Any]":
    """The connected unions of the cells in a mask, polygons in level-0 pixels, exact.

    Marching squares at one half pass through the middles of the cells' edges and cut the corners; each pair of
    neighbours on the way says where the corner was.
    """
    # the lattice holds middles of cells, padded by one: a cell's corners are whole numbers after this
    found = _filled(np.pad(mask.astype(np.float32), 1), 0.5)
    return _polygons(([_cornered(ring - 0.5) for ring in rings] for rings in found), raster)


def _cornered(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring (n, 2) through middles of edges with the corners put back between them."""
    start, stop = ring[:-1], ring[1:]
    on_upright = start[:, 0] == np.rint(start[:, 0])  # the middle of an upright edge has a whole x
    up, along = np.c_[start[:, 0], stop[:, 1]], np.c_[stop[:, 0], start[:, 1]]
    corner = np.asarray(np.where(on_upright[:, None], up, along))
    straight = (start == stop).any(axis=1)
    corner = np.where(straight[:, None], stop, corner)
    whole = np.stack([start, corner], axis=1).reshape(-1, 2)
    return np.concatenate([whole, whole[:1]])


def _within(raster: Raster, level: float) -> "NDArray[Any]":
    """Where the score, interpolated between the middles of the cells, is at least `level`, where there are tiles."""
    import shapely
    from scipy.ndimage import distance_transform_edt

    scored = raster.state == SCORED
    if not scored.any():
        return np.empty(0, object)
    # beyond the tiles each place has the score of the nearest: a contour then meets their edge instead of following it
    nearest: Any = distance_transform_edt(~scored, return_distances=False, return_indices=True)
    field = np.pad(raster.mean[nearest[0], nearest[1]], 1, mode="edge")
    # contourpy leaves out where the field equals the bound; a plateau at the level is at least the level
    low = float(np.nextafter(np.float32(level), np.float32(-np.inf)))
    smooth = _polygons(([ring - 0.5 for ring in rings] for rings in _filled(field, low)), raster)
    tiles = shapely.multipolygons(_edges_of(scored, raster))
    shapely.prepare(tiles)
    at_edge = ~shapely.covers(tiles, smooth)
    return np.concatenate([smooth[~at_edge], shapely.get_parts(shapely.intersection(smooth[at_edge], tiles))])


def _filled(field: NDArray[np.float32], level: float) -> Iterator[list[NDArray[np.float64]]]:
    """The polygons where a lattice of numbers is at least `level`: rings (n, 2) as x, y in cells, the outer first."""
    from contourpy import FillType, contour_generator

    lattice = contour_generator(z=field, fill_type=FillType.OuterOffset)
    top = np.nextafter(np.float32(max(float(field.max()), level)), np.float32(np.inf))
    for points, offsets in zip(*lattice.filled(level, float(top)), strict=True):
        yield [points[start:stop] for start, stop in pairwise(offsets.tolist())]


def _polygons(found: "Iterable[list[NDArray[np.float64]]]", raster: Raster) -> "NDArray[Any]":
    """Valid polygons in level-0 pixels of rings in cells; outlines of one level share no area."""
    import shapely

    placed = ([ring * raster.cell_px + raster.origin for ring in rings] for rings in found)
    shapes = [shapely.Polygon(outer, holes) for outer, *holes in placed]
    parts = shapely.get_parts(shapely.make_valid(shapes, method="structure", keep_collapsed=False))
    return parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]


def _simplified(parts: "NDArray[Any]", raster: Raster, mpp: float, spec: OutlineSpec) -> "list[BaseGeometry]":
    """The polygons that are large enough, simplified, in whole pixels."""
    import shapely

    usual = raster.cell_px / 4 if spec.kind == "contours" else 0.0
    tolerance = usual if spec.tolerance_um is None else spec.tolerance_um / mpp
    parts = parts[shapely.area(parts) * mpp**2 >= spec.min_area_um2]
    drawn = shapely.set_precision(shapely.simplify(parts, tolerance, preserve_topology=True), 1.0)
    pieces = shapely.get_parts(drawn)
    kept = (shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(pieces)
    return list(pieces[kept])


def _without(shapes: "list[BaseGeometry]", lost: "BaseGeometry") -> "list[BaseGeometry]":
    """The outlines less the tiles without data, where simplifying moved them there."""
    import shapely

    if lost.is_empty or not shapes:
        return shapes
    shapely.prepare(lost)
    found: list[BaseGeometry] = []
    for shape, touched in zip(shapes, shapely.intersects(lost, shapes).tolist(), strict=True):
        parts = shapely.get_parts(shapely.difference(shape, lost, grid_size=1.0)) if touched else [shape]
        found += [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    return found


def _measured(shapes: "Sequence[BaseGeometry]", level: float, heatmap: Heatmap, mpp: float) -> list[Outline]:
    """Outlines with the numbers of the tiles whose middles lie in them."""
    import shapely

    tree = shapely.STRtree(shapely.points(heatmap.xy + heatmap.span_px / 2))
    of, tiles = tree.query(np.array(shapes, object), predicate="intersects") if len(shapes) else (np.empty(0, int),) * 2
    count = np.bincount(of, minlength=len(shapes))
    total = np.bincount(of, heatmap.scores[tiles], len(shapes))
    most = np.full(len(shapes), -np.inf)
    np.maximum.at(most, of, heatmap.scores[tiles])
    found = []
    for shape, tiles_in, sum_of, highest in zip(shapes, count, total, most, strict=True):
        said = (int(tiles_in), float(sum_of / tiles_in), float(highest)) if tiles_in else ()
        found.append(Outline(shape, level, shape.area * mpp**2, *said))
    return found
