"""XML as ASAP writes it (also the dialect of the Camelyon challenges); a group is a class."""

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from .annotation import Annotation, Place, line, points_of, polygon

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

AREAS = ("Polygon", "Rectangle", "Spline")  # a spline is taken through its control points in straight lines


def matches(root: Element) -> bool:
    return root.tag == "ASAP_Annotations"


def parse(root: Element, path: Path) -> list[Annotation]:
    """Every annotation; `classes` is its group and the groups that one belongs to.

    In Camelyon16 `_0` and `_1` are tumour, and `_2` is tissue inside a tumour that is none.
    """
    parents = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")}
    found = []
    for number, entry in enumerate(root.iterfind("./Annotations/Annotation")):
        geometry = _geometry(entry, Place(path, number))
        found.append(Annotation(geometry, _path_of(entry.get("PartOfGroup", "None"), parents), entry.get("Name", "")))
    return found


def _path_of(group: str, parents: dict[str, str]) -> tuple[str, ...]:
    names: list[str] = []
    while group not in ("", "None") and group not in names:  # a group may, by mistake, be its own parent
        names.append(group)
        group = parents.get(group, "None")
    return tuple(names)


def _geometry(entry: Element, place: Place) -> "BaseGeometry":
    import shapely

    try:
        rows = sorted(
            (int(float(point.get("Order", order))), float(point.get("X", "")), float(point.get("Y", "")))
            for order, point in enumerate(entry.iterfind("./Coordinates/Coordinate"))
        )
    except (ValueError, OverflowError):
        raise place.error("a coordinate is not a number") from None
    kind = entry.get("Type", "Polygon")
    if not rows:
        raise place.error("it has no coordinates")
    points = points_of([row[1:] for row in rows], place)
    if kind in AREAS:
        return polygon([points], place)
    if kind in ("Dot", "PointSet"):
        return shapely.MultiPoint(points) if len(points) > 1 else shapely.Point(points[0])
    if kind == "Measurement":
        return line(points)
    raise place.error(f"type {kind!r} is unknown", f"ASAP knows {', '.join(AREAS)}, Dot, PointSet and Measurement")
