"""Reading patches: the engine against OpenSlide, pyvips, fastslide and the bare decoder, in one run.

    pip install -e ".[bench]"
    python benchmarks/bench_read.py [SLIDE] [--side 12000] [--repeats 5]

SLIDE (default: CMU-1-Small-Region.svs from $WSI_DATA or ../shared/data) lends its texture: its densest part is
mirror-tiled to a square slide of `--side` px in a temporary folder, once with 240-px and once with 256-px JPEG tiles.
The engine reads as it does in a run, by `iter_patches`, here on one thread. Figures are patches per CPU-second of the
process, median of `--repeats` rounds in which all sides take turns, warm page cache; threads are compared by wall time.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import fastslide
import numpy as np
import openslide
import pyvips
import simplejpeg
from numpy.typing import NDArray

from tiling import TileGrid, TileSpec, iter_patches
from wsi import Region, Slide, open_slide
from wsi.formats.tiled import TiledSlide
from wsi.formats.tilewise import plan_pieces
from wsi.resample import pick_level

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.slides import SvsOptions, write_svs

PATCH, ACROSS = 256, 40  # 40 x 40 patches a case, where the slide is large enough
MPP = 0.25
Run = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """span: side of a tile in level-0 pixels; stride likewise; needs: times OpenSlide that must be reached."""

    name: str
    span: int
    stride: int
    offset: int
    needs: float


CASES = (
    Case("256 px, offset 0", PATCH, PATCH, 0, 4),
    Case("256 px, offset 100", PATCH, PATCH, 100, 4),
    Case("256 px, half overlapping", PATCH, PATCH // 2, 0, 6),
    Case("512 -> 256 px", 2 * PATCH, 2 * PATCH, 0, 5),
)


def main() -> None:
    arguments = _arguments()
    cv2.setNumThreads(1)
    pyvips.cache_set_max(0)
    print(f"{'patches per CPU-second':34}{'engine':>8}{'bare':>8}{'OpenSlide':>10}{'pyvips':>8}{'fastslide':>10}")
    with tempfile.TemporaryDirectory() as folder:
        texture = _texture(arguments.slide, arguments.side)
        paths = []
        for tile in (240, 256):
            options = SvsOptions(tile, (1, 4), "422", mpp=str(MPP), objective="40")
            paths.append(write_svs(Path(folder) / f"{tile}.svs", texture, options))
            for case in CASES:
                _compare(paths[-1], tile, case, arguments.repeats)
        _tensors(paths[0], arguments.repeats)
        _threads(paths[0], arguments.repeats)
        _cheap_levels(paths[0])


def _grid(slide: Slide, case: Case) -> TileGrid:
    steps = np.arange(ACROSS, dtype=np.int64) * case.stride + case.offset
    xy = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    xy = xy[(xy + case.span <= min(slide.levels[0].width, slide.levels[0].height)).all(axis=1)]
    blocks = np.lexsort((xy[:, 0], xy[:, 1], xy[:, 0] // (16 * case.stride), xy[:, 1] // (16 * case.stride)))
    mpp = MPP * case.span / PATCH
    level = pick_level(slide.levels, mpp)
    return TileGrid(TileSpec(PATCH, mpp), level, case.span, mpp, xy[blocks], np.ones(len(xy), np.float32))


def _compare(path: Path, tile: int, case: Case, repeats: int) -> None:
    with (
        open_slide(path) as slide,
        openslide.OpenSlide(path) as peer,
        fastslide.FastSlide.from_file_path(str(path)) as fast,
    ):
        assert isinstance(slide, TiledSlide)
        grid = _grid(slide, case)
        calls, same = _count_decodes(slide, grid), _compare_pixels(slide, peer, grid)

        def read_vips() -> None:
            region = pyvips.Region.new(pyvips.Image.tiffload(str(path)))
            _peer(grid, lambda x, y, side: region.fetch(x, y, side, side))

        def read_fast() -> None:
            fast.set_cache(1 << 30)  # anew: what is left of the round before would be no reading
            _peer(grid, lambda x, y, side: fast.read_region((x, y), 0, (side, side)).numpy())

        sides = (lambda: _engine(slide, grid), _bare(slide, grid), lambda: _peer(grid, _openslide(peer)))
        rates = [len(grid) / seconds for seconds in _medians((*sides, read_vips, read_fast), repeats)]
    engine, bare, slow, vips, fast_rate = rates
    print(f"{case.name + f', {tile}-px tiles':34}{engine:8.0f}{bare:8.0f}{slow:10.0f}{vips:8.0f}{fast_rate:10.0f}")
    print(
        f"{'':34}{engine / bare:.0%} of bare, {engine / slow:.2f} x OpenSlide (needs {case.needs:g}), "
        f"{engine / vips:.2f} x pyvips, {engine / fast_rate:.2f} x fastslide; {same}; {calls}"
    )


def _openslide(peer: openslide.OpenSlide) -> Callable[[int, int, int], object]:
    return lambda x, y, side: np.asarray(peer.read_region((x, y), 0, (side, side)).convert("RGB"))


def _compare_pixels(slide: Slide, peer: openslide.OpenSlide, grid: TileGrid) -> str:
    ours, theirs = (np.empty((len(grid), PATCH, PATCH, 3), np.uint8) for _ in range(2))
    for batch in iter_patches(slide, grid, 1):
        ours[batch.start : batch.start + len(batch.patches)] = batch.patches
    _peer(grid, _openslide(peer), theirs)
    if grid.span_px == PATCH:
        assert np.array_equal(ours, theirs), "the pixels differ from OpenSlide's"
        return "identical pixels"
    off = np.abs(ours.astype(np.int16) - theirs)
    return f"mean |d| {off.mean():.2f}, max {off.max()}"


def _engine(slide: Slide, grid: TileGrid, threads: int = 1) -> None:
    for batch in iter_patches(slide, grid, threads):
        assert batch.ok.all()


def _count_decodes(slide: TiledSlide, grid: TileGrid) -> str:
    """Decode calls of one read of the grid, and how many tiles it needs."""
    view = slide._views[grid.level]
    needed = len(_tiles(slide, grid))
    decode, calls = view.stored.decode, []
    view.stored.decode = lambda tile, *rest: (calls.append(tile), decode(tile, *rest))[1]  # type: ignore[method-assign]
    _engine(slide, grid)
    del view.stored.decode
    assert len(calls) == needed, f"{len(calls)} decodes of {needed} tiles"
    return f"{needed} tiles, each decoded once"


def _tiles(slide: TiledSlide, grid: TileGrid) -> list[int]:
    view = slide._views[grid.level]
    side = round(grid.span_px / slide.levels[grid.level].downsample)
    corners = np.rint(grid.xy / slide.levels[grid.level].downsample).astype(np.int64)
    return plan_pieces(corners, (side, side), view.grid).tiles.tolist()


def _bare(slide: TiledSlide, grid: TileGrid) -> Run:
    """Decode the tiles that the patches need, from memory into one buffer: what no reader on this codec can beat."""
    data, shape = _encoded(slide, grid)
    return lambda: _decode_all(data, shape)


def _encoded(slide: TiledSlide, grid: TileGrid) -> tuple[list[bytes], tuple[int, int]]:
    """The stored tiles that the grid needs, each a JPEG file, and (rows, cols) that they are decoded to."""
    view = slide._views[grid.level]
    found = [view.stored.jpeg(tile) for tile in _tiles(slide, grid)]
    return [data for data in found if data is not None], (view.grid.tile_height, view.grid.tile_width)


def _decode_all(data: list[bytes], shape: tuple[int, int]) -> None:
    buffer = np.empty((*shape, 3), np.uint8)
    for tile in data:
        simplejpeg.decode_jpeg(tile, "RGB", min_height=shape[0], min_width=shape[1], min_factor=1, buffer=buffer)


def _peer(grid: TileGrid, read: Callable[[int, int, int], object], out: NDArray[np.uint8] | None = None) -> None:
    """A reader that answers patch by patch, then OpenCV's area average where the size differs."""
    slot = np.empty((PATCH, PATCH, 3), np.uint8)
    for number, (x, y) in enumerate(grid.xy.tolist()):
        side = grid.span_px
        pixels = np.asarray(memoryview(read(x, y, side))).reshape(side, side, -1)[..., :3]  # type: ignore[arg-type]
        if side != PATCH:
            pixels = cv2.resize(pixels, (PATCH, PATCH), interpolation=cv2.INTER_AREA)
        (slot if out is None else out[number])[...] = pixels


def _tensors(path: Path, repeats: int) -> None:
    """Model input of 224 px at 0.5 µm/px from a 0.25 µm/px slide, against the loop of TRIDENT and LazySlide."""
    import torch
    from PIL import Image
    from torchvision import transforms

    import wsi  # noqa: F401  (lets torchvision be imported beside a CPU torch)
    from embedding import find_backbone
    from embedding.extractor import BATCH
    from embedding.transform import Transform

    torch.set_num_threads(1)
    entry = find_backbone("uni")
    transform = Transform(entry)
    kernel = transforms.InterpolationMode(entry.interpolation)
    steps = [transforms.Resize(224, kernel), transforms.ToTensor(), transforms.Normalize(*entry.norm)]
    recipe = transforms.Compose(steps)
    with open_slide(path) as slide, openslide.OpenSlide(path) as peer:
        grid = _grid(slide, CASES[3])

        def engine() -> None:
            for batch in iter_patches(slide, grid, 1):
                for start in range(0, len(batch.patches), BATCH["cpu"]):  # as the engine embeds
                    transform(torch.from_numpy(batch.patches[start : start + BATCH["cpu"]]))

        def loop() -> None:
            for x, y in grid.xy.tolist():
                patch = peer.read_region((x, y), 0, (grid.span_px, grid.span_px)).convert("RGB")
                recipe(patch.resize((PATCH, PATCH), Image.Resampling.BILINEAR))

        ours, theirs = (len(grid) / seconds for seconds in _medians((engine, loop), repeats))
    print(f"{'512 -> 256 -> 224 px tensor':34}{ours:8.0f}{'':8}{theirs:10.0f}")
    print(f"{'':34}{ours / theirs:.2f} x the OpenSlide + PIL + torchvision loop (needs 5)")


def _threads(path: Path, repeats: int) -> None:
    """One thread against two, and the same for nothing but decoding, which is all that this machine can give."""
    with open_slide(path) as slide:
        assert isinstance(slide, TiledSlide)
        grid = _grid(slide, CASES[1])
        data, shape = _encoded(slide, grid)

        def bare(threads: int) -> None:
            parts = [threading.Thread(target=_decode_all, args=(data[n::threads], shape)) for n in range(threads)]
            for part in parts:
                part.start()
            for part in parts:
                part.join()

        runs: list[tuple[Callable[[int], None], int]] = [
            (run, threads) for run in (lambda threads: _engine(slide, grid, threads), bare) for threads in (1, 2)
        ]
        walls: list[list[float]] = [[] for _ in runs]
        for _ in range(2 * repeats + 1):
            for index, (run, threads) in enumerate(runs):
                started = time.perf_counter()
                run(threads)
                walls[index].append(time.perf_counter() - started)
    one, two, bare_one, bare_two = (min(times) for times in walls)
    print(
        f"1 -> 2 threads: {one / two:.2f} x by best wall time (needs 1.8); bare decoding {bare_one / bare_two:.2f} x "
        f"(load average {os.getloadavg()[0]:.1f})"
    )


def _cheap_levels(path: Path) -> None:
    """What decoding at a half, a quarter and an eighth changes against decoding all and averaging."""
    with open_slide(path) as slide:
        region = Region(0, 0, 1920, 1920)
        full = slide.read(region, 0)
        for number, level in enumerate(slide.levels):
            if level.stored or level.downsample > 8:
                continue
            cheap = slide.read(region, number)
            averaged = cv2.resize(full, cheap.shape[1::-1], interpolation=cv2.INTER_AREA)
            off = np.abs(cheap.astype(np.int16) - averaged)
            print(
                f"cheap level 1/{level.downsample:g}: mean |d| {off.mean():.2f}, max {off.max()} of 255 from averaging"
            )


def _medians(sides: tuple[Run, ...], repeats: int) -> Iterator[float]:
    """Median CPU seconds of each side, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for number, side in enumerate(sides):
            started = time.process_time()
            side()
            if turn > 0:
                seconds[number].append(time.process_time() - started)
    return (statistics.median(values) for values in seconds)


def _texture(path: Path, side: int) -> NDArray[np.uint8]:
    """The densest 512-px square of the slide, mirrored again and again to `side` px."""
    with open_slide(path) as slide:
        base = slide.levels[0]
        pixels = slide.read(Region(0, 0, base.width, base.height), 0)
    ink = cv2.boxFilter(255 - pixels.min(axis=2), cv2.CV_32F, (512, 512), anchor=(0, 0))
    limit = base.height - 512, base.width - 512
    y, x = np.unravel_index(ink[: limit[0], : limit[1]].argmax(), limit)
    piece = pixels[y : y + 512, x : x + 512]
    return np.pad(piece, ((0, side - 512), (0, side - 512), (0, 0)), mode="symmetric")


def _arguments() -> argparse.Namespace:
    data = Path(os.environ.get("WSI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", default=data / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--side", type=int, default=12_400, help="px of the synthetic slide")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
