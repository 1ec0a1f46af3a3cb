"""The Annotation, and the geometry that all formats share: rings closed, invalid shapes repaired."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AnnotationError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

KINDS = ("annotation", "detection", "cell", "tile", "tmaCore")
MAX_COORDINATE = 1e8  # level-0 px; beyond any slide, so a file with such a number is damaged or in another unit


@dataclass(frozen=True, slots=True)
class Annotation:
    """One drawn object.

    geometry  shapely geometry in level-0 pixels, always valid
    classes   names of its classes, () if it has none; QuPath's `Tumor: Positive` is ("Tumor", "Positive")
    name      the object's own name, "" if it has none
    kind      annotation, detection, cell, tile or tmaCore (QuPath's object types; other tools know annotations only)
    repaired  the drawn ring crossed itself; `geometry` is what shapely.make_valid (method structure) made of it
    """

    geometry: "BaseGeometry"
    classes: tuple[str, ...] = ()
    name: str = ""
    kind: str = "annotation"
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file an object stands, for messages."""

    path: Path
    number: int

    def error(self, problem: str, remedy: str = "correct or delete this object and export again") -> AnnotationError:
        return AnnotationError(self.path, f"object {self.number + 1}: {problem}", remedy)


def points_of(values: Any, place: Place) -> NDArray[np.float64]:
    """float64 (n, 2) of a list of [x, y] or [x, y, z]. Raises AnnotationError for anything else."""
    try:
        points = np.array(values)
    except ValueError:  # rows of different length
        points = np.empty(0, object)
    if points.ndim != 2 or points.shape[1] < 2 or points.dtype.kind not in "iuf":
        raise place.error("its coordinates are not pairs of numbers")
    points = points[:, :2].astype(np.float64)
    if not np.isfinite(points).all() or np.abs(points).max() > MAX_COORDINATE:
        raise place.error("a coordinate is not a finite number of pixels", "coordinates must be level-0 pixels")
    return points


def polygon(rings: Sequence[NDArray[np.float64]], place: Place) -> "BaseGeometry":
    """Polygon of an outer ring and its holes, each float64 (n, 2); open rings are closed. It may be invalid."""
    import shapely

    for ring in rings:
        closed = len(ring) > 1 and bool((ring[0] == ring[-1]).all())
        if len(ring) - closed < 3:
            raise place.error(f"a polygon needs 3 points, this one has {len(ring) - closed}")
    if not rings:
        raise place.error("a polygon without a ring")
    return shapely.Polygon(rings[0], rings[1:])


def line(points: NDArray[np.float64]) -> "BaseGeometry":
    """LineString through float64 (n, 2), or the Point where there is one only."""
    import shapely

    return shapely.LineString(points) if len(points) > 1 else shapely.Point(points[0])


def ellipse(points: NDArray[np.float64]) -> "BaseGeometry":
    """The ellipse inside the bounding box of float64 (n, 2), as a polygon of 256 points (area within 0.02 %)."""
    import shapely

    centre, radii = (points.min(axis=0) + points.max(axis=0)) / 2, np.ptp(points, axis=0) / 2
    angle = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return shapely.Polygon(centre + radii * np.column_stack((np.cos(angle), np.sin(angle))))


def repair(geometries: "Sequence[BaseGeometry]") -> "tuple[list[BaseGeometry], NDArray[np.bool_]]":
    """(valid geometries, which were repaired). A polygon without any area becomes the line that it is."""
    import shapely

    shapes = np.empty(len(geometries), object)
    shapes[:] = geometries
    wrong = ~shapely.is_valid(shapes)
    # structure rather than linework: loops that a hand draws twice stay filled, and a polygon stays polygonal
    made = shapely.make_valid(shapes[wrong], method="structure", keep_collapsed=False)
    made[:] = [
        good if not good.is_empty and good.is_valid else _by_lines(bad)
        for good, bad in zip(made, shapes[wrong], strict=True)
    ]
    shapes[wrong] = made
    return shapes.tolist(), wrong


def _by_lines(shape: "BaseGeometry") -> "BaseGeometry":
    """For the few that `structure` does not mend (GEOS 3.14): the areas that the lines enclose, else the lines."""
    import shapely

    mended = shapely.make_valid(shape)
    areas = [part for part in shapely.get_parts(mended) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(areas) if areas else mended


def listed(values: Any, place: Place) -> list[Any]:
    """`values`, which must be a list that is not empty."""
    if not isinstance(values, list) or not values:
        raise place.error("it has no coordinates")
    return values


def points_of_xy(values: Any, place: Place) -> NDArray[np.float64]:
    """float64 (n, 2) of a list of {"x": ..., "y": ...}."""
    rows = listed(values, place)
    if not all(isinstance(row, dict) for row in rows):
        raise place.error("its coordinates are not pairs of numbers")
    return points_of([[row.get("x"), row.get("y")] for row in rows], place)


def box(values: Any, keys: tuple[str, str, str, str], place: Place) -> "BaseGeometry":
    """The rectangle of a mapping whose `keys` name its left, top, width and height."""
    values = values if isinstance(values, dict) else {}
    left, top, width, height = points_of([[values.get(key), 0] for key in keys], place)[:, 0]
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    return polygon([points_of(corners, place)], place)
