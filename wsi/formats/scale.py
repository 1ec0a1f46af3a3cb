"""Decide a slide's pixel size from what its file states, or say exactly why it cannot be trusted."""

import math
from dataclasses import dataclass

from ..errors import SpecError

MPP_RANGE = (0.05, 20.0)  # µm per pixel: beyond any scanner, at either end
SQUARE_TOLERANCE = 0.05  # largest relative difference between x and y
OBJECTIVE_FACTOR = 2.0  # largest factor between the stated pixel size and 10 / objective
OBJECTIVE_RANGE = (0.1, 200.0)

Number = float | str | None  # as a file states it, text included


@dataclass(frozen=True, slots=True)
class Scale:
    """µm per level-0 pixel with its source, or None with the problem; a source then says that the file states one,
    which cannot be true."""

    mpp: float | None
    source: str | None
    problem: str | None = None


def user_scale(mpp: float, source: str) -> Scale:
    """The scale that a manifest or the user gives; it is believed, whatever the file says."""
    if not math.isfinite(mpp) or mpp <= 0:
        raise SpecError("mpp", f"{mpp} is no pixel size", "give µm per pixel as a positive number, such as 0.25")
    return Scale(float(mpp), source)


def stated_scale(x: Number, y: Number, source: str, objective: float | None) -> Scale:
    """The scale that a file states, if it can be true.

    x, y       µm per pixel across and down; None where the file is silent (one of them may stand for both)
    source     vendor, tiff, ome or dicom
    objective  nominal magnification, which must not contradict the pixel size: 40x is about 0.25 µm
    """
    if x is None and y is None:
        return Scale(None, None, "its file states no pixel size")
    stated = [value for value in (x, y) if value is not None]
    numbers = [as_number(value) for value in stated]
    for text, number in zip(stated, numbers, strict=True):
        if number is None or not math.isfinite(number):
            return Scale(None, None, f"its file states the pixel size {text!r}, which is no number")
        if not MPP_RANGE[0] <= number <= MPP_RANGE[1]:
            limits = f"outside {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}"
            return Scale(None, source, f"its file states {number:g} µm per pixel, {limits}")
    first, last = float(numbers[0] or 0), float(numbers[-1] or 0)
    mpp = (first + last) / 2
    if abs(first - last) > SQUARE_TOLERANCE * mpp:
        return Scale(None, source, f"its file states {first:g} µm per pixel across and {last:g} down: not square")
    if objective is not None:
        expected = 10 / objective
        if not 1 / OBJECTIVE_FACTOR <= mpp / expected <= OBJECTIVE_FACTOR:
            contradiction = f"{mpp:g} µm per pixel and a {objective:g}x objective, where about {expected:g} is expected"
            return Scale(None, source, f"its file states {contradiction}")
    return Scale(mpp, source)


def as_number(value: Number) -> float | None:
    """A number as files write it, decimal comma included; None for other text."""
    if value is None or isinstance(value, float | int):
        return value
    text = value.strip()
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def as_objective(value: Number) -> float | None:
    """Nominal magnification, None where it is missing or no objective there is."""
    number = as_number(value)
    if number is None or not OBJECTIVE_RANGE[0] <= number <= OBJECTIVE_RANGE[1]:
        return None
    return number


def resolution_to_mpp(pixels_per_unit: float | None, unit: int | None) -> float | None:
    """µm per pixel from TIFF's XResolution and ResolutionUnit (2 inch, 3 centimetre); None if they give no length."""
    um = {2: 25_400.0, 3: 10_000.0}.get(unit if unit is not None else 2)
    if um is None or pixels_per_unit is None or not math.isfinite(pixels_per_unit) or pixels_per_unit <= 0:
        return None
    return um / pixels_per_unit
