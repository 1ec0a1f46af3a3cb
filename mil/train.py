"""One network: its training, from standardisation to the weights of its best epoch. The same seed gives the same
weights on a CPU, also where the training was interrupted and went on from its checkpoint.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi.errors import SpecError

from .bag import Bag
from .batches import BatchSpec, batches
from .checkpoint import Checkpoint
from .heads import MILOutput
from .network import Network
from .precision import DTYPES, autocast, training_precision
from .spec import HeadSpec, TrainSpec
from .tasks.task import Task

BETTER = 0.003  # nats (or what the loss is in) of validation loss; less is no reason to go on
PAIRWISE_BATCH = 16  # bags compared at a time, where the loss compares bags
LONGEST_GRADIENT = 1.0

Report = Callable[[int, float, float | None], None]
"""Called after every epoch (from 0) with training loss and validation loss, None without such a part."""


class DivergedError(SpecError):
    """A loss is not finite any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some bags of the cohort, each with at least one tile, their truth (`Task.truth`) and covariates (n, K)."""

    bags: Sequence[Bag]
    truth: NDArray[np.generic]
    covariates: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.bags)

    def at(self, places: NDArray[np.int64]) -> "Part":
        known = None if self.covariates is None else self.covariates[places]
        return Part([self.bags[i] for i in places], self.truth[places], known)


@dataclass(frozen=True, slots=True)
class Run:
    """How one training is run, beside what its spec says.

    report      hears of every epoch that is trained; recall of those that a checkpoint already has
    checkpoint  where the training is kept, to go on from there
    """

    seed: int
    device: str = "cpu"
    report: Report | None = None
    recall: Report | None = None
    checkpoint: Checkpoint | None = None


@dataclass(slots=True)
class Course:
    """How far a training has come: epochs done, losses of each, and the best weights so far."""

    rng: np.random.Generator
    losses: list[float] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)
    best: float = math.inf
    best_epoch: int = -1
    best_state: dict[str, Tensor] | None = None

    def ended(self, spec: TrainSpec) -> bool:
        done = len(self.losses)
        waited = done - 1 - self.best_epoch
        patient = not self.checks or done - 1 < spec.epochs // 2 or waited < spec.patience
        return done >= spec.epochs or not patient

    def tell(self, report: Report | None, first: int = 0) -> None:
        """Report the epochs from `first` on."""
        if report is None:
            return
        for epoch in range(first, len(self.losses)):
            report(epoch, self.losses[epoch], self.checks[epoch] if self.checks else None)


def train_one(
    training: Part, validation: Part, task: Task, head: HeadSpec, spec: TrainSpec, run: Run
) -> tuple[Network, dict[str, Any]]:
    """Train one network; returns it (evaluation mode, on the CPU, weights of its best epoch) and how it went.

    Without a validation part it runs for all epochs and keeps the last. With a checkpoint it goes on from there.
    Log hazards of cox are relative to their mean over the training bags: see Network.
    torch's random state is left as it was. Raises DivergedError when a loss is not finite any more.
    """
    with _seeded(run.seed, torch.device(run.device)):
        trainer = Trainer(training, task, head, spec, run.device)
        course = Course(np.random.default_rng(run.seed))
        state = None if run.checkpoint is None else run.checkpoint.read()
        if state is None:
            trainer.network.fit(_vectors(training), _known(training))
        else:
            trainer.restore(course, *state)
            course.tell(run.recall)
        while not course.ended(spec):
            epoch = len(course.losses)
            trainer.set_rate(rate_at(spec, epoch))
            course.losses.append(_finite(trainer.run_epoch(course.rng), epoch))
            if len(validation):
                course.checks.append(_finite(trainer.loss_of(validation), epoch))
                if course.checks[-1] < course.best - BETTER:
                    course.best, course.best_epoch = course.checks[-1], epoch
                    course.best_state = copy.deepcopy(trainer.network.state_dict())
            if run.checkpoint is not None and run.checkpoint.due(epoch) and not course.ended(spec):
                run.checkpoint.write(*trainer.state(course), epoch)
            course.tell(run.report, first=epoch)
        if course.best_state is not None:
            trainer.network.load_state_dict(course.best_state)
        if task.name == "cox":
            trainer.network.zero.copy_(torch.from_numpy(logits_of(trainer.network, training, run.device).mean(axis=0)))
    history: dict[str, Any] = {"training_bags": len(training), "validation_bags": len(validation)}
    history |= {"epochs": len(course.losses), "precision": trainer.precision}
    history["best_epoch"] = course.best_epoch if course.best_state is not None else len(course.losses) - 1
    history |= {"training_loss": course.losses, "validation_loss": course.checks}
    return trainer.network.eval().cpu(), history


class Trainer:
    """A network with all that one step of its training needs."""

    def __init__(self, training: Part, task: Task, head: HeadSpec, spec: TrainSpec, device: str):
        self.spec, self.task, self.device = spec, task, device
        self.precision = training_precision(spec.precision, device)
        self.network = Network(head).to(device)
        # Decay belongs on weight matrices; on biases it only biases.
        decayed = [weight for weight in self.network.parameters() if weight.ndim > 1]
        plain = [weight for weight in self.network.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        self.scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=self.precision == "fp16")
        self.training, self.targets, self.known = training, task.targets(training.truth).to(device), None
        if training.covariates is not None:
            self.known = torch.from_numpy(training.covariates).to(device)
        weights = task.weights(training.truth) if spec.class_weights else None
        self.weights = None if weights is None else weights.to(device)
        size = spec.batch or (PAIRWISE_BATCH if task.pairwise else 1)
        drawn = (size, spec.instances, spec.instance_dropout, spec.views)
        self.batch = BatchSpec(*drawn, wants_positions(self.network), DTYPES[self.precision], device)

    def set_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def criterion(self, logits: Tensor, target: Tensor) -> Tensor:
        """The task's loss, in float32 whatever the network is multiplied in."""
        return self.task.loss(logits.float(), target, self.weights, self.spec.focal)

    def run_epoch(self, rng: np.random.Generator) -> float:
        """One pass over the bags in random order, one optimiser step per `accumulate` batches; the mean loss."""
        self.network.train()
        order = rng.permutation(len(self.training))
        together, total = self.batch.size * self.spec.accumulate, torch.zeros((), device=self.device)
        seen = 0
        for batch in batches(self.training.bags, order, self.batch, rng, self.network.standardise_):
            start = seen // together * together
            count = len(batch.index)
            features = batch.features
            if self.spec.noise:
                features = features + self.spec.noise * torch.randn_like(features)
            with autocast(self.precision, self.device):
                place = torch.from_numpy(batch.index).to(self.device)
                known = None if self.known is None else self.known[place]
                output = self.network.pool(features, batch.mask, batch.xy, known)
                loss = self.network.training_loss(output, self.targets[place], self.criterion)
            self.scaler.scale(loss * (count / min(together, len(order) - start))).backward()
            total += loss.detach() * count
            seen += count
            if seen % together == 0 or seen == len(order):
                self.step()
        return float(total) / len(order)

    def step(self) -> None:
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.network.parameters(), LONGEST_GRADIENT)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)

    def loss_of(self, part: Part) -> float:
        """The loss over all bags of a part at once, each with all its tiles: of cox, too, which compares them."""
        logits = torch.from_numpy(logits_of(self.network, part, self.device))
        weights = None if self.weights is None else self.weights.cpu()
        with torch.inference_mode():
            return float(self.task.loss(logits, self.task.targets(part.truth), weights, self.spec.focal))

    def state(self, course: Course) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next epoch depends on, as tensors and plain values."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in (course.best_state or {}).items()}
        for place, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{place}/{name}": value for name, value in values.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.startswith("cuda"):
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        facts: dict[str, Any] = {"losses": course.losses, "checks": course.checks, "best_epoch": course.best_epoch}
        return tensors, facts | {"rng": course.rng.bit_generator.state, "scaler": self.scaler.state_dict()}

    def restore(self, course: Course, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go back to what `state` described."""
        self.network.load_state_dict(_under("network/", tensors))
        optimiser = self.optimiser.state_dict()
        for name, value in _under("optimiser/", tensors).items():
            place, _, key = name.partition("/")
            optimiser["state"].setdefault(int(place), {})[key] = value
        self.optimiser.load_state_dict(optimiser)
        self.scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.device.startswith("cuda"):
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        course.rng.bit_generator.state = facts["rng"]
        course.losses, course.checks, course.best_epoch = facts["losses"], facts["checks"], facts["best_epoch"]
        if course.best_epoch >= 0:
            course.best, course.best_state = course.checks[course.best_epoch], _under("best/", tensors)


def logits_of(network: Network, part: Part, device: str = "cpu") -> NDArray[np.float32]:
    """What a network says of each bag, from all its tiles: logits float32 (n, O), in float32 throughout."""
    training, spec = network.training, BatchSpec(positions=wants_positions(network), device=device)
    network.eval()
    found = []
    with torch.inference_mode():
        rng = np.random.default_rng(0)  # nothing is drawn
        for batch in batches(part.bags, np.arange(len(part)), spec, rng, network.standardise_):
            known = None
            if part.covariates is not None:
                known = torch.from_numpy(part.covariates[batch.index]).to(device)
            output: MILOutput = network.pool(batch.features, batch.mask, batch.xy, known)
            found.append(output.logits.float().cpu())
    network.train(training)
    return torch.cat(found).numpy()


def rate_at(spec: TrainSpec, epoch: int) -> float:
    """Learning rate of an epoch: a cosine that would reach zero after the last."""
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / spec.epochs))


def wants_positions(network: Network) -> bool:
    """Whether any of its heads looks at where tiles lie."""
    return any(bool(head.needs_xy) for head in network.heads)


def _vectors(part: Part) -> Iterator[Tensor]:
    return (torch.from_numpy(np.array(bag.features)) for bag in part.bags)


def _known(part: Part) -> Tensor | None:
    return None if part.covariates is None else torch.from_numpy(part.covariates)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError("learning_rate", f"training diverged in epoch {epoch}: its loss is {loss}", "lower it")
    return loss


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Weights' start and dropout come from `seed`; the caller's random state is put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
