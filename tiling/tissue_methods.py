"""Ways to tell tissue from glass on a thumbnail: uint8 (rows, cols, 3) and µm per pixel → bool (rows, cols).

One entry in METHODS is all a new way needs; `find_tissue` reads the thumbnail before it and cleans the mask after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pen import channels_of, smoothed

# Colourfulness (max - min of R, G, B; 0 to 255) of a smoothed thumbnail. Below the first no stain is visible, so a
# slide of bare glass stays empty although Otsu always finds a threshold; above the second all is stained, so a
# slide full of tissue is not split into pale and dark tissue.
CHROMA_LIMITS = (12.0, 25.0)
GLOW_LIMITS = (10.0, 80.0)  # the same for brightness (0 to 255) on a dark background
# CLAM segments at a downsample of 64, which is 16 µm per pixel on the 40x slides it was tuned on
CLAM_UM = 16.0
CLAM_MEDIAN_PX, CLAM_SATURATION, CLAM_CLOSE_PX = 7, 8, 4
CLAM_PATCH_UM2 = (512 * 0.25) ** 2  # CLAM's unit of area: a patch of 512 px at level 0 of a 40x slide
TEXTURE_UM = 100.0  # window of local entropy: about a fat cell
GREY_STEP, GREY_STEPS = 6, 8  # grey levels (0 to 255) that count as the same, and how many such steps are told apart
ENTROPY_BITS, DARKER = 0.9, 24  # limits of local entropy, and of grey levels below glass


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


def entropy_tissue(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """Local entropy of grey above 0.9 bits in windows of 100 µm, or clearly darker than glass.

    Finds fat, whose cells are pale but have walls. Grey is counted in steps of 6 levels that are centred on the glass
    (the commonest bright grey), so that the noise of glass stays within one step and has no entropy. Uneven lighting
    of more than 6 levels is taken for tissue, and so is dust.
    """
    import cv2

    grey = cv2.cvtColor(smoothed(thumbnail, pixel_um, 4.0), cv2.COLOR_RGB2GRAY)
    glass = 128 + int(np.argmax(np.bincount(grey.ravel(), minlength=256)[128:]))
    step_of = np.clip((glass + GREY_STEP // 2 - np.arange(256)) // GREY_STEP, 0, GREY_STEPS - 1)
    steps = cv2.LUT(grey, step_of.astype(np.uint8))
    side = max(3, round(TEXTURE_UM / pixel_um) // 2 * 2 + 1)
    entropy = np.zeros(grey.shape, np.float32)
    for step in range(GREY_STEPS):
        share = cv2.boxFilter((steps == step).view(np.uint8), cv2.CV_32F, (side, side))
        np.subtract(entropy, share * np.log2(np.maximum(share, 1e-6)), out=entropy)
    return (entropy > ENTROPY_BITS) | (grey < glass - DARKER)


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
    "entropy": Method(entropy_tissue),
    "fluorescence": Method(fluorescence_tissue, brightfield=False),
}
