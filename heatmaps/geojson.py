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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def write_geojson(heatmap: Heatmap, path: Path, *, min_score: float | None = None, bins: int = BINS) -> int:
    """Write the tiles of `heatmap` for QuPath; gzip when `path` ends in .gz. Equal input gives equal bytes.

    min_score  leaves out tiles below it (a lighter file); tiles without data are always in
    bins       equal steps of `heatmap.limits`, one class and colour each
    Returns the number of features. Raises SpecError for a file name that QuPath would not read.
    """
    if not path.name.endswith(SUFFIXES):
        raise SpecError(path, "QuPath does not read a file of this name", f"end it in one of {', '.join(SUFFIXES)}")
    if bins < 1:
        raise SpecError("bins", f"is {bins}", "give 1 or more")
    kept = np.flatnonzero(heatmap.scores >= (-np.inf if min_score is None else min_score))
    with appear_file(path) as draft, open_bytes(draft, packed=path.name.endswith(".gz")) as out:
        out.write(_head(heatmap, bins))
        first = True
        for text in _texts(heatmap, kept, bins):
            out.write(text.encode() if first else b",\n" + text.encode())
            first = False
        out.write(b"\n]}\n")
    return len(kept) + len(heatmap.failed_xy)


def class_names(heatmap: Heatmap, bins: int = BINS) -> list[str]:
    """The class of each step of the score, lowest first: "tumor 0.0 to 0.1" …"""
    # QuPath reads "a: b" as class b derived from a
    plain = " ".join(heatmap.class_name.replace(":", " ").split())
    edges = _edge_texts(heatmap.limits, bins)
    return [f"{plain} {low} to {high}" for low, high in pairwise(edges)]


def _texts(heatmap: Heatmap, kept: NDArray[np.intp], bins: int) -> Iterator[str]:
    """The features as text, some thousands at a time: memory does not grow with the number of tiles."""
    colours = colour_table(2 * bins + 1)[1::2].tolist()  # the colour at each step's middle
    classes = [_class_text(name, rgb) for name, rgb in zip(class_names(heatmap, bins), colours, strict=True)]
    columns = {heatmap.name: heatmap.scores, **heatmap.measurements}
    keys = ",".join(f"{_literal(name)}:%s" for name in columns)
    template = _template(heatmap, f'%s,"measurements":{{{keys}}}')
    # float32 edges: a score that prints as 0.7 belongs to "0.7 to 0.8"
    edges = np.linspace(*heatmap.limits, bins + 1).astype(np.float32)[1:-1]
    for start in range(0, len(kept), _CHUNK):
        rows = kept[start : start + _CHUNK]
        steps = np.searchsorted(edges, heatmap.scores[rows], side="right").tolist()
        numbers = [values[rows].astype("U").tolist() for values in columns.values()]
        yield _features(template, heatmap.xy[rows], heatmap.span_px, ([classes[step] for step in steps], *numbers))

    template = _template(heatmap, _class_text(NO_DATA_CLASS, NO_DATA).replace("%", "%%"))
    for start in range(0, len(heatmap.failed_xy), _CHUNK):
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


def _head(heatmap: Heatmap, bins: int) -> bytes:
    """QuPath ignores members that it does not know; ours let `read_geojson` give back the same heatmap."""
    facts = {
        "schema": "heatmap/1",
        "slide_id": heatmap.slide_id,
        "name": heatmap.name,
        "class_name": heatmap.class_name,
        "limits": list(heatmap.limits),
        "span_px": heatmap.span_px,
        "origin": heatmap.origin,
        "bins": bins,
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
