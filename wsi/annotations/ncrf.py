"""JSON as NCRF keeps the lesions of Camelyon16: polygons that are tumour, and polygons within them that are not."""

from pathlib import Path
from typing import Any

from .annotation import Annotation, Place, points_of, polygon

CLASSES = ("positive", "negative")


def matches(tree: Any) -> bool:
    return (
        isinstance(tree, dict) and set(tree) == set(CLASSES) and all(isinstance(part, list) for part in tree.values())
    )


def parse(tree: Any, path: Path) -> list[Annotation]:
    """Every polygon with the class `positive` or `negative`; a negative one is an object of its own, not a hole."""
    found: list[Annotation] = []
    for label in CLASSES:
        for entry in tree[label]:
            place = Place(path, len(found))
            if not isinstance(entry, dict):
                raise place.error("it is no object with vertices")
            name = entry.get("name")
            shape = polygon([points_of(entry.get("vertices"), place)], place)
            found.append(Annotation(shape, (label,), name if isinstance(name, str) else ""))
    return found
