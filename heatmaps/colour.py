"""Colours that mean numbers: one ordered, colour-blind safe map from a score's range to RGB.

The map runs from blue over a pale middle to red, so that it reads as "against, undecided, for" about the middle of
the range (0.5 of a softmax). Blue and red differ for every common kind of colour vision, where red and green do not,
and both stay apart from the pink and violet of H&E. The anchors are our own; between them the path is straight in
OKLab (B. Ottosson, 2020), where equal steps look equal.
"""

import numpy as np
from numpy.typing import NDArray

ANCHORS = ("#2338a4", "#2f6fc4", "#79b4e2", "#f4efd9", "#f7a85c", "#dd4f2b", "#a80f2b")
NO_DATA = (150, 150, 150)

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def colour_table(steps: int = 256) -> NDArray[np.uint8]:
    """The colour map as uint8 (steps, 3), lowest score first."""
    anchors = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in ANCHORS], np.uint8)
    lab = rgb_to_oklab(anchors)
    at, places = np.linspace(0, 1, steps), np.linspace(0, 1, len(anchors))
    return oklab_to_rgb(np.stack([np.interp(at, places, lab[:, axis]) for axis in range(3)], axis=1))


def colours_of(
    scores: NDArray[np.floating], limits: tuple[float, float], table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """RGB of every score: uint8 (..., 3). Scores outside `limits` get the colour of the nearer end."""
    low, high = limits
    place = (scores.astype(np.float64) - low) / (high - low) * (len(table) - 1)
    return table[np.clip(np.rint(place), 0, len(table) - 1).astype(np.intp)]


def rgb_to_oklab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB uint8 (..., 3) to OKLab (..., 3): lightness in [0, 1], then green-red and blue-yellow."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def oklab_to_rgb(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The way back; colours that a screen cannot show are clipped."""
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T, 0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)
