"""Tissue masks that come from outside: a mask image of any size, or drawn regions."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.slide import Slide

REGIONS = (".geojson", ".json", ".xml", ".gz", ".zip")
ASPECT = 0.02  # relative; thumbnails are rounded to whole pixels, and masks are padded to whole tiles


def read_mask(path: Path, slide: Slide, scale: int) -> NDArray[np.bool_]:
    """Mask of `slide` from a file: bool (rows, cols) that covers the slide's extent, True is tissue.

    A PNG, TIFF or NPY file is a mask of any size, tissue where it is not 0 (in any channel but alpha). GeoJSON, ASAP
    XML and ImageScope XML are regions in level-0 pixels; those are drawn with one pixel a `scale` level-0 pixels.
    Raises SpecError where there is no such file or it holds no mask.
    """
    if not path.is_file():
        raise SpecError("tissue.mask", f"there is no file {path}", "name a mask image or a file of regions")
    if path.suffix.lower() in REGIONS:
        from wsi.annotations import read_annotations

        base = slide.levels[0]
        shape = -(-base.height // scale), -(-base.width // scale)
        return rasterise([found.geometry for found in read_annotations(path)], shape, scale)
    return _read_image(path)


def _read_image(path: Path) -> NDArray[np.bool_]:
    if path.suffix.lower() == ".npy":
        pixels = np.load(path, allow_pickle=False)
    else:
        import cv2

        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise SpecError("tissue.mask", f"{path} is no image", "give a PNG, TIFF or NPY mask, or regions")
    mask = pixels[..., :3].any(axis=2) if pixels.ndim == 3 else pixels != 0
    if mask.ndim != 2:
        raise SpecError("tissue.mask", f"{path} has {pixels.ndim} dimensions", "give rows and columns")
    return np.asarray(mask, np.bool_)


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
