"""What a head is and how it is trained, as data. No torch here: recipes and the command line read these fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi.errors import SpecError

TASKS = ("classification", "multilabel", "ordinal", "regression", "cox", "survival")


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
class TaskSpec:
    """What is predicted, and which columns of the manifest hold the truth.

    name     classification (binary and multi-class), multilabel, ordinal, regression, cox, survival (discrete time)
    target   column of the truth: a class; labels divided by `;`; a class of an order; a number
    time     column of the time to event or to the end of follow-up, > 0 (cox, survival)
    event    column that is 1 where the event was seen at that time, 0 where follow-up ended (cox, survival)
    classes  in the order of the outputs, the positive one last; () for the sorted ones that occur. `ordinal` needs them
    bins     intervals of time that `survival` is predicted for
    """

    name: str = "classification"
    target: str = "label"
    time: str = "time"
    event: str = "event"
    classes: tuple[str, ...] = ()
    bins: int = 4

    def __post_init__(self) -> None:
        _one_of("task.name", self.name, TASKS)
        _at_least("task.bins", self.bins, 2)
        if len(set(self.classes)) != len(self.classes):
            raise SpecError("task.classes", "one is given twice", "name each class once")

    @property
    def is_survival(self) -> bool:
        return self.name in ("cox", "survival")


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How a cohort is trained; the defaults suit tens to a few hundred slides with frozen embeddings.

    task            what is predicted
    level           what a bag is: a slide, a case or a patient
    head            and head_options, hidden, attention, dropout: see HeadSpec
    covariates      columns of the manifest that speak beside the tiles: numbers, or few distinct texts
    fusion          of several backbones' embeddings: early (one head over all) or late (a head each, logits averaged)
    folds           patient-wise cross-validation folds, one model each, in each of `repeats` different partitions
    stratify        further columns whose values are spread evenly over folds, such as site
    splits          file of a partition to use instead of drawing one
    regions         folder with a file of drawn regions for each slide: each with a class of the task is learnt from as
                    a bag of its own, beside the cohort's
    epochs          at most; in their second half `patience` epochs without a better validation loss end a fold (a
                    handful of validation bags is too noisy to stop earlier); the best epoch's weights are kept
    learning_rate   of AdamW, decayed to zero along a cosine over `epochs`; weight_decay is its decoupled decay
    batch           bags per forward pass, padded to the longest; None for what the task needs (cox compares bags: 16)
    accumulate      batches per optimiser step
    instances       tiles drawn anew from a bag at each training step; validation and prediction see all tiles
    instance_dropout  share of those tiles that is left out, [0, 1)
    noise           standard deviation of normal noise added to standardised embeddings in training
    views           draw each tile's vector from those of its augmented views, where the embeddings hold several
    class_weights   weigh bags by the inverse frequency of their class
    focal           gamma of the focal loss, 0 for plain cross entropy
    calibrate       platt, temperature, isotonic or none; fitted on outputs for bags the model was not trained on. A
                    temperature cannot mend a prior: with class_weights, or a focal loss, rare classes stay too likely
    search          trials of a hyper-parameter search within the training part of every fold (nested); 0 for none
    search_space    what they choose among: a setting → {low, high, log} or a list; empty for `mil.search.SPACE`
    track           where figures of the training go beside the model's folder: csv, tensorboard, mlflow, wandb
    precision       of training: fp32, bf16, fp16 (CUDA only), or auto: the fastest that the machine is known to do well
    device          auto, cpu, cuda, cuda:1, mps
    """

    task: TaskSpec = field(default_factory=TaskSpec)
    level: str = "slide"
    head: str = "abmil"
    head_options: dict[str, Any] = field(default_factory=dict)
    hidden: int = 128
    attention: int = 64
    dropout: float = 0.25
    covariates: tuple[str, ...] = ()
    fusion: str = "early"
    folds: int = 5
    repeats: int = 1
    stratify: tuple[str, ...] = ()
    splits: str | None = None
    regions: str | None = None
    epochs: int = 40
    patience: int = 10
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    batch: int | None = None
    accumulate: int = 2
    instances: int = 512
    instance_dropout: float = 0.0
    noise: float = 0.0
    views: bool = False
    class_weights: bool = True
    focal: float = 0.0
    calibrate: str = "platt"
    search: int = 0
    search_space: dict[str, Any] = field(default_factory=dict)
    track: str = "csv"
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "attention", "repeats", "epochs", "patience", "accumulate", "instances"):
            _at_least(name, getattr(self, name), 1)
        if self.batch is not None:
            _at_least("batch", self.batch, 1)
        _at_least("folds", self.folds, 2)
        for name in ("search", "seed"):
            _at_least(name, getattr(self, name), 0)
        _one_of("level", self.level, ("slide", "case", "patient"))
        _one_of("fusion", self.fusion, ("early", "late"))
        _one_of("calibrate", self.calibrate, ("platt", "temperature", "isotonic", "none"))
        _one_of("track", self.track, ("csv", "tensorboard", "mlflow", "wandb"))
        _one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        for name in ("dropout", "instance_dropout"):
            _share(name, getattr(self, name))
        for name, least in (("weight_decay", "1e-2"), ("noise", "0"), ("focal", "0")):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SpecError(name, f"{getattr(self, name)} is negative or not finite", f"{least} is the default")
        if not 0 < self.learning_rate < float("inf"):
            raise SpecError("learning_rate", f"{self.learning_rate} is not a positive number", "5e-4 is the default")

    def head_spec(self, dim: int, outputs: int, covariates: int = 0, blocks: tuple[int, ...] = ()) -> HeadSpec:
        """The head for embeddings of length `dim`; `blocks` are the backbones' shares of it."""
        parts = blocks if self.fusion == "late" and len(blocks) > 1 else ()
        sizes = (self.hidden, self.attention, self.dropout)
        return HeadSpec(self.head, dim, outputs, *sizes, dict(self.head_options), covariates, parts)


def _at_least(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise SpecError(name, f"{value!r} is not a whole number of at least {low}", f"give {low} or more")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise SpecError(name, f"{value!r} is not in [0, 1)", "0.25 is the default")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(name, f"{value!r} is unknown", f"choose {', '.join(known)}")
