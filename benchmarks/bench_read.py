"""Patches per CPU-second: the direct TIFF reader against OpenSlide, and against bare decoding of the same bytes.

    python benchmarks/bench_read.py [SLIDE] [--side 12000] [--repeats 5]

SLIDE (default: CMU-1-Small-Region.svs from $WSI_DATA or ../shared/data) lends its texture: it is mirror-tiled to a
square slide of `--side` px in a temporary folder, once with 240-px and once with 256-px JPEG tiles. Every line is the
median of `--repeats` runs, sides interleaved, one thread, warm page cache, CPU time of the process.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg
from numpy.typing import NDArray

from wsi import Region, open_slide, read_tiles
from wsi.formats.tiff_structure import TiledLevel, read_pyramid
from wsi.formats.tilewise import Grid, plan_pieces

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.slides import SvsOptions, write_svs

PATCH, COUNT = 256, 256
Run = Callable[[], None]


def main() -> None:
    arguments = _arguments()
    cv2.setNumThreads(1)
    print(f"{'case':34} {'direct':>8} {'openslide':>10} {'ratio':>7} {'bare decode':>12} {'share':>6}")
    print(f"{'':34} {'patches per CPU-second':>19} {'':>7} {'':>12} {'of it':>6}")
    with tempfile.TemporaryDirectory() as folder:
        texture = _texture(arguments.slide, arguments.side)
        for tile in (240, 256):
            path = write_svs(Path(folder) / f"{tile}.svs", texture, SvsOptions(tile, (1, 4), "422"))
            _report(path, f"256 px on {tile}-px tiles, offset 0", PATCH, 0, arguments.repeats)
            _report(path, f"256 px on {tile}-px tiles, offset 100", PATCH, 100, arguments.repeats)
            _report(path, f"512 -> 256 px on {tile}-px tiles", 2 * PATCH, 0, arguments.repeats)
        _report(path, "one whole tile a patch, scattered", PATCH, 0, arguments.repeats, spread=4)


def _report(path: Path, name: str, span: int, offset: int, repeats: int, spread: int = 1) -> None:
    side = round(COUNT**0.5)
    step = np.arange(side, dtype=np.int64) * span * spread + offset
    xy = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
    xy = xy[(xy + span <= _side(path)).all(axis=1)]
    out, other = (np.empty((len(xy), PATCH, PATCH, 3), np.uint8) for _ in range(2))
    pyramid = read_pyramid(path)
    assert not isinstance(pyramid, str)
    with open_slide(path) as direct, openslide.OpenSlide(path) as peer, path.open("rb") as file:
        assert direct.info.reader == "tiff"
        bare = _bare_decoder(file.fileno(), pyramid.levels[0], xy, span)
        sides: tuple[Run, ...] = (
            lambda: _check(read_tiles(direct, xy, span, 0, out)),
            lambda: _read_openslide(peer, xy, span, other),
            bare,
        )
        rates = [len(xy) / seconds for seconds in _medians(sides, repeats)]
    assert np.array_equal(out, other), "the readers disagree"
    direct_rate, peer_rate, bare_rate = rates
    ours = f"{direct_rate:8.0f} {peer_rate:10.0f} {direct_rate / peer_rate:6.2f}x"
    print(f"{name:34} {ours} {bare_rate:12.0f} {direct_rate / bare_rate:6.0%}")


def _read_openslide(peer: openslide.OpenSlide, xy: NDArray[np.int64], span: int, out: NDArray[np.uint8]) -> None:
    for number, (x, y) in enumerate(xy.tolist()):
        pixels = np.asarray(peer.read_region((x, y), 0, (span, span)).convert("RGB"))
        out[number] = pixels if span == PATCH else cv2.resize(pixels, (PATCH, PATCH), interpolation=cv2.INTER_AREA)


def _bare_decoder(descriptor: int, level: TiledLevel, xy: NDArray[np.int64], span: int) -> Run:
    """Decode the tiles that the patches need, from memory into one buffer: what no reader on this codec can beat."""
    plan = plan_pieces(xy, (span, span), Grid.of(level.width, level.height, level.tile_width, level.tile_height))
    sizes, starts = level.counts.tolist(), level.offsets.tolist()
    tables = level.jpeg_tables[:-2]
    data = [tables + os.pread(descriptor, sizes[tile], starts[tile])[2:] for tile in plan.tiles.tolist()]
    buffer = np.empty((level.tile_height, level.tile_width, 3), np.uint8)

    def run() -> None:
        for tile in data:
            simplejpeg.decode_jpeg(tile, "RGB", buffer=buffer)

    return run


def _medians(sides: tuple[Run, ...], repeats: int) -> list[float]:
    """Median CPU seconds of each side, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for number, side in enumerate(sides):
            started = time.process_time()
            side()
            if turn > 0:
                seconds[number].append(time.process_time() - started)
    return [statistics.median(values) for values in seconds]


def _check(ok: NDArray[np.bool_]) -> None:
    assert ok.all()


def _side(path: Path) -> int:
    with open_slide(path) as slide:
        return min(slide.levels[0].width, slide.levels[0].height)


def _texture(path: Path, side: int) -> NDArray[np.uint8]:
    """The densest 512-px square of the slide, mirrored again and again to `side` px."""
    with open_slide(path) as slide:
        base = slide.levels[0]
        pixels = slide.read(Region(0, 0, base.width, base.height), 0)
    ink = cv2.boxFilter(255 - pixels.min(axis=2), cv2.CV_32F, (512, 512), anchor=(0, 0))
    y, x = np.unravel_index(
        ink[: base.height - 512, : base.width - 512].argmax(), (base.height - 512, base.width - 512)
    )
    piece = pixels[y : y + 512, x : x + 512]
    return np.pad(piece, ((0, side - 512), (0, side - 512), (0, 0)), mode="symmetric")


def _arguments() -> argparse.Namespace:
    data = Path(os.environ.get("WSI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", default=data / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--side", type=int, default=12_000, help="px of the synthetic slide")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
