"""Tissue masks that come from outside: a mask image of any size, or drawn regions."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.slide import Slide

from .regions import check_place

REGIONS = (".geojson", ".json", ".xml", ".gz", ".zip")
PEN = "pen"  # class of what is no tissue, in any case
IMAGE_REMEDY = "give 0 for glass and one other value for tissue; save it as PNG, for JPEG blurs edges"
ASPECT = 0.02  # relative; thumbnails are rounded to whole pixels, and masks are padded to whole tiles


def read_mask(path: Path, slide: Slide, scale: int) -> NDArray[np.bool_]:
    """Mask of `slide` from a file: bool (rows, cols) that covers the slide's extent, True is tissue.

    A PNG, TIFF or NPY file is a mask of any size. It has two values, or two colours: 0 (black) is glass, the other is
    tissue; alpha is ignored. GeoJSON, ASAP XML and ImageScope XML are regions in level-0 pixels; those are drawn with
    one pixel a `scale` level-0 pixels. Objects of the class Pen are cut out of the others, as in what a run writes for
    QuPath; a file without objects is a slide without tissue.
    Raises SpecError where there is no such file, it holds no mask, or nothing in it lies on the slide.
    """
    if not path.is_file():
        raise SpecError("tissue.mask", f"there is no file {path}", "name a mask image or a file of regions")
    if path.suffix.lower() in REGIONS:
        return _read_regions(path, slide, scale)
    return _read_image(path)


def _read_regions(path: Path, slide: Slide, scale: int) -> NDArray[np.bool_]:
    import shapely

    from wsi.annotations import read_annotations

    base, found = slide.levels[0], read_annotations(path)
    is_pen = [PEN in (name.casefold() for name in one.classes) for one in found]
    tissue, pen = ([one.geometry for one, marks in zip(found, is_pen, strict=True) if marks == kind] for kind in (0, 1))
    if tissue and not any(geometry.area > 0 for geometry in tissue):
        problem = f"none of the {len(tissue)} objects of {path} encloses an area"
        raise SpecError("tissue.mask", problem, "draw polygons about the tissue")
    drawn = shapely.GeometryCollection([geometry for geometry in tissue if geometry.area > 0])
    check_place(drawn, (base.width, base.height), "tissue.mask", path)
    shape = -(-base.height // scale), -(-base.width // scale)
    return rasterise(tissue, shape, scale) & ~rasterise(pen, shape, scale)


def _read_image(path: Path) -> NDArray[np.bool_]:
    pixels = _pixels(path)
    if pixels.ndim not in (2, 3) or not pixels.size:
        problem = f"{path} has {pixels.ndim} dimensions, of {' x '.join(map(str, pixels.shape)) or 'no extent'}"
        raise SpecError("tissue.mask", problem, "give rows and columns")
    channels = [pixels] if pixels.ndim == 2 else [pixels[..., at] for at in range(min(3, pixels.shape[2]))]
    masks = [_two_valued(path, channel) for channel in channels]
    drawn = [mask for mask in masks if mask.any()] or masks[:1]
    if any((mask != drawn[0]).any() for mask in drawn[1:]):
        raise SpecError("tissue.mask", f"{path} has other colours than one on black", IMAGE_REMEDY)
    return drawn[0]


def _pixels(path: Path) -> NDArray[Any]:
    """Numbers of an image or array file. Raises SpecError where it holds none."""
    import cv2

    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        else:
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (ValueError, EOFError, OSError, cv2.error) as error:  # numpy's for pickles and damage; cv2's for huge images
        raise SpecError("tissue.mask", f"{path} cannot be read ({error})", "write the mask again") from None
    if not isinstance(pixels, np.ndarray) or pixels.dtype.kind not in "buif":
        raise SpecError("tissue.mask", f"{path} is no image", "give a PNG, TIFF or NPY mask, or regions")
    return pixels


def _two_valued(path: Path, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where one channel of a mask is not 0. Raises SpecError for a channel of a picture: it has other values too."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise SpecError("tissue.mask", f"{path} has pixels that are no numbers (NaN)", IMAGE_REMEDY)
    mask, high = values != 0, values.max() or values.min()
    if (values[mask] != high).any():
        count = len(np.unique(values))
        raise SpecError(
            "tissue.mask", f"{path} has {count} different values; a mask has two, one of them 0", IMAGE_REMEDY
        )
    full = values.dtype.kind == "b" or high in (1, _highest(values.dtype))
    if mask.all() and not full:
        raise SpecError("tissue.mask", f"every pixel of {path} is {high}: nothing in it is glass", IMAGE_REMEDY)
    return np.asarray(mask, np.bool_)


def _highest(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max if dtype.kind in "ui" else 1)


def fit_mask(mask: NDArray[np.bool_], slide: Slide, shape: tuple[int, ...], scale: int) -> NDArray[np.bool_]:
    """`mask`, which covers the slide's extent, with one pixel for `scale` level-0 pixels: bool `shape`.

    Each pixel takes the value under its centre; what reaches over the slide's edge is glass. Raises SpecError when
    the aspect ratios differ by more than 2 % and a pixel: then the mask is of another slide, or turned.
    """
    base = slide.levels[0]
    rows, cols = mask.shape
    if mask.shape == tuple(shape):  # made at this scale: its last row and column may reach over the edge as ours do
        return mask
    ratio = (cols / rows) / (base.width / base.height) if rows and cols else np.inf
    if abs(ratio - 1) > ASPECT + 1 / max(1, min(rows, cols)):
        problem = f"the mask has {cols} x {rows} px, the slide {base.width} x {base.height}: not the same shape"
        raise SpecError("tissue.mask", problem, "give the mask of this slide, of its whole extent and not turned")
    y = ((np.arange(shape[0]) + 0.5) * scale * rows / base.height).astype(int)
    x = ((np.arange(shape[1]) + 0.5) * scale * cols / base.width).astype(int)
    return np.pad(mask, ((0, 1), (0, 1)))[np.ix_(np.minimum(y, rows), np.minimum(x, cols))]


def rasterise(geometries: list[Any], shape: tuple[int, int], scale: float) -> NDArray[np.bool_]:
    """Pixels whose centres lie in any of the shapely `geometries` (level-0 px), holes kept: bool `shape`.

    One pixel covers `scale` level-0 pixels. Points and lines cover nothing. Exact by the even-odd rule: every edge
    toggles all pixels to the right of where it crosses a row's centre line.
    """
    import shapely

    union = shapely.union_all([shapely.make_valid(geometry) for geometry in geometries])
    parts = shapely.get_parts(shapely.get_parts(union))
    toggles = np.zeros((shape[0], shape[1] + 1), np.int32)
    for ring in shapely.get_rings(parts[shapely.get_dimensions(parts) == 2]):
        points = shapely.get_coordinates(ring) / scale - 0.5  # centres of pixels at whole numbers
        start, end = points[:-1], points[1:]
        first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, shape[0]).astype(int)
        last = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, shape[0]).astype(int)
        count = last - first  # rows whose centre line the edge crosses
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
        slope = (end[edge] - start[edge]).T
        x = start[edge, 0] + (row - start[edge, 1]) * slope[0] / slope[1]
        np.add.at(toggles, (row, np.clip(np.ceil(x), 0, shape[1]).astype(int)), 1)
    return np.asarray(toggles.cumsum(axis=1)[:, : shape[1]] % 2 == 1)
