"""Paint a slide's two dyes on canvases of the whole slide, and turn dyes into colour."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .layout import CELL_PX, Layout
from .nuclei import DYE, KINDS, choose, draw_sprites, place_nuclei, stamp
from .spec import OBJECTIVE_20X_MPP, SyntheticSpec
from .texture import BLOCK_PX, TEXTURE_PX, Field, enlarge, fibres, grain_texture, sensor_noise

CELLS = BLOCK_PX // CELL_PX


@dataclass(frozen=True)
class Canvas:
    """Amount of hematoxylin, eosin and neutral dirt, uint8 (rows, cols) in steps of 1/DYE, padded to whole blocks."""

    hematoxylin: NDArray[np.uint8]
    eosin: NDArray[np.uint8]
    dirt: NDArray[np.uint8]


def paint(spec: SyntheticSpec, plan: Layout, rng: np.random.Generator) -> Canvas:
    """Paint tissue, nuclei and dust; glass stays 0."""
    shape = (plan.tissue.shape[0] * CELL_PX, plan.tissue.shape[1] * CELL_PX)
    canvas = Canvas(*(np.zeros(shape, np.uint8) for _ in range(3)))
    wall, gap = _stencils(plan, shape, rng)
    _paint_ground(plan, canvas, (wall, gap))
    _paint_membranes(spec, plan, canvas)
    taken = (wall | gap) > 127
    taken |= canvas.eosin < 12  # glass and clefts
    for placed in place_nuclei(spec, plan, taken, rng):
        sprites = draw_sprites(KINDS[placed.kind], spec, rng)
        stamp((canvas.hematoxylin, canvas.eosin), sprites, placed.xy, choose(sprites, placed, rng))
    _stain_unevenly(plan, canvas)
    _drop_dust(spec, canvas, rng)
    sigma = spec.camera.blur_px * OBJECTIVE_20X_MPP / spec.mpp
    for layer in (canvas.hematoxylin, canvas.eosin):
        cv2.GaussianBlur(layer, (5, 5) if sigma < 1.2 else (0, 0), sigma, dst=layer)
    return canvas


def _stencils(
    plan: Layout, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Gland walls, and gaps (lumens, fat, vessels), as 0..255 masks of the whole slide."""
    wall, gap = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for outline in np.rint(plan.glands).astype(np.int32):
        cv2.fillPoly(wall, [outline], 255, lineType=cv2.LINE_AA)
    for outline in np.rint(plan.lumens).astype(np.int32):
        cv2.fillPoly(gap, [outline], int(rng.choice((150, 190, 225, 250))), lineType=cv2.LINE_AA)  # more or less mucus
    for outline in np.rint(plan.holes).astype(np.int32):
        cv2.fillPoly(gap, [outline], 255, lineType=cv2.LINE_AA)
    return wall, gap


def _paint_membranes(spec: SyntheticSpec, plan: Layout, canvas: Canvas) -> None:
    width = max(1, round(spec.px(0.9)))
    for outlines, value in ((plan.glands, 75), (plan.holes, 62)):
        for outline in np.rint(outlines).astype(np.int32):
            cv2.polylines(canvas.eosin, [outline], True, value, width, cv2.LINE_AA)


def _paint_ground(
    plan: Layout,
    canvas: Canvas,
    stencils: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    """Stroma fibres, cytoplasm and gaps, block by block and only where there is tissue."""
    cyto = np.maximum(plan.tumour, plan.sheet)
    layers = (plan.tissue, cyto, plan.lymph, plan.loose, plan.cords, plan.along, plan.across)
    fields = [np.pad(layer, 2, mode="edge") for layer in layers]
    for row, col in _tissue_blocks(plan):
        block = np.s_[row * CELL_PX : row * CELL_PX + BLOCK_PX, col * CELL_PX : col * CELL_PX + BLOCK_PX]
        origin = row * CELL_PX % TEXTURE_PX, col * CELL_PX % TEXTURE_PX
        pieces = [enlarge(field, row, col, CELLS, CELL_PX) for field in fields]
        dyes = _ground_block(pieces, stencils[0][block], stencils[1][block], origin)
        canvas.hematoxylin[block], canvas.eosin[block] = dyes


def _ground_block(
    pieces: list[Field], wall: NDArray[np.uint8], gap: NDArray[np.uint8], origin: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Hematoxylin and eosin of one block without its nuclei."""
    tissue, cyto, lymph, loose, cords, along, across = pieces
    grain = grain_texture()[origin[0] : origin[0] + BLOCK_PX, origin[1] : origin[1] + BLOCK_PX]
    fibre = fibres(along, across + 1.6 * grain)
    fibril = fibres(along * 1.7 + 333, across * 1.7 + along * 0.25 + 777)
    cell = np.clip((cyto + 5 * fibre) / 6 + 0.5, 0, 1)
    cleft_of_cords = np.clip((0.11 - 0.07 * loose - np.abs(cords + 0.02 * grain)) / 0.06, 0, 0.92) * cell
    cell = np.maximum(cell, wall.astype(np.float32) / 255)
    soft = np.clip(lymph / 20 + 0.5, 0, 1) * 0.6
    # Loose stroma is paler and opens into clefts; around lymphocytes the fibres give way to a fine network.
    cleft = np.clip((fibre + 0.5 * fibril + 2.0 - 0.7 * loose) / 0.7, 0.08, 1)
    stroma = 0.48 - 0.08 * loose + (1 - soft) * (0.11 * fibre + 0.07 * fibril) + 0.035 * grain - 0.10 * soft
    stroma *= cleft + (1 - cleft) * soft
    eosin = stroma + (0.42 + 0.05 * grain - stroma) * cell
    hematoxylin = 0.10 + 0.05 * soft + 0.02 * fibril
    hematoxylin += (0.14 + 0.035 * grain - hematoxylin) * cell
    shown = np.clip((tissue + 6 * fibre + 3 * grain) / 4 + 0.5, 0, 1) * (1 - gap.astype(np.float32) * (0.94 / 255))
    shown *= (1 - cleft_of_cords) * np.float32(DYE)
    return _rounded(np.maximum(hematoxylin, 0) * shown), _rounded(np.maximum(eosin, 0.02) * shown)


def _rounded(amount: Field) -> NDArray[np.uint8]:
    return np.asarray(cv2.convertScaleAbs(amount), np.uint8)


def _stain_unevenly(plan: Layout, canvas: Canvas) -> None:
    for field, layer in zip(plan.uptake, (canvas.hematoxylin, canvas.eosin), strict=True):
        padded = np.pad(field, 2, mode="edge")
        for row, col in _tissue_blocks(plan):
            block = np.s_[row * CELL_PX : row * CELL_PX + BLOCK_PX, col * CELL_PX : col * CELL_PX + BLOCK_PX]
            factor = enlarge(padded, row, col, CELLS, CELL_PX)
            layer[block] = cv2.multiply(layer[block], factor, dtype=cv2.CV_8U)


def _tissue_blocks(plan: Layout) -> list[tuple[int, int]]:
    """First layout row and column of every block that has tissue."""
    rows, cols = plan.tissue.shape
    return [
        (row, col)
        for row in range(0, rows, CELLS)
        for col in range(0, cols, CELLS)
        if plan.tissue[row : row + CELLS, col : col + CELLS].max() > -2 * CELL_PX
    ]


def _drop_dust(spec: SyntheticSpec, canvas: Canvas, rng: np.random.Generator) -> None:
    """Specks and a few lint fibres, anywhere on the glass."""
    mm2 = spec.width_px * spec.height_px * spec.mpp**2 / 1e6
    for _ in range(rng.poisson(6 * mm2) + 3):
        x, y = (int(v) for v in rng.uniform((0, 0), (spec.width_px, spec.height_px)))
        axes = tuple(max(1, round(spec.px(v))) for v in rng.uniform(0.5, 2.6, 2))
        value = int(rng.uniform(8, 70))
        cv2.ellipse(canvas.dirt, (x, y), axes, rng.uniform(0, 180), 0, 360, value, -1, cv2.LINE_AA)
    for _ in range(rng.poisson(0.6 * mm2)):
        start = rng.uniform((0, 0), (spec.width_px, spec.height_px))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, 14))
        steps = np.cumsum(np.stack((np.cos(heading), np.sin(heading)), 1) * spec.px(6), axis=0)
        cv2.polylines(canvas.dirt, [np.rint(start + steps).astype(np.int32)], False, 30, 1, cv2.LINE_AA)


class Camera:
    """Turns canvases into RGB tiles: dye colours, illumination, dirt and sensor noise."""

    def __init__(self, spec: SyntheticSpec, canvas: Canvas, rng: np.random.Generator):
        self._canvas, self._table, self._rng = canvas, _colour_table(spec), rng
        self._slope = rng.uniform(-2.5, 2.5, 2) / np.array([spec.width_px, spec.height_px])
        self._noise = sensor_noise() * np.float32(spec.camera.noise)

    def tile(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        """RGB (side, side, 3) at level-0 px (x, y); beyond the canvas it is glass. Tiles are drawn in a fixed order."""
        block = np.s_[y : y + side, x : x + side]
        hematoxylin, eosin, dirt = (
            _padded(layer[block], side) for layer in (self._canvas.hematoxylin, self._canvas.eosin, self._canvas.dirt)
        )
        index = (hematoxylin.astype(np.uint16) << 8) | eosin
        packed = self._table.take(index) if index.any() else np.full((side, side), self._table[0])
        pixels = cv2.cvtColor(packed.view(np.uint8).reshape(side, side, 4), cv2.COLOR_RGBA2RGB)
        if dirt.any():
            pixels = np.rint(pixels * 10 ** (dirt[..., None] / np.float32(-DYE))).astype(np.uint8)
        # The light falls off by less than a grey level from tile to tile, so that one value a tile shows no edge.
        light = float(self._slope @ (x, y))
        row, col = self._rng.integers(0, TEXTURE_PX - side + 1, 2)
        noise = self._noise[row : row + side, col : col + side]
        return np.asarray(cv2.addWeighted(pixels, 1.0, noise, 1.0, light, dtype=cv2.CV_8U), np.uint8)


def _padded(block: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    rows, cols = block.shape
    return block if rows == cols == side else np.pad(block, ((0, side - rows), (0, side - cols)))


def _colour_table(spec: SyntheticSpec) -> NDArray[np.uint32]:
    """RGBA of every pair of dye amounts, packed: (65536,), index = hematoxylin * 256 + eosin (Beer-Lambert)."""
    amount = np.arange(256) / DYE
    density = (
        np.array(spec.dyes.hematoxylin) * amount[:, None, None] * spec.hematoxylin
        + np.array(spec.dyes.eosin) * amount[None, :, None] * spec.eosin
    )
    table = np.full((65_536, 4), 255, np.uint8)
    table[:, :3] = np.rint(np.array(spec.camera.white) * 10**-density).reshape(-1, 3)
    return table.view(np.uint32).ravel()
