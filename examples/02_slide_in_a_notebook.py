"""The notebook way: one slide from pixels to embeddings, with the functions that the command line calls.

    python examples/02_slide_in_a_notebook.py SLIDE [FOLDER]

Prints what it found, and writes a picture of the tissue and a heatmap for QuPath of how unusual each tile is.
"""

import sys
from pathlib import Path

import numpy as np

from embedding import best_device, build, embed_patches, find_backbone, find_weights
from heatmaps import build_heatmap, draw_overlay, write_geojson
from tiling import TileSpec, find_tissue, plan_grid, read_thumbnail
from wsi import open_slide


def main(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backbone = find_backbone("efficientnet-lite0")  # ImageNet, not pathology; others by name: find_backbone("uni")
    embedder = build(backbone, find_weights(backbone), best_device())
    with open_slide(path) as slide:
        base = slide.levels[0]
        print(f"{path.name}: {base.width} x {base.height} px at {slide.info.mpp} µm/px, {len(slide.levels)} levels")
        spec = TileSpec(tile_px=backbone.tile_px, mpp=backbone.mpp[0])
        tissue = find_tissue(slide, spec.tissue)
        grid = plan_grid(slide.levels, spec, tissue)
        print(f"{tissue.area_um2 / 1e6:.2f} mm² of tissue, {len(grid)} tiles of {grid.span_px} level-0 px")
        embedded = embed_patches(slide, grid, embedder)
        thumbnail = read_thumbnail(slide)
    vectors = embedded.embeddings[embedded.ok].astype(np.float32)
    print(
        f"embeddings: {vectors.shape[0]} x {vectors.shape[1]}, mean length {np.linalg.norm(vectors, axis=1).mean():.2f}"
    )

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    center = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    unusual = np.zeros(len(grid), np.float32)
    unusual[embedded.ok] = np.clip(1 - unit @ center, 0, 1)
    scores = {"distance from the slide's mean tile": unusual}
    heatmap = build_heatmap(path.stem, scores, grid.xy, grid.span_px, "unusual", embedded.ok)
    write_geojson(heatmap, folder / f"{path.stem}.geojson.gz")
    draw_overlay(thumbnail.pixels, thumbnail.scale, heatmap, folder / f"{path.stem}.png", slide.info.mpp)
    print(f"wrote {folder / path.stem}.geojson.gz (drag it onto the slide in QuPath) and .png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "notebook-out"))
