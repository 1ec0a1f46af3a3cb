"""Heatmaps as pyramidal OME-TIFF: an image of its own that lies on the slide.

It covers just what the slide covers, so that level-0 micrometres of the one are those of the other. Its pixels are
drawn tile by tile from the raster while the file is written. Levels are SubIFDs, as OME-TIFF has them (OME Data Model
6); OpenSlide reads the finest, which is small, and QuPath, Bio-Formats and tifffile read all.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.publish import appear_file

from .heatmap import Heatmap
from .raster import Palette, Raster, palette, tile_raster

KINDS = ("rgb", "scores")
TILE_PX = 512
SPAN_PX, CELL_PX = 16, 8  # at least so many pixels a tile and a cell: edges stay sharp, and are not enlarged by much
MAX_SIDE_PX = 1 << 15
_SMALLEST_PX = 512


def write_ome_tiff(
    heatmap: Heatmap,
    path: Path,
    slide_size: tuple[int, int],
    mpp: float,
    *,
    display: tuple[float, float] | None = None,
    kind: str = "rgb",
) -> None:
    """Write the heatmap as a pyramid of the slide's extent.

    slide_size  (width, height) of the slide in level-0 pixels; mpp: its µm per level-0 pixel
    display     (low, high) that the colours are spread over, `heatmap.limits` by default
    kind        rgb: uint8 colours, white where there is no tile, striped grey for tiles without data. scores: float32,
                NaN in both places
    Raises SpecError for a size, scale or kind that cannot be.
    """
    import tifffile

    if kind not in KINDS:
        raise SpecError(path, f"kind {kind!r} is unknown", f"choose {' or '.join(KINDS)}")
    if min(slide_size) < 1 or not (math.isfinite(mpp) and mpp > 0):
        raise SpecError(path, f"a slide of {slide_size} px at {mpp} µm/px", "give its size and scale at level 0")
    shown, raster = display or heatmap.limits, tile_raster(heatmap)
    colours = palette(raster, shown) if kind == "rgb" else None
    sizes = _sizes(raster, heatmap.span_px, slide_size)
    options: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "compression": "deflate", "resolutionunit": "CENTIMETER"}
    options |= {"photometric": "rgb" if kind == "rgb" else "minisblack", "software": "slidestream"}
    options |= {"predictor": None if kind == "rgb" else 3, "compressionargs": {"level": 4}}
    with appear_file(path) as draft, tifffile.TiffWriter(draft, bigtiff=True, ome=True) as file:
        for number, (cols, rows) in enumerate(sizes):
            per_px = (mpp * slide_size[0] / cols, mpp * slide_size[1] / rows)
            file.write(
                _tiles(raster, colours, (cols, rows), slide_size),
                shape=(rows, cols, 3) if kind == "rgb" else (rows, cols),
                dtype=np.uint8 if kind == "rgb" else np.float32,
                subifds=len(sizes) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                resolution=(1e4 / per_px[0], 1e4 / per_px[1]),
                metadata={**_facts(heatmap, shown, per_px, kind), **_told(heatmap, shown, kind)}
                if number == 0
                else None,
                **options,
            )


def _sizes(raster: Raster, span_px: int, slide_size: tuple[int, int]) -> list[tuple[int, int]]:
    """(cols, rows) of each level, finest first: halves, down to one pixel a cell or a small picture."""
    step = 2 ** max(0, math.floor(math.log2(min(raster.cell_px / CELL_PX, span_px / SPAN_PX))))
    while max(slide_size) > step * MAX_SIDE_PX:
        step *= 2
    sizes = []
    while True:
        sizes.append((math.ceil(slide_size[0] / step), math.ceil(slide_size[1] / step)))
        if max(sizes[-1]) <= _SMALLEST_PX or raster.cell_px < 2 * step:
            return sizes
        step *= 2


def _tiles(
    raster: Raster, colours: Palette | None, size: tuple[int, int], slide_size: tuple[int, int]
) -> Iterator[NDArray]:
    """The stored tiles of one level in raster order; without colours: scores."""
    x, y = ((np.arange(side) + 0.5) * whole / side for side, whole in zip(size, slide_size, strict=True))
    for top in range(0, size[1], TILE_PX):
        for left in range(0, size[0], TILE_PX):
            across, down = x[left : left + TILE_PX], y[top : top + TILE_PX]
            part: NDArray = raster.at(across, down)[0] if colours is None else colours.paint(across, down)
            missing = [(0, TILE_PX - part.shape[0]), (0, TILE_PX - part.shape[1]), (0, 0)][: part.ndim]
            yield np.ascontiguousarray(np.pad(part, missing, mode="edge"))


def _facts(heatmap: Heatmap, display: tuple[float, float], per_px: tuple[float, float], kind: str) -> dict[str, Any]:
    """What the OME-XML says; nothing but the engine's own ids."""
    key = [heatmap.slide_id, heatmap.name, heatmap.span_px, heatmap.origin, display, per_px, kind]
    return {
        "UUID": str(uuid5(NAMESPACE_URL, json.dumps(key))),  # tifffile's own holds the time and the machine's address
        "axes": "YXS" if kind == "rgb" else "YX",
        "Name": f"{heatmap.slide_id}: {heatmap.name}",
        "PhysicalSizeX": per_px[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": per_px[1],
        "PhysicalSizeYUnit": "µm",
        "MapAnnotation": {
            "Namespace": "slidestream/heatmap",
            "slide_id": heatmap.slide_id,
            "score": heatmap.name,
            "class": heatmap.class_name,
            "limits": f"{heatmap.limits[0]:g} {heatmap.limits[1]:g}",
            "display": f"{display[0]:g} {display[1]:g}",
            "span_px": str(heatmap.span_px),
            "origin": heatmap.origin or "unknown",
        },
    }


def _told(heatmap: Heatmap, display: tuple[float, float], kind: str) -> dict[str, str]:
    """The description that viewers show: what the pixels mean."""
    lost = f"{len(heatmap.failed_xy):,} tiles without data"
    shown = f"{display[0]:g} to {display[1]:g}"
    if kind == "rgb":
        meaning = f"colours over {shown}; white: no tile; grey stripes: {lost}"
    else:
        meaning = f"float32, NaN: no tile, or one of {lost}; display range {shown}"
    return {"Description": f"{heatmap.name} of {heatmap.n_tiles:,} tiles; {meaning}"}
