"""Annotations as XML for ASAP and for Aperio ImageScope."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from numpy.typing import NDArray

from .annotation import Annotation, parts_of, rings_of
from .write_json import color_of

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TYPES = {"Polygon": "Polygon", "LineString": "Measurement", "LinearRing": "Measurement", "Point": "Dot"}


def asap_text(annotations: Sequence[Annotation]) -> str:
    """ASAP's XML; the class is the group.

    ASAP has no holes: a ring runs on into each hole along a slit, and back along it, so that whoever fills the ring
    leaves the hole out, and `read_annotations` has the polygon with its hole again.
    """
    root = Element("ASAP_Annotations")
    body, groups = SubElement(root, "Annotations"), SubElement(root, "AnnotationGroups")
    seen: dict[str, str] = {}
    for annotation in annotations:
        label, color = _text(": ".join(annotation.classes)), "#{:02x}{:02x}{:02x}".format(*color_of(annotation))
        if label:
            seen.setdefault(label, color)
        whole = annotation.geometry.geom_type == "MultiPoint"
        for part in [annotation.geometry] if whole else parts_of(annotation.geometry):
            facts = {"Name": _text(annotation.name), "Type": "PointSet" if whole else TYPES[part.geom_type]}
            entry = SubElement(body, "Annotation", facts | {"PartOfGroup": label or "None", "Color": color})
            corners = SubElement(entry, "Coordinates")
            for order, (x, y) in enumerate(_slit(part).tolist()):
                SubElement(corners, "Coordinate", Order=str(order), X=repr(x), Y=repr(y))
    for label, color in seen.items():
        SubElement(SubElement(groups, "Group", Name=label, PartOfGroup="None", Color=color), "Attributes")
    return _document(root)


def _slit(part: "BaseGeometry") -> NDArray[np.float64]:
    """float64 (n, 2) of a line or points, or of a polygon's ring with its holes in it, turning the other way."""
    import shapely

    if part.geom_type != "Polygon" or not part.interiors:
        points: NDArray[np.float64] = shapely.get_coordinates(part)
        return points[:-1] if part.geom_type == "Polygon" else points
    outer, *holes = rings_of(shapely.orient_polygons(part))
    detours: dict[int, list[NDArray[np.float64]]] = {}
    for hole in holes:
        first = int(hole[:, 0].argmin())
        nearest = int(np.square(outer - hole[first]).sum(axis=1).argmin())
        there = np.roll(hole, -first, axis=0)
        detours.setdefault(nearest, []).append(np.concatenate((there, there[:1], outer[nearest : nearest + 1])))
    pieces = []
    for place, point in enumerate(outer):
        pieces += [point[None], *detours.get(place, [])]
    return np.concatenate(pieces)


def imagescope_text(annotations: Sequence[Annotation]) -> str:
    """ImageScope's XML: a layer for each class and colour; a hole is a negative region.

    A negative region is cut out of its whole layer, so each object with holes has a layer of its own.
    """
    root = Element("Annotations", MicronsPerPixel="")
    layers: dict[tuple[str, int, tuple[int, int] | None], Element] = {}
    number = 0
    for place, annotation in enumerate(annotations):
        red, green, blue = color_of(annotation)
        for turn, part in enumerate(parts_of(annotation.geometry)):
            rings = rings_of(part) if part.geom_type == "Polygon" else [_slit(part)]
            own = (place, turn) if len(rings) > 1 else None
            key = (": ".join(annotation.classes), red + (green << 8) + (blue << 16), own)
            if key not in layers:
                layers[key] = _layer(root, key)
            for at, ring in enumerate(rings):
                number += 1
                kind = {"Polygon": "0", "Point": "5"}.get(part.geom_type, "4")
                facts = {"Id": str(number), "Type": kind, "Text": _text(annotation.name)}
                facts |= {"NegativeROA": str(int(at > 0)), "Analyze": "1", "DisplayId": str(number)}
                corners = SubElement(SubElement(layers[key], "Region", facts), "Vertices")
                for x, y in ring.tolist():
                    SubElement(corners, "Vertex", X=repr(x), Y=repr(y))
    if not layers:
        _layer(root, ("", 0, None))
    return _document(root)


def _layer(root: Element, key: tuple[str, int, tuple[int, int] | None]) -> Element:
    label, color, _ = key
    facts = {"Id": str(len(root) + 1), "Name": _text(label), "LineColor": str(color), "Visible": "1", "Type": "4"}
    return SubElement(SubElement(root, "Annotation", facts), "Regions")


def _text(value: str) -> str:
    """`value` with a mark in place of what XML cannot hold."""
    return _NOT_XML.sub("\ufffd", value)


def _document(root: Element) -> str:
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"
