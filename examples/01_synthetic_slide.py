"""Make synthetic slides to play with: a positive one, a negative one, and the truth map of each.

    python examples/01_synthetic_slide.py [OUT]        OUT is a folder, ./demo-slides by default

About six seconds, 5 MB. The slides are invented: they look like H&E, open in QuPath and OpenSlide, and hold no real
data.
"""

import sys
from pathlib import Path

import numpy as np

from wsi import open_slide
from wsi.synthetic import SyntheticSpec, read_truth, tile_truth, write_synthetic_slide

TILE_PX = 256


def main(out: Path) -> None:
    specs = {
        "synthetic-tumor": SyntheticSpec(seed=1, nests=4, nest_radius_um=160, stain="violet"),
        "synthetic-normal": SyntheticSpec(seed=2, nests=0, stain="rose", scanner="scanner-2"),
    }
    for name, spec in specs.items():
        path = out / f"{name}.svs"
        write_synthetic_slide(path, spec)
        with open_slide(path) as slide:
            sizes = ", ".join(f"{level.width}x{level.height}" for level in slide.levels)
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  {slide.info.mpp} µm/px  levels {sizes}")
        truth = read_truth(path)
        corners = np.mgrid[0 : spec.width_px - TILE_PX + 1 : TILE_PX, 0 : spec.height_px - TILE_PX + 1 : TILE_PX]
        mostly = int((tile_truth(truth, corners.reshape(2, -1).T, TILE_PX) > 0.5).sum())
        print(f"  tumour is {truth.tumour_share:.0%} of the tissue; {mostly} tiles of {TILE_PX} px are mostly tumour")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo-slides"))
