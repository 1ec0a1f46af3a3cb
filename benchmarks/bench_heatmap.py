"""GeoJSON for QuPath: the streamed writer against json.dump of a list of dicts of the same features.

    python benchmarks/bench_heatmap.py [TILES]

Both sides write the same features to a .geojson.gz at one compression level, each in a process of its own, so that
peak memory is its own too. The other side's dicts are built as in the usual script, which is part of its time.
"""

import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from heatmaps import Heatmap, check_qupath, write_geojson
from heatmaps.colour import colour_table
from heatmaps.geojson import GZIP_LEVEL, class_names


def make_heatmap(tiles: int) -> Heatmap:
    rng, side = np.random.default_rng(0), int(np.ceil(np.sqrt(tiles)))
    xy = np.stack([np.arange(tiles) % side, np.arange(tiles) // side], axis=1).astype(np.int64) * 224
    attention = (rng.random(tiles) / tiles).astype(np.float32)
    return Heatmap("slide", "tumor", "tumor", rng.random(tiles, np.float32), xy, 224, (0, 1), {"attention": attention})


def write_dicts(heatmap: Heatmap, path: Path) -> None:
    names, colours = class_names(heatmap), colour_table(21)[1::2].tolist()
    features = []
    for (x, y), score, attention in zip(heatmap.xy, heatmap.scores, heatmap.measurements["attention"], strict=True):
        left, top = int(x), int(y)
        right, bottom = left + heatmap.span_px, top + heatmap.span_px
        step = min(int(score * 10), 9)
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid5(NAMESPACE_URL, f"{heatmap.slide_id}/{heatmap.name}/{left}/{top}/{heatmap.span_px}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "isLocked": True,
                    "classification": {"name": names[step], "color": colours[step]},
                    "measurements": {"tumor": float(score), "attention": float(attention)},
                },
            }
        )
    with gzip.open(path, "wt", GZIP_LEVEL, encoding="utf-8") as out:
        json.dump({"type": "FeatureCollection", "features": features}, out)


def write_streamed(heatmap: Heatmap, path: Path) -> None:
    write_geojson(heatmap, path)


def measure(write: Callable[[Heatmap, Path], None], tiles: int) -> tuple[float, float, float]:
    """Seconds, peak memory above what the heatmap itself takes in MB, and the file's size in MB."""
    heatmap = make_heatmap(tiles)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.geojson.gz"
        started = time.perf_counter()
        write(heatmap, path)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if check_qupath(path) != tiles:
            raise SystemExit(f"{write.__name__} lost features")
        return seconds, peak / 1024, path.stat().st_size / 1e6


def main() -> None:
    tiles = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    results = []
    for write in (write_dicts, write_streamed):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            results.append(alone.submit(measure, write, tiles).result())
    (slow, heavy, large), (fast, light, small) = results
    print(
        f"write_geojson: {slow / fast:.1f}x json.dump of dicts, {tiles / fast:,.0f} tiles/s; {fast:.1f} s against "
        f"{slow:.1f} s for {tiles:,} tiles; peak memory +{light:.0f} MB against +{heavy:.0f} MB; "
        f"file {small:.1f} MB against {large:.1f} MB"
    )


if __name__ == "__main__":
    main()
