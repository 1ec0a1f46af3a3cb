"""Where a model's tile scores lie over its training cohort: what a heatmap's colours are spread over.

A range that is kept with the model is the same for every slide that it is ever shown, so colours are comparable between
slides, runs and machines, and no slide has to wait until all others are predicted.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .bag import Bag
from .model import TrainedModel
from .predict import apply_network

SHARES = (1.0, 99.0)  # per cent of the tiles: a single outlier must not take all colours
TILES_OF_A_BAG = 256  # looked at, so that a large slide counts no more than a small one
BAGS = 500
LEAST = 0.02  # of the score's range by definition: narrower, and colours would magnify what is no difference


def tile_ranges(model: TrainedModel, bags: Sequence[Bag]) -> Mapping[str, tuple[float, float]]:
    """(low, high) of each column's tile scores over the cohort, each bag by networks that did not see it.

    Of large cohorts some hundred bags are looked at, evenly spaced. {} where no network is without one of the bags.
    """
    chosen = [bag for bag in bags if bag.tiles]
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, BAGS).astype(int))] if chosen else []
    scores = [found for bag in chosen if (found := _scores(model, bag)) is not None]
    if not scores:
        return {}
    low, high = model.task.limits
    ends = np.percentile(np.concatenate(scores), SHARES, axis=0).clip(low, high)
    least = LEAST * (high - low)
    ranges = {}
    for name, (start, stop) in zip(model.task.columns, ends.T.tolist(), strict=True):
        middle = float(np.clip((start + stop) / 2, low + least / 2, high - least / 2))
        wide = (start, stop) if stop - start >= least else (middle - least / 2, middle + least / 2)
        ranges[name] = (round(wide[0], 6), round(wide[1], 6))
    return ranges


def _scores(model: TrainedModel, bag: Bag) -> NDArray[np.float32] | None:
    """Scores (k, C) of some tiles of the bag, evenly spaced, as `predict` gives them; None where all have seen it."""
    folds = model.folds_without(bag)
    if not folds:
        return None
    rows = np.unique(np.linspace(0, bag.tiles - 1, TILES_OF_A_BAG).astype(int))
    known = None if model.covariates is None else model.covariates.encode([bag])[0]
    features, places = np.asarray(bag.features[rows]), bag.positions()[rows]
    answers = [apply_network(model.network(fold), features, places, known).tiles for fold in folds]
    return np.asarray(model.task.activate(np.mean(answers, axis=0)), np.float32)
