"""Classes that have an order, such as grades: a miss by two is worse than a miss by one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec
from .numeric import log_odds, survival
from .reading import balance, class_indices, class_names
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class Ordinal(Task):
    """CORN (Shi, Cao & Raschka, arXiv:2111.08851): logit k is of P(class > k | class >= k), k in [0, C - 1).

    The product of these conditional chances never rises with k, so classes get chances that are not negative and sum to
    1. A bag's loss is the sum of its conditional cross entropies, which is minus the log of its class's chance; the
    paper divides the same sum by the number of conditions instead of bags.
    """

    name: ClassVar[str] = "ordinal"
    limits = (0.0, 1.0)

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec)
        self.classes = tuple(classes)
        self.columns = tuple(f"softmax_{name}" for name in self.classes)
        self.outputs = len(self.classes) - 1

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "Ordinal":
        """See Task.of_cohort. Raises SpecError too where the spec does not give the order of the classes."""
        if not spec.classes:
            raise SpecError(
                "task.classes", "an ordinal target needs the order of its classes", "name them, low to high"
            )
        task = cls(spec, class_names(bags, spec.target, spec.classes))
        task.truth(bags)
        return task

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "Ordinal":
        return cls(spec, facts["classes"])

    def as_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.int64]:
        """Place in the order of classes, int64 (n,)."""
        return class_indices(bags, self.spec.target, self.classes)

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """int64 (n,)."""
        import torch

        return torch.from_numpy(np.asarray(truth, np.int64))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss; weights (C,)."""
        import torch
        from torch.nn import functional

        self.refuse_focal(focal)
        logits = logits.float()
        place = torch.arange(self.outputs, device=logits.device)
        passed = (targets[:, None] > place).float()  # whether the class lies above k
        asked = (targets[:, None] >= place).float()  # a condition says nothing of classes below it
        each = functional.binary_cross_entropy_with_logits(logits, passed, reduction="none")
        whole = (each * asked).sum(dim=1)
        return (whole if weights is None else whole * weights[targets]).mean()

    def weights(self, truth: NDArray[np.generic]) -> "Tensor | None":
        """Per class, float32 (C,): inverse to its frequency, mean 1 over these bags."""
        import torch

        return torch.from_numpy(balance(truth.astype(np.int64), len(self.classes)))

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Chance of each class, (n, C), not negative, rows sum to 1."""
        above = survival(-np.asarray(logits, np.float64))  # chance to lie above class k
        edges = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return (edges[:, :-1] - edges[:, 1:]).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """Log odds of the class."""
        from torch.nn import functional

        above = functional.logsigmoid(logits.float()).cumsum(dim=1)  # log of the chance to lie above class k
        passed = functional.pad(above, (1, 0))
        stayed = functional.pad(functional.logsigmoid(-logits.float()), (0, 1))
        return log_odds(passed + stayed, column)

    def said(self, output: NDArray[np.floating]) -> str:
        """The class of the largest output."""
        return self.classes[int(np.argmax(output))]

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        return [self.classes[int(i)] for i in truth.astype(np.int64)]
