"""Where a slide of the viewer lies, in words that travel to the processes that read it."""

from dataclasses import dataclass
from pathlib import Path

TILE_PX = 512  # side of a tile of the deep-zoom pyramid


@dataclass(frozen=True, slots=True)
class Place:
    """A slide and what is known of it without opening it.

    path      its file, folder or URL; None where that is not known
    mpp       µm per level-0 pixel that overrides the file's, or None
    identity  digest of the file that a run worked on: another file at that path is not shown for it
    store     the run's patch store of it, whether or not it is there yet; None without a run
    channels  how a fluorescence or 16-bit file is shown, as text
    """

    slide_id: str
    path: Path | str | None
    mpp: float | None = None
    identity: str | None = None
    store: Path | None = None
    channels: str | None = None


def max_level(width: int, height: int) -> int:
    """Of the deep-zoom pyramid: level 0 is one pixel, the last is the slide itself."""
    return max(0, (max(width, height) - 1).bit_length())
