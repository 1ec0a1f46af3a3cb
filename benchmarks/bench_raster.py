"""Heatmaps as pictures: against a canvas that is filled patch by patch, and what a slide of 100,000 px a side takes.

    python benchmarks/bench_raster.py [SIDE_PX]

The other side is re-implemented from the description of CLAM's `visHeatmap`: a loop over the patches adds scores to a
float canvas of the drawn level and counts them, the sums are divided, a second loop takes matplotlib's colours patch
by patch, and the result is blended with the slide's picture, which is read twice: whole, and in blocks of 1,024 px.
Ours draws the same tiles on the thumbnail that a run keeps, or as a pyramid of the slide's extent, and writes the
file; the other side writes none. Times are processor time; the slide is a TIFF of JPEG tiles. The line "on one
canvas" leaves reading and files out.

Before that, OME-TIFF, OME-Zarr and overlay are written for a slide of SIDE_PX (100,000) a side that is all tissue,
each in a process of its own, so that peak memory is its own too.
"""

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps import Heatmap, OverlayStyle, draw_overlay
from heatmaps.ome_tiff import write_ome_tiff
from heatmaps.ome_zarr import write_ome_zarr
from heatmaps.overlay import lay_tiles, paint_tiles

SPAN_PX, MPP = 256, 0.25
PATCHES, SLIDE_PX = 2781, 40_800  # of the slide that the figures for CLAM were taken on
ALPHA = 0.4


def some_tiles(patches: int, slide_px: int) -> Heatmap:
    """So many tiles in the middle of a slide, as near to a square as they come."""
    side = math.ceil(math.sqrt(patches))
    first = (slide_px - side * SPAN_PX) // 2 // SPAN_PX * SPAN_PX
    xy = np.stack([np.arange(patches) % side, np.arange(patches) // side], axis=1).astype(np.int64) * SPAN_PX + first
    return Heatmap("slide", "attention", "tumor", np.random.default_rng(0).random(patches, np.float32), xy, SPAN_PX)


def every_tile(slide_px: int, stride_px: int) -> Heatmap:
    steps = np.arange(0, slide_px - SPAN_PX + 1, stride_px, dtype=np.int64)
    xy = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    scores = np.random.default_rng(0).random(len(xy), np.float32)
    lost = np.arange(len(xy)) % 50 == 0
    return Heatmap("slide", "attention", "tumor", scores[~lost], xy[~lost], SPAN_PX, failed_xy=xy[lost])


def patch_by_patch(
    heatmap: Heatmap,
    picture: NDArray[np.uint8],
    scale: float,
    read_again: Callable[[tuple[slice, slice]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    colours, span = colormaps["coolwarm"], math.ceil(heatmap.span_px / scale)
    total, count = np.zeros(picture.shape[:2]), np.zeros(picture.shape[:2], np.uint16)
    corners = np.ceil(heatmap.xy / scale).astype(int)
    for (x, y), score in zip(corners, heatmap.scores, strict=True):
        total[y : y + span, x : x + span] += score
        count[y : y + span, x : x + span] += 1
    covered = count > 0
    total[covered] /= count[covered]
    out = picture.copy()
    for x, y in corners:
        patch = total[y : y + span, x : x + span]
        out[y : y + span, x : x + span] = (colours(patch) * 255)[..., :3].astype(np.uint8)
    for top in range(0, out.shape[0], 1024):
        for left in range(0, out.shape[1], 1024):
            part = slice(top, top + 1024), slice(left, left + 1024)
            out[part] = (ALPHA * out[part].astype(np.float32) + (1 - ALPHA) * read_again(part)).astype(np.uint8)
    return out


def from_slide(heatmap: Heatmap, slide: Path, scale: float) -> NDArray[np.uint8]:
    import openslide

    with openslide.OpenSlide(slide) as opened:

        def read(left: int, top: int, size: tuple[int, int]) -> NDArray[np.uint8]:
            return np.array(opened.read_region((left, top), 0, size).convert("RGB"))

        def again(part: tuple[slice, slice]) -> NDArray[np.uint8]:
            rows, cols = (min(along.stop, side) - along.start for along, side in zip(part, shape, strict=True))
            return read(part[1].start, part[0].start, (cols, rows))

        shape = opened.dimensions[::-1]
        return patch_by_patch(heatmap, read(0, 0, opened.dimensions), scale, again)


def in_memory(heatmap: Heatmap, picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    return patch_by_patch(heatmap, picture, scale, lambda part: picture[part])


def write_level(path: Path, side_px: int) -> None:
    """A slide whose one level is that of `side_px`, of one JPEG tile over and over."""
    import imagecodecs
    import tifffile

    noise = np.random.default_rng(1).normal(0, 1, (256, 256, 3)).cumsum(0).cumsum(1)
    tile = bytes(imagecodecs.jpeg_encode((200 + 40 * np.sin(noise / 40)).astype(np.uint8), level=85))
    tiles = (tile for _ in range(math.ceil(side_px / 256) ** 2))
    shape = (side_px, side_px, 3)
    tifffile.imwrite(path, tiles, shape=shape, dtype=np.uint8, tile=(256, 256), compression="jpeg", photometric="rgb")


def at_once(heatmap: Heatmap, picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    return paint_tiles(picture, lay_tiles(heatmap, picture.shape[:2], (scale, scale)), heatmap.limits, ALPHA)


def as_overlay(heatmap: Heatmap, path: Path, slide_px: int) -> None:
    thumbnail = np.full((2000, 2000, 3), 225, np.uint8)
    draw_overlay(thumbnail, slide_px / 2000, heatmap, path, MPP, OverlayStyle(max_px=2000))


def as_rgb(heatmap: Heatmap, path: Path, slide_px: int) -> None:
    write_ome_tiff(heatmap, path, (slide_px, slide_px), MPP)


def as_scores(heatmap: Heatmap, path: Path, slide_px: int) -> None:
    write_ome_tiff(heatmap, path, (slide_px, slide_px), MPP, kind="scores")


def as_zarr(heatmap: Heatmap, path: Path, _: int) -> None:
    write_ome_zarr(heatmap, path, MPP)


def seconds(work: Callable[..., Any], *given: Any, times: int = 3) -> float:
    """The least processor time of so many."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        work(*given)
        taken.append(time.process_time() - started)
    return min(taken)


def measure(write: Callable[[Heatmap, Path, int], None], slide_px: int, stride_px: int) -> tuple[float, float, float]:
    """Seconds, peak memory of the whole process in MB, and size of what was written in MB."""
    heatmap = every_tile(slide_px, stride_px)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.out"
        started = time.perf_counter()
        write(heatmap, path, slide_px)
        taken = time.perf_counter() - started
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
    return taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size


def compare(scale: int, folder: Path) -> None:
    """Prints the ratios at one level of the slide."""
    heatmap, side = some_tiles(PATCHES, SLIDE_PX), SLIDE_PX // scale
    slide = folder / f"{scale}.tif"
    write_level(slide, side)
    slow = seconds(from_slide, heatmap, slide, scale, times=2)
    overlay = seconds(as_overlay, heatmap, folder / "a.png", SLIDE_PX)
    pyramid = seconds(as_rgb, heatmap, folder / "a.ome.tif", SLIDE_PX)
    print(f"{PATCHES:,} tiles against a level of {side:,} px a side, filled patch by patch in {slow:.2f} s:")
    print(f"  overlay {slow / overlay:.1f}x ({overlay:.2f} s), OME-TIFF {slow / pyramid:.1f}x ({pyramid:.2f} s)")
    picture = np.random.default_rng(1).integers(180, 240, (side, side, 3), np.uint8)
    slow, fast = seconds(in_memory, heatmap, picture, scale, times=2), seconds(at_once, heatmap, picture, scale)
    print(f"  on one canvas {slow / fast:.1f}x ({fast:.2f} s against {slow:.2f} s)")


def main() -> None:
    slide_px = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    canvas_gb = slide_px**2 * 4 / 1e9
    # first: a child's peak begins with what its parent held
    for stride_px in (SPAN_PX, SPAN_PX // 2):
        tiles = len(range(0, slide_px - SPAN_PX + 1, stride_px)) ** 2
        print(f"{tiles:,} tiles, one each {stride_px} px, {slide_px:,} px a side; a float canvas: {canvas_gb:.0f} GB")
        for write in (as_overlay, as_rgb, as_scores, as_zarr):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                taken, peak, size = alone.submit(measure, write, slide_px, stride_px).result()
            print(f"  {write.__name__:10s} {taken:5.1f} s, peak memory {peak:4.0f} MB, {size:.1f} MB written")
    with tempfile.TemporaryDirectory() as folder:
        for scale in (16, 4):
            compare(scale, Path(folder))


if __name__ == "__main__":
    main()
