"""JSON of the Digital Slide Archive (girder's large_image): documents of elements."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotation import Annotation, Place, line, listed, points_of, polygon

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


def matches(tree: Any) -> bool:
    """One document or a list of them; a document is {"annotation": {"elements": []}} or the inner part alone."""
    return bool(tree) and all(_elements(one) is not None for one in (tree if isinstance(tree, list) else [tree]))


def _elements(document: Any) -> list[Any] | None:
    inner = document.get("annotation", document) if isinstance(document, dict) else None
    found = inner.get("elements") if isinstance(inner, dict) else None
    return found if isinstance(found, list) else None


def _all(tree: Any) -> Iterator[Any]:
    for document in tree if isinstance(tree, list) else [tree]:
        yield from _elements(document) or []


def parse(tree: Any, path: Path) -> list[Annotation]:
    """Every element; `classes` is its group, else its label's text; `name` is the label's text."""
    found = []
    for number, element in enumerate(_all(tree)):
        place = Place(path, number)
        if not isinstance(element, dict):
            raise place.error("it is no element")
        label = element.get("label")
        text = label.get("value") if isinstance(label, dict) else None
        text = text if isinstance(text, str) else ""
        group = element.get("group")
        label = group if isinstance(group, str) and group else text
        found.append(Annotation(_geometry(element, place), (label,) if label else (), text))
    return found


def _geometry(element: dict[str, Any], place: Place) -> "BaseGeometry":
    import shapely

    kind = element.get("type")
    if kind in ("polyline", "arrow"):
        points = points_of(listed(element.get("points"), place), place)
        if kind == "arrow" or not element.get("closed"):
            return line(points)
        holes = element.get("holes") or []
        if not isinstance(holes, list):
            raise place.error("its holes are no list")
        return polygon([points, *(points_of(hole, place) for hole in holes)], place)
    if kind in ("point", "circle", "rectangle", "ellipse", "rectanglegrid"):
        (centre,) = points_of([element.get("center")], place)
        return shapely.Point(centre) if kind == "point" else _round_or_box(element, centre, place)
    raise place.error(
        f"type {kind!r} is unknown", "polylines, rectangles, ellipses, circles, points and arrows are read"
    )


def _round_or_box(element: dict[str, Any], centre: Any, place: Place) -> "BaseGeometry":
    """A circle, or the rectangle or ellipse of width and height turned clockwise by `rotation` (radians)."""
    import shapely
    from shapely import affinity

    keys = ("radius",) if element["type"] == "circle" else ("width", "height", "rotation")
    values = points_of([[element.get(key, 0 if key == "rotation" else None), 0] for key in keys], place)[:, 0]
    if min(values[:2]) <= 0:
        raise place.error("its size is not above 0")
    width, height, angle = (2 * values[0], 2 * values[0], 0.0) if len(keys) == 1 else values
    oval = element["type"] in ("circle", "ellipse")
    unit = shapely.Point(0, 0).buffer(0.5, quad_segs=64) if oval else shapely.box(-0.5, -0.5, 0.5, 0.5)
    turned = affinity.rotate(affinity.scale(unit, width, height), angle, origin=(0, 0), use_radians=True)
    return affinity.translate(turned, *centre)
