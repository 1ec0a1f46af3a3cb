"""One class of several; two classes are two outputs like any other number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..spec import TaskSpec
from .numeric import log_odds
from .one_class import OneClass

if TYPE_CHECKING:
    from torch import Tensor


class Classification(OneClass):
    """Softmax cross entropy. With `focal` gamma > 0, each bag's loss times (1 - p)^gamma, p the softmax of its true
    class (Lin et al., ICCV 2017): bags that are already right count for less."""

    name: ClassVar[str] = "classification"

    def __init__(self, spec: TaskSpec, classes: Sequence[str]):
        super().__init__(spec, classes)
        self.outputs = len(self.classes)

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

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Softmax, (n, C); rows sum to 1."""
        raised = np.asarray(logits, np.float64)
        raised = np.exp(raised - raised.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """Log odds of the class: of two classes, the difference of their logits."""
        return log_odds(logits.float(), column)
