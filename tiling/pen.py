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

import numpy as np
from numpy.typing import NDArray

SMOOTH_UM = 12.0  # so that one nucleus or red blood cell is no colour of its own
MIN_CORE_UM2 = 20_000.0  # of a stroke's strong colour: 0.14 x 0.14 mm; a marker's tip is 1 mm wide
REACH_UM = 600.0  # how far the weak colour of a stroke's rim may be from its strong colour
RIM_UM = 30.0  # taken away around what was found


def find_pen(thumbnail: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    """bool (rows, cols), True where `thumbnail`, uint8 (rows, cols, 3) of `pixel_um` µm a pixel, shows pen."""
    import cv2

    smooth = cv2.GaussianBlur(thumbnail, (0, 0), max(0.5, SMOOTH_UM / pixel_um))
    pen = np.zeros(thumbnail.shape[:2], bool)
    for core, rim in _colours(smooth):
        core = keep_large(core, MIN_CORE_UM2 / pixel_um**2)
        if core.any():
            pen |= core | (rim & _near(core, REACH_UM / pixel_um))
    return _near(pen, RIM_UM / pixel_um) if pen.any() else pen


def _colours(pixels: NDArray[np.uint8]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(strong, weak) pixels of blue or green, red, and black ink; bool (rows, cols) each."""
    red, green, blue = (pixels[..., channel].astype(np.int16) for channel in range(3))
    top = pixels.max(axis=2).astype(np.int16)
    chroma = top - pixels.min(axis=2)
    cold = green - red  # positive in no mixture of haematoxylin, eosin and DAB
    warm = np.abs(green - blue)  # small beside the chroma: hue within some degrees of pure red
    reddest = red == top
    return [
        ((10 * cold >= top) & (4 * chroma >= top), (cold >= 0) & (chroma >= 10)),
        (
            reddest & (10 * chroma >= 7 * top) & (3 * warm <= chroma) & (top >= 100),
            reddest & (10 * chroma >= 4 * top) & (3 * warm <= chroma)
            | reddest & (10 * chroma >= 2 * top) & (5 * warm <= chroma),
        ),
        ((top <= 72) & (chroma <= 40), (top <= 112) & (chroma <= 44)),
    ]


def keep_large(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    """Without the connected pieces (8 neighbours) of fewer than `min_px` pixels."""
    import cv2

    if not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False  # label 0 is the background
    return keep[labels]


def _near(mask: NDArray[np.bool_], distance_px: float) -> NDArray[np.bool_]:
    """Pixels at most so far from `mask`, those of it included."""
    import cv2

    return cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= distance_px
