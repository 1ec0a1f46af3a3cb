"""Where things lie on a synthetic slide: tissue, tumour nests, glands, lymphocytes, fat — all before any pixel."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .spec import OBJECTIVE_20X_MPP, SyntheticSpec
from .texture import BLOCK_PX, Field, smooth_noise

CELL_PX = 16  # level-0 px per layout cell and per label of the truth map
NEST_MARGIN_UM = 12.0  # glands keep this distance from tumour
FAR = 1e4  # cells; stands for a distance to nothing
ANGLES = 40  # corners of a gland's outline


@dataclass(frozen=True)
class Layout:
    """Fields have one entry per CELL_PX level-0 px, padded to whole blocks; positive is inside, unit level-0 px.

    tissue, nest, lymph  about the distance to the border of each kind of area, px; `nest` is the truth of the tumour
    tumour, sheet        the same for solid areas of tumour cells (a nest without its strands of stroma) and of
                         normal cells that form no glands
    crowding, loose      smooth noise: density of cells, looseness of the stroma
    cords                ridges where solid areas part into cords of cells, smooth noise with its zeros in the clefts
    uptake               factors on hematoxylin and on eosin: no section stains evenly
    along, across        coordinates of the stroma's fibres in texture px: a fibre runs where `across` is constant
    glands               outer outlines (n, ANGLES, 2), px;  lumens  the inner ones
    holes                outlines (n, ANGLES, 2) of fat cells and vessels, px
    """

    tissue: Field
    nest: Field
    tumour: Field
    sheet: Field
    lymph: Field
    crowding: Field
    loose: Field
    cords: Field
    uptake: tuple[Field, Field]
    along: Field
    across: Field
    glands: Field
    lumens: Field
    holes: Field

    def at(self, field: Field, xy: NDArray) -> Field:
        """Values of a field at level-0 points (n, 2)."""
        limit = np.array(field.shape[::-1]) - 1
        col, row = np.clip((xy / CELL_PX).astype(int), 0, limit).T
        return field[row, col]


def plan_layout(spec: SyntheticSpec, rng: np.random.Generator) -> Layout:
    """Draw the plan of a slide; the same generator state gives the same plan."""
    block = BLOCK_PX // CELL_PX
    rows, cols = (block * -(-side // BLOCK_PX) for side in (spec.height_px, spec.width_px))

    def noise(wavelength_um: float) -> Field:
        return smooth_noise(rng, (rows, cols), spec.px(wavelength_um) / CELL_PX)

    tissue = _tissue(spec, rng, (rows, cols))
    inside = tissue > 0
    nest = _nests(spec, rng, tissue)
    strands = (np.abs(noise(150)) - 0.07) * spec.px(110)
    away = np.minimum(-nest, tissue - spec.px(8))
    # How much there is of each thing differs from slide to slide, with and without tumour.
    sheet = _areas(noise(240) + 0.3 * noise(70), inside, rng.uniform(0.10, 0.26), spec.px(60))
    lymph = _areas(noise(170) + 0.4 * noise(50), inside, rng.uniform(0.08, 0.24), spec.px(45))
    glandular = _areas(noise(380), inside, rng.uniform(0.7, 1.0), spec.px(100))
    fatty = _areas(noise(300), inside, rng.uniform(0.02, 0.09), spec.px(80))
    along, across = _fibres(spec, rng, (rows, cols))
    plan = Layout(
        tissue=tissue,
        nest=nest,
        tumour=np.minimum(nest, strands),
        sheet=np.minimum(np.minimum(sheet, (np.abs(noise(130)) - 0.05) * spec.px(110)), away),
        lymph=np.minimum(lymph, tissue - spec.px(6)),
        crowding=noise(130),
        loose=noise(200),
        cords=noise(75) + 0.35 * noise(24),
        uptake=(_uptake(noise), _uptake(noise)),
        along=along,
        across=across,
        **dict.fromkeys(("glands", "lumens", "holes"), np.empty((0, ANGLES, 2), np.float32)),
    )
    glands, lumens = _glands(spec, rng, plan, glandular)
    return replace(plan, glands=glands, lumens=lumens, holes=_holes(spec, rng, plan, fatty, glands))


def _uptake(noise: Callable[[float], Field]) -> Field:
    return np.clip(1 + 0.2 * noise(420) + 0.12 * noise(140), 0.5, 1.6)


def _fibres(spec: SyntheticSpec, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Field, Field]:
    """Straight fibres, bent on every scale."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) * (CELL_PX * spec.mpp / OBJECTIVE_20X_MPP)
    turn = float(rng.uniform(0, np.pi))

    def bend(amplitude: float, wavelength_um: float) -> Field:
        return np.float32(amplitude) * smooth_noise(rng, shape, spec.px(wavelength_um) / CELL_PX)

    along = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn)) + bend(150, 260)
    across = y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn)) + bend(230, 300) + bend(22, 45) + bend(7, 20)
    return along, across


def _areas(noise: Field, inside: NDArray[np.bool_], share: float, reach_px: float) -> Field:
    """Signed field whose positive part covers `share` of the tissue."""
    if not inside.any():
        return np.full(noise.shape, -reach_px, np.float32)
    return ((noise - np.quantile(noise[inside], 1 - share)) * reach_px).astype(np.float32)


def _tissue(spec: SyntheticSpec, rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Several irregular pieces that leave the rim of the slide free."""
    height, width = spec.height_px / CELL_PX, spec.width_px / CELL_PX
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + 0.5
    area_mm2 = spec.height_px * spec.width_px * spec.mpp**2 / 1e6
    pieces = max(1, round(area_mm2 * spec.tissue / 0.55))
    centres = _spread(rng, pieces) * (0.6 * width, 0.6 * height) + (0.2 * width, 0.2 * height)
    field = np.full(shape, -9.0, np.float32)
    for cx, cy in centres:
        angle, long = rng.uniform(0, np.pi), rng.uniform(1.0, 1.45)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        field = np.maximum(field, 1 - np.hypot(u / long, v * long) / (0.5 * np.sqrt(height * width / pieces)))
    for wavelength_um, weight in ((420, 0.26), (130, 0.10), (45, 0.04), (20, 0.015)):
        field += weight * smooth_noise(rng, shape, spec.px(wavelength_um) / CELL_PX)
    rim = np.minimum(np.minimum(x, width - x) / width, np.minimum(y, height - y) / height)
    rim = rim + 0.03 * smooth_noise(rng, shape, spec.px(240) / CELL_PX)
    field -= 2.2 * (np.clip(0.17 - rim, 0, 0.17) / 0.15) ** 2  # keeps the rim free without a straight edge
    wanted = spec.tissue * height * width
    threshold = np.partition(field.ravel(), -int(wanted) - 1)[-int(wanted) - 1] if wanted >= 1 else field.max() + 1
    inside = (field > threshold).astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance = np.clip(distance, -FAR, FAR)
    # Near the border the field itself is smoother than a distance between cells; far from it the distance is true.
    gradient = np.hypot(*np.gradient(field)) + 1e-4
    near = np.clip((field - threshold) / gradient, -2.5, 2.5)
    return (np.where(np.abs(distance) < 2, near, distance) * CELL_PX).astype(np.float32)


def _spread(rng: np.random.Generator, count: int) -> NDArray:
    """Points in the unit square that keep apart (best of a few candidates each)."""
    points = [rng.random(2)]
    while len(points) < count:
        candidates = rng.random((12, 2))
        distance = np.hypot(*(candidates[:, None] - np.array(points)).T).min(axis=0)
        points.append(candidates[distance.argmax()])
    return np.array(points)


def _nests(spec: SyntheticSpec, rng: np.random.Generator, tissue: Field) -> Field:
    """Union of irregular nests whose centres lie well inside the tissue."""
    field = np.full(tissue.shape, -1e4, np.float32)
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]].astype(np.float32) * CELL_PX + CELL_PX / 2
    wobble = smooth_noise(rng, tissue.shape, spec.px(90) / CELL_PX)
    fringe = smooth_noise(rng, tissue.shape, spec.px(35) / CELL_PX)
    taken = np.zeros(tissue.shape, bool)
    for _ in range(spec.nests):
        radius = spec.px(spec.nest_radius_um) * rng.uniform(0.67, 1.33)
        room = np.where(taken, -1e9, np.minimum(tissue, radius))
        good = np.flatnonzero(room >= max(0.75 * float(room.max()), CELL_PX))
        if good.size == 0:
            break
        row, col = divmod(int(rng.choice(good)), tissue.shape[1])
        angle, long = rng.uniform(0, np.pi), rng.uniform(1.0, 1.3)
        dx, dy = x - (col + 0.5) * CELL_PX, y - (row + 0.5) * CELL_PX
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        distance = np.hypot(u / long, v * long)
        field = np.maximum(field, radius - distance + radius * 0.35 * wobble + min(radius, 90) * 0.2 * fringe)
        taken |= distance < 1.6 * radius
    return np.minimum(field, tissue - CELL_PX)


def _outlines(rng: np.random.Generator, centres: NDArray, radii: NDArray, stretch: float, rough: float) -> Field:
    """Wavy, stretched rings: (n, ANGLES, 2) level-0 px."""
    theta = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    turn, phase = rng.uniform(0, np.pi, (len(centres), 1)), rng.uniform(0, 2 * np.pi, (len(centres), 4, 1))
    long = rng.uniform(1.0, stretch, (len(centres), 1))
    order = np.arange(2, 6)[:, None]
    waves = (rng.normal(0, rough, (len(centres), 4, 1)) / order**0.5 * np.cos(order * theta + phase)).sum(1)
    radius = radii[:, None] * (1 + waves)
    u, v = radius * np.cos(theta) * long, radius * np.sin(theta) / long
    x = centres[:, :1] + u * np.cos(turn) - v * np.sin(turn)
    y = centres[:, 1:] + u * np.sin(turn) + v * np.cos(turn)
    return np.stack((x, y), axis=2).astype(np.float32)


def hex_points(rng: np.random.Generator, shape: tuple[int, int], spacing_px: float, jitter: float) -> NDArray:
    """Jittered hexagonal grid over a field's area: (n, 2) level-0 px in random order."""
    height, width = shape[0] * CELL_PX, shape[1] * CELL_PX
    rows, cols = int(height / (spacing_px * 0.866)) + 1, int(width / spacing_px) + 1
    row, col = np.divmod(np.arange(rows * cols), cols)
    points = np.stack(((col + 0.5 * (row % 2)) * spacing_px, row * spacing_px * 0.866), axis=1)
    points = points + rng.normal(0, jitter * spacing_px, points.shape)
    keep = ((points >= 0) & (points < (width, height))).all(axis=1)
    return rng.permutation(points[keep])


def _glands(spec: SyntheticSpec, rng: np.random.Generator, plan: Layout, glandular: Field) -> tuple[Field, Field]:
    """Gland outlines and their lumens, where the tissue is glandular and there is room."""
    centres = hex_points(rng, plan.tissue.shape, spec.px(76), 0.12)
    radii = spec.px(1) * rng.uniform(24, 38, len(centres))
    wall = spec.px(1) * rng.uniform(12, 17, len(centres))
    room = np.minimum(plan.at(plan.tissue, centres) - radii, -plan.at(plan.nest, centres) - radii)
    room = np.minimum(room, -plan.at(plan.sheet, centres) - 0.5 * radii)
    keep = (room > spec.px(NEST_MARGIN_UM)) & (plan.at(glandular, centres) > 0) & (rng.random(len(centres)) < 0.94)
    keep &= _apart(centres, 1.02 * radii, keep)
    centres, radii, wall = centres[keep], radii[keep], wall[keep]
    outer = _outlines(rng, centres, radii, 1.2, 0.06)
    inward = centres[:, None] - outer
    inner = outer + inward * (wall[:, None] / np.hypot(*inward.transpose(2, 0, 1)))[..., None]
    jag = rng.normal(0, spec.px(0.9), inner.shape)
    return outer, (inner + jag).astype(np.float32)


def _apart(centres: NDArray, radii: NDArray, candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Circles that overlap no earlier one that was kept."""
    kept = np.zeros(len(centres), bool)
    for i in np.flatnonzero(candidates):
        others = np.flatnonzero(kept)
        kept[i] = (np.hypot(*(centres[others] - centres[i]).T) > radii[others] + radii[i]).all()
    return kept


def _holes(spec: SyntheticSpec, rng: np.random.Generator, plan: Layout, fatty: Field, glands: Field) -> Field:
    """Fat cells, packed where the tissue is fatty, and a few vessels; none in a gland."""
    fat = hex_points(rng, plan.tissue.shape, spec.px(43), 0.10)
    vessels = hex_points(rng, plan.tissue.shape, spec.px(260), 0.3)
    centres = np.concatenate((fat, vessels))
    radii = spec.px(1) * np.concatenate((rng.uniform(16, 22, len(fat)), rng.uniform(6, 16, len(vessels))))
    taken = np.ones(plan.tissue.shape, np.uint8)
    for outline in np.rint(glands / CELL_PX - 0.5).astype(np.int32):
        cv2.fillPoly(taken, [outline], 0)
    free = np.minimum(cv2.distanceTransform(taken, cv2.DIST_L2, 3), FAR).astype(np.float32) * CELL_PX
    solid = np.maximum(plan.nest, plan.sheet)
    room = np.minimum(np.minimum(plan.at(plan.tissue, centres), -plan.at(solid, centres)), plan.at(free, centres))
    keep = (room > radii + 4) & ((plan.at(fatty, centres) > 0) | (np.arange(len(centres)) >= len(fat)))
    return _outlines(rng, centres[keep], radii[keep], 1.2, 0.04)
