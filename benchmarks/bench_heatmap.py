"""How long a million tiles take to become QuPath objects, and how much memory, against plain ways to do it.

    python benchmarks/bench_heatmap.py [TILES]

Each way runs in a process of its own, in turn, so that its peak memory is its own. `json.dump` is what most scripts do:
a dict for every tile, then one call; it writes the same objects, packed alike. Outlines are the light form.
"""

import gzip
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from heatmaps import Heatmap, write_geojson
from heatmaps.contours import OutlineSpec, write_outlines
from heatmaps.geojson import GZIP_LEVEL, class_names
from heatmaps.ome_tiff import write_ome_tiff

SPAN, MPP = 256, 0.25


def make(tiles: int) -> Heatmap:
    """A square of tiles with hills of score and some noise, and two further numbers each."""
    side = int(np.ceil(np.sqrt(tiles)))
    at = np.arange(tiles)
    col, row = at % side, at // side
    rng = np.random.default_rng(0)
    hills = 0.5 + 0.3 * np.sin(col / side * 19) * np.cos(row / side * 23) + rng.normal(0, 0.05, tiles)
    xy = np.stack([col, row], axis=1).astype(np.int64) * SPAN
    ranks = {name: rng.random(tiles).astype(np.float32) for name in ("attention rank", "attention x tiles")}
    return Heatmap("bench", "tumor softmax", "tumor", hills.clip(0, 1).astype(np.float32), xy, SPAN, measurements=ranks)


def by_dicts(heatmap: Heatmap, path: Path) -> None:
    """One dict a tile and json.dump, the plain way."""
    names, features = class_names(heatmap), []
    for number, ((x, y), score) in enumerate(zip(heatmap.xy.tolist(), heatmap.scores.tolist(), strict=True)):
        right, low = x + heatmap.span_px, y + heatmap.span_px
        measured = {"tumor softmax": score}
        measured |= {name: float(values[number]) for name, values in heatmap.measurements.items()}
        classification = {"name": names[min(9, int(score * 10))], "color": [200, 0, 0]}
        properties = {"objectType": "tile", "classification": classification, "measurements": measured}
        ring = [[x, y], [right, y], [right, low], [x, low], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        ident = f"00000000-0000-8000-8000-{number:012x}"
        features.append({"type": "Feature", "id": ident, "geometry": geometry, "properties": properties})
    with gzip.open(path, "wt", compresslevel=GZIP_LEVEL) as out:
        json.dump({"type": "FeatureCollection", "features": features}, out)


def outlined(heatmap: Heatmap, path: Path, kind: str) -> None:
    write_outlines(heatmap, path, MPP, OutlineSpec(kind, (0.5,), min_area_um2=10 * (SPAN * MPP) ** 2))


def as_image(heatmap: Heatmap, path: Path) -> None:
    side = int(heatmap.xy.max()) + SPAN
    write_ome_tiff(heatmap, path, (side, side), MPP)


WAYS: dict[str, tuple[str, Callable]] = {
    "tiles, ours": ("a.geojson.gz", partial(write_geojson, max_objects=10**9)),
    "tiles, ours, in parts": ("a.geojson.gz", write_geojson),
    "tiles, dicts and json.dump": ("a.geojson.gz", by_dicts),
    "regions, ours": ("a.geojson.gz", partial(outlined, kind="regions")),
    "contours, ours": ("a.geojson.gz", partial(outlined, kind="contours")),
    "OME-TIFF, ours": ("a.ome.tif", as_image),
}


def measure(name: str, tiles: int, out: multiprocessing.Queue) -> None:
    heatmap = make(tiles)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        file, way = WAYS[name]
        wall, cpu = time.perf_counter(), time.process_time()
        way(heatmap, Path(folder) / file)
        took = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    out.put((*took, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size / 1e6))


def main() -> None:
    tiles = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    context = multiprocessing.get_context("spawn")
    print(f"{tiles:,} tiles")
    print(f"{'':28}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'(before)':>10}{'file MB':>9}{'of ours, CPU':>14}")
    ours = None
    for name in WAYS:
        out = context.Queue()
        child = context.Process(target=measure, args=(name, tiles, out))
        child.start()
        wall, cpu, before, peak, size = out.get()
        child.join()
        ours = ours or cpu
        print(f"{name:28}{wall:8.1f}{cpu:8.1f}{peak:10.0f}{before:10.0f}{size:9.1f}{cpu / ours:13.1f}x")


if __name__ == "__main__":
    main()
