"""Reviewed regions as QuPath annotations, and which of its annotations is which region."""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from .state import Region

# Okabe and Ito's colours, which stay apart for every common kind of colour vision
COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
)
UNLABELLED = (110, 110, 110)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def feature_collection(slide_id: str, regions: Iterable[Region], classes: Sequence[str]) -> dict[str, Any]:
    """GeoJSON that QuPath opens: annotations in level-0 pixels, each with a colour, who and when as metadata."""
    return {"type": "FeatureCollection", "features": [feature(slide_id, region, classes) for region in regions]}


def feature(slide_id: str, region: Region, classes: Sequence[str]) -> dict[str, Any]:
    """One region. QuPath keeps its id, so that what was changed there is known by it when it comes back."""
    facts = {name: getattr(region, name) for name in ("status", "origin", "who", "when", "reason", "note")}
    colour = list(colour_of(region.label, classes))
    properties: dict[str, Any] = {"objectType": "annotation", "color": colour}
    if region.label is not None:
        # QuPath reads "a: b" as class b derived from a, and an import of a class without colour ends as a whole
        properties["classification"] = {"name": region.label, "color": colour}
    properties |= {"metadata": {"slide": slide_id, **{name: str(value) for name, value in facts.items() if value}}}
    return {"type": "Feature", "id": uuid_of(region.id), "geometry": dict(region.geometry), "properties": properties}


def uuid_of(region_id: str) -> str:
    """The region's id where it is a UUID, as QuPath keeps no others, else one made from it."""
    return str(UUID(region_id)) if _UUID.fullmatch(region_id) else str(uuid5(NAMESPACE_URL, region_id))


def colour_of(label: str | None, classes: Sequence[str]) -> tuple[int, int, int]:
    """RGB of a class, the same on every slide and in every run of the same classes."""
    if label is None:
        return UNLABELLED
    place = classes.index(label) if label in classes else len(classes) + zlib.crc32(label.encode())
    return COLOURS[place % len(COLOURS)]
