"""JSON of Sectra PathologyCore: one annotation or a list; coordinates are shares of the slide's width."""

from pathlib import Path
from typing import Any

from ..errors import AnnotationError
from .annotation import Annotation, Place, line, points_of_xy, polygon

AREA, LINE = "Area", "Polyline"


def matches(tree: Any) -> bool:
    entries = tree if isinstance(tree, list) else [tree]
    return bool(entries) and all(
        isinstance(one, dict) and {"content", "slideId", "type"} <= one.keys() for one in entries
    )


def parse(tree: Any, path: Path, width_px: int | None) -> list[Annotation]:
    """Every area and line. x and y are both divided by the slide's width (`width_px`, level 0): the areas and lengths
    that the files state in mm agree with that and not with a divisor per axis. Raises without the width.
    """
    if width_px is None:
        raise AnnotationError(path, "Sectra's coordinates are shares of the slide's width", "give the slide's width_px")
    found = []
    for number, entry in enumerate(tree if isinstance(tree, list) else [tree]):
        place = Place(path, number)
        points = points_of_xy(entry["content"], place) * width_px
        kind, name = entry["type"], entry.get("name")
        if kind not in (AREA, LINE):
            raise place.error(f"type {kind!r} is unknown", "areas and polylines are read")
        shape = polygon([points], place) if kind == AREA else line(points)
        found.append(Annotation(shape, (), name if isinstance(name, str) else ""))
    return found
