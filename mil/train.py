"""Bags and their labels → one model per patient-wise fold. One loop; the same seed gives the same weights on a CPU."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import ManifestError, SpecError

from .bag import Bag, require_contract
from .heads import build_head
from .metrics import evaluate
from .model import CohortRow, TrainedModel, current_versions
from .predict import apply_network
from .spec import HeadSpec, TrainSpec
from .splits import check_leakage, make_splits, validation_part, who
from .standardise import Standardised

_BETTER = 0.003  # nats of validation loss; less is no reason to go on

Progress = Callable[[int, int, float, float | None], None]
"""Called after every epoch with fold and epoch (from 0), training loss, validation loss (None without such a part)."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some bags of the cohort: features, each float32 (n, D), and truth, the class index of each."""

    features: list[Tensor]
    truth: list[int]

    def __len__(self) -> int:
        return len(self.truth)


def cross_validate(
    bags: Sequence[Bag],
    spec: TrainSpec | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> TrainedModel:
    """Train one model per fold and predict every bag with the model that did not see its patient.

    classes  order of the outputs, the positive one last; the sorted labels when not given
    Raises ManifestError for a bag without a label, SpecError for a cohort too small for the folds, and BackboneError
    for embeddings of different contracts.
    """
    spec = spec or TrainSpec()
    names = _class_names(bags, classes)
    cohort = [bag for bag in bags if bag.tiles]
    if not cohort:
        raise SpecError("bags", "none has any tiles", "check tissue detection on these slides")
    for bag in cohort[1:]:
        require_contract(bag, cohort[0].contract, cohort[0].contract_hash, cohort[0].dim)
    patients, labels = who(cohort), [str(bag.label) for bag in cohort]
    fold_of = make_splits(patients, labels, spec.folds, spec.seed)
    check_leakage(cohort, fold_of)
    head = spec.head_spec(cohort[0].dim, len(names))
    softmax = np.zeros((len(cohort), len(names)), np.float32)
    weights, histories = [], []
    for fold in range(spec.folds):
        known = np.flatnonzero(fold_of != fold)
        held_back = validation_part([patients[i] for i in known], [labels[i] for i in known], spec.seed + fold)
        training = _part(cohort, names, known[~held_back], device)
        validation = _part(cohort, names, known[held_back], device)
        report = None if progress is None else _at_fold(progress, fold)
        network, history = train_one(training, validation, head, spec, seed=spec.seed + fold, report=report)
        test = np.flatnonzero(fold_of == fold)
        for i in test:
            softmax[i] = apply_network(network, cohort[i].features)[0]
        weights.append({name: value.numpy() for name, value in network.state_dict().items()})
        histories.append({**history, "test_bags": len(test)})
    evaluation = evaluate(labels, softmax, names, patients, fold_of.tolist(), spec.seed)
    aurocs = evaluation.per_fold
    return TrainedModel(
        name=spec.head,
        task="classification",
        classes=names,
        head=head,
        training=spec,
        contract=cohort[0].contract,
        contract_hash=cohort[0].contract_hash,
        span_px=tuple(sorted({bag.span_px for bag in cohort})),
        weights=tuple(weights),
        cohort=_rows(bags, cohort, fold_of, softmax),
        folds=tuple({**history, "test_auroc": value} for history, value in zip(histories, aurocs, strict=True)),
        metrics=evaluation.as_dict(),
        versions=current_versions(),
    )


def train_one(
    training: Part,
    validation: Part,
    head: HeadSpec,
    spec: TrainSpec,
    seed: int,
    report: Callable[[int, float, float | None], None] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one network; returns it (evaluation mode, on the CPU, weights of its best epoch) and how it went.

    Without a validation part it runs for all epochs and keeps the last. torch's random state is left as it was.
    """
    device = training.features[0].device
    with _seeded(seed, device):
        network = Standardised(build_head(head), head.dim).to(device)
        network.fit(training.features)
        # Decay belongs on weight matrices; on biases it only biases.
        decayed = [weight for weight in network.parameters() if weight.ndim > 1]
        plain = [weight for weight in network.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        class_weight = _class_weight(training, head.classes, spec)
        rng = np.random.default_rng(seed)
        losses: list[float] = []
        checks: list[float] = []
        best, best_epoch, best_state = math.inf, spec.epochs - 1, None
        for epoch in range(spec.epochs):
            for group in optimiser.param_groups:
                group["lr"] = spec.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / spec.epochs))
            losses.append(_run_epoch(network, training, optimiser, class_weight, spec, rng))
            if not math.isfinite(losses[-1]):
                raise SpecError("learning_rate", f"training diverged in epoch {epoch}", "lower it")
            if len(validation):
                checks.append(_loss_without_training(network, validation, class_weight))
                if checks[-1] < best - _BETTER:
                    best, best_epoch, best_state = checks[-1], epoch, copy.deepcopy(network.state_dict())
            if report is not None:
                report(epoch, losses[-1], checks[-1] if checks else None)
            if checks and epoch >= spec.epochs // 2 and epoch - best_epoch >= spec.patience:
                break
        if best_state is not None:
            network.load_state_dict(best_state)
    history: dict[str, Any] = {
        "training_bags": len(training),
        "validation_bags": len(validation),
        "epochs": len(losses),
    }
    history |= {"best_epoch": best_epoch, "training_loss": losses, "validation_loss": checks}
    return network.eval().cpu(), history


def _run_epoch(
    network: nn.Module,
    part: Part,
    optimiser: torch.optim.Optimizer,
    class_weight: Tensor,
    spec: TrainSpec,
    rng: np.random.Generator,
) -> float:
    """One pass over the bags in random order, one optimiser step per `accumulate` bags; returns the mean loss."""
    network.train()
    order, total = rng.permutation(len(part)), 0.0
    for start in range(0, len(order), spec.accumulate):
        chosen = order[start : start + spec.accumulate]
        for i in chosen:
            features = _sample(part.features[i], spec.instances, rng)
            loss = _loss(network, features, part.truth[i], class_weight)
            (loss / len(chosen)).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return total / len(order)


def _loss_without_training(network: nn.Module, part: Part, class_weight: Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        losses = [
            _loss(network, features, truth, class_weight).item()
            for features, truth in zip(part.features, part.truth, strict=True)
        ]
    return sum(losses) / len(losses)


def _loss(network: nn.Module, features: Tensor, truth: int, class_weight: Tensor) -> Tensor:
    mask = torch.ones(1, len(features), dtype=torch.bool, device=features.device)
    target = torch.tensor([truth], device=features.device)
    # One bag at a time: cross_entropy's own weighting would divide the weight out again.
    return functional.cross_entropy(network(features[None], mask).logits, target) * class_weight[truth]


def _sample(features: Tensor, instances: int, rng: np.random.Generator) -> Tensor:
    if len(features) <= instances:
        return features
    chosen = np.sort(rng.choice(len(features), instances, replace=False))
    return features[torch.from_numpy(chosen).to(features.device)]


def _class_weight(part: Part, classes: int, spec: TrainSpec) -> Tensor:
    """Weight per class, 1 on average over the part's bags."""
    counts = np.bincount(part.truth, minlength=classes)
    weight = len(part) / (np.count_nonzero(counts) * np.maximum(counts, 1)) if spec.class_weights else np.ones(classes)
    return torch.as_tensor(weight, dtype=torch.float32, device=part.features[0].device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Weights' start and dropout come from `seed`; the caller's random state is put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _class_names(bags: Sequence[Bag], classes: Sequence[str] | None) -> tuple[str, ...]:
    for bag in bags:
        if bag.label is None:
            raise ManifestError(bag.name, "has no label", "fill the manifest's label column or leave the slide out")
        if classes is not None and bag.label not in classes:
            raise ManifestError(bag.name, f"its label {bag.label!r} is none of {', '.join(classes)}", "correct one")
    return tuple(classes) if classes is not None else tuple(sorted({str(bag.label) for bag in bags}))


def _part(cohort: Sequence[Bag], names: Sequence[str], chosen: NDArray[np.int64], device: str) -> Part:
    features = [torch.from_numpy(cohort[i].features).to(device) for i in chosen]
    return Part(features, [list(names).index(str(cohort[i].label)) for i in chosen])


def _at_fold(progress: Progress, fold: int) -> Callable[[int, float, float | None], None]:
    return lambda epoch, loss, check: progress(fold, epoch, loss, check)


def _rows(
    bags: Sequence[Bag], cohort: Sequence[Bag], fold_of: NDArray[np.int64], softmax: NDArray[np.float32]
) -> tuple[CohortRow, ...]:
    """A row per bag, in the order given; empty bags have no fold and no softmax."""
    place = {id(bag): i for i, bag in enumerate(cohort)}
    rows = []
    for bag in bags:
        i = place.get(id(bag))
        fold, output = (None, None) if i is None else (int(fold_of[i]), tuple(softmax[i].tolist()))
        who = (bag.name, bag.patient_id, bag.case_id, bag.identity, str(bag.label))
        rows.append(CohortRow(*who, tiles=bag.tiles, fold=fold, softmax=output))
    return tuple(rows)
