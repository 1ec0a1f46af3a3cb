"""What embedding costs beside the model: both sides of every ratio in one run, interleaved, on slides drawn here.

    python benchmarks/bench_embed.py [--device cpu] [--rounds 3] [--only pipeline,input,precision,memory]
    python benchmarks/bench_embed.py --device cuda

On a CPU the figures are per CPU-second of the process, so that a shared machine does not blur them; wall is beside.
Weights are random where the package brings none: the speed is the same. It needs openslide-python and torchvision for
the table `input` only; --device cuda needs neither, but zarr, simplejpeg and tifffile, as the engine does.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

import wsi  # noqa: F401  (lets timm be imported beside a CPU torch)
from embedding import Backbone, Embedder, build, find_backbone, find_weights, write_embeddings
from embedding.embed import embed_chunks
from embedding.extractor import Extractor, Plan
from embedding.precision import choose_precision, cpu_flags, measured_cosine
from jobs.executors import cpu_count
from tiling import PatchBatch, TileGrid, TileSpec, TissueSpec, find_tissue, plan_grid
from tiling.stream import iter_patches
from wsi import open_slide
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

SLIDES = 2  # at a time, as a worker of `wsi embed`
READING = 512 << 20  # bytes a slide
Work = Callable[[], object]


def entry_of(arch: str, **options: object) -> Backbone:
    """A ViT of timm's, as the catalogue has them."""
    base = find_backbone("uni")
    width = {"vit_small_patch16_224": 384, "vit_large_patch16_224": 1024, "vit_giant_patch14_224": 1408}[arch]
    side = 14 if "patch14" in arch else 16
    return replace(base, name=arch, arch=arch, dim=width, tile_px=224, resize_px=224, patch_px=side, options=options)


def load(entry: Backbone, device: str, precision: str) -> Embedder:
    torch.manual_seed(0)
    if entry.weights.startswith("package:"):
        return build(entry, find_weights(entry), device, precision)
    return build(entry, None, device, precision).requires_grad_(False)


def timed(work: Work) -> tuple[float, float]:
    """(CPU-seconds of the process, seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def compared(first: Work, second: Work, rounds: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Medians of `timed` of both, taken in turns."""
    pairs = [(timed(first), timed(second)) for _ in range(rounds)]
    sides = ([pair[side] for pair in pairs] for side in (0, 1))
    return tuple((median(cpu for cpu, _ in side), median(wall for _, wall in side)) for side in sides)  # type: ignore[return-value]


def draw(folder: Path, side: int, mpp: float = 0.5) -> Path:
    path = folder / f"{side}-{mpp}.svs"
    if not path.exists():
        write_synthetic_slide(path, SyntheticSpec(width_px=side, height_px=side, mpp=mpp, tissue=0.9))
    return path


def plan(path: Path, tile_px: int, tiles: int | None = None) -> TileGrid:
    spec = TileSpec(tile_px=tile_px, mpp=0.5, max_tiles=tiles, tissue=TissueSpec(method="none"))
    with open_slide(path) as slide:
        return plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))


def embed(path: Path, grid: TileGrid, extractor: Extractor, out: Path) -> None:
    """One slide, as the stage does it: opened, read, embedded, and written to a store."""
    row_shape = extractor.embedder.backbone.row_shape
    threads = min(8, cpu_count())
    with open_slide(path) as slide, write_embeddings(out, len(grid), row_shape) as writer:
        for chunk in embed_chunks(iter_patches(slide, grid, threads, READING), grid, extractor):
            writer.write(chunk.vectors, chunk.ok)
        writer.finish(grid.xy, {})


def pipeline(path: Path, grid: TileGrid, extractor: Extractor, slides: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(SLIDES) as slots:
        outs = [Path(folder) / f"{number}.zarr" for number in range(slides)]
        list(slots.map(lambda out: embed(path, grid, extractor, out), outs))


def in_memory(path: Path, grid: TileGrid) -> list[PatchBatch]:
    with open_slide(path) as slide:
        return list(iter_patches(slide, grid, 2, READING))


def bare(batches: list[PatchBatch], embedder: Embedder, slides: int, size: int) -> None:
    """The model alone, on the same pixels, a single-threaded batch a core."""
    pixels = np.concatenate([batch.patches for batch in batches])
    parts = [torch.from_numpy(pixels[at : at + size]) for at in range(0, len(pixels), size)] * slides

    def forward(part: torch.Tensor) -> None:
        with torch.inference_mode():
            embedder(part.to(embedder.device)).cpu()

    with ThreadPoolExecutor(compute_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(forward, parts))


def compute_threads() -> int:
    return min(cpu_count(), torch.get_num_threads())


def show_pipeline(folder: Path, rounds: int) -> None:
    print(f"\npipeline: {SLIDES} slides at a time against the bare model, {compute_threads()} threads, tiles/s")
    print(f"{'':26}{'bare/CPU-s':>12}{'pipeline':>10}{'':>8}{'bare/s':>10}{'pipeline':>10}")
    cases = ((entry_of("vit_small_patch16_224"), 96), (find_backbone("efficientnet-lite0"), 320))
    path = draw(folder, 4096)
    for entry, tiles in cases:
        grid, slides = plan(path, entry.tile_px, tiles), 4
        embedder, batches = load(entry, "cpu", "fp32"), in_memory(path, grid)
        total = len(grid) * slides
        with Extractor(embedder, Plan(threads=compute_threads())) as extractor:
            ours = partial(pipeline, path, grid, extractor, slides)
            ours()
            alone, road = compared(partial(bare, batches, embedder, slides, extractor.batch), ours, rounds)
        rates = [total / seconds for seconds in (alone[0], road[0], alone[1], road[1])]
        print(f"{entry.name:26}{rates[0]:12.1f}{rates[1]:10.1f}{rates[1] / rates[0]:8.0%}", end="")
        print(f"{rates[2]:10.1f}{rates[3]:10.1f}{rates[3] / rates[2]:8.0%}   (needs 90 %)")


class Nothing(torch.nn.Module):
    """A network that only takes its input."""

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def forward_head(self, features: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return features[:, :, 0, 0]


def no_model() -> Embedder:
    return Embedder(replace(find_backbone("uni"), dim=3, pooling="pool", patch_px=None), Nothing())


def show_input(folder: Path, rounds: int) -> None:
    """TRIDENT's loop, by its description: a Dataset whose item is one patch, read by OpenSlide, resized by Pillow and
    made a tensor by torchvision, in a DataLoader of 64 without workers."""
    import openslide
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    path = draw(folder, 8192, 0.25)
    grid, embedder = plan(path, 256, 250), no_model()
    bicubic = transforms.Resize(224, transforms.InterpolationMode.BICUBIC)
    norm = transforms.Normalize(*embedder.backbone.norm)
    recipe = transforms.Compose([bicubic, transforms.CenterCrop(224), transforms.ToTensor(), norm])

    class Patches(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.slide = openslide.OpenSlide(path)

        def __len__(self) -> int:
            return len(grid)

        def __getitem__(self, index: int) -> torch.Tensor:
            x, y = grid.xy[index].tolist()
            patch = self.slide.read_region((x, y), 0, (grid.span_px, grid.span_px)).convert("RGB")
            return recipe(patch.resize((256, 256), Image.Resampling.BILINEAR))

    def peer() -> None:
        with torch.inference_mode():
            for batch in DataLoader(Patches(), batch_size=64):
                batch[:, :, 0, 0].numpy()

    with Extractor(embedder, Plan(threads=1)) as extractor, tempfile.TemporaryDirectory() as out:
        numbers = count()

        def ours() -> None:
            embed(path, grid, extractor, Path(out) / str(next(numbers)))

        ours()
        engine, theirs = compared(ours, peer, rounds)
    rates = [len(grid) / seconds for seconds in (engine[0], theirs[0])]
    print("\ninput: 512 px at 0.25 µm/px → 256 → 224 px, a model that does nothing, patches per CPU-second")
    print(f"engine, to a store {rates[0]:.0f}; TRIDENT's loop {rates[1]:.1f}: {rates[0] / rates[1]:.1f} x (needs 5)")


def show_precision(folder: Path, rounds: int) -> None:
    halves = sorted(cpu_flags() & {"amx_bf16", "avx512_bf16", "avx512_fp16"})
    print(f"\nprecision on a CPU with {', '.join(halves) or 'no halves'}: speed of bf16 weights against fp32, cosine")
    path = draw(folder, 4096)
    for entry in (entry_of("vit_small_patch16_224"), find_backbone("efficientnet-lite0")):
        pixels = torch.from_numpy(in_memory(path, plan(path, entry.tile_px, 16))[0].patches)
        exact, half = load(entry, "cpu", "fp32"), load(entry, "cpu", "bf16")
        works = [partial(bare_once, one, pixels) for one in (exact, half)]
        for work in works:
            work()
        (slow, _), (fast, _) = compared(works[0], works[1], rounds)
        cosine, chosen = measured_cosine(exact, half, pixels), choose_precision("auto", entry, "cpu")
        print(f"{entry.name:26}{slow / fast:8.2f} x{cosine:12.5f}   auto: {chosen}")


def bare_once(embedder: Embedder, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        embedder(pixels)


def show_memory(folder: Path) -> None:
    print("\nmemory: most that a process held which embeds a slide with a model that does nothing")
    for side in (8192, 16384):
        path = draw(folder, side)
        command = [sys.executable, __file__, "--held", str(path)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def held(path: Path) -> None:
    """In a process of its own: one slide, and what that held."""
    grid, wide = plan(path, 128), no_model()
    with Extractor(wide, Plan(threads=2)) as extractor, tempfile.TemporaryDirectory() as out:
        embed(path, grid, extractor, Path(out) / "s.zarr")
    status = Path("/proc/self/status").read_text()  # not getrusage's, which begins with what the parent held
    most = int(status.partition("VmHWM:")[2].split()[0]) >> 10
    print(f"{len(grid):8,} tiles, {path.stat().st_size >> 20:5} MiB file: {most:,} MiB")


def show_cuda(folder: Path, device: str, rounds: int) -> None:
    print(f"\n{torch.cuda.get_device_name(device)}, {cpu_count()} cores; several slides, two at a time")
    print(
        f"{'':26}{'batch':>6}{'bare tiles/s':>14}{'pipeline':>10}{'':>7}{'idle':>7}{'cosine':>9}{'cores to read':>15}"
    )
    path, slides = draw(folder, 16384), 4
    for arch in ("vit_large_patch16_224", "vit_giant_patch14_224"):
        entry = entry_of(arch, num_classes=0)
        precision, grid = choose_precision("auto", entry, device), plan(path, entry.tile_px)
        exact, embedder = (load(entry, device, name) for name in ("fp32", precision))
        some = torch.from_numpy(next(iter_some(path, grid)).patches[:32])
        cosine = measured_cosine(exact, embedder, some)
        del exact
        with Extractor(embedder, Plan(compile="on")) as extractor, extractor.lane(entry.tile_px):
            pass  # finds the batch size
        pixels = some.to(device).repeat(extractor.batch // len(some) + 1, 1, 1, 1)[: extractor.batch].contiguous()
        with Extractor(embedder, Plan(extractor.batch)) as extractor:
            spans = record_spans(extractor)
            pipeline(path, plan(path, entry.tile_px, 2 * extractor.batch), extractor, 1)  # compiles
            results = []
            for _ in range(rounds):
                spans.clear()
                alone = bare_speed(embedder, pixels)
                wall = timed(partial(pipeline, path, grid, extractor, slides))[1]
                results.append((alone, len(grid) * slides / wall, idle_share(spans)))
        alone, road, idle = (median(column) for column in zip(*results, strict=True))
        cores = alone / reading_speed(path, grid)
        print(f"{entry.name:26}{extractor.batch:6}{alone:14.0f}{road:10.0f}{road / alone:7.1%}{idle:7.1%}", end="")
        print(f"{cosine:9.5f}{cores:12.1f}")


def iter_some(path: Path, grid: TileGrid) -> Iterator[PatchBatch]:
    with open_slide(path) as slide:
        yield from iter_patches(slide, grid, 1, READING)


def bare_speed(embedder: Embedder, pixels: torch.Tensor, seconds: float = 10.0) -> float:
    """Tiles per second of the compiled forward, of pixels that lie on the device."""
    with torch.inference_mode():
        embedder(pixels)  # what was compiled in one thread may be compiled once more in another
        torch.cuda.synchronize()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(4):
                embedder(pixels)
            torch.cuda.synchronize()
            done += 4 * len(pixels)
        return done / (time.perf_counter() - started)


Spans = list[tuple[torch.cuda.Event, torch.cuda.Event]]


def record_spans(extractor: Extractor) -> Spans:
    """From now on: when the device begins and ends each batch."""
    spans: Spans = []
    forward = extractor._forward

    def recorded(*arguments: object) -> torch.Tensor:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        found = forward(*arguments)  # type: ignore[arg-type]
        end.record()
        spans.append((begin, end))
        return found

    extractor._forward = recorded  # type: ignore[method-assign]
    return spans


def idle_share(spans: Spans) -> float:
    """Share of the time between the first batch and the last in which the device had none."""
    torch.cuda.synchronize()
    gaps = sum(max(0.0, end.elapsed_time(begin)) for (_, end), (begin, _) in pairwise(spans))
    return gaps / spans[0][0].elapsed_time(spans[-1][1])


def reading_speed(path: Path, grid: TileGrid) -> float:
    """Tiles per CPU-second."""
    cpu, _ = timed(lambda: [None for _ in iter_some(path, grid)])
    return len(grid) / cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="pipeline,input,precision,memory")
    parser.add_argument("--held", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.held is not None:
        held(options.held)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, only = Path(name), options.only.split(",")
        if options.device.startswith("cuda"):
            show_cuda(folder, options.device, options.rounds)
            return
        if "pipeline" in only:
            show_pipeline(folder, options.rounds)
        if "input" in only:
            show_input(folder, options.rounds)
        if "precision" in only:
            show_precision(folder, options.rounds)
        if "memory" in only:
            show_memory(folder)


if __name__ == "__main__":
    main()
