"""Reading tile GeoJSON back, feature by feature, and holding a file to QuPath's rules."""

import gzip
import json
import math
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import numpy as np

from wsi.errors import StoreError

from .geojson import SUFFIXES
from .heatmap import Heatmap

OBJECT_TYPES = ("annotation", "detection", "tile", "cell", "tmaCore", "root")
MAX_CHARACTERS = 8 << 30  # of unpacked text: far above QuPath's own limits, and an end to a gzip bomb
_READ = 1 << 20
_MAX_VALUE = 64 << 20  # characters of one feature
_REMEDY = "write it again with `wsi heatmap`, or export it again from the tool that made it"


def read_geojson(path: Path, *, name: str | None = None) -> Heatmap:
    """The heatmap in a file of `write_geojson`, equal to the one written; or the tiles of another tool's file.

    Of a foreign file (FeatureCollection or bare list, plain or .gz) square tiles of one size are taken; their score
    is the measurement called `name` (default: the first one), its range (0, 1), and the slide's id the file's name.
    Raises StoreError where the file is damaged or is not such a file.
    """
    facts: dict[str, Any] = {}
    xy, failed, spans = array("q"), array("q"), set()
    numbers: dict[str, array[float]] = {}
    for key, value in stream_json(path):
        if key == "slidestream" and isinstance(value, dict):
            facts = value
        if key != "features":
            continue
        x, y, span = _square(path, value)
        spans.add(span)
        measured = value.get("properties", {}).get("measurements") or {}
        if not numbers and measured:
            name = name or facts.get("name") or next(iter(measured))
            numbers = {measurement: array("f") for measurement in measured}
        if name not in measured:
            failed.extend((x, y))
            continue
        if measured.keys() != numbers.keys():
            raise StoreError(path, "tiles with different measurements", _REMEDY)
        xy.extend((x, y))
        for measurement, values in numbers.items():
            values.append(float(measured[measurement]))
    span_px = facts.get("span_px") or (spans.pop() if len(spans) == 1 else None)
    if span_px is None or spans - {span_px}:
        raise StoreError(path, f"tiles of {len(spans)} sizes", "give a file of equal square tiles")
    columns = {key: np.array(values, np.float32) for key, values in numbers.items()}
    name = name or facts.get("name") or "score"
    low, high = facts.get("limits", (0.0, 1.0))
    return Heatmap(
        slide_id=facts.get("slide_id") or _stem(path),
        name=name,
        class_name=facts.get("class_name") or name,
        scores=columns.pop(name, np.empty(0, np.float32)),
        xy=np.array(xy, np.int64).reshape(-1, 2),
        span_px=span_px,
        origin=str(facts.get("origin", "")),
        limits=(float(low), float(high)),
        measurements=columns or {key: np.empty(0, np.float32) for key in facts.get("measurements", ())},
        failed_xy=np.array(failed, np.int64).reshape(-1, 2),
    )


def check_qupath(path: Path) -> int:
    """Hold a file to QuPath's rules and to ours, which are a little stricter. Returns the number of features.

    Raises StoreError naming the feature and the first rule that is broken. Stricter than QuPath: every feature has a
    UUID of its own, an object type and a classification; coordinates are integers; no number is given as text.
    """
    if not path.name.endswith(SUFFIXES):
        raise StoreError(path, "QuPath does not read a file of this name", f"end it in one of {', '.join(SUFFIXES)}")
    members: set[str] = set()
    seen: set[int] = set()
    colours: dict[str, list[int]] = {}
    count = 0
    for key, value in stream_json(path):
        members.add(key)
        if key == "type" and value != "FeatureCollection":
            raise StoreError(path, f"is a {value!r}", "give a FeatureCollection or a list of features")
        if key == "features":
            broken = _broken_rule(value, seen, colours)
            if broken:
                raise StoreError(path, f"feature {count}: {broken}", _REMEDY)
            count += 1
    if members - {"features"} and "type" not in members:
        raise StoreError(path, "has no type", "give a FeatureCollection or a list of features")
    return count


def _broken_rule(feature: Any, seen: set[int], colours: dict[str, list[int]]) -> str | None:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        return "is not of type Feature"
    try:
        identity = UUID(feature.get("id")).int
    except (ValueError, TypeError, AttributeError):
        return f"id {feature.get('id')!r} is no UUID"
    if identity in seen:
        return f"id {feature['id']} is not the only one"
    seen.add(identity)
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return "has no properties"
    if properties.get("objectType") not in OBJECT_TYPES:
        return f"objectType {properties.get('objectType')!r} is not one of {', '.join(OBJECT_TYPES)}"
    return (
        _broken_geometry(feature.get("geometry"))
        or _broken_class(properties.get("classification"), colours)
        or _broken_values(properties)
    )


def _broken_geometry(geometry: Any) -> str | None:
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return "geometry is no Polygon or MultiPolygon"
    coordinates = geometry.get("coordinates")
    if geometry["type"] == "Polygon":
        return _broken_polygon(coordinates)
    if not isinstance(coordinates, list) or not coordinates:
        return "multipolygon without polygons"
    return next(filter(None, map(_broken_polygon, coordinates)), None)


def _broken_polygon(rings: Any) -> str | None:
    if not isinstance(rings, list) or not rings:
        return "polygon without rings"
    for ring in rings:
        if not isinstance(ring, list) or len(ring) < 4 or ring[0] != ring[-1]:
            return "ring is not closed"
        for point in ring:
            if not isinstance(point, list) or len(point) != 2 or any(type(value) is not int for value in point):
                return f"point {point} is not two integers"
    return None


def _broken_class(classification: Any, colours: dict[str, list[int]]) -> str | None:
    if not isinstance(classification, dict):
        return "has no classification with a color"
    name, colour = classification.get("name"), classification.get("color")
    if not isinstance(name, str) or not name.strip() or ":" in name or "\n" in name:
        return f"class name {name!r} is empty or has a colon or line break"
    if not isinstance(colour, list) or len(colour) not in (3, 4):
        return f"class {name!r} has no color: QuPath ends the whole import"
    if any(type(part) is not int or not 0 <= part <= 255 for part in colour):
        return f"class {name!r} has color {colour}, not integers from 0 to 255"
    if colours.setdefault(name, colour) != colour:
        return f"class {name!r} has two colors, {colours[name]} and {colour}: QuPath shows only one"
    return None


def _broken_values(properties: dict[str, Any]) -> str | None:
    measurements = properties.get("measurements", {})
    if not isinstance(measurements, dict):
        return "measurements are no object"
    for name, value in measurements.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"measurement {name!r} is {value!r}, not a finite number"
    metadata = properties.get("metadata", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        return "metadata is not text by name"
    if not isinstance(properties.get("isLocked", False), bool) or not isinstance(properties.get("name", ""), str):
        return "isLocked is not true or false, or name is no text"
    return None


def _square(path: Path, feature: Any) -> tuple[int, int, int]:
    """x, y and side of a tile's bounding box in level-0 pixels."""
    try:
        points = np.array(feature["geometry"]["coordinates"][0], float)
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise StoreError(path, "a feature without polygon", "give a file of tiles") from error
    if x1 - x0 != y1 - y0 or {x0 % 1, y0 % 1, x1 % 1} != {0.0}:
        raise StoreError(path, f"a feature that is no square of whole pixels at {x0:g}, {y0:g}", "give a file of tiles")
    return int(x0), int(y0), int(x1 - x0)


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(end) for end in SUFFIXES if path.name.endswith(end)), path.stem)


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """The top-level members of a JSON file, the elements of `features` one by one: ("features", feature) for each.

    A bare list counts as `features`. Text is held one feature at a time. Raises StoreError for what is not JSON, NaN
    and Infinity among it.
    """
    try:
        unpack = gzip.open if path.name.endswith(".gz") else open
        with unpack(path, "rt", encoding="utf-8") as text:
            yield from _members(_Tokens(text, path))
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise StoreError(path, f"is damaged or no GeoJSON ({error})", _REMEDY) from error


def _members(tokens: "_Tokens") -> Iterator[tuple[str, Any]]:
    if tokens.peek() == "[":
        yield from (("features", element) for element in _elements(tokens))
    else:
        tokens.take("{")
        while tokens.peek() != "}":
            key = tokens.value()
            tokens.take(":")
            if key == "features" and tokens.peek() == "[":
                yield from (("features", element) for element in _elements(tokens))
            else:
                yield str(key), tokens.value()
            if tokens.peek() != "}":
                tokens.take(",")
        tokens.take("}")
    if tokens.peek():
        raise json.JSONDecodeError("text after the end", tokens.buffer, tokens.at)


def _elements(tokens: "_Tokens") -> Iterator[Any]:
    tokens.take("[")
    while tokens.peek() != "]":
        yield tokens.value()
        if tokens.peek() != "]":
            tokens.take(",")
            if tokens.peek() == "]":
                raise json.JSONDecodeError("comma before the end of a list", tokens.buffer, tokens.at)
    tokens.take("]")


class _Tokens:
    """JSON values from a text file, read as they are asked for."""

    def __init__(self, text: TextIO, path: Path):
        self.buffer, self.at = "", 0
        self._text, self._path, self._ended, self._read = text, path, False, 0
        self._decoder = json.JSONDecoder(parse_constant=self._refuse)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in " \t\r\n":
                    return self.buffer[self.at]
                self.at += 1
            if self._ended:
                return ""
            self._fill(_READ)

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            raise json.JSONDecodeError(f"no {expected!r}", self.buffer, self.at)
        self.at += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self._ended:  # a number at the buffer's end may go on
                    self.at = end
                    return value
            except json.JSONDecodeError:
                if self._ended or len(self.buffer) - self.at > _MAX_VALUE:
                    raise
            self._fill(max(_READ, len(self.buffer) - self.at))

    def _fill(self, characters: int) -> None:
        more = self._text.read(characters)
        self.buffer, self.at, self._ended = self.buffer[self.at :] + more, 0, not more
        self._read += len(more)
        if self._read > MAX_CHARACTERS:
            raise StoreError(self._path, f"unpacks to more than {MAX_CHARACTERS:,} characters", _REMEDY)

    def _refuse(self, constant: str) -> None:
        raise StoreError(self._path, f"has the number {constant}, which is not JSON", _REMEDY)
