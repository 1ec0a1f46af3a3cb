"""Ways to tell tissue from glass on a thumbnail: uint8 (rows, cols, 3) and µm per pixel → bool (rows, cols).

One entry in METHODS is all a new way needs; `find_tissue` reads the thumbnail before it and cleans the mask after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pen import channels_of, near, smoothed

# Colourfulness (max - min of R, G, B; 0 to 255) of a smoothed thumbnail. Below the first no stain is visible, so a
# slide of bare glass stays empty although Otsu always finds a threshold; above the second all is stained, so a
# slide full of tissue is not split into pale and dark tissue.
CHROMA_LIMITS = (12.0, 25.0)
GLOW_LIMITS = (8.0, 25.0)  # the same for brightness (0 to 255) above a dark background
# CLAM segments at a downsample of 64, which is 16 µm per pixel on the 40x slides it was tuned on
CLAM_UM = 16.0
CLAM_MEDIAN_PX, CLAM_SATURATION, CLAM_CLOSE_PX = 7, 8, 4
CLAM_PATCH_UM2 = (512 * 0.25) ** 2  # CLAM's unit of area: a patch of 512 px at level 0 of a 40x slide
TEXTURE_UM, TEXTURE = 100.0, 4.0  # window (about a fat cell), and standard deviation of grey (0 to 255) in tissue
DARKER = 24  # grey levels below glass that are tissue without any texture


@dataclass(frozen=True)
class Cleaning:
    """How a mask is cleaned; a spec that names an area goes before.

    min_area_um2  pieces below it are dropped
    max_hole_um2  holes below it are filled
    max_holes     so many holes of a piece stay open, the largest ones; None: all
    close_um      gaps up to it are closed first
    """

    min_area_um2: float = 10_000.0
    max_hole_um2: float = 10_000.0
    max_holes: int | None = None
    close_um: float = 24.0


@dataclass(frozen=True)
class Method:
    """A way to find tissue.

    find         (thumbnail uint8 (rows, cols, 3), µm per pixel) → bool (rows, cols)
    brightfield  on a dark background it finds nothing that is right, and there may be pen
    """

    find: Callable[[NDArray[np.uint8], float], NDArray[np.bool_]]
    cleaning: Cleaning = Cleaning()
    brightfield: bool = True


def otsu_tissue(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Otsu's threshold (Otsu 1979) on the colourfulness of the smoothed thumbnail, kept within limits."""
    chroma = channels_of(smoothed(thumbnail, pixel_um)).chroma
    return chroma > otsu_threshold(chroma, CHROMA_LIMITS)


def hsv_tissue(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Saturation above 8 of 255 after a median filter, as CLAM's `segmentTissue` by default (Lu et al. 2021).

    CLAM's 7 px of median are 112 µm here and its 4 px of closing 64 µm, at its 16 µm per pixel of a 40x slide.
    """
    import cv2

    saturation = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)[..., 1]
    width = max(1, round(CLAM_MEDIAN_PX * CLAM_UM / pixel_um) // 2 * 2 + 1)
    return cv2.medianBlur(np.ascontiguousarray(saturation), width) > CLAM_SATURATION


def texture_tissue(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Grey that varies by more than 4 levels (standard deviation) in windows of 100 µm, or is clearly below glass.

    Finds fat, whose cells are pale but have walls: the noise of glass is far less on a thumbnail. The glass is the
    commonest bright grey. Dust and the seams of scanned fields are taken for tissue.
    """
    import cv2

    grey = cv2.cvtColor(smoothed(thumbnail, pixel_um, 4.0), cv2.COLOR_RGB2GRAY)
    glass = 128 + int(np.argmax(np.bincount(grey.ravel(), minlength=256)[128:]))
    window = (max(3, round(TEXTURE_UM / pixel_um) // 2 * 2 + 1),) * 2
    mean, square = cv2.boxFilter(grey, cv2.CV_32F, window), cv2.sqrBoxFilter(grey, cv2.CV_32F, window)
    varied = square - mean * mean > TEXTURE**2
    inside = ~near(~varied, TEXTURE_UM / 3 / pixel_um)  # a window sees tissue before its centre is in it
    return inside | (grey < glass - DARKER)


def fluorescence_tissue(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Bright on dark: Otsu's threshold on the brightest channel of the smoothed thumbnail, kept within limits."""
    bright = channels_of(smoothed(thumbnail, pixel_um)).high
    dark = float(np.median(bright[bright <= np.median(bright)]))  # the background's own glow
    low, high = GLOW_LIMITS
    return bright > otsu_threshold(bright, (dark + low, dark + high))


def otsu_threshold(values: NDArray[np.uint8], limits: tuple[float, float]) -> float:
    """Otsu's threshold (tissue is above it), clipped to `limits`; values uint8 of any shape."""
    import cv2

    threshold, _ = cv2.threshold(values, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(threshold, *limits))


CLAM_CLEANING = Cleaning(100 * CLAM_PATCH_UM2, 16 * CLAM_PATCH_UM2, 8, CLAM_CLOSE_PX * CLAM_UM)  # a_t, a_h, n, close
METHODS: dict[str, Method] = {
    "otsu": Method(otsu_tissue),
    "hsv": Method(hsv_tissue, CLAM_CLEANING),
    "texture": Method(texture_tissue),
    "fluorescence": Method(fluorescence_tissue, brightfield=False),
}
