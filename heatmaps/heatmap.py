"""Scores laid on tiles: one slide's answer to "where did the model look, and what did it see there"."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import SpecError

MAX_COORDINATE = 2**31  # level-0 px; far beyond any scanner, and what a stable id has room for


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """One number per tile of one slide, and where the tiles lie. Raises SpecError for anything that does not fit.

    slide_id      the slide's id in the manifest
    name          what the score is, as viewers show it: "tumor softmax", "attention"
    class_name    the class the score speaks for; viewers list the tiles under it
    scores        float32 (n,), finite, within `limits`
    xy            int64 (n, 2), tile top-left corners in level-0 pixels; no place twice
    span_px       side of a tile in level-0 pixels
    limits        (low, high): the score's range by definition, (0, 1) for softmax. Not the range of these values:
                  a colour must mean the same on every slide, and display scaling is chosen at export
    measurements  further numbers per tile by name, each float32 (n,), finite
    failed_xy     int64 (m, 2), tiles that could not be read: they have no score and are shown as "no data"
    origin        what made the scores, such as a model's fingerprint: it tells two models' objects on a slide apart
    """

    slide_id: str
    name: str
    class_name: str
    scores: NDArray[np.float32]
    xy: NDArray[np.int64]
    span_px: int
    limits: tuple[float, float] = (0.0, 1.0)
    measurements: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    failed_xy: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    origin: str = ""

    def __post_init__(self) -> None:
        for field_name in ("slide_id", "name", "class_name"):
            if not getattr(self, field_name).strip():
                raise SpecError(f"heatmap.{field_name}", "is empty", "give it the text that a viewer should show")
        if self.span_px < 1:
            raise SpecError(self.slide_id, f"tiles of {self.span_px} px", "give a tile side of at least 1 level-0 px")
        _check_limits(self)
        _check_numbers(self, self.name, self.scores)
        for name, values in self.measurements.items():
            if name == self.name or not name.strip():
                raise SpecError(self.slide_id, f"measurement named {name!r}", "give each measurement its own name")
            _check_numbers(self, name, values)
        _check_places(self)

    @property
    def n_tiles(self) -> int:
        """Tiles with a score."""
        return len(self.scores)


def build_heatmap(
    slide_id: str,
    scores: Mapping[str, ArrayLike],
    xy: ArrayLike,
    span_px: int,
    class_name: str,
    ok: ArrayLike | None = None,
) -> Heatmap:
    """The heatmap of per-tile numbers in [0, 1]: the first of `scores` is drawn, the others are measurements.

    scores  name -> (n,) one number per tile; those of tiles that are not ok are ignored and may be NaN
    xy      (n, 2) top-left corners in level-0 pixels, all tiles, in the order of the scores
    ok      (n,) bool, False where a tile could not be read; None means that all could
    """
    if not scores:
        raise SpecError(slide_id, "a heatmap without scores", "give at least one score per tile")
    corners = np.asarray(xy, np.int64).reshape(-1, 2)
    good = np.ones(len(corners), bool) if ok is None else np.asarray(ok, bool)
    columns = {name: np.asarray(values, np.float32) for name, values in scores.items()}
    for name, values in columns.items():
        if values.shape != good.shape or good.shape != corners.shape[:1]:
            raise SpecError(
                slide_id, f"{name!r} has shape {values.shape} for {len(corners)} tiles", "give one number per tile"
            )
    (name, drawn), *others = columns.items()
    return Heatmap(
        slide_id=slide_id,
        name=name,
        class_name=class_name,
        scores=drawn[good],
        xy=corners[good],
        span_px=span_px,
        measurements={other: values[good] for other, values in others},
        failed_xy=corners[~good],
    )


def _check_limits(heatmap: Heatmap) -> None:
    low, high = heatmap.limits
    if not (np.isfinite([low, high]).all() and low < high):
        raise SpecError(
            heatmap.slide_id, f"limits {heatmap.limits}", "give (low, high), the score's range by definition"
        )
    if heatmap.n_tiles and heatmap.scores.dtype == np.float32:
        slack = 1e-6 * (high - low)  # a float32 softmax may sum to a hair over 1
        if heatmap.scores.min() < low - slack or heatmap.scores.max() > high + slack:
            raise SpecError(
                heatmap.slide_id,
                f"scores from {heatmap.scores.min():.6g} to {heatmap.scores.max():.6g} outside limits {heatmap.limits}",
                "give as limits the range that the score has by definition",
            )


def _check_numbers(heatmap: Heatmap, name: str, values: NDArray[np.float32]) -> None:
    if values.dtype != np.float32 or values.shape != (len(heatmap.xy),):
        raise SpecError(
            heatmap.slide_id,
            f"{name!r} is {values.dtype} {values.shape} for {len(heatmap.xy)} tiles",
            "give one float32 per tile",
        )
    if not np.isfinite(values).all():
        raise SpecError(
            heatmap.slide_id,
            f"{name!r} has {np.count_nonzero(~np.isfinite(values))} values that are not finite",
            "list the tiles without data in failed_xy",
        )


def _check_places(heatmap: Heatmap) -> None:
    for name, corners in (("xy", heatmap.xy), ("failed_xy", heatmap.failed_xy)):
        if corners.dtype != np.int64 or corners.ndim != 2 or corners.shape[1] != 2:
            raise SpecError(heatmap.slide_id, f"{name} is {corners.dtype} {corners.shape}", "give int64 (n, 2)")
        if corners.size and not (corners.min() >= 0 and corners.max() + heatmap.span_px < MAX_COORDINATE):
            raise SpecError(heatmap.slide_id, f"{name} reaches outside the slide", "give level-0 pixels, 0 to 2^31")
    places = np.concatenate([heatmap.xy, heatmap.failed_xy]) @ np.array([1, MAX_COORDINATE])
    if len(np.unique(places)) != len(places):
        raise SpecError(heatmap.slide_id, "two tiles at one place", "give every tile once, scored or failed")
