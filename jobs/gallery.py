"""Pictures of the tiles that scored highest and lowest on a slide."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from heatmaps import Heatmap
from heatmaps.gallery import Row, draw_gallery
from tiling.patches import PatchStore
from wsi.publish import appear

from .config import RunSpec
from .extraction import pixels_of
from .manifest import SlideRecord


def export_extremes(record: SlideRecord, spec: RunSpec, tiles: PatchStore, heatmap: Heatmap, folder: Path) -> None:
    """Write `spec.heatmap.tiles` tiles of the highest and of the lowest score into `folder`.

    A PNG each, a table of their places, tiles.csv, and gallery.png that shows them side by side.
    Raises SlideError where the slide's pixels are no longer there or are others than were tiled.
    """
    from mil.explain import extreme_tiles

    ends = extreme_tiles(heatmap.scores, heatmap.xy, heatmap.span_px, spec.heatmap.tiles)
    row_of = {(int(x), int(y)): row for row, (x, y) in enumerate(tiles.grid.xy)}
    rows, facts = [], []
    with pixels_of(record, replace(spec, tile=tiles.grid.spec), tiles) as pixels, appear(folder) as draft:
        for end, places in zip(("highest", "lowest"), ends, strict=True):
            # read in the grid's order, as a reader gives them, and put back into the order of their scores
            wanted = [row_of[int(x), int(y)] for x, y in heatmap.xy[places]]
            order = np.argsort(wanted)
            read = pixels.sample(np.array(wanted, np.intp)[order]) if wanted else np.zeros((0, 1, 1, 3), np.uint8)
            pictures = np.empty_like(read)
            pictures[order] = read
            for rank, (place, picture) in enumerate(zip(places.tolist(), pictures, strict=True), start=1):
                (x, y), score = heatmap.xy[place].tolist(), float(heatmap.scores[place])
                name = f"{end}-{rank:02d}_x{x}_y{y}.png"
                (draft / name).write_bytes(_png(picture))
                facts.append((name, record.slide_id, x, y, heatmap.span_px, f"{score:.6f}"))
            rows.append(Row(f"{end} {len(places)}", pictures, heatmap.scores[places].tolist()))
        draw_gallery(f"{record.slide_id}: {heatmap.name}", rows, draft / "gallery.png")
        with (draft / "tiles.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("file", "slide_id", "x", "y", "span_px", heatmap.name), *facts])


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()
