"""The whole slide, small: what tissue is found on, and what people look at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, TileError
from wsi.geometry import Region
from wsi.resample import levels_for, read_reduced
from wsi.slide import Slide

STRIP_PX = 1 << 26  # pixels decoded at once while a thumbnail is made: bounds memory on single-level slides
UNREAD_PX, UNREAD_GREY = 8, 160  # thumbnail pixels given up together where the file is damaged, and how they look
THUMBNAIL_PX = 1200  # longer side of the thumbnail that people look at, at most


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
    """The whole slide, reduced `scale` times, or to at most 1,200 px, from the coarsest level that is fine enough.

    The scale is a whole number, so that a thumbnail pixel covers exactly the same level-0 pixels everywhere; the last
    row and column may reach over the slide's edge, where it is white.
    """
    base = slide.levels[0]
    scale = scale or max(1, -(-max(base.width, base.height) // THUMBNAIL_PX))
    rows, cols = -(-base.height // scale), -(-base.width // scale)
    pixels, unread = np.empty((rows, cols, 3), np.uint8), np.zeros((rows, cols), bool)
    reduction = scale / slide.levels[levels_for(slide, scale)[0]].downsample  # by us, of the pixels decoded
    step = max(1, int(STRIP_PX / (cols * reduction**2)))
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
    levels = levels_for(slide, scale)
    for level in levels if small else levels[:1]:  # a finer level may be sound where a coarse one is not
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
