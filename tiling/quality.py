"""Look at every tile's quality: pen, blur, folds, near-black, grey air bubbles.

Simple, classical measures with stated limits, as HistoQC (Janowczyk 2019) and hs2p use them; no learned model. What
each one catches and misses stands with it. They are reported for every tile; only the flags in
`QualitySpec.exclude` leave tiles out.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from wsi.resample import pick_level
from wsi.slide import Slide

from .grid import TileGrid, tissue_fraction
from .pen import Channels, channels_of, keep_large, near, smoothed
from .spec import QualitySpec
from .stream import READING, Reading, iter_patches
from .thumbnail import base_mpp, read_thumbnail
from .tissue import Tissue

FOLD_DENSITY = 1.9  # optical density of a fold against the tissue's median: two layers have twice that of one
FOLD_MIN_CHROMA = 25  # 0 to 255: a fold is in the colours of the tissue, dirt is grey
FOLD_UM = (16.0, 400.0)  # width of a fold's ridge: what is wider is dense tissue
FOLD_MIN_UM2 = 8_000.0
GLASS = 245.0  # brightness (0 to 255) of clear glass, as scanners are set
DARK = 50  # brightness (0 to 255) that no stained tissue has over 25 µm
BUBBLE_CHROMA, BUBBLE_BELOW, BUBBLE_MIN_UM2 = 14, 20, 10_000.0  # grey, this much darker than glass


@dataclass(frozen=True)
class TileQuality:
    """What was measured of each tile of a grid, in its order; arrays are float32 (n,).

    sharpness  variance of the Laplacian of grey (0 to 255) at `QualitySpec.blur_mpp`; NaN where it cannot be read
    pen, fold, dark, bubble   share of the tile, [0, 1]
    """

    sharpness: NDArray[np.float32]
    pen: NDArray[np.float32]
    fold: NDArray[np.float32]
    dark: NDArray[np.float32]
    bubble: NDArray[np.float32]

    def flags(self, spec: QualitySpec) -> dict[str, NDArray[np.bool_]]:
        """Flag → bool (n,): blur below `min_sharpness`, the others above `max_share`; an unreadable tile has none."""
        shares = {name: getattr(self, name) > spec.max_share for name in ("pen", "fold", "dark", "bubble")}
        return {"blur": self.sharpness < spec.min_sharpness, **shares}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Name → values, as a store keeps them."""
        return {f"quality_{item.name}": getattr(self, item.name) for item in fields(self)}

    def of(self, rows: NDArray[np.bool_]) -> "TileQuality":
        """Of the tiles in `rows` only."""
        return TileQuality(*(getattr(self, item.name)[rows] for item in fields(self)))

    def excluded(self, spec: QualitySpec) -> NDArray[np.bool_]:
        """bool (n,): tiles with any of the flags in `spec.exclude`."""
        flags = self.flags(spec)
        return np.any([flags[name] for name in spec.exclude], axis=0) if spec.exclude else np.zeros(len(self.pen), bool)


def measure_quality(
    slide: Slide,
    grid: TileGrid,
    tissue: Tissue,
    spec: QualitySpec,
    reading: Reading = READING,
) -> TileQuality:
    """Quality of every tile of `grid`; reads a thumbnail at the scale of `tissue`, and the tiles once at `blur_mpp`.

    Shares are 0 for what was not looked for: pen where `tissue.pen` is None, and all of them with fluorescence, whose
    background is dark and grey.
    """
    thumbnail = read_thumbnail(slide, tissue.scale)
    pixel_um = tissue.scale * base_mpp(slide)
    seen = channels_of(smoothed(thumbnail.pixels, pixel_um))
    nothing = np.zeros_like(tissue.mask)
    pen = nothing if tissue.pen is None else tissue.pen
    masks = {"pen": pen, "fold": nothing, "dark": nothing, "bubble": nothing}
    if grid.spec.tissue.method != "fluorescence":
        masks["fold"] = fold_mask(seen, tissue.mask & ~pen & ~thumbnail.unread, pixel_um)
        masks["dark"], masks["bubble"] = seen.high < DARK, bubble_mask(seen, pixel_um)
    shares = {
        name: tissue_fraction(mask & ~thumbnail.unread, grid.xy, grid.span_px, tissue.scale).astype(np.float32)
        for name, mask in masks.items()
    }
    return TileQuality(measure_sharpness(slide, grid, spec.blur_mpp, reading), **shares)


def measure_sharpness(slide: Slide, grid: TileGrid, mpp: float, reading: Reading = READING) -> NDArray[np.float32]:
    """Variance of the Laplacian of grey at `mpp` µm per pixel inside each tile: float32 (n,), NaN where unreadable.

    Each stored tile of the coarsest level that is fine enough is decoded once. A slide coarser than `mpp` is measured
    as it is. Blur of a Gaussian with sigma of 2 µm and more is found at 1 µm per pixel; finer defocus is not. Tiles
    with little in them (fat, mucus, the edge of tissue) are low without being blurred.
    """
    import cv2

    base = base_mpp(slide)
    side = max(16, round(grid.span_px * base / max(mpp, base)))
    level = pick_level(slide.levels, grid.span_px * base / side)
    small = replace(grid, spec=replace(grid.spec, tile_px=side), level=level)
    sharpness = np.full(len(grid), np.nan, np.float32)
    for batch in iter_patches(slide, small, reading.threads, reading.memory):
        reading.tick()
        for number in np.flatnonzero(batch.ok).tolist():
            grey = cv2.cvtColor(batch.patches[number], cv2.COLOR_RGB2GRAY)
            edges = cv2.Laplacian(grey, cv2.CV_16S)[1:-1, 1:-1]  # not the border, where pixels are made up
            sharpness[batch.start + number] = edges.var()
    return sharpness


def fold_mask(seen: Channels, tissue: NDArray[np.bool_], pixel_um: float) -> NDArray[np.bool_]:
    """bool (rows, cols): folds, which are ridges of doubled optical density in the colours of the tissue.

    As in Kothari et al. 2013, dark and coloured against the slide's own tissue: here 1.9 times its median optical
    density in red, green and blue, since nuclei alone absorb more red but hardly more blue. Ridges are narrower than
    400 µm. Catches tissue that lies double; misses faint wrinkles, and takes narrow dense structures (a dark cornified
    layer) for folds.
    """
    import cv2

    if not tissue.any():
        return tissue
    dense = tissue & (seen.chroma >= FOLD_MIN_CHROMA)
    for channel in (seen.red, seen.green, seen.blue):
        passed = min(1.0, float(np.median(channel[tissue])) / GLASS)  # share of the light that one layer lets through
        dense &= channel < GLASS * passed**FOLD_DENSITY
    narrow, wide = (np.ones((max(1, round(um / pixel_um)),) * 2, np.uint8) for um in FOLD_UM)
    ridges = cv2.morphologyEx(dense.view(np.uint8), cv2.MORPH_OPEN, narrow)
    broad = cv2.morphologyEx(ridges, cv2.MORPH_OPEN, wide)
    return keep_large(cv2.subtract(ridges, broad).view(bool), FOLD_MIN_UM2 / pixel_um**2)


def bubble_mask(seen: Channels, pixel_um: float) -> NDArray[np.bool_]:
    """bool (rows, cols): flat grey, darker than glass and without stain, as the rim and shade of an air bubble.

    Also dirt, pencil and the edge of the coverslip. Misses a bubble whose inside looks like clear glass, and one over
    stained tissue: that is out of focus, and flagged blur.
    """
    clear = 200 + int(np.argmax(np.bincount(seen.high[seen.chroma < BUBBLE_CHROMA], minlength=256)[200:]))
    grey = (seen.chroma < BUBBLE_CHROMA) & (seen.high < clear - BUBBLE_BELOW) & (seen.high >= DARK)
    return keep_large(~near(~grey, 12.0 / pixel_um), BUBBLE_MIN_UM2 / pixel_um**2)
