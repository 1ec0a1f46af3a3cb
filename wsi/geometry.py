"""The one coordinate frame: level-0 pixels, x right, y down, from the slide's top-left corner."""

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SpecError

MAX_READ_PX = 1 << 28  # 0.8 GB of RGB
MAX_COORDINATE = 1 << 40


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
    overview       True: its pixels differ visibly from averaged ones (JPEG 2000 at lower resolution: sharper, and up to
                   half a pixel off), so it serves overviews, and no tiles are read from it
    """

    width: int
    height: int
    downsample: float
    mpp: float | None
    stored: bool = True
    overview: bool = False


def shape_to_read(region: Region, levels: Sequence[Level], level: int) -> tuple[int, int]:
    """(rows, cols) of a region at a level, checked. Raises SpecError for a level that is not there, a region without
    area, and one of more pixels than are read at once."""
    where = f"region {region.x}, {region.y}, {region.width} x {region.height} at level {level}"
    if not 0 <= level < len(levels):
        raise SpecError(where, f"the slide has levels 0 to {len(levels) - 1}", "give one of them")
    if region.width < 1 or region.height < 1:
        raise SpecError(where, "it has no area", "give a width and height of 1 or more")
    if max(abs(region.x), abs(region.y)) > MAX_COORDINATE:
        raise SpecError(where, "it lies where no slide reaches", "give level-0 pixels from the slide's corner")
    rows, cols = region.shape_at(levels[level].downsample)
    if rows * cols > MAX_READ_PX:
        problem = f"{cols:,} x {rows:,} px are more than the {MAX_READ_PX:,} that are read at once"
        raise SpecError(where, problem, "read it in parts, or at a coarser level")
    return rows, cols
