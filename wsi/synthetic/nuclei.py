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
    halo               how much eosin is missing around the nucleus, 0..1
    variants           number of pictures
    """

    long_um: tuple[float, float]
    short_um: tuple[float, float]
    dye: tuple[float, float]
    rough: float
    chromatin: float
    rim: float
    nucleoli: int
    halo: float
    variants: int


KINDS = {
    "lymphocyte": Kind((3.0, 3.8), (2.7, 3.3), (0.95, 1.4), 0.04, 0.26, 0.10, 0, 0.10, 64),
    "epithelial": Kind((4.0, 5.2), (2.6, 3.3), (0.70, 1.05), 0.04, 0.18, 0.20, 0, 0.10, 96),
    "sheet": Kind((3.7, 4.5), (3.2, 3.8), (0.62, 0.98), 0.04, 0.22, 0.24, 1, 0.25, 64),
    "spindle": Kind((5.0, 9.0), (1.2, 2.1), (0.75, 1.15), 0.06, 0.15, 0.05, 0, 0.05, 96),
    "tumour": Kind((4.7, 8.4), (3.8, 5.8), (0.34, 0.82), 0.10, 0.36, 0.45, 3, 0.20, 96),
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
        outline += rng.normal(0, kind.rough * 2 / order, (n, 1, 1)) * np.cos(
            order * theta + rng.uniform(0, 6.3, (n, 1, 1))
        )
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
    halo = kind.halo * rng.uniform(0.2, 1.6, (n, 1, 1)) * np.clip(1.45 - rho, 0, 0.45) / 0.45
    eosin = np.where(halo > 0.01, 0.55 * (1 - halo), 2.5)
    eosin += (0.30 - eosin) * alpha
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


def place_nuclei(spec: SyntheticSpec, plan: Layout, taken: NDArray[np.bool_], rng: np.random.Generator) -> list[Placed]:
    """Where the nuclei of every kind lie. taken  (rows, cols) of level-0 px: gland walls and gaps"""
    shape = plan.tissue.shape
    solid = np.maximum(plan.tumour, plan.sheet)

    def grid(spacing_um: float, jitter: float) -> NDArray:
        return hex_points(rng, shape, spec.px(spacing_um), jitter)

    def some(points: NDArray, where: Field, share: NDArray | float) -> NDArray:
        col, row = points.astype(int).T
        return points[(plan.at(where, points) > 0) & ~taken[row, col] & (rng.random(len(points)) < share)]

    tumour = grid(17.0, 0.16)
    tumour = some(tumour, plan.tumour, 0.86 + 0.4 * plan.at(plan.crowding, tumour))
    sheet = grid(12.0, 0.17)
    sheet = some(sheet, plan.sheet, 0.88 + 0.3 * plan.at(plan.crowding, sheet))
    lymph = grid(8.6, 0.18)
    depth, scattered = plan.at(plan.lymph, lymph) / spec.px(10), rng.uniform(0.02, 0.07)
    lymph = some(lymph, np.minimum(plan.tissue, -solid), np.clip(0.35 + 0.5 * depth, scattered, 0.9))
    spindle = grid(17, 0.3)
    spindle = some(
        spindle,
        np.minimum(plan.tissue - spec.px(3), -solid).astype(np.float32),
        0.8 - 0.3 * plan.at(plan.loose, spindle),
    )
    slope_y, slope_x = (np.asarray(part, np.float32) for part in np.gradient(plan.across))
    fibre = np.arctan2(plan.at(slope_y, spindle), plan.at(slope_x, spindle)) + np.pi / 2
    ring, angles = _ring(spec, plan, rng)
    free = [Placed(name, xy, np.full(len(xy), np.nan)) for name, xy in
            (("lymphocyte", lymph), ("sheet", sheet), ("tumour", tumour))]  # fmt: skip
    return [
        Placed("spindle", spindle, fibre + rng.normal(0, 0.2, len(fibre))),
        Placed("epithelial", ring, angles),
        *free,
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
        count = max(6, int(travelled[-1] / spec.px(6.9)))
        at = (np.arange(count) + rng.normal(0, 0.16, count)) * travelled[-1] / count
        wall, rim = (np.stack([np.interp(at, travelled, ring[:, i]) for i in (0, 1)], 1) for ring in (outer, inner))
        depth = rng.uniform(0.28, 0.60, (count, 1))
        xy.append(wall + (rim - wall) * depth)
        angles.append(np.arctan2(*(rim - wall).T[::-1]) + rng.normal(0, 0.16, count))
    return np.concatenate(xy), np.concatenate(angles)


def choose(sprites: Sprites, placed: Placed, rng: np.random.Generator) -> NDArray[np.int64]:
    """Picture for each nucleus: any, or one of those nearest to its angle."""
    n = len(sprites.angles)
    free = rng.integers(0, n, len(placed.xy))
    turned = np.rint(np.nan_to_num(placed.angles) % np.pi / np.pi * n) + rng.integers(-2, 3, len(placed.xy))
    return np.where(np.isnan(placed.angles), free, turned.astype(np.int64) % n)
