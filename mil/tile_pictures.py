"""The tiles a map speaks of most, with their pixels: what a person looks at before believing it."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi import Region, Slide, read_at
from wsi.errors import SlideError, SpecError
from wsi.publish import appear

from .explain import extreme_tiles

COLUMNS = ("file", "kind", "rank", "score", "x", "y", "span_px")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tiles are shown, and how.

    count   of the highest, and of the lowest
    spread  least distance between two of them, in tile sides: see `extreme_tiles`
    side_px of a picture, whatever the tile's side at level 0
    """

    count: int = 10
    spread: float = 2.0
    side_px: int = 256

    def __post_init__(self) -> None:
        if self.side_px < 1:
            raise SpecError("side_px", f"{self.side_px} is no size of a picture", "256 is the default")


def write_tile_pictures(
    slide: Slide,
    scores: NDArray[np.floating],
    xy: NDArray[np.integer],
    span_px: int,
    folder: Path,
    choice: Choice | None = None,
) -> list[Path]:
    """Write the highest and the lowest tiles of one slide as PNG files, with `tiles.csv` that says where each lies.

    scores (n,), of any method of `mil.explain`; xy (n, 2), top-left corners in level-0 pixels; span_px their side there
    Returns the pictures, highest first, then lowest first. The folder appears whole and replaces an older one.
    Raises SlideError for a slide without a pixel size, TileError where its pixels cannot be decoded.
    """
    choice = choice or Choice()
    if slide.info.mpp is None:
        raise SlideError(slide.path, slide.info.mpp_problem or "its pixel size is not known", "give it in the manifest")
    high, low = extreme_tiles(scores, xy, span_px, choice.count, choice.spread)
    mpp = slide.info.mpp * span_px / choice.side_px
    files: list[str] = []
    with appear(folder) as draft, (draft / "tiles.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for kind, places in (("highest", high), ("lowest", low)):
            for rank, place in enumerate(places.tolist(), start=1):
                x, y = (int(value) for value in xy[place])
                file = f"{kind}-{rank:02d}_x{x}_y{y}.png"
                # No finer than the slide is: a tile of fewer pixels than its picture is enlarged afterwards.
                pixels = read_at(slide, Region(x, y, span_px, span_px), max(mpp, slide.info.mpp))
                _write_png(draft / file, pixels, choice.side_px)
                table.writerow((file, kind, rank, f"{float(scores[place]):.6g}", x, y, span_px))
                files.append(file)
    return [folder / file for file in files]


def _write_png(path: Path, pixels: NDArray[np.uint8], side_px: int) -> None:
    import cv2

    if pixels.shape[:2] != (side_px, side_px):  # a tile smaller than its picture, or a level a pixel off
        pixels = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path} could not be written")
