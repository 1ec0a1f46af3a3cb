"""Finding lesions: how many are found at how many false alarms a slide (FROC), and the score of CAMELYON16."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, bootstrap

if TYPE_CHECKING:
    from shapely.geometry import Polygon

CAMELYON16 = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a slide at which sensitivity is read
MISSED, IGNORED = -1, -2  # a detection outside every lesion; one in a region that does not count
_BLOCK = 4_000_000  # events of resamples held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One slide's detections and lesions.

    score    float64 (m,) of the detections, more is surer
    hit      int64 (m,) index of the lesion each lies in, MISSED or IGNORED; hits_in_polygons or hits_in_mask make it
    lesions  how many the slide has, those nobody detected too
    """

    score: NDArray[np.float64]
    hit: NDArray[np.int64]
    lesions: int
    patient: str


@dataclass(frozen=True, slots=True)
class Froc:
    """Free-response ROC (Bunch et al., 1977).

    slides, lesions  how many there are
    false_positives  a slide, ascending, and the sensitivity over all lesions from that many on; one point for each
                     distinct score, from (0, 0)
    at               sensitivity at each of CAMELYON16's rates, interpolated linearly
    score            their mean (Ehteshami Bejnordi et al., JAMA 2017)
    """

    slides: int
    lesions: int
    false_positives: tuple[float, ...]
    sensitivity: tuple[float, ...]
    at: tuple[float, ...]
    score: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def hits_in_polygons(
    xy: NDArray[np.floating], lesions: "Sequence[Polygon]", ignored: "Sequence[Polygon]" = ()
) -> NDArray[np.int64]:
    """Which lesion each detection lies in: int64 (m,), index, MISSED or IGNORED.

    xy (m, 2) and polygons in level-0 pixels; a point on the outline is inside; of several lesions the first counts.
    Ignored regions, such as isolated tumour cells, count neither way, a lesion that holds the point comes first.
    """
    import shapely

    given = _points(xy)
    hit = np.full(len(given), MISSED)
    points = shapely.points(given)
    for polygons, named in ((ignored, False), (lesions, True)):
        if not len(polygons) or not len(given):
            continue
        point, polygon = shapely.STRtree(list(polygons)).query(points, predicate="intersects")
        first = np.full(len(given), len(polygons))
        np.minimum.at(first, point, polygon)
        hit = np.where(first < len(polygons), first if named else IGNORED, hit)
    return hit.astype(np.int64)


def hits_in_mask(
    xy: NDArray[np.floating], labels: NDArray[np.integer], scale: float, ignored: Sequence[int] = ()
) -> NDArray[np.int64]:
    """The same from a labelled mask (rows, cols): 0 is no lesion, k is lesion k - 1; a pixel covers `scale` level-0
    pixels, and `ignored` names labels that do not count. Detections beside the mask lie in no lesion."""
    given = _points(xy)
    column, row = np.floor(given / scale).astype(np.int64).T
    inside = (row >= 0) & (column >= 0) & (row < labels.shape[0]) & (column < labels.shape[1])
    label = np.zeros(len(given), np.int64)
    label[inside] = labels[row[inside], column[inside]]
    return np.where(np.isin(label, list(ignored)), IGNORED, label - 1)


def froc(slides: Sequence[Candidates], resamples: int = RESAMPLES, seed: int = 0) -> Froc:
    """FROC of slides with lesions and without.

    A lesion is found with the best score of the detections in it, however many these are; every detection outside all
    lesions is a false positive. Beyond the last false positive sensitivity stays as it is. The score's interval
    resamples patients. Without slides or lesions it is None with its reason.
    """
    for number, slide in enumerate(slides):
        fits = slide.score.shape == slide.hit.shape and np.isfinite(slide.score).all()
        if not fits or slide.hit.min(initial=MISSED) < IGNORED or slide.hit.max(initial=-1) >= slide.lesions:
            problem = f"slide {number} has {slide.score.shape} scores, {slide.hit.shape} hits, {slide.lesions} lesions"
            raise SpecError("detections", problem, "give a finite score and a lesion's index for each")
    lesions = np.array([slide.lesions for slide in slides], np.float64)
    if not len(slides) or not lesions.sum():
        reason = "there is no lesion" if len(slides) else "there are no slides"
        return Froc(len(slides), 0, (), (), (), Estimate(None, reason=reason))
    score, owner, found = _events(slides)
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.zeros(0, np.int64)

    def curve(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False positives a slide and sensitivity, (R, points), from (0, 0)."""
        drawn = weights[:, owner]
        alarms, finds = ((drawn * kind).cumsum(axis=1)[:, last] for kind in (~found, found))
        total, sick = weights.sum(axis=1, keepdims=True), np.maximum(weights @ lesions, 1)[:, None]
        start = np.zeros((len(weights), 1))
        return np.hstack([start, alarms / total]), np.hstack([start, finds / sick])

    def camelyon(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        block = max(1, _BLOCK // (len(score) + 1))
        parts = (weights[start : start + block] for start in range(0, len(weights), block))
        pairs = (pair for part in parts for pair in zip(*curve(part), strict=True))
        means = np.array([np.interp(CAMELYON16, rate, sensitivity).mean() for rate, sensitivity in pairs])
        return np.where(weights @ lesions > 0, means, np.nan)

    rate, sensitivity = (row[0] for row in curve(np.ones((1, len(slides)))))
    at = np.interp(CAMELYON16, rate, sensitivity)
    patients = [slide.patient for slide in slides]
    return Froc(
        len(slides),
        int(lesions.sum()),
        tuple(rate.tolist()),
        tuple(sensitivity.tolist()),
        tuple(at.tolist()),
        bootstrap(camelyon, patients, resamples, seed),
    )


def _events(slides: Sequence[Candidates]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Score, slide and whether a lesion is found, else a false positive; surest first, each (e,)."""
    scores: list[float] = []
    owners: list[int] = []
    kinds: list[bool] = []
    for number, slide in enumerate(slides):
        best = np.full(slide.lesions, -np.inf)
        np.maximum.at(best, slide.hit[slide.hit >= 0], slide.score[slide.hit >= 0])
        finds, alarms = best[np.isfinite(best)].tolist(), slide.score[slide.hit == MISSED].tolist()
        scores += finds + alarms
        owners += [number] * (len(finds) + len(alarms))
        kinds += [True] * len(finds) + [False] * len(alarms)
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    return np.array(scores, np.float64)[order], np.array(owners, np.int64)[order], np.array(kinds, bool)[order]


def _points(xy: NDArray[np.floating]) -> NDArray[np.float64]:
    given = np.asarray(xy, np.float64)
    if given.ndim != 2 or given.shape[1] != 2 or not np.isfinite(given).all():
        raise SpecError("detections", f"shape {given.shape}, or NaN", "give (m, 2) points in level-0 pixels")
    return given
