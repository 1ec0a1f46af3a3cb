"""Find tissue on a thumbnail of fixed µm per pixel."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, TileError
from wsi.geometry import Region
from wsi.resample import levels_for, read_reduced
from wsi.slide import Slide

from .spec import TissueSpec

# Colourfulness (max - min of R, G, B; 0 to 255) of a smoothed thumbnail. Below the first no stain is visible, so a
# slide of bare glass stays empty although Otsu always finds a threshold; above the second all is stained, so a
# slide full of tissue is not split into pale and dark tissue.
CHROMA_LIMITS = (12.0, 40.0)
DARK = 40  # brightness (0 to 255) below which a pixel cannot be the glass of a brightfield slide
STRIP_PX = 1 << 26  # level-0 pixels read at once while a thumbnail is made: bounds memory on single-level slides
UNREAD_PX, UNREAD_GREY = 8, 160  # thumbnail pixels given up together where the file is damaged, and how they look
THUMBNAIL_PX = 1200  # longer side of the thumbnail that people look at, at most


@dataclass(frozen=True)
class Tissue:
    """Where the tissue is.

    mask      bool (rows, cols), True is tissue
    scale     level-0 pixels per mask pixel, a whole number
    area_um2  tissue area
    """

    mask: NDArray[np.bool_]
    scale: int
    area_um2: float


@dataclass(frozen=True)
class Thumbnail:
    """The whole slide, small.

    pixels  uint8 (rows, cols, 3)
    scale   level-0 pixels per pixel, a whole number
    unread  bool (rows, cols), where the file is damaged; there, pixels are grey
    """

    pixels: NDArray[np.uint8]
    scale: int
    unread: NDArray[np.bool_]


def base_mpp(slide: Slide) -> float:
    """µm per level-0 pixel. Raises SlideError where it is unknown."""
    mpp = slide.levels[0].mpp
    if mpp is None:
        raise SlideError(
            slide.path,
            slide.info.mpp_problem or "its pixel size is unknown",
            "add an `mpp` column to the manifest" + (", or give --slide-mpp" if slide.info.mpp_source is None else ""),
        )
    return mpp


def read_thumbnail(slide: Slide, scale: int | None = None) -> Thumbnail:
    """The whole slide, reduced `scale` times, or to at most 1,200 px.

    The scale is a whole number, so that a thumbnail pixel covers exactly the same level-0 pixels everywhere; the last
    row and column may reach over the slide's edge, where it is white.
    """
    base = slide.levels[0]
    scale = scale or max(1, -(-max(base.width, base.height) // THUMBNAIL_PX))
    rows, cols = -(-base.height // scale), -(-base.width // scale)
    pixels, unread = np.empty((rows, cols, 3), np.uint8), np.zeros((rows, cols), bool)
    step = max(1, STRIP_PX // (base.width * scale))
    for top in range(0, rows, step):
        height = min(step, rows - top)
        part = slice(top, top + height)
        _fill(slide, (0, top), scale, pixels[part], unread[part])
    return Thumbnail(pixels, scale, unread)


def _fill(
    slide: Slide, corner: tuple[int, int], scale: int, pixels: NDArray[np.uint8], unread: NDArray[np.bool_]
) -> None:
    """Read the part of a thumbnail at `corner` (x, y); where it cannot be read, by quarters, to lose little."""
    rows, cols = unread.shape
    region = Region(corner[0] * scale, corner[1] * scale, cols * scale, rows * scale)
    small = max(rows, cols) <= UNREAD_PX
    for level in levels_for(slide, scale)[
        : None if small else 1
    ]:  # a finer level may be sound where a coarse one is not
        try:
            pixels[...] = read_reduced(slide, region, scale, level)
        except TileError:
            continue
        return
    if small:
        pixels[...], unread[...] = UNREAD_GREY, True
        return
    row, col = (rows + 1) // 2, (cols + 1) // 2
    for down in (slice(0, row), slice(row, rows)):
        for across in (slice(0, col), slice(col, cols)):
            if unread[down, across].size:
                start = corner[0] + across.start, corner[1] + down.start
                _fill(slide, start, scale, pixels[down, across], unread[down, across])


def find_tissue(slide: Slide, spec: TissueSpec) -> Tissue:
    """Tissue mask of a brightfield slide.

    Otsu's threshold (Otsu 1979) on colourfulness, kept within limits, then closing, filling of small holes and
    removal of small pieces by area in µm². What cannot be read counts as tissue, since it may be: its tiles are then
    tried, and counted as failed. Raises SlideError for a slide without scale or with a dark background.
    """
    mpp = base_mpp(slide)
    scale = max(1, round(spec.mpp / mpp))
    thumbnail, pixel_um = read_thumbnail(slide, scale), scale * mpp
    if spec.method == "none":
        mask = np.ones(thumbnail.unread.shape, bool)
    else:
        if (thumbnail.pixels.max(axis=2) < DARK).mean() > 0.5:
            raise SlideError(
                slide.path,
                "more than half of it is dark, as in fluorescence: tissue cannot be told from glass",
                "use brightfield slides, or tissue method `none` to tile everything",
            )
        mask = otsu_mask(thumbnail.pixels, pixel_um, spec) | thumbnail.unread
    return Tissue(mask, scale, float(mask.sum()) * pixel_um**2)


def otsu_mask(thumbnail: NDArray[np.uint8], pixel_um: float, spec: TissueSpec) -> NDArray[np.bool_]:
    """bool (rows, cols): tissue on `thumbnail`, whose pixels are `pixel_um` µm wide."""
    import cv2
    from skimage.filters import threshold_otsu

    # 25 µm of smoothing: the grain of a scanner's sensor has colour too
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), max(0.5, 12.0 / pixel_um))
    chroma = smooth.max(axis=2) - smooth.min(axis=2)
    threshold = float(threshold_otsu(chroma)) if chroma.min() < chroma.max() else 255.0
    mask = chroma > np.clip(threshold, *CHROMA_LIMITS)
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    mask = ~drop_small(~mask, spec.max_hole_um2 / pixel_um**2)
    return drop_small(mask, spec.min_area_um2 / pixel_um**2)


def drop_small(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    """Without the connected pieces (8 neighbours) of fewer than `min_px` pixels."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False  # label 0 is the background
    return keep[labels]


def tissue_outline(tissue: Tissue) -> dict[str, Any]:
    """Outline of the tissue as a GeoJSON MultiPolygon in level-0 pixels, holes kept."""
    from contourpy import FillType, contour_generator
    from shapely import MultiPolygon, Polygon, make_valid
    from shapely.geometry import mapping

    padded = np.pad(tissue.mask.astype(np.float32), 1)  # so that outlines close at the slide's edge
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    shapes = []
    for points, offsets in zip(*filled, strict=True):
        rings = [(points[a:b] - 0.5) * tissue.scale for a, b in pairwise(offsets)]
        shapes.append(make_valid(Polygon(rings[0], rings[1:])).simplify(tissue.scale / 2))
    parts = [part for shape in shapes for part in getattr(shape, "geoms", [shape]) if part.geom_type == "Polygon"]
    outline = mapping(MultiPolygon(parts))
    rounded = [[[[round(x), round(y)] for x, y in ring] for ring in polygon] for polygon in outline["coordinates"]]
    return {"type": "MultiPolygon", "coordinates": rounded}
