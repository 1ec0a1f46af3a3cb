"""Annotations as GeoJSON for QuPath and as a document of the Digital Slide Archive."""

import json
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from .annotation import Annotation, parts_of, rings_of

# Okabe and Ito's colours, which stay apart for every common kind of colour vision
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66))
UNLABELLED = (110, 110, 110)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def color_of(annotation: Annotation) -> tuple[int, int, int]:
    """The colour it was drawn in, else one of its class, the same in every file."""
    if annotation.color is not None:
        return annotation.color
    label = ": ".join(annotation.classes)
    return COLORS[zlib.crc32(label.encode(errors="replace")) % len(COLORS)] if label else UNLABELLED


def qupath_text(annotations: Sequence[Annotation]) -> str:
    """A FeatureCollection as QuPath reads it: a colour always, ids that are UUIDs, each once and of the content."""
    seen: set[str] = set()
    features = []
    for annotation in annotations:
        feature = _feature(annotation)
        identity, again = annotation.id if _UUID.fullmatch(annotation.id) else "", 0
        while not identity or identity in seen:
            identity = str(uuid5(NAMESPACE_URL, json.dumps([again, annotation.id, feature])))
            again += 1
        seen.add(identity)
        features.append(json.dumps({"type": "Feature", "id": identity, **feature}, allow_nan=False))
    return '{"type": "FeatureCollection", "features": [\n' + ",\n".join(features) + "\n]}\n"


def _feature(annotation: Annotation) -> dict[str, Any]:
    from shapely.geometry import mapping

    color = list(color_of(annotation))
    properties: dict[str, Any] = {"objectType": annotation.kind, "color": color}
    if annotation.name:
        properties["name"] = annotation.name
    if annotation.classes:  # a class without a colour ends an import as a whole
        properties["classification"] = {"name": ": ".join(annotation.classes), "color": color}
    if annotation.measurements:
        properties["measurements"] = {name: _number(value) for name, value in annotation.measurements.items()}
    return {"geometry": mapping(annotation.geometry), "properties": properties}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def dsa_text(annotations: Sequence[Annotation]) -> str:
    """A document of elements, as large_image takes it for upload; the class is the group, the name the label."""
    elements = [_element(part, one) for one in annotations for part in parts_of(one.geometry)]
    document = {"name": "annotations", "description": "", "elements": elements}
    return json.dumps(document, allow_nan=False, indent=1) + "\n"


def _element(part: Any, annotation: Annotation) -> dict[str, Any]:
    import shapely

    red, green, blue = color_of(annotation)
    element: dict[str, Any] = {"lineColor": f"rgb({red},{green},{blue})", "lineWidth": 2}
    if annotation.classes:
        element["group"] = ": ".join(annotation.classes)
    if annotation.name:
        element["label"] = {"value": annotation.name}
    if part.geom_type == "Point":
        return {"type": "point", "center": [part.x, part.y, 0], **element}
    closed = part.geom_type == "Polygon"
    rings = rings_of(part) if closed else [shapely.get_coordinates(part)]
    outer, *holes = [[[x, y, 0] for x, y in ring.tolist()] for ring in rings]
    element |= {"holes": holes} if holes else {}
    return {"type": "polyline", "closed": closed, "points": outer, **element}
