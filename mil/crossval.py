"""Bags and their truth → one network per patient-wise fold, and what they say of the bags they did not see."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.devices import best_device
from wsi.errors import SpecError
from wsi.publish import fingerprint

from .bag import Bag, require_contract
from .beside import Beside, beside_cohort, joined
from .checkpoint import Checkpoints
from .covariates import Covariates
from .heads import HEADS
from .model import CohortRow, TrainedModel, current_versions
from .outcome import Outcome, assess, cohort_outliers, truth_text
from .spec import HeadSpec, TrainSpec
from .split_files import partition_table, read_partition, write_partition
from .splits import Partition, Strata, draw_partition, validation_part, who
from .tasks import make_task
from .tasks.task import Task
from .train import Part, Report, Run, logits_of, rate_at, train_one

if TYPE_CHECKING:
    from .tracking import Tracker

MERGED = ("multilabel", "regression", "cox", "survival")  # their strata are bands or combinations, some of them rare

Progress = Callable[[int, int, float, float | None], None]
"""Called after every epoch with the network's place in the model and epoch (from 0), training loss, validation loss
(None without such a part). Of networks and epochs that a resumed training already has, nothing is said."""


def cross_validate(
    bags: Sequence[Bag],
    spec: TrainSpec | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    resume: str | Path | None = None,
    tracker: "Tracker | None" = None,
) -> TrainedModel:
    """Train one network per fold and repeat, and let each speak of the bags it did not see.

    bags      those of regions (see Bag) are no part of the cohort: networks that do not hold their patient back learn
              from them beside it, and no figure is made of them
    classes   order of the outputs, the positive one last; `spec.task.classes` when not given
    resume    folder of splits.csv and of checkpoints: a training that was killed goes on from there and ends with the
              same weights. Only the very same training does; when it is finished the folder may be removed
    tracker   hears of every network and epoch, of a resumed training also those before
    Raises ManifestError for a bag whose truth is missing or cannot be read, SpecError for a cohort too small for the
    folds or a setting that does not fit it, and BackboneError for embeddings of different contracts.
    """
    bags, regions = [bag for bag in bags if not bag.region], [bag for bag in bags if bag.region]
    cohort = gather(bags, spec or TrainSpec(), classes)
    partition = _partition(bags, cohort)
    networks = range(partition.repeats * partition.folds)
    parts = [fold_parts(cohort, partition, place) for place in networks]  # all: a bad fold is said before hours of work
    beside = beside_cohort(regions, cohort, partition)
    if resume is not None:
        write_partition(Path(resume), partition, cohort.bags, cohort.truths, cohort.spec.stratify)
    mark = _mark(cohort, partition, regions)
    watch = Watch(progress, tracker, None if resume is None else Checkpoints(Path(resume), mark))
    if tracker is not None:
        tracker.start(mark, _settings(cohort))
    outcome = Outcome(len(cohort.part), cohort.task.outputs, partition)
    weights, histories = [], []
    for place in networks:
        trained = _network(cohort, partition, place, parts[place], watch, beside)
        weights.append({name: tensor.numpy() for name, tensor in trained.weights.items()})
        histories.append(trained.history)
        outcome.hear(place, trained.places, trained.logits.numpy())
    model = _assembled(bags, cohort, partition, outcome, (weights, histories))
    if beside is not None:
        rows, notes = beside.rows(cohort, partition, parts), [*model.metrics["notes"], beside.told()]
        model = replace(model, regions=tuple(rows), metrics={**model.metrics, "notes": notes})
    if tracker is not None:
        tracker.end(_summary(model))
    return model


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Bags with tiles, all of one contract, with what is to be trained on them."""

    part: Part
    task: Task
    spec: TrainSpec
    head: HeadSpec
    covariates: Covariates | None
    patients: tuple[str, ...]
    device: str

    @property
    def bags(self) -> Sequence[Bag]:
        return self.part.bags

    @property
    def truths(self) -> list[str]:
        """What is true of each bag, as text."""
        return [truth_text(self.task, bag) for bag in self.bags]


@dataclass(frozen=True, slots=True)
class Watch:
    """Who hears of a training, and where it is kept."""

    progress: Progress | None = None
    tracker: "Tracker | None" = None
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A finished network: its weights, how its training went, and its logits (m, O) for the bags at `places`."""

    weights: Mapping[str, torch.Tensor]
    history: dict[str, Any]
    places: NDArray[np.int64]
    logits: torch.Tensor


def gather(bags: Sequence[Bag], spec: TrainSpec, classes: Sequence[str] | None = None) -> Cohort:
    """The bags that have tiles, checked against each other and against the settings. Raises as `cross_validate`."""
    with_tiles = [bag for bag in bags if bag.tiles]
    if not with_tiles:
        raise SpecError("bags", "none has any tiles", "check tissue detection on these slides")
    first = with_tiles[0]
    for bag in with_tiles[1:]:
        require_contract(bag, first.contract, first.contract_hash, first.dim)
        if spec.views and (bag.views is None) != (first.views is None):
            raise SpecError(bag.name, "only some bags have several views", "embed all slides with the same --views")
    if spec.views and first.views is None:
        raise SpecError("views", "the embeddings hold one view of each tile", "embed with --views, or set it to false")
    if classes is not None:
        spec = replace(spec, task=replace(spec.task, classes=tuple(classes)))
    if spec.head in HEADS and getattr(HEADS[spec.head], "classes_only", False) and spec.task.name != "classification":
        problem = f"{spec.head} needs one class per bag, and cannot be trained for {spec.task.name}"
        raise SpecError("head", problem, "choose another head, such as abmil")
    task = make_task(spec.task, with_tiles)
    covariates = Covariates.of_cohort(spec.covariates, with_tiles) if spec.covariates else None
    known = None if covariates is None else covariates.encode(with_tiles)
    head = spec.head_spec(first.dim, task.outputs, 0 if known is None else known.shape[1], first.blocks)
    part = Part(with_tiles, task.truth(with_tiles), known)
    return Cohort(part, task, spec, head, covariates, tuple(who(with_tiles)), best_device(spec.device))


def fold_parts(cohort: Cohort, partition: Partition, place: int) -> tuple[NDArray[np.int64], ...]:
    """Places in the cohort of the bags that a network is trained on, stopped by, and tested on: int64 each.

    Raises SpecError where the training part cannot teach the task: a class or all events are missing from it.
    """
    fold_of = partition.folds_of[place // partition.folds]
    tested = fold_of == place % partition.folds
    rest = np.flatnonzero(~tested)
    if partition.validation is not None:
        held = partition.validation[rest]
    else:
        held = inner_validation(cohort, rest, _seed(cohort.spec, place))
    training = rest[~held]
    _require_learnable(cohort, training, rest[held], place)
    return training, rest[held], np.flatnonzero(tested)


def inner_validation(cohort: Cohort, places: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which of the bags at `places` decide when to stop, bool (len(places),): about a fifth, by patient.

    Nothing where they could not say so: a class, or any event, would be missing from them or from the others.
    """
    truth = cohort.part.truth[places]
    merge = cohort.task.name in ("multilabel", "regression")
    held = validation_part([cohort.patients[i] for i in places], cohort.task.strata(truth), seed, merge)
    if cohort.task.spec.is_survival and not (truth[held, 1].any() and truth[~held, 1].any()):
        return np.zeros(len(places), bool)
    return held


def _partition(bags: Sequence[Bag], cohort: Cohort) -> Partition:
    """Read from the file that the settings name, else drawn."""
    spec, task = cohort.spec, cohort.task
    if spec.splits is not None:
        partition = read_partition(spec.splits, bags)
    else:
        strata = task.strata(cohort.part.truth)
        options = Strata(spec.stratify, task.name in MERGED)
        partition = draw_partition(cohort.bags, strata, spec.folds, spec.repeats, spec.seed, options)
    table = partition_table(partition, cohort.bags, cohort.truths)  # as it goes with the model, whoever made it
    return replace(partition, mark=hashlib.sha256(table).hexdigest())


def _network(
    cohort: Cohort,
    partition: Partition,
    place: int,
    parts: tuple[NDArray[np.int64], ...],
    watch: Watch,
    beside: Beside | None,
) -> Trained:
    """The network at this place: the one that is kept already, else trained now on its `fold_parts`."""
    training, validation, test = parts
    places = np.concatenate([test, validation]) if partition.validation is not None else test
    kept = None if watch.checkpoints is None else watch.checkpoints.finished(place)
    if kept is not None:
        tensors, history = kept
        weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name != "logits"}
        _replay(watch, place, cohort, history)
        return Trained(weights, history, places, tensors["logits"])
    seed = _seed(cohort.spec, place)
    seen = np.empty(0, np.int64) if beside is None else beside.seen_by(partition, place, parts)
    learnt, held = joined(cohort.part.at(training), beside, seen), cohort.part.at(validation)
    spec, head, searched = _tuned(cohort, (learnt, held), (place, seed), watch)
    running = None if watch.checkpoints is None else watch.checkpoints.running(place)
    run = Run(seed, cohort.device, _reporter(watch, place, spec), _recaller(watch, place, spec), running)
    network, history = train_one(learnt, held, cohort.task, head, spec, run)
    facts = {"repeat": place // partition.folds, "fold": place % partition.folds, "test_bags": len(test)}
    facts |= {} if beside is None else {"regions": len({beside.part.bags[i].region for i in seen})}
    logits = torch.from_numpy(logits_of(network, cohort.part.at(places)))
    trained = Trained(network.state_dict(), {**facts, **history, **searched}, places, logits)
    if watch.checkpoints is not None:
        tensors = {f"weights/{name}": value for name, value in trained.weights.items()} | {"logits": logits}
        watch.checkpoints.finish(place, tensors, trained.history)
    return trained


def _tuned(
    cohort: Cohort, parts: tuple[Part, Part], which: tuple[int, int], watch: Watch
) -> tuple[TrainSpec, HeadSpec, dict[str, Any]]:
    """Settings and head of one network, and what is recorded of the search for them; the cohort's without a search."""
    if not cohort.spec.search:
        return cohort.spec, cohort.head, {}
    from .search import apply_choice, search

    place, seed = which
    found = None if watch.checkpoints is None else watch.checkpoints.chosen(place)
    if found is None:
        space = cohort.spec.search_space or None
        found = search(parts, cohort.task, cohort.head, cohort.spec, Run(seed, cohort.device), space)
        if watch.checkpoints is not None:
            watch.checkpoints.choose(place, found)
    spec, head = apply_choice(cohort.spec, cohort.head, found["chosen"])
    return spec, head, {"search": found, "head": asdict(head)}


def _reporter(watch: Watch, place: int, spec: TrainSpec) -> Report:
    recall = _recaller(watch, place, spec)

    def report(epoch: int, loss: float, check: float | None) -> None:
        recall(epoch, loss, check)
        if watch.progress is not None:
            watch.progress(place, epoch, loss, check)

    return report


def _recaller(watch: Watch, place: int, spec: TrainSpec) -> Report:
    """Tells the tracker of an epoch."""

    def recall(epoch: int, loss: float, check: float | None) -> None:
        if watch.tracker is not None:
            figures = {"training_loss": loss, "learning_rate": rate_at(spec, epoch)}
            figures["validation_loss"] = math.nan if check is None else check
            watch.tracker.log(epoch, {f"network-{place}/{name}": value for name, value in figures.items()})

    return recall


def _replay(watch: Watch, place: int, cohort: Cohort, history: Mapping[str, Any]) -> None:
    """Tell the tracker of a network that was finished before."""
    spec = cohort.spec
    if "search" in history:
        from .search import apply_choice

        spec = apply_choice(spec, cohort.head, history["search"]["chosen"])[0]
    recall, checks = _recaller(watch, place, spec), history["validation_loss"]
    for epoch, loss in enumerate(history["training_loss"]):
        recall(epoch, loss, checks[epoch] if checks else None)


def _require_learnable(cohort: Cohort, training: NDArray[np.int64], validation: NDArray[np.int64], place: int) -> None:
    """Raises SpecError where a network's training part lacks a class, or a part of it has no event."""
    truth, name = cohort.part.truth[training], cohort.task.name
    remedy = "use fewer folds, or another division of the bags"
    if cohort.task.spec.is_survival and not truth[:, 1].any():
        raise SpecError("folds", f"network {place} would be trained without an event", remedy)
    if cohort.task.spec.is_survival and len(validation) and not cohort.part.truth[validation, 1].any():
        problem = f"the validation part of network {place} has no event, and cannot say when to stop"
        raise SpecError("folds", problem, remedy)
    if name not in ("classification", "ordinal"):
        return
    missing = sorted(set(range(len(cohort.task.classes))) - {int(c) for c in truth})
    if missing:
        lacking = cohort.task.classes[missing[0]]
        raise SpecError("folds", f"network {place} would be trained without a bag of class {lacking!r}", remedy)


def _seed(spec: TrainSpec, place: int) -> int:
    return spec.seed + place


def _mark(cohort: Cohort, partition: Partition, regions: Sequence[Bag] = ()) -> str:
    """Fingerprint of all that the networks come from: settings, truth, bags, folds and the versions that train them.

    Of the vectors themselves some rows of each bag are looked at: what their contract and slide do not fix shows there.
    """
    spec = replace(cohort.spec, track="csv", splits=None, regions=None, calibrate="none")  # what changes no network
    rows = []
    for bag in (*cohort.bags, *regions):
        chosen = np.unique(np.linspace(0, bag.tiles - 1, 16).astype(np.int64))
        content = hashlib.sha256(np.ascontiguousarray(bag.features[chosen]).tobytes()).hexdigest()
        rows.append((bag.name, bag.group, bag.case_id, bag.contract_hash, bag.identity, bag.features.shape, content))
    of_regions = [truth_text(cohort.task, bag) for bag in regions]
    validation = None if partition.validation is None else partition.validation.tolist()
    known = None if cohort.part.covariates is None else cohort.part.covariates.tolist()
    truth = (cohort.task.as_dict(), cohort.part.truth.tolist())
    return fingerprint(
        spec, rows, truth, known, partition.folds_of.tolist(), validation, current_versions(), of_regions
    )


def _assembled(
    bags: Sequence[Bag],
    cohort: Cohort,
    partition: Partition,
    outcome: Outcome,
    trained: tuple[Sequence[Mapping[str, NDArray[Any]]], Sequence[Mapping[str, Any]]],
) -> TrainedModel:
    weights, histories = trained
    first, spec = cohort.bags[0], cohort.spec
    found = assess(cohort.task, cohort.part, cohort.patients, outcome, spec)
    outliers, told = cohort_outliers(cohort.part, cohort.patients, outcome)
    metrics = {**found.metrics, "notes": [*partition.notes, *found.notes, *told]}
    return TrainedModel(
        name=spec.head,
        task=cohort.task,
        head=cohort.head,
        training=spec,
        contract=first.contract,
        contract_hash=first.contract_hash,
        span_px=tuple(sorted({bag.span_px for bag in cohort.bags})),
        weights=tuple(weights),
        cohort=_rows(bags, cohort, partition, outcome),
        folds=tuple(histories),
        metrics=metrics,
        versions=current_versions(),
        calibrator=found.calibrator,
        covariates=cohort.covariates,
        partition=partition.mark,
        outliers=outliers,
        conformal=found.conformal,
    )


def _rows(bags: Sequence[Bag], cohort: Cohort, partition: Partition, outcome: Outcome) -> tuple[CohortRow, ...]:
    """A row per bag, in the order given; bags without tiles, and those only trained on, have no folds and no logits."""
    place = {id(bag): i for i, bag in enumerate(cohort.bags)}
    rows = []
    for bag in bags:
        i = place.get(id(bag))
        folds = () if i is None else partition.tested_by(i)
        logits = tuple(outcome.logits[i].tolist()) if i is not None and folds else None
        who_ = (bag.name, bag.slide_ids, bag.patient_id, bag.case_id, bag.identity, truth_text(cohort.task, bag))
        rows.append(CohortRow(*who_, tiles=bag.tiles, folds=folds, logits=logits))
    return tuple(rows)


def _settings(cohort: Cohort) -> dict[str, str]:
    """What is being trained, as flat texts for a tracker: no names of slides or patients."""
    flat = {name: value for name, value in asdict(cohort.spec).items() if name != "task"}
    flat |= {f"task.{name}": value for name, value in asdict(cohort.spec.task).items()}
    flat |= {"bags": len(cohort.bags), "dim": cohort.head.dim, "contract": cohort.bags[0].contract_hash}
    return {name: str(value) for name, value in flat.items()}


def _summary(model: TrainedModel) -> dict[str, float]:
    """The headline figures of a model, those that are defined."""
    found = {
        f"{kind}/{judged['headline']['name']}": judged["headline"]["value"]
        for kind, judged in model.metrics.items()
        if isinstance(judged, Mapping)
    }
    return {name: float(value) for name, value in found.items() if value is not None}
