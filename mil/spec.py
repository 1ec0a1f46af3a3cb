"""What a head is and how it is trained, as data. No torch here: recipes and the command line read these fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi.errors import SpecError


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Shape of a head.

    name        key in HEADS
    dim         length of a tile's embedding
    outputs     number of logits, >= 1: what the task asks for
    hidden      width of the projected tile
    attention   width of the attention branch (heads that have one)
    dropout     [0, 1), on projected tiles and on the pooled vector
    options     the head's own parameters by name, such as k for CLAM; each head's constructor lists them
    covariates  numbers a bag brings beside its tiles; they add to the logits
    blocks      lengths of the parts of the embedding that come from different backbones, where each has a head of its
                own and logits are averaged (late fusion); empty for one head over all of it
    """

    name: str
    dim: int
    outputs: int
    hidden: int = 128
    attention: int = 64
    dropout: float = 0.25
    options: Mapping[str, Any] = field(default_factory=dict)
    covariates: int = 0
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dim", "outputs", "hidden", "attention"):
            _at_least(name, getattr(self, name), 1)
        _at_least("covariates", self.covariates, 0)
        if self.blocks and sum(self.blocks) != self.dim:
            raise SpecError("blocks", f"{self.blocks} do not add up to {self.dim}", "give the length of each backbone")
        _share("dropout", self.dropout)


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How a cohort is trained; the defaults suit tens to a few hundred slides with frozen embeddings.

    folds          patient-wise cross-validation folds, one model each
    epochs         at most; in their second half `patience` epochs without a better validation loss end a fold (a
                   handful of validation bags is too noisy to stop earlier); the best epoch's weights are kept
    learning_rate  of AdamW, decayed to zero along a cosine over `epochs`; weight_decay is its decoupled decay
    accumulate     bags per optimiser step
    instances      tiles drawn anew from a bag at each training step; validation and prediction see all tiles
    class_weights  weigh bags by the inverse frequency of their class
    """

    head: str = "abmil"
    hidden: int = 128
    attention: int = 64
    dropout: float = 0.25
    folds: int = 5
    epochs: int = 40
    patience: int = 10
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    accumulate: int = 2
    instances: int = 512
    class_weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("hidden", "attention", "epochs", "patience", "accumulate", "instances"):
            _at_least(field, getattr(self, field), 1)
        _at_least("folds", self.folds, 2)
        _at_least("seed", self.seed, 0)
        _share("dropout", self.dropout)
        if not 0 < self.learning_rate < float("inf"):
            raise SpecError("learning_rate", f"{self.learning_rate} is not a positive number", "5e-4 is the default")
        if not 0 <= self.weight_decay < float("inf"):
            raise SpecError("weight_decay", f"{self.weight_decay} is negative or not finite", "1e-2 is the default")

    def head_spec(self, dim: int, classes: int) -> HeadSpec:
        return HeadSpec(self.head, dim, classes, self.hidden, self.attention, self.dropout)


def _at_least(field: str, value: int, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise SpecError(field, f"{value!r} is not a whole number of at least {low}", f"give {low} or more")


def _share(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise SpecError(field, f"{value!r} is not in [0, 1)", "0.25 is the default")
