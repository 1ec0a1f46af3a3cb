"""Find pen marks on a thumbnail by their colour.

Haematoxylin, eosin and DAB, alone and mixed, absorb green at least as strongly as red; ink of blue and green markers
absorbs red most. Ink of red markers is far purer than eosin or blood, and black ink is dark without colour, where the
darkest tissue stays violet or brown. As in HistoQC and histolab the limits are plain ranges, here on HSV-like numbers
of a smoothed thumbnail, chosen on the pictures those tools ship: on clean H&E (green - red) / max stays below 0.05,
redness below 0.65, and what is darker than 110 has a chroma above 45.

Not found: inks in the colours of stains (violet, pink, brown), strokes thinner than about 100 µm, and pen that has
faded to a tint. Taken for pen: everything black and large (edge of the coverslip, carbon), and stains that are blue or
green (trichrome, Alcian blue, methyl green): switch `pen` off for those.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMOOTH_UM = 12.0  # so that one nucleus or red blood cell is no colour of its own
MIN_CORE_UM2 = 20_000.0  # of a stroke's strong colour: 0.14 x 0.14 mm; a marker's tip is 1 mm wide
REACH_UM = 600.0  # how far the weak colour of a stroke's rim may be from its strong colour
RIM_UM = 30.0  # taken away around what was found


@dataclass(frozen=True)
class Channels:
    """uint8 (rows, cols) each: red, green and blue, the highest and the lowest of the three, and their difference."""

    red: NDArray[np.uint8]
    green: NDArray[np.uint8]
    blue: NDArray[np.uint8]
    high: NDArray[np.uint8]
    low: NDArray[np.uint8]
    chroma: NDArray[np.uint8]


def channels_of(pixels: NDArray[np.uint8]) -> Channels:
    """Of uint8 (rows, cols, 3)."""
    import cv2

    red, green, blue = cv2.split(pixels)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return Channels(*(np.asarray(one, np.uint8) for one in (red, green, blue, high, low, cv2.subtract(high, low))))


def smoothed(thumbnail: NDArray[np.uint8], pixel_um: float, sigma_um: float = SMOOTH_UM) -> NDArray[np.uint8]:
    """`thumbnail` under a Gaussian: the grain of a scanner's sensor has colour too."""
    import cv2

    return np.asarray(cv2.GaussianBlur(thumbnail, (0, 0), max(0.5, sigma_um / pixel_um)), np.uint8)


def find_pen(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """bool (rows, cols), True where `thumbnail`, uint8 (rows, cols, 3) of `pixel_um` µm a pixel, shows pen."""
    smooth = channels_of(smoothed(thumbnail, pixel_um))
    pen = np.zeros(thumbnail.shape[:2], bool)
    for ink in (cold_ink, red_ink, black_ink):
        core, rim = ink(smooth)
        core = keep_large(core, MIN_CORE_UM2 / pixel_um**2)
        if core.any():
            pen |= core | (rim & near(core, REACH_UM / pixel_um))
    return near(pen, RIM_UM / pixel_um) if pen.any() else pen


def cold_ink(seen: Channels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(strong, weak) blue and green ink, bool (rows, cols): green above red by a tenth of the highest; at least red."""
    import cv2

    lead = cv2.subtract(seen.green, seen.red)  # 0 in all mixtures of haematoxylin, eosin and DAB
    strong = (lead > seen.high // 10) & (seen.chroma > seen.high // 4)
    return strong, (seen.green >= seen.red) & (seen.chroma >= 10)


def red_ink(seen: Channels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(strong, weak) red ink: hue within 20 degrees of red and saturation 0.7; 0.4, or 0.2 within 12 degrees."""
    import cv2

    red, off = seen.red == seen.high, cv2.absdiff(seen.green, seen.blue)
    near_red = red & (off <= seen.chroma // 3)
    strong = near_red & (seen.low <= seen.high // 10 * 3) & (seen.high >= 100)
    pale = red & (off <= seen.chroma // 5) & (seen.low <= seen.high // 5 * 4)
    return strong, (near_red & (seen.low <= seen.high // 5 * 3)) | pale


def black_ink(seen: Channels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(strong, weak) black ink: dark and without colour; the darkest tissue stays violet or brown."""
    return (seen.high <= 72) & (seen.chroma <= 40), (seen.high <= 112) & (seen.chroma <= 44)


def keep_large(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    """Without the connected pieces (8 neighbours) of fewer than `min_px` pixels."""
    import cv2

    if not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False  # label 0 is the background
    return np.take(keep, np.asarray(labels, np.int32), mode="clip")  # labels are in range; this mode does not look


def near(mask: NDArray[np.bool_], distance_px: float) -> NDArray[np.bool_]:
    """Pixels at most so far from `mask`, those of it included."""
    import cv2

    return cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= distance_px
