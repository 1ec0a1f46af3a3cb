"""The loop: AdamW along a cosine, stopped by held-out groups, saved after every epoch.

Whatever is drawn in an epoch comes from the seed and the epoch's number alone, so a run that was interrupted and goes
on from its checkpoint ends with the same weights as one that was not.
"""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import BackboneError, SpecError
from wsi.publish import appear_file

from .cohort import TRAIN, VALIDATION, Cohort
from .network import Tuned, embed_tiles, read_ahead
from .spec import FinetuneSpec

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Watcher:
    """Who is told of a run: `step` of steps done, steps in all and a word on them; `say` of what is known before."""

    step: Callable[[int, int, str], None] = lambda done, total, note: None
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Work:
    """What an epoch needs: the items' parts int8 (m,), the weight of each class (C,), and what is trained."""

    cohort: Cohort
    parts: NDArray[np.int8]
    spec: FinetuneSpec
    weight: Tensor
    trained: Sequence[nn.Parameter]


@dataclass
class State:
    """Where a run is.

    epoch    how many are done; best: validation loss of the best so far, waited: epochs since
    kept     the weights of that epoch, epoch 0 being the frozen backbone with its head
    history  a row an epoch: epoch, loss, validation, seconds
    """

    epoch: int = 0
    best: float = math.inf
    waited: int = 0
    kept: list[Tensor] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def tune(
    tuned: Tuned,
    cohort: Cohort,
    parts: NDArray[np.int8],
    trained: Sequence[nn.Parameter],
    spec: FinetuneSpec,
    run: "Run",
) -> State:
    """Train, and leave the network with the weights of its best epoch; that may be none: epoch 0 is the frozen one.

    Raises BackboneError where weights that should be trained take no part in the outcome, or the loss is not finite.
    """
    values = [*trained, *tuned.head.parameters()]
    work = Work(cohort, parts, spec, class_weights(cohort, parts, spec).to(tuned.device), trained)
    optimiser = torch.optim.AdamW(values, lr=spec.rate, weight_decay=spec.weight_decay)
    state = run.load(values, optimiser)
    if not state.history:
        state.best = validation_loss(tuned, work)
        state.kept = _copies(values)
        state.history.append({"epoch": 0, "loss": math.nan, "validation": state.best})
    while state.epoch < spec.epochs and state.waited < spec.patience:
        loss = _epoch(tuned, work, optimiser, state.epoch, run.watcher)
        check = validation_loss(tuned, work)
        state.epoch += 1
        state.history.append({"epoch": state.epoch, "loss": loss, "validation": check})
        state.waited += 1
        if check < state.best:
            state.best, state.waited, state.kept = check, 0, _copies(values)
        run.save(state, values, optimiser)
        best = ", the best so far" if not state.waited else ""
        run.watcher.say(f"epoch {state.epoch}/{spec.epochs}: loss {loss:.3f}, validation {check:.3f}{best}")
    with torch.no_grad():
        for value, kept in zip(values, state.kept, strict=True):
            value.copy_(kept)
    return state


@dataclass(frozen=True)
class Run:
    """Where a run is kept between epochs, and who is told of it.

    mark  of settings, cohort and weights: another run's checkpoint is refused
    """

    folder: Path | None
    mark: str
    watcher: Watcher = Watcher()

    def save(self, state: State, values: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> None:
        if self.folder is None:
            return
        content = {
            "mark": self.mark,
            "state": vars(state),
            "values": _copies(values),
            "optimiser": optimiser.state_dict(),
        }
        with appear_file(self.folder / CHECKPOINT) as draft:
            torch.save(content, draft)

    def load(self, values: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> State:
        """The state that was saved last, with weights and averages put back; a new one where there is none."""
        content = read_checkpoint(self.folder, self.mark)
        if content is None:
            return State()
        with torch.no_grad():
            for value, saved in zip(values, content["values"], strict=True):
                value.copy_(saved)
        optimiser.load_state_dict(content["optimiser"])
        state = State(**content["state"])
        state.kept = [one.to(value.device) for one, value in zip(state.kept, values, strict=True)]
        return state


def read_checkpoint(folder: Path | None, mark: str) -> dict[str, Any] | None:
    """What an interrupted run left, without unpickling objects; None where there is none. Raises SpecError where it is
    of other settings, other data or other weights, or damaged."""
    if folder is None or not (folder / CHECKPOINT).is_file():
        return None
    remedy = "choose another --out, or remove the folder"
    try:
        content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SpecError(folder / CHECKPOINT, f"it is damaged ({type(error).__name__})", remedy) from error
    if content["mark"] != mark:
        raise SpecError(folder, "an unfinished run with other settings or data is there", remedy)
    return dict(content)


def _epoch(tuned: Tuned, work: Work, optimiser: torch.optim.Optimizer, epoch: int, watcher: Watcher) -> float:
    """One pass over the training items in random order; returns the mean loss."""
    spec, total = work.spec, 0.0
    rng = np.random.default_rng([spec.seed, epoch])
    generator = torch.Generator().manual_seed(spec.seed * 100_003 + epoch)
    tuned.head.train()
    steps = list(_steps(tuned, work, rng))
    jobs = [job for step in steps for job in step]
    pixels = read_ahead(work.cohort, [numbers for _, numbers in jobs])
    with _seeded(spec.seed * 100_003 + epoch, tuned.device):
        for number, step in enumerate(steps):
            for group in optimiser.param_groups:
                group["lr"] = spec.rate * schedule(epoch * len(steps) + number, spec.epochs * len(steps))
            size = sum(len(items) for items, _ in step)
            for items, _ in step:
                logits = tuned.logits(tuned.embed(next(pixels), spec.jitter, generator))
                loss = _loss(logits, work, items) * len(items)
                (loss / size).backward()
                total += loss.item()
            _check_step(work.trained, total)
            nn.utils.clip_grad_norm_([v for group in optimiser.param_groups for v in group["params"]], 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            note = (
                f"epoch {epoch + 1}, loss {total / max(1, sum(len(i) for s in steps[: number + 1] for i, _ in s)):.3f}"
            )
            watcher.step(epoch * len(steps) + number + 1, spec.epochs * len(steps), note)
    return total / sum(len(items) for items, _ in jobs)


def _steps(tuned: Tuned, work: Work, rng: np.random.Generator) -> Iterator[list[tuple[NDArray, NDArray]]]:
    """Optimiser steps of one epoch, each a list of (items, tile numbers): a batch of tiles at once, slides singly."""
    cohort, spec = work.cohort, work.spec
    order = rng.permutation(np.flatnonzero(work.parts == TRAIN))
    for start in range(0, len(order), spec.batch):
        items = order[start : start + spec.batch]
        if not cohort.of_slides:
            yield [(items, items)]
        else:
            yield [(np.array([item]), _pick(tuned, work, int(item), rng)) for item in items]


def _pick(tuned: Tuned, work: Work, item: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The tiles of a slide for one step: at random, or half of them those that attention weighs most as it is now."""
    numbers, spec = work.cohort.tiles_of(item), work.spec
    if len(numbers) <= spec.tiles:
        return numbers
    best: NDArray[np.int64] = np.empty(0, np.int64)
    if spec.pick == "top":
        tuned.head.eval()
        found = embed_tiles(tuned, work.cohort, numbers, spec.tiles)
        with torch.inference_mode():
            weight = tuned.attention(torch.from_numpy(found).to(tuned.device)).cpu().numpy()
        tuned.head.train()
        best = numbers[np.argsort(-weight, kind="stable")[: (spec.tiles + 1) // 2]]
    rest = np.setdiff1d(numbers, best)
    return np.sort(np.concatenate((best, rng.choice(rest, spec.tiles - len(best), replace=False))))


def validation_loss(tuned: Tuned, work: Work) -> float:
    """Mean weighted loss over the validation items: of a slide, over all its tiles."""
    items = np.flatnonzero(work.parts == VALIDATION)
    outputs = item_logits(tuned, work.cohort, items, work.spec)
    return float(_loss(torch.from_numpy(outputs).to(tuned.device), work, items))


def item_logits(tuned: Tuned, cohort: Cohort, items: NDArray[np.intp], spec: FinetuneSpec) -> NDArray[np.float32]:
    """What the network says of these items as it is: (k, C), without augmentation."""
    tuned.head.eval()
    batch = spec.tiles if cohort.of_slides else spec.batch
    numbers = [cohort.tiles_of(int(item)) for item in items]
    features = torch.from_numpy(embed_tiles(tuned, cohort, np.concatenate(numbers), batch)).to(tuned.device)
    with torch.inference_mode():
        if not cohort.of_slides:
            return tuned.logits(features).cpu().numpy()
        rows = [tuned.logits(part) for part in features.split([len(one) for one in numbers])]
    return torch.cat(rows).cpu().numpy()


def warm_head(
    tuned: Tuned, features: NDArray[np.float32], cohort: Cohort, parts: NDArray[np.int8], spec: FinetuneSpec
) -> None:
    """Train the slide head alone on the frozen backbone's embeddings (n, d) of all tiles: what fine-tuning begins with,
    and is compared with. At most 100 epochs of AdamW; the best by validation loss is kept."""
    weight = class_weights(cohort, parts, spec).to(tuned.device)
    work = Work(cohort, parts, spec, weight, ())
    bags = [torch.from_numpy(features[cohort.tiles_of(item)]).to(tuned.device) for item in range(len(cohort))]
    optimiser = torch.optim.AdamW(tuned.head.parameters(), lr=1e-3, weight_decay=spec.weight_decay)
    train, check = (np.flatnonzero(parts == part) for part in (TRAIN, VALIDATION))
    best, kept, waited = math.inf, _copies(tuned.head.parameters()), 0
    for epoch in range(100):
        with _seeded(spec.seed * 7_919 + epoch, tuned.device):
            tuned.head.train()
            for item in np.random.default_rng([spec.seed, epoch]).permutation(train):
                optimiser.zero_grad(set_to_none=True)
                _loss(tuned.logits(bags[item]), work, np.array([item])).backward()
                optimiser.step()
        tuned.head.eval()
        with torch.inference_mode():
            loss = float(_loss(torch.cat([tuned.logits(bags[item]) for item in check]), work, check))
        waited += 1
        if loss < best:
            best, kept, waited = loss, _copies(tuned.head.parameters()), 0
        if waited >= 15:
            break
    with torch.no_grad():
        for value, one in zip(tuned.head.parameters(), kept, strict=True):
            value.copy_(one)


def schedule(step: int, total: int) -> float:
    """Share of the highest learning rate: a rise over the first tenth, then a cosine to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def class_weights(cohort: Cohort, parts: NDArray[np.int8], spec: FinetuneSpec) -> Tensor:
    """Weight of each class, 1 on average over the training items."""
    counts = np.bincount(cohort.truth[parts == TRAIN], minlength=len(cohort.classes))
    even = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.as_tensor(even if spec.class_weights else np.ones(len(counts)), dtype=torch.float32)


def _loss(logits: Tensor, work: Work, items: NDArray[np.intp]) -> Tensor:
    """Mean over items of weighted cross entropy; torch's own weighting divides by the weights of the batch."""
    target = torch.from_numpy(work.cohort.truth[items]).to(logits.device)
    return (functional.cross_entropy(logits.float(), target, reduction="none") * work.weight[target]).mean()


def _check_step(trained: Sequence[nn.Parameter], loss: float) -> None:
    if not math.isfinite(loss):
        raise BackboneError("finetune", "the loss is not finite", "lower --learning-rate, or compute with fp32")
    if idle := sum(value.grad is None for value in trained):
        problem = f"{idle} of {len(trained)} trained tensors take no part in the embedding"
        raise BackboneError("finetune", problem, "choose another --method or --blocks, or leave --checkpointing out")


def _copies(values: Any) -> list[Tensor]:
    return [value.detach().clone() for value in values]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout comes from `seed`; the caller's random state is put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
