"""Several labels that may hold together, each said by itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ManifestError, SpecError

from ..spec import TaskSpec
from .numeric import sigmoid
from .reading import FEW, text_of
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag

NONE = "-"  # an empty field says that nobody looked; a bag that has none of the labels says so


class MultiLabel(Task):
    """Binary cross entropy of each label, their mean. Truth is `a;b`, and `-` where none holds.

    With `focal` gamma > 0 each label's loss is times (1 - p)^gamma, p the chance given to what is true (Lin et al.,
    ICCV 2017).
    """

    name: ClassVar[str] = "multilabel"
    limits = (0.0, 1.0)

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec)
        self.classes = tuple(classes)
        self.columns = tuple(f"sigmoid_{name}" for name in self.classes)
        self.outputs = len(self.classes)

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "MultiLabel":
        """Labels of the spec, else the sorted ones that occur. See Task.of_cohort.

        Raises SpecError too for a label that no bag has, or that all have: there is nothing to tell.
        """
        found = sorted({label for bag in bags for label in _labels(bag, spec.target)})
        task = cls(spec, spec.classes or found)
        if not task.classes:
            raise SpecError(spec.target, "no bag has any label", f"divide labels by `;`, and give {NONE} for none")
        share = task.truth(bags).mean(axis=0)
        for name, held in zip(task.classes, share, strict=True):
            if held in (0, 1):
                problem = f"{'every' if held else 'no'} bag has the label {name!r}"
                raise SpecError("task.classes", problem, "name the labels to be learned, without this one")
        return task

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "MultiLabel":
        return cls(spec, facts["classes"])

    def as_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.int64]:
        """1 where a label holds, int64 (n, C). Raises ManifestError for a label that is none of the classes."""
        truth = np.zeros((len(bags), self.outputs), np.int64)
        for row, bag in zip(truth, bags, strict=True):
            for label in _labels(bag, self.spec.target):
                if label not in self.classes:
                    problem = f"column {self.spec.target!r} says {label!r}, which is none of {', '.join(self.classes)}"
                    raise ManifestError(bag.name, problem, "correct it, or name the label in task.classes")
                row[self.classes.index(label)] = 1
        return truth

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """float32 (n, C)."""
        import torch

        return torch.from_numpy(np.asarray(truth, np.float32))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss; weights (2, C), of a label that does not hold and of one that does."""
        from torch.nn import functional

        each = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        if focal > 0:
            each = (1 - (-each).exp()).clamp(min=1e-6) ** focal * each  # 0^gamma has no gradient for gamma < 1
        return (each if weights is None else each * (weights[0] + (weights[1] - weights[0]) * targets)).mean()

    def weights(self, truth: NDArray[np.generic]) -> "Tensor | None":
        """Of each label's absence and presence, float32 (2, C): inverse to their frequency, mean 1 over these bags."""
        import torch

        positive = truth.astype(np.float64).sum(axis=0)
        counts = np.stack([len(truth) - positive, positive])
        share = len(truth) / ((counts > 0).sum(axis=0) * np.maximum(counts, 1))
        return torch.from_numpy(np.where(counts > 0, share, 0.0).astype(np.float32))

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Sigmoid, (n, C), each label by itself."""
        return sigmoid(logits).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """Log odds of the label: its logit."""
        return logits[:, column].float()

    def said(self, output: NDArray[np.floating]) -> str:
        """The labels of at least 0.5, divided by `;`."""
        return ";".join(name for name, value in zip(self.classes, output, strict=True) if value >= 0.5) or NONE

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        """Of each bag its rarest label: folds that share the rare ones evenly share the common ones nearly so.

        Where few bags have a common label alone, or none, they count with the largest stratum: to spread them evenly
        is worth nothing, and would bound the number of folds.
        """
        held = truth.astype(bool)
        total = held.sum(axis=0)
        rarest = np.argsort(total, kind="stable")
        strata = [next((self.classes[int(i)] for i in rarest if row[i]), NONE) for row in held]
        common = {NONE, *(name for name, count in zip(self.classes, total, strict=True) if count >= FEW)}
        sizes = Counter(strata)
        largest = sizes.most_common(1)[0][0] if sizes else NONE
        return [largest if name in common and sizes[name] < FEW else name for name in strata]


def _labels(bag: "Bag", column: str) -> list[str]:
    labels = [label.strip() for label in text_of(bag, column).split(";")]
    labels = [label for label in labels if label]
    if not labels or (NONE in labels and len(labels) > 1):
        problem = f"column {column!r} says {bag.value(column)!r}"
        raise ManifestError(bag.name, problem, f"divide labels by `;`, and give {NONE} alone where none holds")
    return [] if labels == [NONE] else labels
