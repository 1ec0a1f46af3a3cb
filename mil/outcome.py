"""What out-of-fold logits amount to: figures, probabilities, prediction sets, and the cohort's own spread. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .bag import Bag
from .evaluation.abstain import abstain_threshold
from .evaluation.calibrators import Calibrator, cross_calibrated, fit_calibrator
from .evaluation.conformal import ConformalSpec, fit_conformal
from .evaluation.judge import judge
from .evaluation.judge_parts import JudgeSpec
from .evaluation.outliers import MIN_VECTORS, Outliers, fit_outliers
from .evaluation.predictions import Predictions
from .spec import TrainSpec
from .splits import Partition
from .tasks.task import Task

if TYPE_CHECKING:
    from .train import Part

KINDS = {"classification": "softmax", "multilabel": "sigmoid"}  # tasks whose logits can be calibrated
LEAST_TO_CALIBRATE = 10  # bags; fewer say nothing of a temperature


class Outcome:
    """Logits (n, O) of bags that networks did not see, the mean over repeats, as the networks speak one by one."""

    def __init__(self, bags: int, outputs: int, partition: Partition):
        self.partition = partition
        self._sum, self._count = np.zeros((bags, outputs)), np.zeros(bags, np.int64)

    def hear(self, place: int, places: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """What network `place` says, (m, O), of the bags at `places` (m,)."""
        self._sum[places] += logits
        self._count[places] += 1

    @property
    def logits(self) -> NDArray[np.float32]:
        """float32 (n, O); 0 for bags of which no network spoke."""
        return (self._sum / np.maximum(self._count, 1)[:, None]).astype(np.float32)

    @property
    def tested(self) -> NDArray[np.int64]:
        """Places of the bags that figures are made of."""
        return np.flatnonzero(self.partition.folds_of[0] >= 0)

    @property
    def folds(self) -> NDArray[np.int64]:
        """Fold of each tested bag, (m,): of the first repeat, where there are several."""
        return self.partition.folds_of[0][self.tested]

    @property
    def validated(self) -> NDArray[np.int64] | None:
        """Places of the fixed validation part; None where validation parts were drawn."""
        fixed = self.partition.validation
        return None if fixed is None else np.flatnonzero(fixed)


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """Figures of the raw and of the calibrated outputs, what makes probabilities, and what the reader must know."""

    metrics: Mapping[str, Any]
    calibrator: Calibrator
    conformal: Mapping[str, Any]
    notes: tuple[str, ...]


def assess(task: Task, part: "Part", patients: Sequence[str], outcome: Outcome, spec: TrainSpec) -> Assessment:
    """Judge a cross-validation: `raw` outputs, and `calibrated` ones where the task has probabilities.

    Reported probabilities are cross-calibrated: those of a fold come from a calibrator fitted on the others. The one
    that is kept is fitted on all bags that networks had not seen; with a fixed division, on its validation part.
    """
    places, folds = outcome.tested, outcome.folds
    logits, truth = outcome.logits[places], part.truth[places]
    table = _Table(task, part.at(places).bags, [patients[int(i)] for i in places], truth, folds, spec.stratify)
    options = JudgeSpec(subgroups=spec.stratify)
    metrics = {"raw": judge(table.of(task.activate(logits), calibrated=False), spec.seed, options)}
    calibrator, probabilities, notes = _calibrated(task, part, outcome, spec.calibrate)
    conformal: dict[str, Any] = {}
    if probabilities is not None:
        metrics["calibrated"] = judge(table.of(probabilities, calibrated=True), spec.seed, options)
        if task.name == "classification":
            conformal = _rules(probabilities, truth.astype(np.int64), table.patients, options)
    return Assessment(metrics, calibrator, conformal, tuple(notes))


def cohort_outliers(part: "Part", patients: Sequence[str], outcome: Outcome) -> tuple[Outliers | None, list[str]]:
    """What tells slides unlike those trained on, by their mean embeddings; None, and why, for small cohorts."""
    fixed = outcome.partition.validation is not None
    places = np.flatnonzero(outcome.partition.folds_of[0] < 0) if fixed else np.arange(len(part))
    if len(places) < MIN_VECTORS:
        return None, [f"slides unlike the cohort cannot be told: it has {len(places)}, fewer than {MIN_VECTORS}"]
    means = np.stack([np.asarray(part.bags[i].features).mean(axis=0, dtype=np.float64) for i in places.tolist()])
    try:
        return fit_outliers(means, [patients[i] for i in places.tolist()]), []
    except SpecError as error:  # too few patients, or bags without any spread: a model is of use all the same
        return None, [f"slides unlike the cohort cannot be told: {error.problem}"]


def truth_text(task: Task, bag: Bag) -> str:
    """What the manifest says is true of a bag, "" where it says nothing."""
    columns = (task.spec.time, task.spec.event) if task.spec.is_survival else (task.spec.target,)
    return " ".join(
        f"{column}={bag.value(column)}" if len(columns) > 1 else bag.value(column) or "" for column in columns
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """What is known of the tested bags, into which outputs are put."""

    task: Task
    bags: Sequence[Bag]
    patients: Sequence[str]
    truth: NDArray[np.generic]
    folds: NDArray[np.int64]
    columns: Sequence[str]

    def of(self, outputs: NDArray[np.floating], calibrated: bool) -> Predictions:
        return Predictions(
            task=self.task.name,
            classes=self.task.classes,
            ids=tuple(bag.name for bag in self.bags),
            patients=tuple(self.patients),
            truth=self.truth,
            outputs=np.asarray(outputs, np.float64),
            folds=self.folds,
            calibrated=calibrated,
            times=self.task.times,
            columns={name: tuple(bag.value(name) or "" for bag in self.bags) for name in self.columns},
        )


def _calibrated(
    task: Task, part: "Part", outcome: Outcome, method: str
) -> tuple[Calibrator, NDArray[np.float64] | None, list[str]]:
    """The calibrator to keep, probabilities of the tested bags that it was not fitted on, and notes; None without."""
    none = Calibrator("none", KINDS.get(task.name, "softmax"), task.outputs, {})
    if method == "none" or task.name not in KINDS:
        return none, None, []
    kind, tested, validated = KINDS[task.name], outcome.tested, outcome.validated
    fitted_on = tested if validated is None else validated
    logits, truth = outcome.logits, part.truth.astype(np.int64)
    if len(fitted_on) < LEAST_TO_CALIBRATE or not _complete(truth[fitted_on], task):
        problem = f"{len(fitted_on)} held-out bags, or a class without one among them, are too few to calibrate on"
        return none, None, [f"{problem}: outputs are no probabilities"]
    calibrator = fit_calibrator(logits[fitted_on], truth[fitted_on], method, kind=kind)
    if validated is not None:
        told = f"calibrated on the {len(validated)} bags of the validation part, which also decided when to stop"
        return calibrator, calibrator.apply(logits[tested]), [told]
    return calibrator, cross_calibrated(logits[tested], truth[tested], outcome.folds, method, kind), []


def _complete(truth: NDArray[np.int64], task: Task) -> bool:
    """Whether every class, or each label and its absence, has a bag."""
    if truth.ndim == 2:
        return bool((truth.any(axis=0) & ~truth.all(axis=0)).all())
    return len(np.unique(truth)) == len(task.classes)


def _rules(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64], patients: Sequence[str], options: JudgeSpec
) -> dict[str, Any]:
    """Thresholds of prediction sets and of abstaining, from held-out probabilities (m, C)."""
    sets = fit_conformal(probabilities, truth, ConformalSpec(options.alpha), patients)
    abstain = abstain_threshold(probabilities, truth, options.risk, patients)
    return {"sets": sets.as_dict(), "abstain": abstain.as_dict()}
