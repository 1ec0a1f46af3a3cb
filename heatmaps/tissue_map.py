"""What was found on a slide before any model looked: tissue, pen and the tile grid, as a picture and as outlines."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi.publish import appear_file

OUTLINE, PEN, TILE, FLAGGED, UNREAD = (10, 92, 84), (220, 30, 160), (31, 95, 174), (214, 110, 0), (120, 120, 120)
_CELL_PX = 5  # tiles smaller than this on the picture are tinted only: their lines would hide the tissue
_SPACE = uuid.UUID("6a1f3f0e-6d52-5b0c-9a53-0d9a4f4c7f11")  # of our outlines' ids


@dataclass(frozen=True)
class TissueMap:
    """What is drawn; all places in level-0 pixels.

    outline   GeoJSON MultiPolygon of the tissue
    pen       GeoJSON MultiPolygon of pen marks, None where none was looked for
    xy        int64 (n, 2), corners of the tiles; span_px is their side
    flagged   flag → int64 (k, 2), corners of tiles with it, whether they were left out or not
    unread    int64 (k, 2), corners of tiles whose pixels cannot be read
    """

    slide_id: str
    outline: Mapping[str, Any]
    pen: Mapping[str, Any] | None
    xy: NDArray[np.int64]
    span_px: int
    flagged: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    unread: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))


def draw_tissue(thumbnail: NDArray[np.uint8], scale: float, found: TissueMap, path: Path) -> None:
    """Write the thumbnail with tissue outlined, pen filled and the grid's tiles drawn, as JPEG.

    thumbnail  uint8 (rows, cols, 3), the whole slide; scale: level-0 pixels per pixel of it
    """
    picture = Image.fromarray(thumbnail).convert("RGB")
    veil = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(veil)
    side = found.span_px / scale
    unread = set(map(tuple, found.unread.tolist()))
    flagged = {tuple(corner) for corners in found.flagged.values() for corner in corners.tolist()}
    places = [(corner, corner in flagged) for corner in map(tuple, found.xy.tolist())]
    places += [(corner, True) for corner in flagged.difference(corner for corner, _ in places)]
    for (x, y), bad in places:
        colour, alpha = (UNREAD, 200) if (x, y) in unread else (FLAGGED, 70) if bad else (TILE, 26)
        box = (x / scale, y / scale, x / scale + side - 1, y / scale + side - 1)
        draw.rectangle(box, fill=(*colour, alpha), outline=(*colour, 190) if side >= _CELL_PX else None)
    pen = _filled(_polygons(found.pen, scale), picture.size)
    veil.paste((*PEN, 120), mask=pen)
    width = max(2, round(max(picture.size) / 500))
    for rings in _polygons(found.outline, scale):
        for ring in rings:
            draw.line([*ring, ring[0]], fill=(*OUTLINE, 255), width=width, joint="curve")
    picture.paste(Image.alpha_composite(picture.convert("RGBA"), veil).convert("RGB"))
    with appear_file(path) as draft:
        picture.save(draft, format="JPEG", quality=88)


def write_outlines(found: TissueMap, path: Path) -> None:
    """Tissue and pen as QuPath annotations: GeoJSON in level-0 pixels. Ids are stable between runs."""
    shapes = (("Tissue", OUTLINE, found.outline), ("Pen", PEN, found.pen))
    features = [
        _feature(found.slide_id, name, rgb, shape) for name, rgb, shape in shapes if shape and shape["coordinates"]
    ]
    with appear_file(path) as draft:
        draft.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def _feature(slide_id: str, name: str, rgb: tuple[int, int, int], shape: Mapping[str, Any]) -> dict[str, Any]:
    properties = {
        "objectType": "annotation",
        "name": name.lower(),
        "classification": {"name": name, "color": list(rgb)},
        "isLocked": True,
    }
    ident = str(uuid.uuid5(_SPACE, f"{slide_id}/{name}"))
    return {"type": "Feature", "id": ident, "geometry": dict(shape), "properties": properties}


def _filled(polygons: list[list[list[tuple[float, float]]]], size: tuple[int, int]) -> Image.Image:
    """Where the polygons are, holes left out: a mask of this size. A closed stroke does not cover what it surrounds."""
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    # from large to small: what lies in a hole is drawn after it
    for outer, *holes in sorted(polygons, key=lambda rings: -np.ptp(rings[0], axis=0).prod()):
        draw.polygon(outer, fill=1)
        for hole in holes:
            draw.polygon(hole, fill=0)
    return mask


def _polygons(shape: Mapping[str, Any] | None, scale: float) -> list[list[list[tuple[float, float]]]]:
    """Rings of each polygon in the picture's pixels, the outer one first."""
    coordinates = shape["coordinates"] if shape else []
    return [[[(x / scale, y / scale) for x, y in ring] for ring in polygon] for polygon in coordinates]
