"""XML as Aperio ImageScope writes it: layers (`Annotation`) of regions, where a negative region is a hole."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from .annotation import Annotation, Place, ellipse, line, points_of, polygon, repair

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

FREEHAND, RECTANGLE, ELLIPSE = "0", "1", "2"  # all other types (arrow, ruler, ...) enclose nothing


def matches(root: Element) -> bool:
    """Root `Annotations` with regions of `Vertex` elements (HALO's files have `V`)."""
    regions = root.find("./Annotation/Regions") is not None
    return (
        root.tag == "Annotations" and (regions or root.get("MicronsPerPixel") is not None) and not root.findall(".//V")
    )


def parse(root: Element, path: Path) -> list[Annotation]:
    """Every positive region less the negative ones of its layer.

    `classes` is the layer's name, else the layer's own attributes, else the region's text; `name` is the text.
    """
    found: list[Annotation] = []
    number = 0
    for layer in root.iterfind("./Annotation"):
        names = _names(layer)
        drawn, holes = [], []
        for region in layer.iterfind("./Regions/Region"):
            shape = _geometry(region, Place(path, number))
            number += 1
            if region.get("NegativeROA", "0") not in ("0", "false"):
                holes.append(shape)
                continue
            text = region.get("Text", "")
            text = "" if text == "null" else text.strip()
            drawn.append(Annotation(shape, names or ((text,) if text else ()), text))
        found += _cut(drawn, holes) if holes else drawn
    return found


def _cut(drawn: list[Annotation], holes: "list[BaseGeometry]") -> list[Annotation]:
    """The annotations without the areas of the holes; one that nothing is left of goes."""
    import shapely

    hole = shapely.union_all(repair([shape for shape in holes if shape.area > 0])[0])
    shapes, repaired = repair([annotation.geometry for annotation in drawn])
    kept = []
    for annotation, shape, mended in zip(drawn, shapes, repaired, strict=True):
        rest = shape.difference(hole) if shape.area > 0 else shape
        if not rest.is_empty:
            kept.append(replace(annotation, geometry=rest, repaired=bool(mended)))
    return kept


def _names(layer: Element) -> tuple[str, ...]:
    """The layer's name; else its attributes: the value of `Description`, the names of others and their values."""
    name = layer.get("Name", "").strip()
    if name:
        return (name,)
    found = []
    for attribute in layer.iterfind("./Attributes/Attribute"):
        key, value = attribute.get("Name", "").strip(), attribute.get("Value", "").strip()
        found += [word for word in ("" if key == "Description" else key, value) if word]
    return tuple(dict.fromkeys(found))


def _geometry(region: Element, place: Place) -> "BaseGeometry":
    try:
        vertices = [(float(v.get("X", "")), float(v.get("Y", ""))) for v in region.iterfind("./Vertices/Vertex")]
    except ValueError:
        raise place.error("a vertex is not a number") from None
    if not vertices:
        raise place.error("it has no vertices")
    points, kind = points_of(vertices, place), region.get("Type", FREEHAND)
    if kind == ELLIPSE and len(points) in (2, 4):  # corners of its box; with more points it was drawn out
        return ellipse(points)
    if kind == RECTANGLE and len(points) == 2:
        (left, top), (right, bottom) = points
        return polygon([points_of([(left, top), (right, top), (right, bottom), (left, bottom)], place)], place)
    return polygon([points], place) if kind in (FREEHAND, RECTANGLE, ELLIPSE) else line(points)
