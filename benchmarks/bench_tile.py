"""Tiling: the patch store against zarr-python, planning of large slides, and memory.

    python benchmarks/bench_tile.py [write] [read] [modes] [plan] [memory] [--source SLIDE] [--repeats 5]
                                    [--patches 512] [--small 40800] [--large 100000] [--memory-small 10000]

Without names of parts it does all. SLIDE (default: CMU-1-Small-Region.svs from $WSI_DATA or ../shared/data) lends its
texture: patches are cut from its densest part, and large slides are made of its tiles in a temporary folder (levels
1, 4, 16, 32; 240-px JPEG tiles, 0.25 µm/px; 0.3 GB at 40,800 px and 2 GB at 100,000 px). Seconds are CPU time of
the process, kernel included, medians of `--repeats` rounds in which all sides take turns; imports are not counted.
Other tools' planning was measured elsewhere, not here: hs2p 0.18 to 0.22 s, LazySlide 2.1 s, TRIDENT some 7 s.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, open_patches, plan_grid, write_patches
from tiling.codecs import QUALITY, JpegCodec, encode_patch
from tiling.shards import PatchShards, create_patches, write_shard
from wsi import Region, open_slide
from wsi.publish import appear

PATCH, TILE, MPP, SHARD = 256, 240, 0.25, 256
DOWNSAMPLES = (1, 4, 16, 32)
Run = Callable[[], None]
Patches = NDArray[np.uint8]


def main() -> None:
    arguments = _arguments()
    cv2.setNumThreads(1)
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    texture = _texture(arguments.source)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or PARTS:
            PARTS[part](Path(folder), texture, arguments)


def bench_write(folder: Path, texture: Patches, arguments: argparse.Namespace) -> None:
    patches = _patches(texture, arguments.patches)
    writers: dict[str, Callable[[Path, Patches], None]] = {
        "ours, raw": _write_ours,
        f"ours, jpeg q{QUALITY} 4:4:4": partial(_write_ours, quality=QUALITY),
        "zarr, tuned: sharded, no codec, no scan for zeros": _write_tuned,
        "zarr, tuned, with checksums as ours": partial(_write_tuned, checked=True),
        "zarr, its defaults: zstd, a file a patch": _write_default,
    }
    paths = [folder / f"{number}.zarr" for number in range(len(writers))]

    def store(path: Path, write: Callable[[Path, Patches], None]) -> None:
        with appear(path) as draft:  # flushed to the disk, as a store is before it counts
            write(draft, patches)

    sides = [partial(store, path, write) for path, write in zip(paths, writers.values(), strict=True)]
    seconds = _medians(sides, arguments.repeats, lambda: _remove(paths))
    print(f"\nwrite {len(patches)} patches of {PATCH} px, flushed to the disk")
    print(f"{'':52} {'patch/s':>8} {'ours raw':>9} {'bytes/patch':>12}")
    for name, taken, path in zip(writers, seconds, paths, strict=True):
        size = sum(file.stat().st_size for file in (path / "patches").rglob("*") if file.is_file())
        print(f"{name:52} {len(patches) / taken:8,.0f} {taken / seconds[0]:8.1f}x {size / len(patches):12,.0f}")
    assert np.array_equal(zarr.open_group(paths[0], mode="r")["patches"][:], patches)
    tuned, checked, default = (taken / seconds[0] for taken in seconds[2:])
    print(
        f"needed: tuned {_verdict(tuned, 4)}, with checksums {_verdict(checked, 4)}, defaults {_verdict(default, 10)}"
    )


def bench_read(folder: Path, texture: Patches, arguments: argparse.Namespace) -> None:
    patches = _patches(texture, arguments.patches)
    print("\nread 32 random patches, checked equal")
    print(f"{'':16} {'ours patch/s':>13} {'zarr oindex':>12} {'ratio':>8} {'zarr z[i]':>10} {'ratio':>8}")
    for name, quality in (("raw", None), ("jpeg", QUALITY)):
        _write_ours(folder / "read.zarr", patches, quality)
        shards = PatchShards(folder / "read.zarr" / "patches")
        stored = zarr.open_group(folder / "read.zarr", mode="r")["patches"]
        numbers = np.random.default_rng(0).choice(len(patches), 32, replace=False)
        found: list[Patches] = [np.empty(0, np.uint8)] * 3

        def ours(shards: PatchShards = shards, numbers=numbers, found=found) -> None:
            for _ in range(20):  # one turn is too short for the clock
                found[0] = shards.read_at(numbers)

        def by_index(stored=stored, numbers=numbers, found=found) -> None:
            found[1] = stored.oindex[numbers]

        def one_by_one(stored=stored, numbers=numbers, found=found) -> None:
            found[2] = np.stack([stored[int(number)] for number in numbers])

        own, index, single = _medians([ours, by_index, one_by_one], arguments.repeats)
        own /= 20
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        rates = f"{32 / own:13,.0f} {32 / index:12,.0f} {index / own:7.0f}x {32 / single:10,.0f} {single / own:7.0f}x"
        print(f"{name:16} {rates}  needed over oindex: {_verdict(index / own, 20)}")


def bench_modes(folder: Path, texture: Patches, arguments: argparse.Namespace) -> None:
    path = make_slide(folder / "modes.svs", texture, arguments.memory_small)
    spec = TileSpec(tile_px=TILE, mpp=MPP)
    out = {mode: folder / f"{mode}.zarr" for mode in ("none", "raw", "jpeg", "native")}
    with open_slide(path) as slide:
        tissue = find_tissue(slide, spec.tissue)
        grid = plan_grid(slide.levels, spec, tissue)

        def store(mode: str) -> None:
            write_patches(out[mode], slide, grid, tissue, PatchRequest("s", "f", pixels=mode, threads=1))

        seconds = dict(zip(out, _medians([partial(store, mode) for mode in out], arguments.repeats), strict=True))
    print(f"\nread {len(grid):,} tiles of a slide and store them (what a store without pixels costs is taken off)")
    for mode in ("raw", "jpeg", "native"):
        files = (out[mode] / "patches").rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file()) / len(grid)
        print(f"{mode:8} {len(grid) / (seconds[mode] - seconds['none']):8,.0f} patch/s {size:10,.0f} bytes/patch")
    path.unlink()


def bench_plan(folder: Path, texture: Patches, arguments: argparse.Namespace) -> None:
    print("\nthumbnail, tissue, coordinates (256 px at 0.5 µm/px), opening included")
    for side, limit in ((arguments.small, 0.15), (arguments.large, 3.0)):
        path = make_slide(folder / "plan.svs", texture, side)
        counts = [0, 0]
        (seconds,) = _medians([lambda path=path, counts=counts: _plan(path, counts)], arguments.repeats)
        size = path.stat().st_size / 1e9
        good = "yes" if seconds <= limit else "NO"
        print(
            f"{side:7,} px square, {size:.2f} GB: {seconds:.3f} CPU-s for {counts[0]:,} tiles, "
            f"level-0 tiles decoded: {counts[1]}; needed <= {limit} s: {good}"
        )
        assert counts[1] == 0, "planning decoded tiles of level 0"
        path.unlink()


def bench_memory(folder: Path, texture: Patches, arguments: argparse.Namespace) -> None:
    print("\nmemory: planning, then some 3,000 patches to the store, in a process of its own")
    for side in (arguments.memory_small, arguments.large):
        path = make_slide(folder / "memory.svs", texture, side)
        for pixels in ("raw", "jpeg"):
            command = [sys.executable, __file__, "--child", str(path), str(folder / "memory.zarr"), pixels]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            told = json.loads(done.stdout)
            print(
                f"{side:7,} px square, {pixels:4}: peak {told['peak']:6,.0f} MiB, of which {told['start']:,.0f} MiB "
                f"with all imported and {told['planned']:,.0f} MiB when planned; {told['tiles']:,} patches"
            )
        path.unlink()


PARTS = {"write": bench_write, "read": bench_read, "modes": bench_modes, "plan": bench_plan, "memory": bench_memory}


def _write_ours(path: Path, patches: Patches, quality: int | None = None) -> None:
    zarr.open_group(path, mode="w", zarr_format=3)
    codec = None if quality is None else JpegCodec(quality)
    folder = create_patches(path, patches.shape[:2], SHARD, codec)
    for start in range(0, len(patches), SHARD):
        batch = patches[start : start + SHARD]
        chunks = list(batch) if quality is None else [encode_patch(pixels, quality) for pixels in batch]
        write_shard(folder, start // SHARD, SHARD, chunks)


def _write_tuned(path: Path, patches: Patches, checked: bool = False) -> None:
    group, side = zarr.open_group(path, mode="w", zarr_format=3), patches.shape[1:]
    array = group.create_array(
        "patches",
        shape=patches.shape,
        chunks=(1, *side),
        shards=(SHARD, *side),
        dtype="uint8",
        compressors=(Crc32cCodec(),) if checked else None,
        config={"write_empty_chunks": True},
    )
    for start in range(0, len(patches), SHARD):
        array[start : start + SHARD] = patches[start : start + SHARD]


def _write_default(path: Path, patches: Patches) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("patches", shape=patches.shape, chunks=(1, *patches.shape[1:]), dtype="uint8")
    for start in range(0, len(patches), SHARD):
        array[start : start + SHARD] = patches[start : start + SHARD]


def _plan(path: Path, counts: list[int]) -> None:
    """counts: tiles of the grid; tiles of level 0 that were decoded."""
    spec = TileSpec(tile_px=PATCH, mpp=0.5)
    with open_slide(path) as slide:
        base = slide._views[0].stored  # type: ignore[attr-defined]
        decode, decoded = base.decode, 0

        def counted(*given: object) -> None:
            nonlocal decoded
            decoded += 1
            decode(*given)

        base.decode = counted
        grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
    counts[:] = len(grid), counts[1] + decoded


def _tile_alone(path: Path, out: Path, pixels: str) -> None:
    """In a child process: plan a slide and store some 3,000 patches spread over it; prints memory as JSON."""
    start = _peak_mib()
    spec = TileSpec(tile_px=PATCH, mpp=MPP, tissue=TissueSpec())
    with open_slide(path) as slide:
        small = slide.levels[0].width < 20_000
        spec = replace(spec, stride_px=PATCH // 2 if small else None)  # overlap, so that there are as many
        tissue = find_tissue(slide, spec.tissue)
        grid = plan_grid(slide.levels, spec, tissue)
        some = slice(None, None, max(1, round(len(grid) / 3000)))
        grid = replace(grid, xy=grid.xy[some], tissue=grid.tissue[some])
        planned = _peak_mib()
        write_patches(out, slide, grid, tissue, PatchRequest("s", "f", pixels=pixels, threads=2))
    told = {"start": start, "planned": planned, "peak": _peak_mib(), "tiles": len(open_patches(out).grid)}
    shutil.rmtree(out)
    print(json.dumps(told))


def _peak_mib() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def make_slide(path: Path, texture: Patches, side: int) -> Path:
    """An SVS of `side` px: 40 % tissue in blobs, made of a few encoded tiles again and again."""
    across = -(-side // TILE)
    rng = np.random.default_rng(0)
    rough = cv2.resize(rng.random((12, 12), np.float32), (across, across), interpolation=cv2.INTER_CUBIC)
    tissue = rough > np.quantile(rough, 0.6)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for downsample in DOWNSAMPLES:
            size = side // downsample
            text = f"Aperio Image Library v12.0.15 \r\n{side}x{side} ({TILE}x{TILE}) -> {size}x{size} JPEG"
            file.write(
                _tiles(tissue, texture, downsample, size),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 1),
                description=f"{text}|AppMag = 40|MPP = {MPP}",
                software=False,
                metadata=None,
            )
    return path


def _tiles(tissue: NDArray[np.bool_], texture: Patches, downsample: int, size: int) -> Iterator[bytes]:
    """Encoded tiles of a level in raster order; only those on an edge of the tissue are encoded for themselves."""
    fine = cv2.resize(texture, None, fx=1 / downsample, fy=1 / downsample, interpolation=cv2.INTER_AREA)
    fine = np.pad(fine, ((0, TILE + 64), (0, TILE + 64), (0, 0)), mode="symmetric")
    glass = np.clip(np.random.default_rng(1).normal(242, 1.2, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    inks = [np.ascontiguousarray(fine[8 * n : 8 * n + TILE, 4 * n : 4 * n + TILE]) for n in range(8)]
    ready, blank = [_encode(ink) for ink in inks], _encode(glass)
    for row in range(-(-size // TILE)):
        for column in range(-(-size // TILE)):
            block = tissue[row * downsample : (row + 1) * downsample, column * downsample : (column + 1) * downsample]
            number = (3 * row + column) % len(inks)
            if block.all() and block.shape == (downsample, downsample):
                yield ready[number]
            elif not block.any():
                yield blank
            else:
                whole = np.zeros((downsample, downsample), np.uint8)
                whole[: block.shape[0], : block.shape[1]] = block
                mask = cv2.resize(whole, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
                yield _encode(np.where(mask[..., None] > 0, inks[number], glass))


def _encode(pixels: Patches) -> bytes:
    return simplejpeg.encode_jpeg(pixels, 80, "RGB", "422")


def _texture(path: Path) -> Patches:
    """The densest 1,024 px square of the slide."""
    with open_slide(path) as slide:
        base = slide.levels[0]
        pixels = slide.read(Region(0, 0, base.width, base.height), 0)
    ink = cv2.boxFilter(255 - pixels.min(axis=2), cv2.CV_32F, (1024, 1024), anchor=(0, 0))
    inside = ink[: base.height - 1024, : base.width - 1024]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return np.ascontiguousarray(pixels[y : y + 1024, x : x + 1024])


def _patches(texture: Patches, count: int) -> Patches:
    corners = np.random.default_rng(0).integers(0, 1024 - PATCH, (count, 2))
    return np.stack([texture[y : y + PATCH, x : x + PATCH] for x, y in corners.tolist()])


def _remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _medians(sides: Sequence[Run], repeats: int, prepare: Run = lambda: None) -> list[float]:
    """Median CPU seconds of each side, after one unmeasured round; `prepare` runs before each round, unmeasured."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        prepare()
        for number, side in enumerate(sides):
            started = time.process_time()
            side()
            if turn > 0:
                seconds[number].append(time.process_time() - started)
    return [statistics.median(values) for values in seconds]


def _verdict(ratio: float, needed: float) -> str:
    return f"{ratio:.1f}x ({'reached' if ratio >= needed else 'MISSED'}, {needed:g}x)"


def _arguments() -> argparse.Namespace:
    data = Path(os.environ.get("WSI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="write, read, modes, plan, memory; without, all")
    parser.add_argument("--source", type=Path, default=data / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--small", type=int, default=40_800, help="px of the smaller slide that is planned")
    parser.add_argument("--large", type=int, default=100_000, help="px of the larger slide")
    parser.add_argument("--memory-small", type=int, default=10_000, help="px of the slide that memory is compared with")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _tile_alone(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
