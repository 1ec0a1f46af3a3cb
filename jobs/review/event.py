"""One thing that a reviewer did to one slide, checked before it is kept."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from wsi.annotations.annotation import MAX_COORDINATE
from wsi.errors import ReviewError
from wsi.missing import said

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SLIDE_STATUS = {"accept": "accepted", "reject": "rejected", "reopen": "open", "relabel": "relabelled"}
REGION_STATUS = {"region-accept": "accepted", "region-reject": "rejected", "region-relabel": "relabelled"}
ACTIONS = (*SLIDE_STATUS, "comment", "region-add", "region-edit", *REGION_STATUS, "region-delete", "undo")
MAX_TEXT, MAX_LABEL, MAX_VERTICES, MAX_REGIONS = 4_000, 100, 10_000, 5_000
_MAX_CROSSINGS, _SAMPLE = 20_000, 200
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the log.

    id        given by who asked: the same one again is the same event
    time      UTC, ISO 8601 with microseconds; after that of every event its writer had seen
    session, number   which writer's, and its how many-th: with the time, they order the events of all writers
    label, text       of relabel and comment
    region    id of the region concerned; geometry, label and note are those of one that is added or edited
    suggestion        the region as it was suggested: kept with the first event of it, as suggestions are replaced
    predicted what the models said of the slide as it was accepted, by model
    target    id of the event that is undone
    """

    id: str
    time: str
    who: str
    slide_id: str
    action: str
    session: str = ""
    number: int = 0
    label: str | None = None
    text: str = ""
    region: str = ""
    geometry: dict[str, Any] | None = None
    note: str = ""
    suggestion: dict[str, Any] | None = None
    predicted: dict[str, str] = field(default_factory=dict)
    target: str = ""

    @property
    def order(self) -> tuple[str, str, int]:
        return self.time, self.session, self.number

    def as_dict(self) -> dict[str, Any]:
        """What differs from the default."""
        return {
            name: value for name, value in asdict(self).items() if name in _ALWAYS or value not in (None, "", 0, {})
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Self | None:
        """The event of a line, None for a line that is none; members not known here are left out."""
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in line.items() if name in known}
        if not all(isinstance(kept.get(name), str) for name in _ALWAYS) or kept["action"] not in ACTIONS:
            return None
        return cls(**kept) if _TIME.fullmatch(kept["time"]) else None


_ALWAYS = {"id", "time", "who", "slide_id", "action"}
_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


def read_action(slide_id: str, body: Mapping[str, Any], size: tuple[int, int] | None) -> Event:
    """The event that a request asks for, without time and writer. Raises ReviewError for whatever is wrong with it.

    body  {event, who, action} and what the action needs: label, text, id, region {id, geometry, label, note}; the
          event of an undo is the one that is taken back
    size  (width, height) of the slide in level-0 pixels, None where it is not known
    """
    action = body.get("action")
    if action not in ACTIONS:
        raise ReviewError("action", f"{str(action)[:40]!r} is not known", f"use one of {', '.join(ACTIONS)}")
    given: dict[str, Any] = {"id": _id(body, "event"), "who": plain_text(body.get("who"), "who", MAX_LABEL)}
    if action == "undo":  # it names the event that it takes back, and has its own id from it: it happens once
        given |= {"id": f"undo:{given['id']}", "target": given["id"]}
    if action in ("relabel", "region-relabel"):
        given["label"] = label_of(body.get("label"))
    if action == "comment":
        given["text"] = plain_text(body.get("text"), "text", MAX_TEXT, lines=True)
    if action in (*REGION_STATUS, "region-delete"):
        given["region"] = _id(body, "id")
    if action in ("region-add", "region-edit"):
        given |= _region(body.get("region"), size, is_new=action == "region-add")
    return Event(time="", slide_id=slide_id, action=action, **given)


def plain_text(value: Any, name: str, limit: int, lines: bool = False, empty: bool = False) -> str:
    """The text without spaces around it. Refused are control characters and what is longer than `limit` characters.

    lines  may be on several lines; empty: may be missing or empty
    """
    if value is None and empty:
        return ""
    if not isinstance(value, str) or not (value.strip() or empty):
        raise ReviewError(name, "it is missing or empty", "give a text")
    text = unicodedata.normalize("NFC", value).strip()
    if len(text) > limit:
        raise ReviewError(name, f"it has {len(text):,} characters", f"at most {limit:,} are kept")
    # controls, format characters that reorder text, and halves of surrogate pairs
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and not (lines and c in "\n\t\r")), "")
    if odd:
        raise ReviewError(name, f"it holds the control character U+{ord(odd):04X}", "remove it")
    if not lines and text.startswith(("=", "@")):
        raise ReviewError(name, "a table's programs would take it for a formula", f"begin it without {text[0]!r}")
    return text


def label_of(value: Any) -> str:
    """The name of a class, as a manifest's label column can hold it."""
    text = plain_text(value, "label", MAX_LABEL)
    if not said(text):
        raise ReviewError("label", f"{text!r} means in a manifest that nothing is known", "give the class another name")
    return text


def _id(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ReviewError(name, "it is missing, or not of letters, digits, '.', '_' and '-'", "give a UUID")
    return value


def _region(region: Any, size: tuple[int, int] | None, is_new: bool) -> dict[str, Any]:
    if not isinstance(region, Mapping):
        raise ReviewError("region", "it is missing", "give its id and geometry")
    found: dict[str, Any] = {"region": _id(region, "id"), "geometry": sound_geometry(region.get("geometry"), size)}
    if is_new:
        label = region.get("label")
        found["label"] = None if label in (None, "") else label_of(label)
        found["note"] = plain_text(region.get("note"), "note", MAX_TEXT, lines=True, empty=True)
    return found


def sound_geometry(given: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """GeoJSON of a Polygon, MultiPolygon or Point in level-0 pixels, valid and cut off at the slide's edges.

    A ring that crosses itself is mended as it is in files of annotations. Raises ReviewError for other kinds, for more
    than MAX_VERTICES points, numbers that are none, and what has no area or lies beside the slide.
    """
    import shapely

    from wsi.annotations.annotation import repair

    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in ("Polygon", "MultiPolygon", "Point"):
        raise ReviewError("geometry", f"its type is {str(kind)[:40]!r}", "draw a polygon or a point")
    shape = _shape(str(kind), given.get("coordinates"))
    if kind != "Point":
        if not shape.is_valid and _crossings(shape) > _MAX_CROSSINGS:  # to mend it would take minutes
            raise ReviewError("geometry", "its outline crosses itself thousands of times", "draw it again")
        shape = _areas(repair([shape])[0][0])
    if size is not None:
        inside = shape.intersection(shapely.box(0, 0, *size))
        shape = inside if kind == "Point" else _areas(inside)
    if shape.is_empty:
        raise ReviewError("geometry", "it has no area on the slide", "draw it on the slide")
    if shapely.get_num_coordinates(shape) > 2 * MAX_VERTICES:
        raise ReviewError("geometry", "mended, it has too many points", "draw it again, or simplify it")
    made: dict[str, Any] = _rounded(shapely.geometry.mapping(shape))
    return made


def _shape(kind: str, coordinates: Any) -> "BaseGeometry":
    import shapely

    if kind == "Point":
        return shapely.Point(_points([coordinates])[0])
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise ReviewError("geometry", "it has no coordinates", "draw it again")
    parts = [[_points(ring) for ring in rings] for rings in polygons]
    vertices = sum(len(ring) for rings in parts for ring in rings)
    if vertices > MAX_VERTICES:
        raise ReviewError("geometry", f"it has {vertices:,} points", f"at most {MAX_VERTICES:,} are kept; simplify it")
    if any(len({*ring}) < 3 for rings in parts for ring in rings):
        raise ReviewError("geometry", "a ring of it has fewer than 3 points", "draw it again")
    made = [shapely.Polygon(rings[0], rings[1:]) for rings in parts]
    return made[0] if len(made) == 1 else shapely.MultiPolygon(made)


def _points(ring: Any) -> list[tuple[float, float]]:
    """Points of a list of [x, y]."""
    if not isinstance(ring, list) or len(ring) > MAX_VERTICES:
        raise ReviewError("geometry", f"a ring of it is no list of up to {MAX_VERTICES:,} points", "draw it again")
    for point in ring:
        pair = isinstance(point, list | tuple) and len(point) == 2
        # bool is an int, and a JSON number may be infinite or NaN
        if not pair or not all(type(c) in (int, float) and abs(c) <= MAX_COORDINATE for c in point):
            raise ReviewError("geometry", "a coordinate is not a number of pixels", "give [x, y] in level-0 pixels")
    return [(float(x), float(y)) for x, y in ring]


def _crossings(shape: "BaseGeometry") -> float:
    """About how many pairs of a shape's edges could cross, from a sample: of those whose boxes overlap."""
    import numpy as np
    import shapely

    rings = [shapely.get_coordinates(ring) for part in shapely.get_parts(shape) for ring in shapely.get_rings(part)]
    starts, ends = (np.concatenate(points) for points in zip(*((ring[:-1], ring[1:]) for ring in rings), strict=True))
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    some = np.unique(np.linspace(0, len(low) - 1, _SAMPLE).astype(int))
    overlap = ((low[some, None] <= high) & (low <= high[some, None])).all(axis=2).sum(axis=1)
    return float((overlap.mean() - 3) * len(low) / 2)  # with itself and its neighbours an edge always does


def _areas(shape: "BaseGeometry") -> "BaseGeometry":
    """The polygons of a shape, as one."""
    import shapely

    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _rounded(value: Any) -> Any:
    """Coordinates in hundredths of a pixel, tuples as lists."""
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 2) if isinstance(value, float) else value
