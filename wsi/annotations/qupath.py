"""GeoJSON as QuPath 0.2 to 0.6 writes and accepts it (qupath-core: QuPathTypeAdapters, ROITypeAdapters)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotation import KINDS, Annotation, Place, line, points_of, polygon

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

GEOMETRIES = {
    "Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection",
}  # fmt: skip
_KIND_OF = {kind.lower(): kind for kind in KINDS}
_KIND_OF |= {f"path{kind.lower()}object": kind for kind in KINDS}  # QuPath 0.2 wrote them in place of an id


def matches(tree: Any) -> bool:
    """Whether parsed JSON is GeoJSON: a FeatureCollection, a Feature, a geometry, or a list of these."""
    if isinstance(tree, list):
        return all(isinstance(entry, dict) and matches(entry) for entry in tree)
    return isinstance(tree, dict) and tree.get("type") in GEOMETRIES | {"Feature", "FeatureCollection"}


def parse(tree: Any, path: Path) -> list[Annotation]:
    """Every object with a geometry, parents before their `childObjects`; geometries are not repaired yet."""
    found = []
    for number, feature in enumerate(_features(tree)):
        place = Place(path, number)
        shape = feature.get("geometry")
        if shape is None:
            continue  # GeoJSON allows a feature without a place; there is nothing to draw
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        name, own = properties.get("name"), feature.get("id")
        found.append(
            Annotation(
                _geometry(shape, place),
                _classes(properties.get("classification"), place),
                name if isinstance(name, str) else "",
                _kind(feature, properties),
                color=_color(properties),
                measurements=_measurements(properties.get("measurements"), place),
                id=own if isinstance(own, str) else "",
            )
        )
    return found


def _features(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, list):
        for entry in tree:
            yield from _features(entry)
    elif not isinstance(tree, dict):
        yield {"geometry": tree}  # refused as a geometry, with its number
    elif tree.get("type") == "FeatureCollection":
        yield from _features(tree.get("features") or [])
    elif tree.get("type") == "Feature":
        yield tree
        properties = tree.get("properties")
        yield from _features((properties.get("childObjects") if isinstance(properties, dict) else None) or [])
    else:
        yield {"geometry": tree}


def _geometry(shape: Any, place: Place) -> "BaseGeometry":
    import shapely

    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind == "GeometryCollection":
        return shapely.GeometryCollection([_geometry(part, place) for part in _list(shape.get("geometries"), place)])
    if kind not in GEOMETRIES:
        raise place.error(f"its geometry is of type {kind!r}", "GeoJSON geometries are needed")
    values = _list(shape.get("coordinates"), place)
    if kind == "Point":
        return shapely.Point(points_of([values], place)[0])
    if kind == "MultiPoint":
        return shapely.MultiPoint(points_of(values, place))
    if kind == "LineString":
        return line(points_of(values, place))
    if kind == "MultiLineString":
        return shapely.MultiLineString([points_of(part, place) for part in values])
    if kind == "Polygon":
        return polygon([points_of(ring, place) for ring in values], place)
    parts = [[points_of(ring, place) for ring in _list(part, place)] for part in values]
    return shapely.MultiPolygon([polygon(rings, place) for rings in parts])


def _list(values: Any, place: Place) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise place.error("its geometry has no coordinates")
    return values


def _classes(value: Any, place: Place) -> tuple[str, ...]:
    """A name, or an object with `name` or `names`; QuPath joins the names of a derived class with a colon."""
    if isinstance(value, dict):
        value = value.get("names", value.get("name"))
    names = value if isinstance(value, list) else [value]
    if not all(name is None or isinstance(name, str) for name in names):
        raise place.error("its classification is no text")
    parts = [part.strip() for name in names if name for part in name.split(":")]
    return tuple(part for part in parts if part)


def _kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    candidates = [properties.get(key) for key in ("objectType", "object_type", "type")]
    for value in (*candidates, feature.get("objectType"), feature.get("id")):
        known = _KIND_OF.get(value.lower().replace("_", "")) if isinstance(value, str) else None
        if known:
            return known
    return "annotation"


def _color(properties: dict[str, Any]) -> tuple[int, int, int] | None:
    """RGB of the object, else of its class; anything else than three or four numbers of 0 to 255 says nothing."""
    label = properties.get("classification")
    for value in (properties.get("color"), label.get("color") if isinstance(label, dict) else None):
        if isinstance(value, list) and len(value) in (3, 4):
            rgb = [part for part in value[:3] if type(part) is int and 0 <= part <= 255]
            if len(rgb) == 3:
                return rgb[0], rgb[1], rgb[2]
    return None


def _measurements(values: Any, place: Place) -> dict[str, float]:
    """{"name": number} or a list of {"name", "value"}; "NaN" and "Infinity" are words in JSON."""
    if isinstance(values, list):
        values = {str(row.get("name")): row.get("value") for row in values if isinstance(row, dict)}
    try:
        return {name: float(value) for name, value in (values if isinstance(values, dict) else {}).items()}
    except (TypeError, ValueError, OverflowError):
        raise place.error("a measurement is not a number") from None
