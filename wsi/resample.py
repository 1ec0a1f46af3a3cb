"""The only resampling in the project: pixels at an exact µm per pixel, by area averaging from the next finer level."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import SlideError, SpecError
from .geometry import Level, Region
from .slide import Slide

_WORK_BYTES = 64 << 20  # of unresampled pixels held at once, at most, by readers that cannot stream them
_GIVE_MPP = "give it in the manifest's `mpp` column or with --slide-mpp"


@runtime_checkable
class PatchStream(Protocol):
    """A reader that can hand patches over one by one, so that a batch of large ones need not be held to shrink it."""

    def read_each(
        self, xy: NDArray[np.int64], side: int, level: int, take: Callable[[int, NDArray[np.uint8]], None]
    ) -> NDArray[np.bool_]:
        """As `Slide.read_many`, but calls `take(number, pixels)` for each patch that is ok, in any order.

        pixels  uint8 (side, side, 3), valid during the call only
        """
        ...


class PatchReader(Protocol):
    """The part of a Slide that reads patches."""

    @property
    def levels(self) -> tuple[Level, ...]: ...

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many."""
        ...


@runtime_checkable
class BatchSource(Protocol):
    """A reader that can be told all the batches to come, so that it does no work twice for neighbouring ones."""

    def in_batches(self, batches: Sequence[NDArray[np.int64]], side: int, level: int, limit_bytes: int) -> PatchReader:
        """A reader of exactly these batches, each of them once, in any order, on any thread.

        batches      int64 (n, 2) each: corners in level-0 pixels of patches of `side` px of `level`
        limit_bytes  of decoded tiles kept for batches to come
        """
        ...


def reader_for(
    slide: Slide, batches: Sequence[NDArray[np.int64]], span_px: int, level: int, limit_bytes: int
) -> PatchReader:
    """What to give to `read_tiles` for each of `batches` (tile corners in level-0 pixels) once."""
    if not isinstance(slide, BatchSource):
        return slide
    return slide.in_batches(batches, _stored_side(slide, span_px, level), level, limit_bytes)


def pick_level(levels: Sequence[Level], mpp: float, tolerance: float = 0.01, cheap: bool = True) -> int:
    """Index of the coarsest level that is at least as fine as `mpp` µm per pixel (or coarser by `tolerance`, relative).

    cheap  also of the levels that the decoder makes (`Level.stored` False); not of those for overviews
    Raises SpecError if even the finest level is coarser than asked, SlideError if the slide has no known pixel size.
    """
    if not np.isfinite(mpp) or mpp <= 0:
        raise SpecError("mpp", f"{mpp} is no pixel size", "give µm per pixel as a positive number, such as 0.5")
    best: int | None = None
    for index, level in enumerate(levels):
        if level.mpp is None:
            raise SlideError("slide", "its pixel size is not known", _GIVE_MPP)
        fits = level.mpp <= mpp * (1 + tolerance) and (cheap or level.stored) and not level.overview
        if fits and (best is None or level.downsample >= levels[best].downsample):
            best = index
    if best is None:
        problem = f"{mpp:g} µm per pixel is asked for, the slide's finest level has {levels[0].mpp:g}"
        raise SpecError("mpp", problem, f"ask for {levels[0].mpp:g} or more: enlarging invents no detail")
    return best


def read_at(slide: Slide, region: Region, mpp: float, tolerance: float = 0.01, cheap: bool = True) -> NDArray[np.uint8]:
    """RGB pixels of `region` at `mpp` µm per pixel: uint8 (rows, cols, 3).

    A level within `tolerance` (relative) of `mpp` is read as it is; otherwise the next finer level is averaged down to
    the region's size in µm divided by `mpp`. `cheap` as in `pick_level`, which raises what this does, as `slide.read`.
    """
    if slide.info.mpp is None:
        raise SlideError(slide.path, slide.info.mpp_problem or "its pixel size is not known", _GIVE_MPP)
    index = pick_level(slide.levels, mpp, tolerance, cheap)
    level = slide.levels[index]
    pixels = slide.read(region, index)
    if level.mpp is None or abs(level.mpp / mpp - 1) <= tolerance:
        return pixels
    shape = region.shape_at(mpp / slide.info.mpp)
    return pixels if pixels.shape[:2] == shape else _shrink(pixels, np.empty((*shape, 3), np.uint8))


def levels_for(slide: Slide, factor: int) -> list[int]:
    """Levels from which `read_reduced` can make pixels of `factor` level-0 pixels, the coarsest first.

    A level within 1 % counts: its pixels are stretched to fit, so that the result lies on the slide without drift.
    """
    fine = [index for index, level in enumerate(slide.levels) if level.downsample <= factor * 1.01]
    return sorted(fine, key=lambda index: -slide.levels[index].downsample)


def read_reduced(slide: Slide, region: Region, factor: int, level: int) -> NDArray[np.uint8]:
    """RGB pixels of `region`, one for each `factor` x `factor` level-0 pixels: uint8 (rows, cols, 3), exactly.

    Needs no pixel size. The region's sides are multiples of `factor`; `level` is one of `levels_for`.
    """
    pixels = slide.read(region, level)
    shape = region.height // factor, region.width // factor
    return pixels if pixels.shape[:2] == shape else _shrink(pixels, np.empty((*shape, 3), np.uint8))


def read_tiles(
    slide: PatchReader, xy: NDArray[np.int64], span_px: int, level: int, out: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Square tiles of the slide, straight into a batch of patches of another size if need be.

    xy       int64 (n, 2), top-left corners in level-0 pixels; span_px is the tiles' side there
    out      uint8 (n, side, side, 3), written in place; pixels of `level` are area-averaged to `side`
    Returns ok, bool (n,), as `Slide.read_many`. Raises SpecError where the level has fewer pixels than asked.
    """
    side = out.shape[1]
    stored = _stored_side(slide, span_px, level)
    if stored == side:
        return slide.read_many(xy, level, out)
    if stored < side:
        problem = f"tiles of {span_px} level-0 px have {stored} px at level {level}, fewer than the {side} asked for"
        raise SpecError("level", problem, "take a finer level or a larger tile")

    def take(number: int, pixels: NDArray[np.uint8]) -> None:
        _shrink(pixels, out[number])

    if isinstance(slide, PatchStream):
        return slide.read_each(xy, stored, level, take)
    ok = np.empty(len(xy), np.bool_)
    step = max(1, _WORK_BYTES // (stored * stored * 3))
    work = np.empty((min(step, len(xy)), stored, stored, 3), np.uint8)
    for start in range(0, len(xy), step):
        part = xy[start : start + step]
        good = slide.read_many(part, level, work[: len(part)])
        ok[start : start + step] = good
        for number in np.flatnonzero(good).tolist():
            take(start + number, work[number])
    return ok


def _stored_side(slide: PatchReader, span_px: int, level: int) -> int:
    return max(1, round(span_px / slide.levels[level].downsample))


def _shrink(pixels: NDArray[np.uint8], into: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area average of `pixels` (rows, cols, 3) into the smaller `into`, which is returned."""
    cv2 = _cv2()
    result = cv2.resize(pixels, (into.shape[1], into.shape[0]), dst=into, interpolation=cv2.INTER_AREA)
    if result is not into:  # OpenCV allocates its own where it cannot write into a strided array
        into[...] = result
    return into


def _cv2() -> Any:
    """OpenCV, loaded when first needed; our own threads own the cores, so it must not start its own."""
    import cv2

    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
