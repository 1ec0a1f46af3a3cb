"""A table of predictions beside the truth, as everything in this package takes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

TASKS = ("classification", "multilabel", "ordinal", "regression", "cox", "survival")


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """n bags (slides, cases or patients), what was said of each and what is true.

    task        one of TASKS; it fixes what the arrays hold:
                classification  truth int64 (n,) class index    outputs (n, C) softmax or probability, rows sum to 1
                ordinal         the same; classes are in their order
                multilabel      truth int64 (n, C) 0 or 1       outputs (n, C) in [0, 1], each by itself
                regression      truth float64 (n,)              outputs (n, 1), in the target's own unit
                cox             truth float64 (n, 2): time > 0, event 1 or 0 (censored)   outputs (n, 1), log hazard
                survival        the same truth    outputs (n, 1 + T): risk, then the chance to live past each of `times`
    classes     names of the classes or labels; with two classes the last is the positive one. Empty for the others
    ids         of the bags; patients: whom each belongs to, the unit of resampling
    folds       which fold's model said it, where each was said out of fold; else None
    calibrated  whether outputs are probabilities, fitted on held-out data
    times       horizons of `survival`, in the unit of the truth
    columns     further columns of the manifest, for subgroups: name → n texts, "" where unknown
    scores      outputs (n, C) before calibration, by which bags are ranked: maps that differ from fold to fold disturb
                the order of a pooled table. None: `outputs` themselves
    repeats     of the cross-validation, over which each output is the mean
    """

    task: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    truth: NDArray[np.generic]
    outputs: NDArray[np.float64]
    folds: NDArray[np.int64] | None = None
    calibrated: bool = False
    times: tuple[float, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.task not in TASKS:
            raise SpecError("task", f"{self.task!r} is unknown", f"choose one of {', '.join(TASKS)}")
        if len(self.patients) != n or len(self.truth) != n or self.outputs.ndim != 2 or len(self.outputs) != n:
            raise SpecError(
                "predictions",
                f"{n} ids, {len(self.patients)} patients, {len(self.truth)} truths, outputs {self.outputs.shape}",
                "give one of each for every bag",
            )
        if not np.isfinite(self.outputs).all() or not np.isfinite(self.truth.astype(np.float64)).all():
            raise SpecError("predictions", "they hold NaN or infinity", "leave out bags without a prediction")
        if self.scores is not None and (self.scores.shape != self.outputs.shape or not np.isfinite(self.scores).all()):
            problem = f"scores {self.scores.shape} for outputs {self.outputs.shape}, or NaN"
            raise SpecError("predictions", problem, "give the outputs before calibration, one for each")
        if self.repeats < 1:
            raise SpecError("predictions", f"{self.repeats} repeats", "give 1 for a cross-validation without any")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ranking(self) -> NDArray[np.float64]:
        """What bags are ranked by, (n, C): the outputs before calibration where they are known."""
        return self.outputs if self.scores is None else self.scores
