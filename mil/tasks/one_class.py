"""What tasks share whose truth is one class of each bag, with an order or without."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..spec import TaskSpec
from .reading import balance, class_indices, class_names
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class OneClass(Task):
    """One class of several; two classes are like any other number."""

    limits = (0.0, 1.0)

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec)
        self.classes = tuple(classes)
        self.columns = tuple(f"softmax_{name}" for name in self.classes)

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> Self:
        """Classes of the spec, else the sorted ones that occur. See Task.of_cohort."""
        task = cls(spec, class_names(bags, spec.target, spec.classes))
        task.truth(bags)
        return task

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> Self:
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

    def weights(self, truth: NDArray[np.generic]) -> "Tensor | None":
        """Per class, float32 (C,): inverse to its frequency, mean 1 over these bags."""
        import torch

        return torch.from_numpy(balance(truth.astype(np.int64), len(self.classes)))

    def said(self, output: NDArray[np.floating]) -> str:
        """The class of the largest output."""
        return self.classes[int(np.argmax(output))]

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        return [self.classes[int(i)] for i in truth.astype(np.int64)]
