"""Heatmaps as QuPath objects: a streamed GeoJSON file that opens by dropping it on the slide.

QuPath's contract was read in its source (qupath-core, `qupath.lib.io`: GsonTools, QuPathTypeAdapters, PathIO; 0.4 to
0.8). What follows from it:

- `objectType` is "tile": a detection, which QuPath holds and draws by the million; annotations it does not.
- QuPath paints a tile in the colour of its class, and a class has one colour in a whole project. So a colour scale
  needs one class per step: "tumor 0.8 to 0.9". The steps are ten equal parts of the score's range by definition, so
  that a class means the same on every slide, and a user hides the low steps in the class list with a click.
- Thresholds and smooth colours come from the measurements ("Show measurement maps", "Select by measurements"): every
  tile carries its exact score there, as the shortest decimal that reads back as the same float32.
- A classification without colour ends the whole import, so each has one. A colon in a class name would split it.
- Tiles that could not be read are a class of their own, "no data", grey, without score.
- An id that is no UUID is dropped. Ours is a version 8 UUID (RFC 9562): 60 bits from slide, score name and tile side,
  then the tile's place; the same tile keeps its id in every run, and the regular bits compress well.
"""

import gzip
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.publish import appear_file

from .colour import NO_DATA, colour_table
from .heatmap import Heatmap

BINS = 10
NO_DATA_CLASS = "no data"
SUFFIXES = (".geojson.gz", ".geojson", ".json.gz", ".json")
_CHUNK = 8192  # features per write: about 3 MB of text
GZIP_LEVEL = 4  # 2 % larger than level 6 in half the time
# QuPath parses a file into one tree of objects, some kB of Java's heap each: so many fit into a gigabyte or so of it
MAX_OBJECTS = 250_000
_PACKED_BYTES, _PACKED_NUMBER = 18, 7  # of a tile, and of a measurement, packed; measured

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TileFilter:
    """Which tiles a file holds; those without data are always in.

    min_score, max_score  only tiles whose score lies between, both included
    top_k                 of these only so many of the highest score; of equals, the first on the slide
    """

    min_score: float | None = None
    max_score: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise SpecError("top_k", f"is {self.top_k}", "give 1 or more")
        low, high = (-np.inf if self.min_score is None else self.min_score), self.max_score
        if not low <= (np.inf if high is None else high):  # NaN among them
            raise SpecError("min_score", f"no score lies from {low} to {high}", "give the lower number first")

    def chosen(self, heatmap: Heatmap) -> NDArray[np.intp]:
        """Places in `heatmap.scores` of the tiles that pass, in their order."""
        low = -np.inf if self.min_score is None else self.min_score
        high = np.inf if self.max_score is None else self.max_score
        kept = np.flatnonzero((heatmap.scores >= low) & (heatmap.scores <= high))
        if self.top_k is not None and len(kept) > self.top_k:
            kept = np.sort(kept[np.argsort(-heatmap.scores[kept], kind="stable")[: self.top_k]])
        return kept


@dataclass(frozen=True, slots=True)
class GeoPlan:
    """What `write_geojson` is about to write: objects, files, and bytes packed, to a fifth or so."""

    objects: int
    files: int
    packed_bytes: int


def plan_geojson(heatmap: Heatmap, tiles: TileFilter = TileFilter(), max_objects: int = MAX_OBJECTS) -> GeoPlan:
    """Count what would be written. Raises SpecError for no objects a file."""
    if max_objects < 1:
        raise SpecError("max_objects", f"is {max_objects}", "give 1 or more")
    kept = len(tiles.chosen(heatmap))
    files = max(1, -(-kept // max_objects))
    size = packed_bytes(kept, 1 + len(heatmap.measurements)) + packed_bytes(len(heatmap.failed_xy), 0)
    return GeoPlan(kept + len(heatmap.failed_xy), files, size)


def packed_bytes(objects: int, numbers: int) -> int:
    """About how large so many tiles with so many measurements are in a .geojson.gz."""
    return objects * (_PACKED_BYTES + _PACKED_NUMBER * numbers)


def write_geojson(
    heatmap: Heatmap,
    path: Path,
    *,
    tiles: TileFilter = TileFilter(),
    display: tuple[float, float] | None = None,
    bins: int = BINS,
    max_objects: int = MAX_OBJECTS,
) -> int:
    """Write the tiles of `heatmap` for QuPath; gzip when `path` ends in .gz. Equal input gives equal bytes.

    tiles        which of them
    display      what the colours are spread over, `heatmap.limits` by default; tiles beyond are of the classes at its
                 ends, whose names say so
    bins         equal steps of it, one class and colour each
    max_objects  tiles in a file: of more, there are several, `<name>.part-01.geojson.gz` and so on, each of a band of
                 the slide from its top on, and none of the name `path`
    Returns the number of features. Raises SpecError for a file name that QuPath would not read.
    """
    if not path.name.endswith(SUFFIXES):
        raise SpecError(path, "QuPath does not read a file of this name", f"end it in one of {', '.join(SUFFIXES)}")
    if bins < 1:
        raise SpecError("bins", f"is {bins}", "give 1 or more")
    plan, kept = plan_geojson(heatmap, tiles, max_objects), tiles.chosen(heatmap)
    what = "%s: %d objects in %d files, about %.1f MB"
    log.info(what, heatmap.slide_id, plan.objects, plan.files, plan.packed_bytes / 1e6)
    if plan.files > 1:
        kept = kept[np.lexsort(heatmap.xy[kept].T)]
    scale = _Scale(heatmap, display or heatmap.limits, bins)
    parts = [path] if plan.files == 1 else [part_of(path, number) for number in range(1, plan.files + 1)]
    for number, (part, rows) in enumerate(zip(parts, np.array_split(kept, plan.files), strict=True), start=1):
        with appear_file(part) as draft, open_bytes(draft, packed=path.name.endswith(".gz")) as out:
            out.write(_head(heatmap, scale, (number, plan.files)))
            first = True
            for text in _texts(heatmap, rows, scale, with_failed=number == plan.files):
                out.write(text.encode() if first else b",\n" + text.encode())
                first = False
            out.write(b"\n]}\n")
    _remove_others(path, plan.files)
    return plan.objects


def part_of(path: Path, number: int) -> Path:
    """The name of a part of the file `path`, from 1 on."""
    end = next(end for end in SUFFIXES if path.name.endswith(end))
    return path.with_name(f"{path.name.removesuffix(end)}.part-{number:02d}{end}")


def _remove_others(path: Path, files: int) -> None:
    """Files of an earlier heatmap that was cut otherwise; they would be imported beside these."""
    if files > 1:
        path.unlink(missing_ok=True)
    number = files + 1 if files > 1 else 1
    while (stale := part_of(path, number)).exists():
        stale.unlink()
        number += 1


@dataclass(frozen=True, slots=True)
class _Scale:
    """Steps of the score: their classes and colours."""

    heatmap: Heatmap
    display: tuple[float, float]
    bins: int

    @property
    def edges(self) -> NDArray[np.float32]:
        """Between the steps; float32, so that a score that prints as 0.7 belongs to "0.7 to 0.8"."""
        return np.linspace(*self.display, self.bins + 1).astype(np.float32)[1:-1]

    @property
    def classes(self) -> list[str]:
        """Each step's classification as text."""
        colours = colour_table(2 * self.bins + 1)[1::2].tolist()  # the colour at each step's middle
        names = class_names(self.heatmap, self.bins, self.display)
        return [_class_text(name, rgb) for name, rgb in zip(names, colours, strict=True)]


def class_names(heatmap: Heatmap, bins: int = BINS, display: tuple[float, float] | None = None) -> list[str]:
    """The class of each step of the score, lowest first: "tumor 0.0 to 0.1" … With a display range that ends before the
    score's own does, the last is "tumor 0.8 and more", and the first so likewise."""
    # QuPath reads "a: b" as class b derived from a
    plain = " ".join(heatmap.class_name.replace(":", " ").split())
    low, high = display or heatmap.limits
    edges = _edge_texts((low, high), bins)
    names = [f"{plain} {start} to {end}" for start, end in pairwise(edges)]
    open_below, open_above = low > heatmap.limits[0], high < heatmap.limits[1]
    if bins == 1 and (open_below or open_above):
        return [plain]
    if open_below:
        names[0] = f"{plain} up to {edges[1]}"
    if open_above:
        names[-1] = f"{plain} {edges[-2]} and more"
    return names


def _texts(heatmap: Heatmap, kept: NDArray[np.intp], scale: _Scale, with_failed: bool) -> Iterator[str]:
    """The features as text, some thousands at a time: memory does not grow with the number of tiles."""
    classes, edges = scale.classes, scale.edges
    columns = {heatmap.name: heatmap.scores, **heatmap.measurements}
    keys = ",".join(f"{_literal(name)}:%s" for name in columns)
    template = _template(heatmap, f'%s,"measurements":{{{keys}}}')
    for start in range(0, len(kept), _CHUNK):
        rows = kept[start : start + _CHUNK]
        steps = np.searchsorted(edges, heatmap.scores[rows], side="right").tolist()
        numbers = [values[rows].astype("U").tolist() for values in columns.values()]
        yield _features(template, heatmap.xy[rows], heatmap.span_px, ([classes[step] for step in steps], *numbers))

    template = _template(heatmap, _class_text(NO_DATA_CLASS, NO_DATA).replace("%", "%%"))
    for start in range(0, len(heatmap.failed_xy) if with_failed else 0, _CHUNK):
        yield _features(template, heatmap.failed_xy[start : start + _CHUNK], heatmap.span_px, ())


def _features(template: str, xy: NDArray[np.int64], span_px: int, columns: Sequence[Sequence[str]]) -> str:
    place = (
        (np.uint64(0b10) << np.uint64(62)) | (xy[:, 0].astype(np.uint64) << np.uint64(31)) | xy[:, 1].astype(np.uint64)
    )
    ids = (place >> np.uint64(48)).tolist(), (place & np.uint64(2**48 - 1)).tolist()
    (x0, y0), (x1, y1) = xy.T.tolist(), (xy + span_px).T.tolist()
    rows = zip(*ids, x0, y0, x1, y0, x1, y1, x0, y1, x0, y0, *columns, strict=True)
    return ",\n".join(map(template.__mod__, rows))


def _template(heatmap: Heatmap, properties: str) -> str:
    key = json.dumps([heatmap.slide_id, heatmap.name, heatmap.span_px, heatmap.origin]).encode()
    digest = hashlib.blake2b(key, digest_size=8).hexdigest()
    return (
        f'{{"type":"Feature","id":"{digest[:8]}-{digest[8:12]}-8{digest[12:15]}-%04x-%012x",'
        '"geometry":{"type":"Polygon","coordinates":[[[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d]]]},'
        f'"properties":{{"objectType":"tile","isLocked":true,"classification":{properties}}}}}'
    )


def _class_text(name: str, rgb: Sequence[int]) -> str:
    return json.dumps({"name": name, "color": list(rgb)}, ensure_ascii=False, separators=(",", ":"))


def _literal(name: str) -> str:
    """A JSON string that survives %-formatting."""
    return json.dumps(name, ensure_ascii=False).replace("%", "%%")


def _head(heatmap: Heatmap, scale: _Scale, part: tuple[int, int]) -> bytes:
    """QuPath ignores members that it does not know; ours let `read_geojson` give back the same heatmap."""
    facts = {
        "schema": "heatmap/1",
        "slide_id": heatmap.slide_id,
        "name": heatmap.name,
        "class_name": heatmap.class_name,
        "limits": list(heatmap.limits),
        "span_px": heatmap.span_px,
        "origin": heatmap.origin,
        "bins": scale.bins,
        "display": list(scale.display),
        "part": list(part),
        "measurements": list(heatmap.measurements),
    }
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    return f'{{"type":"FeatureCollection",\n"slidestream":{text},\n"features":[\n'.encode()


def _edge_texts(limits: tuple[float, float], bins: int) -> list[str]:
    """The steps' edges with as few digits as tell them exactly enough."""
    edges = np.linspace(*limits, bins + 1)
    texts: list[str] = []
    for decimals in range(1, 18):
        texts = [f"{edge + 0.0:.{decimals}f}" for edge in edges]
        if np.abs(edges - np.array(texts, float)).max() <= 1e-3 * (edges[1] - edges[0]):
            break
    return texts


@contextmanager
def open_bytes(path: Path, packed: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    with path.open("wb") as raw:
        if not packed:
            yield raw
            return
        # neither time nor name in the header: equal heatmaps are equal files
        with gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as out:
            yield out
