"""The one coordinate frame: level-0 pixels, x right, y down, from the slide's top-left corner."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """Rectangle in level-0 pixels, half-open."""

    x: int
    y: int
    width: int
    height: int

    def shape_at(self, downsample: float) -> tuple[int, int]:
        """(rows, cols) of this region when read at a level."""
        return max(1, round(self.height / downsample)), max(1, round(self.width / downsample))


@dataclass(frozen=True, slots=True)
class Level:
    """One step of a slide's pyramid.

    width, height  in this level's pixels
    downsample     level-0 pixels per pixel of this level, >= 1
    mpp            µm per pixel of this level, None where the slide's scale is unknown
    stored         False: a cheap level, made by the decoder from the next finer stored one (JPEG at 1/2, 1/4 or 1/8,
                   JPEG 2000 at lower resolution)
    """

    width: int
    height: int
    downsample: float
    mpp: float | None
    stored: bool = True
