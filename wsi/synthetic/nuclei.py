"""Nuclei: small pictures of each kind, drawn once per slide, and where they are put down."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .layout import Layout, hex_points
from .spec import SyntheticSpec
from .texture import Field

DYE = 100.0  # canvas value per unit of dye: canvases are uint8


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of nucleus looks.

    long_um, short_um  (low, high) half axes
    dye                (low, high) amount of hematoxylin inside
    rough              waviness of the outline
    chromatin          contrast of the grains inside, relative to the dye
    rim                extra dye along the membrane, relative
    nucleoli           largest number of nucleoli; each is a dark spot of 1 to 2 µm
    variants           number of pictures
    """

    long_um: tuple[float, float]
    short_um: tuple[float, float]
    dye: tuple[float, float]
    rough: float
    chromatin: float
    rim: float
    nucleoli: int
    variants: int


KINDS = {
    "lymphocyte": Kind((3.0, 3.7), (2.8, 3.3), (1.15, 1.5), 0.03, 0.22, 0.10, 0, 48),
    "epithelial": Kind((4.0, 5.0), (2.7, 3.3), (0.85, 1.1), 0.03, 0.16, 0.18, 0, 96),
    "sheet": Kind((3.7, 4.4), (3.3, 3.8), (0.75, 1.05), 0.03, 0.20, 0.22, 1, 48),
    "spindle": Kind((5.5, 9.0), (1.1, 1.7), (0.85, 1.2), 0.05, 0.12, 0.05, 0, 64),
    "tumour": Kind((5.4, 8.8), (4.2, 6.2), (0.50, 1.05), 0.09, 0.38, 0.35, 3, 96),
}


@dataclass(frozen=True)
class Sprites:
    """Pictures (n, side, side) uint8: `dye` is the hematoxylin, `eosin` the most eosin that stays; angles (n,) rad."""

    dye: NDArray[np.uint8]
    eosin: NDArray[np.uint8]
    angles: NDArray


def draw_sprites(kind: Kind, spec: SyntheticSpec, rng: np.random.Generator) -> Sprites:
    """Draw the variants of a kind, their angles spread evenly over half a turn."""
    n, scale = kind.variants, spec.px(1.0)
    long, short = rng.uniform(*kind.long_um, (n, 1, 1)) * scale, rng.uniform(*kind.short_um, (n, 1, 1)) * scale
    angles = (np.arange(n) / n * np.pi).reshape(n, 1, 1)
    half = int(np.ceil(kind.long_um[1] * scale * (1 + 2 * kind.rough))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u, v = x * np.cos(angles) + y * np.sin(angles), y * np.cos(angles) - x * np.sin(angles)
    theta = np.arctan2(v / short, u / long)
    outline = np.ones_like(theta)
    for order in (2, 3, 5):
        outline += rng.normal(0, kind.rough, (n, 1, 1)) * np.cos(order * theta + rng.uniform(0, 6.3, (n, 1, 1)))
    rho = np.hypot(u / long, v / short) / outline
    alpha = np.clip((1 - rho) * short / 1.2 + 0.5, 0, 1)
    texture = np.stack(
        [cv2.GaussianBlur(piece, (0, 0), 0.45 * scale) for piece in rng.standard_normal(rho.shape, dtype=np.float32)]
    )
    texture *= kind.chromatin * rng.uniform(0.6, 1.2, (n, 1, 1)) / texture.std()
    inner = 1 + texture + kind.rim * np.exp(-(((rho - 0.88) / 0.12) ** 2))
    for spot in range(kind.nucleoli):
        place = rng.uniform(-0.4, 0.4, (2, n, 1, 1))
        size = rng.uniform(0.7, 1.25, (n, 1, 1)) * scale * (rng.random((n, 1, 1)) < (0.95, 0.5, 0.25)[spot])
        distance = np.hypot(u - place[0] * long, v - place[1] * short)
        inner += 0.9 * np.exp(-((distance / np.maximum(size, 0.05)) ** 2))
    dye = rng.uniform(*kind.dye, (n, 1, 1)) * inner * alpha
    eosin = 2.5 - alpha * 1.95
    return Sprites(_to_canvas(dye), _to_canvas(eosin), angles.ravel())


def _to_canvas(amount: NDArray) -> NDArray[np.uint8]:
    return np.clip(amount * DYE, 0, 255).astype(np.uint8)


def stamp(canvases: tuple[NDArray[np.uint8], NDArray[np.uint8]], sprites: Sprites, xy: NDArray, which: NDArray) -> None:
    """Put nuclei down: the darker hematoxylin wins, and eosin is displaced, so the order does not matter.

    canvases  hematoxylin and eosin, (rows, cols) each; xy (n, 2) centres in px; which (n,) index of the picture
    """
    hematoxylin, eosin = canvases
    side = sprites.dye.shape[1]
    corner = np.rint(xy).astype(int) - side // 2
    fits = (corner >= 0).all(axis=1) & (corner + side <= np.array(hematoxylin.shape[::-1])).all(axis=1)
    for (x, y), index in zip(corner[fits].tolist(), which[fits].tolist(), strict=True):
        window = hematoxylin[y : y + side, x : x + side]
        np.maximum(window, sprites.dye[index], out=window)
        window = eosin[y : y + side, x : x + side]
        np.minimum(window, sprites.eosin[index], out=window)


@dataclass(frozen=True)
class Placed:
    """Nuclei of one kind: centres (n, 2) px and angles (n,) rad, NaN where the angle is free."""

    kind: str
    xy: NDArray
    angles: NDArray


def place_nuclei(spec: SyntheticSpec, plan: Layout, rng: np.random.Generator) -> list[Placed]:
    """Where the nuclei of every kind lie."""
    shape = plan.tissue.shape
    free = np.nan

    def grid(spacing_um: float, jitter: float) -> NDArray:
        return hex_points(rng, shape, spec.px(spacing_um), jitter)

    def some(points: NDArray, keep: NDArray[np.bool_], share: NDArray | float) -> NDArray:
        return points[keep & (rng.random(len(points)) < share)]

    tumour = grid(15.5, 0.16)
    tumour = some(tumour, plan.at(plan.tumour, tumour) > 0, 0.9 + 0.25 * plan.at(plan.crowding, tumour))
    sheet = grid(12.5, 0.12)
    sheet = some(sheet, plan.at(plan.sheet, sheet) > 0, 0.95 + 0.1 * plan.at(plan.crowding, sheet))
    lymph = grid(8.6, 0.17)
    depth = plan.at(plan.lymph, lymph) / spec.px(10)
    lymph = some(
        lymph, plan.at(np.minimum(plan.tissue, -plan.tumour), lymph) > 0, np.clip(0.35 + 0.5 * depth, 0.012, 0.93)
    )
    spindle = grid(26, 0.3)
    spindle = some(
        spindle, plan.at(np.minimum(plan.tissue - 6, -np.maximum(plan.tumour, plan.sheet)), spindle) > 0, 0.9
    )
    ring, angles = _ring(spec, plan, rng)
    return [
        Placed("spindle", spindle, np.full(len(spindle), free)),
        Placed("lymphocyte", lymph, np.full(len(lymph), free)),
        Placed("sheet", sheet, np.full(len(sheet), free)),
        Placed("epithelial", ring, angles),
        Placed("tumour", tumour, np.full(len(tumour), free)),
    ]


def _ring(spec: SyntheticSpec, plan: Layout, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Nuclei along each gland's wall, on its outer side, pointing to the lumen."""
    if len(plan.glands) == 0:
        return np.empty((0, 2)), np.empty(0)
    xy, angles = [], []
    closed = np.concatenate((plan.glands, plan.glands[:, :1]), axis=1)
    lumen = np.concatenate((plan.lumens, plan.lumens[:, :1]), axis=1)
    for outer, inner in zip(closed, lumen, strict=True):
        travelled = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(outer, axis=0).T))))
        count = max(6, int(travelled[-1] / spec.px(7.6)))
        at = (np.arange(count) + rng.normal(0, 0.16, count)) * travelled[-1] / count
        wall, rim = (np.stack([np.interp(at, travelled, ring[:, i]) for i in (0, 1)], 1) for ring in (outer, inner))
        depth = rng.uniform(0.36, 0.56, (count, 1))
        xy.append(wall + (rim - wall) * depth)
        angles.append(np.arctan2(*(rim - wall).T[::-1]) + rng.normal(0, 0.16, count))
    return np.concatenate(xy), np.concatenate(angles)


def choose(sprites: Sprites, placed: Placed, rng: np.random.Generator) -> NDArray[np.int64]:
    """Picture for each nucleus: any, or one of those nearest to its angle."""
    n = len(sprites.angles)
    free = rng.integers(0, n, len(placed.xy))
    turned = np.rint(np.nan_to_num(placed.angles) % np.pi / np.pi * n) + rng.integers(-2, 3, len(placed.xy))
    return np.where(np.isnan(placed.angles), free, turned.astype(np.int64) % n)
