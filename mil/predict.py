"""Model + bag → what it says of the slide, and of every tile; never from a network that saw the patient in training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .bag import Bag, require_contract
from .evaluation.calibrators import Calibrator, fit_calibrator
from .model import CohortRow, TrainedModel
from .splits import who
from .tasks.task import Task

if TYPE_CHECKING:
    from .network import Network

_TILES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one network says of one bag: logits float32 (O,); attention float32 (n,), or (O, n) where outputs attend by
    themselves, or None; tiles float32 (n, O), the logits of bags that hold only that tile."""

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None
    tiles: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says of one bag. `output` is not calibrated: only `probability` is called so.

    output       float32 (C,), in the order of `task.columns`, of the networks' mean logits; None when empty
    probability  the same, calibrated on other bags that networks had not seen; None for a model or task without that
    predicted    in a word: the class, the labels, the number
    spread       float32 (C,), standard deviation of the output between the networks that spoke; None for one network
    chosen       classes of the prediction set that holds the true one with the model's stated coverage, () without
    abstains     whether the model is too unsure of it to be relied on, by the rule it was given; None without a rule:
                 where no confidence kept the promise on held-out bags, silence would say that it did
    flags        what speaks against relying on it, such as "unlike the training slides"
    origin       which networks spoke: "mean of 5 folds", or "held-out fold 2" for a patient of the training cohort
    drawn        which column of the output a heatmap draws: of two classes the second, of more the predicted one
    scores       float32 (n, C): output for a bag that holds only that tile
    attention    float32 (n,): of the output that is drawn, mean over networks, sums to 1; None for a head without
    xy           int64 (n, 2), tile top-left corners in level-0 pixels; span_px is the tiles' side there
    status       done, or empty for a slide without tissue
    """

    slide_id: str
    task: Task
    output: NDArray[np.float32] | None
    probability: NDArray[np.float32] | None
    predicted: str | None
    spread: NDArray[np.float32] | None
    chosen: tuple[str, ...]
    abstains: bool | None
    flags: tuple[str, ...]
    origin: str
    drawn: int
    scores: NDArray[np.float32]
    attention: NDArray[np.float32] | None
    xy: NDArray[np.int64]
    span_px: int
    status: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    @property
    def tiles(self) -> int:
        return len(self.scores)


def predict(model: TrainedModel, bag: Bag, drawn: int | None = None) -> Prediction:
    """Predict one bag. drawn: column of the output that heatmaps and attention are of, None for the task's choice.

    A bag whose slide, case or patient was in the training cohort is predicted by the networks that did not see it; any
    other by all. Several speak by the mean of their logits, as the model was calibrated and judged: means of
    probabilities would be less sure than what was calibrated (Ranjan & Gneiting, J R Stat Soc B 2010). Raises
    BackboneError when the bag's embeddings are of another contract than the model's, SpecError when every network has
    seen something of the bag.
    """
    task = model.task
    if bag.tiles == 0:
        return _empty(model, bag)
    require_contract(bag, model.contract, model.contract_hash, model.head.dim)
    folds = model.folds_without(bag)
    if not folds:
        raise SpecError(
            bag.name,
            "every network of the model has seen something of it: its slide and its patient lie in different folds of "
            "the training cohort, or in its fixed training part",
            "correct the patient_id in the manifest, or predict with a model of another cohort",
        )
    answers = list(answers_of(model, bag, folds))
    logits = np.stack([answer.logits for answer in answers])
    together = logits.mean(axis=0, keepdims=True)
    output = task.activate(together)[0]
    calibrator = calibrator_for(model, folds)
    probability = None if calibrator.method == "none" else calibrator.apply(together)[0].astype(np.float32)
    drawn = task.drawn(output if probability is None else probability) if drawn is None else drawn
    chosen, abstains = _sure(model, probability, folds)
    return Prediction(
        slide_id=bag.name,
        task=task,
        output=output,
        probability=probability,
        predicted=task.said(output if probability is None else probability),
        spread=task.activate(logits).std(axis=0, ddof=1).astype(np.float32) if len(folds) > 1 else None,
        chosen=chosen,
        abstains=abstains,
        flags=_flags(model, bag),
        origin=_origin(model, folds),
        drawn=drawn,
        scores=task.activate(np.mean([answer.tiles for answer in answers], axis=0)),
        attention=_attention(answers, drawn),
        xy=bag.xy,
        span_px=bag.span_px,
        status="done",
    )


@lru_cache(maxsize=32)  # the same for all bags of a fold
def calibrator_for(model: TrainedModel, folds: tuple[int, ...]) -> Calibrator:
    """What makes probabilities of what these networks say, `folds` being those that have not seen the bag.

    The model's own is fitted on all bags of a cross-validation, each by networks that had not seen it. For one of these
    very bags it is fitted anew on the other folds: else the cohort, judged by its predictions, would look better
    calibrated, and by isotonic steps better ranked, than new patients will.
    """
    own = model.calibrator
    if own.method == "none" or len(folds) == len(model.weights):
        return own
    logits, truth = _known(model, _others(model, folds))
    return fit_calibrator(logits, truth, own.method, kind=own.kind)


@lru_cache(maxsize=32)
def rules_for(model: TrainedModel, folds: tuple[int, ...]) -> Mapping[str, Any]:
    """Thresholds of prediction sets and of abstaining for a bag that `folds` have not seen, {} for a model without.

    The model's own; for a bag of its cohort, as in `calibrator_for`, those that the bags of the other folds give.
    """
    if not model.conformal or len(folds) == len(model.weights):
        return model.conformal
    from .evaluation.rules import RuleSpec, fit_rules

    rows = _others(model, folds)
    logits, truth = _known(model, rows)
    patients = who([_row_bag(model, row) for row in rows])
    promised = RuleSpec(model.conformal["sets"]["alpha"], model.conformal["abstain"]["risk"])
    return fit_rules(logits, truth, patients, [row.folds[0] for row in rows], model.calibrator.method, promised)


def _others(model: TrainedModel, folds: tuple[int, ...]) -> list[CohortRow]:
    """Rows of the cohort that lie in another fold than a bag that `folds` have not seen."""
    return [row for row in model.cohort if row.logits is not None and folds[0] not in row.folds]


def held_out_cohort(model: TrainedModel) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(outputs (n, C), truth (n,) or (n, C)) of the training cohort's bags, each by networks that had not seen it.

    Probabilities where the model has a calibrator, which is the one for new bags: it was fitted on these.
    """
    logits, truth = _known(model, [row for row in model.cohort if row.logits is not None])
    calibrated = model.calibrator.method != "none"
    outputs = model.calibrator.apply(logits) if calibrated else model.task.activate(logits)
    return np.asarray(outputs, np.float64), truth


def _known(model: TrainedModel, rows: Sequence[CohortRow]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits (n, O) and truth of rows of the cohort."""
    truth = model.task.truth([_row_bag(model, row) for row in rows])
    return np.array([row.logits for row in rows], np.float64), truth.astype(np.int64)


def _row_bag(model: TrainedModel, row: CohortRow) -> Bag:
    """What is known of a bag of the cohort, without its tiles."""
    nothing = (np.zeros((0, 1), np.float32), np.zeros((0, 2), np.int64), 1)
    columns = {model.task.spec.target: row.truth}
    return Bag(*nothing, row.slide_ids, row.truth, row.patient_id, row.case_id, row.identity, columns=columns)


def answers_of(model: TrainedModel, bag: Bag, folds: tuple[int, ...]) -> Iterator[Answer]:
    """What each of these networks says of the bag."""
    known = None if model.covariates is None else model.covariates.encode([bag])[0]
    for fold in folds:
        yield apply_network(model.network(fold), bag.features, bag.positions(), known)


def apply_network(
    network: "Network",
    features: NDArray[np.floating],
    positions: NDArray[np.float32],
    covariates: NDArray[np.float32] | None = None,
) -> Answer:
    """One network's answer for features (n, d), n >= 1, at positions (n, 2) in tiles, with covariates (K,) or None."""
    import torch

    tiles = torch.from_numpy(np.asarray(features, np.float32))
    places = torch.from_numpy(positions)
    known = None if covariates is None else torch.from_numpy(covariates)[None]
    with torch.inference_mode():
        whole = network(tiles[None], torch.ones(1, len(tiles), dtype=torch.bool), places[None], known)
        single = []
        for start in range(0, len(tiles), _TILES_AT_ONCE):
            part = slice(start, start + _TILES_AT_ONCE)
            mask = torch.ones(len(tiles[part]), 1, dtype=torch.bool)
            beside = None if known is None else known.expand(len(mask), -1)
            single.append(network(tiles[part][:, None], mask, places[part][:, None], beside).logits.float())
    looked = whole.attention
    attention = None if looked is None else looked[0].float().numpy()
    return Answer(whole.logits[0].float().numpy(), attention, torch.cat(single).numpy())


def _attention(answers: list[Answer], drawn: int) -> NDArray[np.float32] | None:
    looked = [answer.attention for answer in answers if answer.attention is not None]
    if len(looked) < len(answers):
        return None
    return np.mean([one if one.ndim == 1 else one[drawn] for one in looked], axis=0).astype(np.float32)


def _origin(model: TrainedModel, folds: tuple[int, ...]) -> str:
    if len(folds) == len(model.weights):
        return f"mean of {len(folds)} folds" if len(folds) > 1 else "the model"
    return f"held-out fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _sure(
    model: TrainedModel, probability: NDArray[np.float32] | None, folds: tuple[int, ...]
) -> tuple[tuple[str, ...], bool | None]:
    """The prediction set and whether to abstain, by the thresholds that were found on other, held-out bags."""
    from .evaluation.conformal import Conformal

    if probability is None or not model.conformal:
        return (), None
    rules = rules_for(model, folds)
    inside = Conformal.from_dict(rules["sets"]).sets(probability[None])[0]
    least = rules["abstain"]["threshold"]
    chosen = tuple(name for name, held in zip(model.classes, inside, strict=True) if held)
    return chosen, None if least is None else float(probability.max()) < least


def _flags(model: TrainedModel, bag: Bag) -> tuple[str, ...]:
    told = [] if model.covariates is None else [*model.covariates.notes(bag)]
    if model.outliers is not None:
        mean = np.asarray(bag.features).mean(axis=0, dtype=np.float64)
        told += ["unlike the training slides"] if model.outliers.flags(mean[None])[0] else []
    return tuple(told)


def _empty(model: TrainedModel, bag: Bag) -> Prediction:
    return Prediction(
        slide_id=bag.name,
        task=model.task,
        output=None,
        probability=None,
        predicted=None,
        spread=None,
        chosen=(),
        abstains=None,
        flags=(),
        origin="no tissue",
        drawn=0,
        scores=np.zeros((0, len(model.task.columns)), np.float32),
        attention=None,
        xy=bag.xy,
        span_px=bag.span_px,
        status="empty",
    )
