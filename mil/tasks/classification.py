"""One class of several; two classes are two outputs like any other number."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..spec import TaskSpec
from .numeric import log_odds
from .reading import balance, class_indices, class_names
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class Classification(Task):
    """Softmax cross entropy. With `focal` gamma > 0, each bag's loss times (1 - p)^gamma, p the softmax of its true
    class (Lin et al., ICCV 2017): bags that are already right count for less."""

    name: ClassVar[str] = "classification"
    limits = (0.0, 1.0)

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec)
        self.classes = tuple(classes)
        self.columns = tuple(f"softmax_{name}" for name in self.classes)
        self.outputs = len(self.classes)

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "Classification":
        """Classes of the spec, else the sorted ones that occur. See Task.of_cohort."""
        task = cls(spec, class_names(bags, spec.target, spec.classes))
        task.truth(bags)
        return task

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "Classification":
        return cls(spec, facts["classes"])

    def as_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.int64]:
        """Class index of each bag, int64 (n,)."""
        return class_indices(bags, self.spec.target, self.classes)

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """int64 (n,)."""
        import torch

        return torch.from_numpy(np.asarray(truth, np.int64))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss; weights (C,)."""
        from torch.nn import functional

        each = functional.cross_entropy(logits.float(), targets, reduction="none")
        if focal > 0:
            each = (1 - (-each).exp()).clamp(min=1e-6) ** focal * each  # 0^gamma has no gradient for gamma < 1
        # Divided by bags and not by their weights: in a batch of one bag its weight would cancel.
        return (each if weights is None else each * weights[targets]).mean()

    def weights(self, truth: NDArray[np.generic]) -> "Tensor | None":
        """Per class, float32 (C,): inverse to its frequency, mean 1 over these bags."""
        import torch

        return torch.from_numpy(balance(truth.astype(np.int64), self.outputs))

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Softmax, (n, C); rows sum to 1."""
        raised = np.asarray(logits, np.float64)
        raised = np.exp(raised - raised.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """Log odds of the class: of two classes, the difference of their logits."""
        return log_odds(logits.float(), column)

    def said(self, output: NDArray[np.floating]) -> str:
        """The class of the largest output."""
        return self.classes[int(np.argmax(output))]

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        return [self.classes[int(i)] for i in truth.astype(np.int64)]
