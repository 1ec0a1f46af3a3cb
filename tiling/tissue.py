"""Find tissue on a thumbnail of fixed µm per pixel."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, SpecError
from wsi.slide import Slide

from .outside import fit_mask, read_mask
from .pen import channels_of, find_pen, keep_large
from .spec import TissueSpec
from .thumbnail import Thumbnail, base_mpp, read_thumbnail
from .tissue_methods import METHODS, Cleaning

OUTLINE_PX = 2 << 20  # pixels of a mask whose outline is followed as it is
DARK = 40  # brightness (0 to 255) below which a pixel cannot be the glass of a brightfield slide
GLASS_GREY = 240  # what glass looks like, where there is none to see


@dataclass(frozen=True)
class Tissue:
    """Where the tissue is.

    mask      bool (rows, cols), True is tissue
    scale     level-0 pixels per mask pixel, a whole number
    area_um2  tissue area
    pen       bool (rows, cols), True is pen; None where it was not looked for
    """

    mask: NDArray[np.bool_]
    scale: int
    area_um2: float
    pen: NDArray[np.bool_] | None = None


def find_tissue(slide: Slide, spec: TissueSpec, outside: NDArray[np.bool_] | None = None) -> Tissue:
    """Tissue mask of a slide by `spec.method`, cleaned by areas in µm², without pen marks.

    outside  for methods mask and learned: bool (any rows, any cols) that covers the slide's extent, from `read_mask`
             or a segmenter; without it method mask reads `spec.mask`, if that is a file
    Pen is taken out with every method but none and mask, which count as given (pen is still found and reported), and
    fluorescence, where it is not looked for. What cannot be read counts as tissue, since it may be: its tiles are
    then tried, and counted as failed. Raises SlideError for a slide without scale, or with a dark background where
    the method cannot tell tissue there; SpecError for a mask that is missing or of another shape.
    """
    mpp = base_mpp(slide)
    scale = max(1, round(spec.mpp / mpp))
    thumbnail, pixel_um = read_thumbnail(slide, scale), scale * mpp
    shape, method = thumbnail.unread.shape, METHODS.get(spec.method)
    bright = method is None or method.brightfield
    pen = find_pen(thumbnail.pixels, pixel_um) if spec.pen and bright else None
    if method is not None:
        if method.brightfield:
            _refuse_dark(slide, thumbnail.pixels)
        else:
            _darken_edge(slide, thumbnail)
        pixels = thumbnail.pixels if pen is None else _without(thumbnail.pixels, pen)
        mask = clean_mask(method.find(pixels, pixel_um), pen, pixel_um, spec, method.cleaning) | thumbnail.unread
    elif spec.method == "none":
        mask = np.ones(shape, bool)
    else:
        mask = fit_mask(_given(slide, spec) if outside is None else outside, slide, shape, scale)
        if spec.method == "learned":
            mask = clean_mask(mask, pen, pixel_um, spec, Cleaning(close_um=0)) | thumbnail.unread
    return Tissue(mask, scale, np.count_nonzero(mask) * pixel_um**2, pen)


def clean_mask(
    mask: NDArray[np.bool_], pen: NDArray[np.bool_] | None, pixel_um: float, spec: TissueSpec, cleaning: Cleaning
) -> NDArray[np.bool_]:
    """Gaps closed, small holes filled, pen taken out, small pieces dropped; sizes by `spec`, else by `cleaning`."""
    import cv2

    side = round(cleaning.close_um / pixel_um)
    if side > 1:
        mask = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, np.ones((side, side), np.uint8)).view(bool)
    hole = cleaning.max_hole_um2 if spec.max_hole_um2 is None else spec.max_hole_um2
    area = cleaning.min_area_um2 if spec.min_area_um2 is None else spec.min_area_um2
    mask = ~keep_large(~mask, hole / pixel_um**2)
    if cleaning.max_holes is not None:
        mask = _keep_holes(mask, cleaning.max_holes)
    return keep_large(mask if pen is None else mask & ~pen, area / pixel_um**2)


def _keep_holes(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """With all but the `count` largest holes of each piece filled."""
    import cv2

    filled = mask.astype(np.uint8)
    contours, tree = cv2.findContours(filled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for piece in [] if tree is None else np.flatnonzero(tree[0, :, 3] == -1):
        holes = np.flatnonzero(tree[0, :, 3] == piece).tolist()
        for hole in sorted(holes, key=lambda hole: -cv2.contourArea(contours[hole]))[count:]:
            cv2.drawContours(filled, contours, hole, 1, cv2.FILLED)
    return filled.astype(bool)


def _refuse_dark(slide: Slide, pixels: NDArray[np.uint8]) -> None:
    if np.count_nonzero(channels_of(pixels).high < DARK) > 0.5 * pixels[..., 0].size:
        raise SlideError(
            slide.path,
            "more than half of it is dark, as in fluorescence: tissue cannot be told from glass",
            "use tissue method `fluorescence`, or `none` to tile everything",
        )


def _darken_edge(slide: Slide, thumbnail: Thumbnail) -> None:
    """The last row and column, where they reach over the slide's edge and are partly white, as those beside them."""
    base, pixels = slide.levels[0], thumbnail.pixels
    if base.height % thumbnail.scale and len(pixels) > 1:
        pixels[-1] = pixels[-2]
    if base.width % thumbnail.scale and pixels.shape[1] > 1:
        pixels[:, -1] = pixels[:, -2]


def _without(pixels: NDArray[np.uint8], pen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The thumbnail with pen painted over as glass, so that its colour shifts no threshold."""
    if not pen.any():
        return pixels
    painted = pixels.copy()
    seen = channels_of(pixels)
    glass = pixels[~pen & (seen.high > GLASS_GREY - 40) & (seen.chroma < 12)]
    painted[pen] = np.median(glass[:: 1 + len(glass) // 10_000], axis=0) if len(glass) else GLASS_GREY
    return painted


def _given(slide: Slide, spec: TissueSpec) -> NDArray[np.bool_]:
    if spec.method == "learned":
        raise SpecError("tissue.method", "`learned` needs a model's mask", "segment the slide first, and give its mask")
    return read_mask(Path(str(spec.mask)), slide, max(1, round(spec.mpp / base_mpp(slide))))


def _coarser(mask: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Where most of each `factor` x `factor` pixels are set; beyond the mask's edge none are."""
    rows, cols = (-(-extent // factor) for extent in mask.shape)
    whole = np.zeros((rows * factor, cols * factor), np.uint8)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(2 * whole.reshape(rows, factor, cols, factor).sum(axis=(1, 3)) > factor**2)


def tissue_outline(tissue: Tissue) -> dict[str, Any]:
    """Outline of the tissue as a GeoJSON MultiPolygon in level-0 pixels, holes kept.

    Of masks above 2 megapixels it is drawn from means of 2 x 2 pixels or more: it is for people, and finding it takes
    fifty bytes a pixel.
    """
    from contourpy import FillType, contour_generator
    from shapely import MultiPolygon, Polygon, make_valid
    from shapely.geometry import mapping

    factor = math.ceil(math.sqrt(tissue.mask.size / OUTLINE_PX))
    if factor > 1:
        return tissue_outline(Tissue(_coarser(tissue.mask, factor), tissue.scale * factor, tissue.area_um2))
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
