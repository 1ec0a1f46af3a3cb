"""Whether a map marks the right places: regions against regions, and tile scores against regions.

Masks are bool arrays [row, col], True is marked. What is compared with an empty mask is settled here once: two empty
masks agree on nothing, so no figure is defined and the slide is left out of means; against one empty mask Dice and
IoU are 0, and no distance is defined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .calibration import mean_loss
from .estimate import RESAMPLES, Estimate, bootstrap

if TYPE_CHECKING:
    from shapely.geometry import Polygon

_LATTICE = 64  # more cells than this for each tile, and tiles are no grid


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of one slide's two masks: dice and iou in [0, 1], hd95_um in µm; None where not defined, `reason` says why."""

    dice: float | None
    iou: float | None
    hd95_um: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TileAuroc:
    """Chance that a tile inside a region scores above one outside.

    pooled     over the tiles of all slides together: scores must mean the same on every slide
    per_slide  within each slide, None where it lacks tiles of one kind; mean is over the others, slides alike
    """

    pooled: Estimate
    mean: Estimate
    per_slide: tuple[float | None, ...]


def overlap(predicted: NDArray[np.bool_], annotated: NDArray[np.bool_], mpp: float) -> Overlap:
    """Dice, IoU and the 95th percentile of the Hausdorff distance (Huttenlocher et al., 1993) of two masks.

    Both (rows, cols), of pixels `mpp` µm wide. Distances are between the centres of boundary pixels, those with a
    4-neighbour that is not marked or at the image's edge; of the two directed 95th percentiles the larger counts, as
    in Metrics Reloaded (Maier-Hein et al., Nature Methods 2024). Raises SpecError for shapes that differ, masks that
    are not bool, and mpp not above 0.
    """
    if predicted.shape != annotated.shape or predicted.ndim != 2 or not mpp > 0:
        raise SpecError("masks", f"shapes {predicted.shape}, {annotated.shape}, mpp {mpp}", "give two of one size")
    if predicted.dtype != np.bool_ or annotated.dtype != np.bool_:
        raise SpecError("masks", f"of {predicted.dtype} and {annotated.dtype}", "give bool, True is marked")
    marked, drawn = int(predicted.sum()), int(annotated.sum())
    if not marked and not drawn:
        return Overlap(None, None, None, "both masks are empty")
    both = int((predicted & annotated).sum())
    dice, iou = 2 * both / (marked + drawn), both / (marked + drawn - both)
    if not marked or not drawn:
        return Overlap(dice, iou, None, f"the {'annotated' if marked else 'predicted'} mask is empty")
    return Overlap(dice, iou, _hausdorff(_boundary(predicted), _boundary(annotated)) * mpp)


def mean_over_slides(
    values: Sequence[float | None], patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of a figure over the slides that have one, with its interval over their patients."""
    if len(values) != len(patients):
        raise SpecError("patients", f"{len(patients)} for {len(values)} slides", "give one for each")
    found = [(value, patient) for value, patient in zip(values, patients, strict=True) if value is not None]
    if not found:
        return Estimate(None, reason="it is not defined on any slide")
    given = np.array([value for value, _ in found])
    return bootstrap(mean_loss(given), [patient for _, patient in found], resamples, seed)


def tiles_against_regions(xy: NDArray[np.integer], span_px: int, regions: "Sequence[Polygon]") -> NDArray[np.float64]:
    """Share of each tile that lies in annotated polygons, exactly: (n,) in [0, 1].

    xy (n, 2) upper left corners and span_px the side, in level-0 pixels, as are the polygons, which may overlap (an
    area counts once) and be invalid (they are mended by structure). Raises SpecError for a span not above 0.
    """
    import shapely

    corners = np.asarray(xy, np.int64)
    if corners.ndim != 2 or corners.shape[1] != 2 or span_px <= 0:
        raise SpecError("tiles", f"shape {corners.shape}, span {span_px} px", "give (n, 2) corners, a span above 0")
    drawn = shapely.make_valid(np.asarray(list(regions), object), method="structure", keep_collapsed=False)
    whole = shapely.union_all(drawn)
    if not len(corners) or whole.is_empty:
        return np.zeros(len(corners))
    (columns, column), (rows, row) = (np.unique(corners[:, k], return_inverse=True) for k in (0, 1))
    if len(columns) * len(rows) <= _LATTICE * len(corners):
        from tiling.regions import lattice_share

        return lattice_share(whole, columns, rows, span_px)[row, column]
    boxes = shapely.box(*corners.T, *(corners + span_px).T)
    tile, part = shapely.STRtree(shapely.get_parts(whole)).query(boxes, predicate="intersects")
    area = shapely.area(shapely.intersection(boxes[tile], shapely.get_parts(whole)[part]))
    return np.clip(np.bincount(tile, area, len(corners)) / span_px**2, 0, 1)


def tile_auroc(
    scores: Sequence[NDArray[np.floating]],
    inside: Sequence[NDArray[np.bool_]],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TileAuroc:
    """AUROC of tile scores, ties half: of each slide scores (n_s,), whether a tile is inside (n_s,), and its patient.

    Tiles of undecided truth (partly covered) are for the caller to leave out. The pooled figure is made of wins of
    slides' positive over slides' negative tiles, once, so that thousands of resamples of patients cost no more.
    """
    if not len(scores) == len(inside) == len(patients):
        raise SpecError("tiles", f"{len(scores)}, {len(inside)}, {len(patients)} slides", "give one of each")
    for score, truth in zip(scores, inside, strict=True):
        if np.shape(score) != np.shape(truth) or not np.isfinite(score).all():
            raise SpecError("tiles", f"shapes {np.shape(score)}, {np.shape(truth)}, or NaN", "one score for each tile")
    wins, pairs = _slide_wins(scores, inside)
    own = zip(np.diag(wins).tolist(), np.diag(pairs).tolist(), strict=True)
    per_slide = tuple(won / of if of else None for won, of in own)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        won, of = ((weights @ table * weights).sum(axis=1) for table in (wins, pairs))
        return np.divide(won, of, out=np.full(len(of), np.nan), where=of > 0)

    pooled = bootstrap(statistic, patients, resamples, seed) if pairs.sum() else Estimate(None, reason=_LACKING)
    return TileAuroc(pooled, mean_over_slides(per_slide, patients, resamples, seed), per_slide)


_LACKING = "no tile is inside a region, or none is outside"


def _slide_wins(
    scores: Sequence[NDArray[np.floating]], inside: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs that slide s' tiles inside win against slide t's outside, ties half, and how many there are: (S, S)."""
    positive = [
        np.sort(np.asarray(score)[np.asarray(truth, bool)]) for score, truth in zip(scores, inside, strict=True)
    ]
    negative = [
        np.sort(np.asarray(score)[~np.asarray(truth, bool)]) for score, truth in zip(scores, inside, strict=True)
    ]
    counts = np.array([len(part) for part in positive])
    wins = np.zeros((len(scores), len(scores)))
    if counts.sum():
        every, slide = np.concatenate(positive), np.repeat(np.arange(len(scores)), counts)
        for t, below in enumerate(negative):
            beaten = np.searchsorted(below, every, side="left") + np.searchsorted(below, every, side="right")
            wins[:, t] = np.bincount(slide, beaten / 2, len(scores))
    return wins, np.outer(counts, [len(part) for part in negative]).astype(np.float64)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(row, col) of the boundary pixels, (n, 2)."""
    padded = np.pad(mask, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~core)


def _hausdorff(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Larger of the directed 95th percentiles of nearest distances, in pixels."""
    from scipy.spatial import KDTree

    directed = (KDTree(target).query(points)[0] for points, target in ((a, b), (b, a)))
    return float(max(np.percentile(distances, 95) for distances in directed))
