"""What out-of-fold logits amount to: figures, probabilities, prediction sets, and the cohort's own spread. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.missing import said

from .bag import Bag
from .evaluation.calibrators import Calibrator, cross_calibrated, feasible_method, fit_calibrator
from .evaluation.judge import judge
from .evaluation.judge_parts import JudgeSpec
from .evaluation.outliers import MIN_VECTORS, Outliers, fit_outliers
from .evaluation.predictions import Predictions
from .evaluation.rules import RuleSpec, fit_rules, patient_parts
from .spec import TrainSpec
from .splits import Partition
from .tasks.task import Task

if TYPE_CHECKING:
    from .train import Part

KINDS = {"classification": "softmax", "multilabel": "sigmoid"}  # tasks whose logits can be calibrated
LEAST_TO_CALIBRATE = 10  # patients; fewer say nothing of a calibration


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
    that is kept, and the thresholds of sets and of abstaining, are fitted on all bags that networks had not seen; with
    a fixed division, on its validation part, so that its test part only tests.
    """
    table = _Table(task, part, patients, outcome, spec.stratify)
    options = JudgeSpec(subgroups=spec.stratify)
    raw = np.asarray(task.activate(outcome.logits[outcome.tested]), np.float64)
    metrics = {"raw": judge(table.of(raw), spec.seed, options)}
    calibrator, probabilities, notes = _calibrated(task, part, patients, outcome, spec.calibrate)
    conformal: dict[str, Any] = {}
    if probabilities is not None:
        metrics["calibrated"] = judge(table.of(probabilities, scores=raw), spec.seed, options)
        if task.name == "classification":
            promised = RuleSpec(options.alpha, options.risk)
            conformal = _rules(part, patients, outcome, calibrator.method, promised)
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
    part: "Part"
    patients: Sequence[str]
    outcome: Outcome
    columns: Sequence[str]

    def of(self, outputs: NDArray[np.float64], scores: NDArray[np.float64] | None = None) -> Predictions:
        """scores: the outputs before calibration, where `outputs` are calibrated."""
        places = self.outcome.tested
        bags = self.part.at(places).bags
        return Predictions(
            task=self.task.name,
            classes=self.task.classes,
            ids=tuple(bag.name for bag in bags),
            patients=tuple(self.patients[i] for i in places.tolist()),
            truth=self.part.truth[places],
            outputs=outputs,
            folds=self.outcome.folds,
            calibrated=scores is not None,
            times=self.task.times,
            columns={name: tuple(said(bag.value(name)) for bag in bags) for name in self.columns},
            scores=scores,
            repeats=self.outcome.partition.repeats,
        )


def _calibrated(
    task: Task, part: "Part", patients: Sequence[str], outcome: Outcome, wanted: str
) -> tuple[Calibrator, NDArray[np.float64] | None, list[str]]:
    """The calibrator to keep, probabilities of the tested bags that it was not fitted on, and notes; None without.

    Where the bags outside a fold cannot be fitted by the wanted method, what is kept is of the simpler one, too: for
    bags of the cohort it is fitted anew without their fold.
    """
    none = Calibrator("none", KINDS.get(task.name, "softmax"), task.outputs, {})
    if wanted == "none" or task.name not in KINDS:
        return none, None, []
    kind, tested, validated = KINDS[task.name], outcome.tested, outcome.validated
    fitted_on = tested if validated is None else validated
    people = len({patients[i] for i in fitted_on.tolist()})
    if people < LEAST_TO_CALIBRATE:
        return none, None, [f"{people} patients held out are too few to calibrate on: outputs are no probabilities"]
    logits, truth = outcome.logits, part.truth.astype(np.int64)
    method = feasible_method(wanted, truth[fitted_on], task.outputs, outcome.folds if validated is None else None)
    told = [] if method == wanted else [_fallen(wanted, method, validated is None)]
    if method == "none":
        return none, None, told
    calibrator = fit_calibrator(logits[fitted_on], truth[fitted_on], method, kind=kind)
    if calibrator.flat:
        told.append("held-out bags are ranked no better than by chance: calibrated, all have the shares of the classes")
    if validated is None:
        return calibrator, cross_calibrated(logits[tested], truth[tested], outcome.folds, method, kind), told
    told.append(
        f"calibrated on the {len(validated)} bags of the validation part, which also decided when to stop; thresholds "
        "of prediction sets and of abstaining are from there, too"
    )
    return calibrator, calibrator.apply(logits[tested]), told


def _fallen(wanted: str, method: str, crossed: bool) -> str:
    where = "among the bags outside of some fold" if crossed else "in the validation part"
    instead = "outputs are no probabilities" if method == "none" else f"a {method} is fitted instead"
    return f"{where} a class, or a label or its absence, has no bag, so that {wanted} cannot be fitted: {instead}"


def _rules(part: "Part", patients: Sequence[str], outcome: Outcome, method: str, promised: RuleSpec) -> dict[str, Any]:
    """Thresholds of prediction sets and of abstaining: see `evaluation.rules`."""
    places = outcome.tested if outcome.validated is None else outcome.validated
    people = [patients[i] for i in places.tolist()]
    folds = outcome.folds if outcome.validated is None else patient_parts(people)
    return fit_rules(outcome.logits[places], part.truth[places].astype(np.int64), people, folds, method, promised)
