"""Classes that have an order, such as grades: a miss by two is worse than a miss by one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec
from .numeric import log_odds, survival
from .one_class import OneClass

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class Ordinal(OneClass):
    """CORN (Shi, Cao & Raschka, arXiv:2111.08851): logit k is of P(class > k | class >= k), k in [0, C - 1).

    The product of these conditional chances never rises with k, so classes get chances that are not negative and sum to
    1. A bag's loss is the sum of its conditional cross entropies, which is minus the log of its class's chance; the
    paper divides the same sum by the number of conditions instead of bags.
    """

    name: ClassVar[str] = "ordinal"

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec, classes)
        self.outputs = len(self.classes) - 1

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> Self:
        """See Task.of_cohort. Raises SpecError too where the spec does not give the order of the classes."""
        if not spec.classes:
            raise SpecError(
                "task.classes", "an ordinal target needs the order of its classes", "name them, low to high"
            )
        return super().of_cohort(spec, bags)

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
