"""Pictures of a slide for the browser: tiles of the deep-zoom pyramid, patches and thumbnails, as JPEG.

What the file does not hold is white, what cannot be decoded is hatched grey: "no data" is never taken for glass.
"""

from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tiling.thumbnail import Thumbnail
from wsi.errors import TileError
from wsi.geometry import Region
from wsi.resample import levels_for, read_reduced
from wsi.slide import Slide

from .place import TILE_PX, max_level

QUALITY, SUBSAMPLING = 85, "444"
STRIP_PX = 1 << 23  # source pixels read at once: bounds memory where a slide has no coarse levels
MOST_PX = 1 << 26  # source pixels of one picture, beyond which the thumbnail is shown enlarged
BLOCK_PX = 64  # side of what is given up together where the file is damaged
_LIGHT, _DARK, _STRIPE_PX = 200, 150, 8

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels) -> bytes:
    """uint8 (rows, cols, 3) → JPEG."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", SUBSAMPLING)


def tile_region(width: int, height: int, level: int, x: int, y: int) -> tuple[Region, int] | None:
    """The level-0 region of a tile of the pyramid, and its level-0 pixels per pixel; None where there is no such tile.

    The region's sides are multiples of the factor, so it may reach over the slide's right and lower edge.
    """
    top = max_level(width, height)
    if not 0 <= level <= top:
        return None
    factor = 1 << (top - level)
    cols, rows = -(-width // factor), -(-height // factor)
    left, upper = x * TILE_PX, y * TILE_PX
    if not (0 <= left < cols and 0 <= upper < rows):
        return None
    across, down = min(TILE_PX, cols - left), min(TILE_PX, rows - upper)
    return Region(left * factor, upper * factor, across * factor, down * factor), factor


def draw_region(slide: Slide, region: Region, factor: int, overview: Callable[[], Thumbnail]) -> Pixels:
    """Pixels of `region`, one for each `factor` x `factor` level-0 pixels: uint8 (rows, cols, 3).

    overview  the slide's thumbnail, asked for only where the file has no level near enough to this scale
    """
    level = levels_for(slide, factor)[0]
    source = (region.width / slide.levels[level].downsample) * (region.height / slide.levels[level].downsample)
    if source > MOST_PX:
        return enlarge(overview(), region, factor)
    out = np.empty((region.height // factor, region.width // factor, 3), np.uint8)
    rows = max(1, int(len(out) * min(1.0, STRIP_PX / source)))
    for top in range(0, len(out), rows):
        _fill(slide, region, factor, out, (top, min(top + rows, len(out)), 0, out.shape[1]))
    return out


def _fill(slide: Slide, region: Region, factor: int, out: Pixels, part: tuple[int, int, int, int]) -> None:
    """Read the part (top, bottom, left, right) of a picture; where it cannot be read, by quarters, to lose little."""
    top, bottom, left, right = part
    here = Region(region.x + left * factor, region.y + top * factor, (right - left) * factor, (bottom - top) * factor)
    try:
        out[top:bottom, left:right] = read_reduced(slide, here, factor, levels_for(slide, factor)[0])
        return
    except TileError:
        if max(bottom - top, right - left) <= BLOCK_PX:
            out[top:bottom, left:right] = hatched(bottom - top, right - left, here.x // factor + here.y // factor)
            return
    row, col = (top + bottom + 1) // 2, (left + right + 1) // 2
    for down in ((top, row), (row, bottom)):
        for across in ((left, col), (col, right)):
            if down[0] < down[1] and across[0] < across[1]:
                _fill(slide, region, factor, out, (*down, *across))


def hatched(rows: int, cols: int, phase: int = 0) -> Pixels:
    """Slanted stripes of two greys, which no tissue looks like; `phase` makes neighbouring pieces fit."""
    slant = (np.arange(rows)[:, None] + np.arange(cols)[None] + phase) // _STRIPE_PX % 2
    return np.repeat(np.where(slant[..., None] == 0, _LIGHT, _DARK).astype(np.uint8), 3, axis=2)


def enlarge(thumbnail: Thumbnail, region: Region, factor: int) -> Pixels:
    """The same region from a thumbnail, as coarse as that is; what was unread there is hatched."""
    import cv2

    source, unread, scale = thumbnail.pixels, thumbnail.unread.astype(np.uint8), thumbnail.scale
    while factor >= 2 * scale and min(source.shape[:2]) > 1:
        size = -(-source.shape[1] // 2), -(-source.shape[0] // 2)
        source = np.asarray(cv2.resize(source, size, interpolation=cv2.INTER_AREA), np.uint8)
        unread, scale = np.asarray(cv2.resize(unread, size, interpolation=cv2.INTER_NEAREST), np.uint8), 2 * scale
    rows, cols = region.height // factor, region.width // factor
    across = (((np.arange(cols) + 0.5) * factor + region.x) / scale - 0.5).astype(np.float32)  # pixels' centres there
    down = (((np.arange(rows) + 0.5) * factor + region.y) / scale - 0.5).astype(np.float32)
    at_x, at_y = np.tile(across, (rows, 1)), np.tile(down[:, None], (1, cols))
    drawn = np.asarray(cv2.remap(source, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    if unread.any():
        lost = np.asarray(cv2.remap(unread, at_x, at_y, cv2.INTER_NEAREST)) > 0
        drawn[lost] = hatched(rows, cols, region.x // factor + region.y // factor)[lost]
    return drawn


def shrink(pixels: Pixels, width: int) -> Pixels:
    """A picture at most `width` px wide and high, by area averaging."""
    import cv2

    scale = width / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def patch_region(x: int, y: int, side: int, px: int) -> tuple[Region, int]:
    """The square at (x, y) as a region and a whole factor, of which the picture has at least `px` pixels a side where
    the slide has them."""
    factor = max(1, side // px)
    whole = -(-side // factor) * factor
    return Region(x, y, whole, whole), factor


def draw_patch(slide: Slide, x: int, y: int, side: int, px: int) -> Pixels:
    """The square of `side` level-0 pixels at (x, y), uint8 (px, px, 3) or smaller where the slide has no more."""
    region, factor = patch_region(x, y, side, px)
    out = np.empty((region.height // factor, region.width // factor, 3), np.uint8)
    _fill(slide, region, factor, out, (0, len(out), 0, out.shape[1]))
    return shrink(out[: -(-side // factor), : -(-side // factor)], px)
