"""JSON as V7 Darwin exports it (version 2.0): polygons with holes, boxes, ellipses, lines and key points."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotation import Annotation, Place, box, line, points_of_xy, polygon

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


def matches(tree: Any) -> bool:
    return isinstance(tree, dict) and isinstance(tree.get("annotations"), list) and isinstance(tree.get("item"), dict)


def parse(tree: Any, path: Path) -> list[Annotation]:
    """Every annotation with a place; a tag has none and goes. `classes` is the annotation class's name."""
    found = []
    for number, entry in enumerate(tree["annotations"]):
        place = Place(path, number)
        if not isinstance(entry, dict):
            raise place.error("it is no annotation")
        shape = _geometry(entry, place)
        name = entry.get("name")
        if shape is not None:
            found.append(Annotation(shape, (name,) if isinstance(name, str) and name else ()))
    return found


def _geometry(entry: dict[str, Any], place: Place) -> "BaseGeometry | None":
    """The entry's shape; its bounding box only where it was drawn as one. None for a tag."""
    import shapely

    if isinstance(entry.get("polygon"), dict):
        return _polygon(entry["polygon"], place)
    if isinstance(entry.get("line"), dict):
        return line(points_of_xy(entry["line"].get("path"), place))
    if "keypoint" in entry:
        return shapely.Point(points_of_xy([entry["keypoint"]], place)[0])
    if isinstance(entry.get("ellipse"), dict):
        return _ellipse(entry["ellipse"], place)
    if "bounding_box" in entry:
        return box(entry["bounding_box"], ("x", "y", "w", "h"), place)
    if "tag" in entry:
        return None
    raise place.error("its shape is none of polygon, bounding box, ellipse, line, key point and tag")


def _polygon(shape: dict[str, Any], place: Place) -> "BaseGeometry":
    """Rings in any order: a point is inside where an odd number of rings holds it, so a ring in a ring is a hole."""
    import shapely

    paths = shape.get("paths", [shape["path"]] if "path" in shape else None)
    if not isinstance(paths, list) or not paths:
        raise place.error("it has no coordinates")
    rings = [polygon([points_of_xy(path, place)], place) for path in paths]
    if len(rings) == 1:
        return rings[0]
    whole = shapely.make_valid(rings[0], method="structure", keep_collapsed=False)
    for ring in rings[1:]:
        whole = whole.symmetric_difference(shapely.make_valid(ring, method="structure", keep_collapsed=False))
    return whole


def _ellipse(shape: dict[str, Any], place: Place) -> "BaseGeometry":
    """Polygon of 256 points from `center`, `radius` and `angle` (radians)."""
    import shapely
    from shapely import affinity

    centre, radius = points_of_xy([shape.get("center"), shape.get("radius")], place)
    angle = points_of_xy([{"x": shape.get("angle", 0), "y": 0}], place)[0, 0]
    circle = shapely.Point(0, 0).buffer(1, quad_segs=64)
    turned = affinity.rotate(affinity.scale(circle, *radius), angle, origin=(0, 0), use_radians=True)
    return affinity.translate(turned, *centre)
