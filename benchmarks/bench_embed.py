"""How close embedding a slide comes to the model alone: tiles per second through reading, transform and model, against
the same model on patches that already lie in memory, both in one run.

    python benchmarks/bench_embed.py [BACKBONE] [--slide SLIDE] [--device auto] [--threads 8] [--rounds 3]

Without --slide it draws a SYNTHETIC one. Weights that cannot be reached are replaced by random ones of the same shape,
and said so: the speed is the same.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from embedding import Embedder, best_device, build, embed_patches, find_backbone, find_weights
from embedding.embed import embed_stream
from tiling import PatchBatch, TileGrid, TileSpec, TissueSpec, find_tissue, plan_grid
from wsi import BackboneError, Slide, open_slide
from wsi.synthetic import SyntheticSpec, write_synthetic_slide


def load(name: str, device: str) -> Embedder:
    backbone = find_backbone(name)
    try:
        return build(backbone, find_weights(backbone), device)
    except BackboneError as error:
        print(f"random weights: {error}")
        return build(backbone, None, device).requires_grad_(False)


def model_alone(slide: Slide, grid: TileGrid, embedder: Embedder) -> float:
    """Seconds for as many patches as the grid has, all from one batch in memory."""
    size, step = grid.spec.tile_px, 256
    patches = np.random.default_rng(0).integers(0, 256, (step, size, size, 3), np.uint8)
    batches = [
        PatchBatch(i, patches[: len(grid) - i], np.ones(min(step, len(grid) - i), bool))
        for i in range(0, len(grid), step)
    ]
    started = time.perf_counter()
    embed_stream(iter(batches), slide, grid, embedder)
    return time.perf_counter() - started


def whole_road(slide: Slide, grid: TileGrid, embedder: Embedder, threads: int) -> float:
    started = time.perf_counter()
    embed_patches(slide, grid, embedder, threads=threads)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="efficientnet-lite0")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--side", type=int, default=8192, help="pixels of the synthetic slide")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    embedder = load(options.backbone, best_device(options.device))
    entry = embedder.backbone
    spec = TileSpec(tile_px=entry.tile_px, mpp=entry.mpp[0], tissue=TissueSpec(method="none"))
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or Path(folder) / "synthetic.svs"
        if options.slide is None:
            write_synthetic_slide(path, SyntheticSpec(width_px=options.side, height_px=options.side, tissue=0.8))
        with open_slide(path) as slide:
            grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
            whole_road(slide, grid, embedder, options.threads)  # the first round compiles and fills caches
            pairs = [
                (model_alone(slide, grid, embedder), whole_road(slide, grid, embedder, options.threads))
                for _ in range(options.rounds)
            ]
    alone, road = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    where = torch.cuda.get_device_name() if embedder.device.type == "cuda" else embedder.device.type
    print(f"{entry.name} on {where}: {len(grid)} tiles, reading with {options.threads} threads")
    print(f"model alone {len(grid) / alone:,.0f} tiles/s; slide to embeddings {len(grid) / road:,.0f} tiles/s")
    print(f"the whole road runs at {alone / road:.0%} of the model's own speed")


if __name__ == "__main__":
    main()
