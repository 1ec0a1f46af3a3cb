"""How a backbone is fine-tuned, as data. No torch here: the command line and the plan read these fields."""

from dataclasses import dataclass

from wsi.errors import SpecError

LABELS = ("tiles", "regions", "slides")
METHODS = ("lora", "last-blocks")


@dataclass(frozen=True, slots=True)
class FinetuneSpec:
    """What is trained, on what, and for how long. The defaults suit a few hundred to some ten thousand tiles.

    labels         tiles (a table of labelled pictures), regions (tiles inside drawn classes), slides (slide labels)
    method         lora, or last-blocks: the last `blocks` and what follows them
    rank, alpha    of LoRA: W + alpha / rank · BA
    blocks         how many blocks are changed, counted from the end; None: all for lora, 2 for last-blocks
    folds          groups (patients) are spread over so many parts; one is tested on, another stops the training
    epochs         at most; `patience` epochs without a better loss on the held-out validation groups end it
    batch          tiles a step; of slides, the slides of an optimiser step
    tiles          of a slide, in each step (slide labels); what a step's memory depends on
    pick           how those are chosen: sampled at random, or top: half of them those that attention weighs most
    max_tiles      of a slide that are looked at at all, drawn by `seed`; of regions, for each class of a slide
    min_share      of a tile that must lie inside a class's regions
    learning_rate  of AdamW at its highest: it rises over the first tenth of the steps and falls along a cosine; None
                   for 2e-4 with lora and 2e-5 with last-blocks
    jitter         range of a random factor of each colour channel and of brightness: 0.1 is ± 10 %; flips and quarter
                   turns are always made, as tissue has no upright
    class_weights  weigh tiles, or slides, by the inverse frequency of their class
    checkpointing  compute activations again in the backward pass instead of keeping them
    precision      fp32, bf16 (autocast; weights and their changes stay in float32), or auto: bf16 where CUDA has it
    device         auto, cpu, cuda, cuda:1, mps
    """

    labels: str = "tiles"
    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    blocks: int | None = None
    folds: int = 5
    epochs: int = 10
    patience: int = 3
    batch: int = 32
    tiles: int = 32
    pick: str = "sampled"
    max_tiles: int = 512
    min_share: float = 0.5
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    jitter: float = 0.1
    class_weights: bool = True
    checkpointing: bool = False
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("labels", self.labels, LABELS),
            ("method", self.method, METHODS),
            ("pick", self.pick, ("sampled", "top")),
            ("precision", self.precision, ("auto", "fp32", "bf16")),
        )
        for name, value, known in checks:
            if value not in known:
                raise SpecError(f"finetune.{name}", f"{value!r} is unknown", f"choose {', '.join(known)}")
        least = (("rank", 1), ("blocks", 1), ("epochs", 1), ("patience", 1), ("batch", 1), ("tiles", 1),
                 ("max_tiles", 1), ("folds", 3), ("seed", 0))  # fmt: skip
        for name, low in least:
            value = getattr(self, name)
            if value is not None and value < low:
                raise SpecError(f"finetune.{name}", f"{value} is out of range", f"give at least {low}")
        for name, low, high in (("min_share", 0, 1), ("jitter", 0, 0.5), ("weight_decay", 0, 1)):
            if not low <= getattr(self, name) <= high:
                problem = f"{getattr(self, name)} is out of range"
                raise SpecError(f"finetune.{name}", problem, f"give {low} to {high}")
        if self.alpha <= 0:
            raise SpecError("finetune.alpha", f"{self.alpha} is out of range", "give twice the rank or so")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            problem = f"{self.learning_rate} is out of range"
            raise SpecError("finetune.learning_rate", problem, "leave it out, or give such as 1e-4")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-4 if self.method == "lora" else 2e-5

    @property
    def depth(self) -> int | None:
        """How many of the last blocks are changed; None for all."""
        return 2 if self.blocks is None and self.method == "last-blocks" else self.blocks
