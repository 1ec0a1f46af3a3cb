"""What every task is: how truth is read, what a head's logits become, and what training lowers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class Task:
    """A task that knows its cohort: classes, scales and bins are fixed when it is made, and travel with the model.

    name      one of spec.TASKS
    classes   names of classes or labels in the order of the outputs, () where there are none
    columns   names of what `activate` gives, as columns of a table of predictions
    outputs   logits that a head must give
    limits    (low, high) of the activated output that heatmaps draw, by definition and not by what occurs
    times     horizons of `survival`, in the unit of its truth; () for the others
    pairwise  whether the loss compares bags, so that a batch must hold several
    """

    name: ClassVar[str]
    pairwise: ClassVar[bool] = False
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...]
    outputs: int
    limits: tuple[float, float]
    times: tuple[float, ...] = ()

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "Task":
        """The task for these labelled bags: the classes that occur, bins by the quantiles of events, …

        Raises ManifestError for a bag whose truth is missing or cannot be read, naming it, and SpecError for a cohort
        that cannot be trained on (one class, no event).
        """
        raise NotImplementedError

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "Task":
        """The task that `as_dict` described."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """What was fixed by the cohort, as plain values for JSON; the spec is kept beside it."""
        raise NotImplementedError

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.generic]:
        """Truth of n bags as `evaluation.Predictions` holds it. Raises ManifestError, naming the bag."""
        raise NotImplementedError

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """The truth as `loss` takes it: int64 (n,) class indices, float32 (n, C), (n,) or (n, 2)."""
        raise NotImplementedError

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """Mean loss over the bags of a batch, a scalar: logits (B, O) float, targets as above; `weights` (see there).

        focal  gamma of the focal loss. Raises SpecError where it is not 0 and the task has no such loss
        """
        raise NotImplementedError

    def refuse_focal(self, focal: float) -> None:
        """Raises SpecError unless gamma is 0: for tasks that have no focal loss."""
        if focal:
            raise SpecError("focal", f"{self.name} has no focal loss", "set it to 0")

    def weights(self, truth: NDArray[np.generic]) -> "Tensor | None":
        """What balances classes in `loss`, from the truth of a training part; None where nothing is to be balanced."""
        return None

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Logits (n, O) → what is reported, float32 (n, len(columns))."""
        raise NotImplementedError

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """What speaks for one column of the output, (B,), from logits (B, O): the log odds of a chance, or the number
        itself in the logits' unit. Unlike the output it does not saturate: `mil.explain` shares it out among tiles."""
        raise NotImplementedError

    def said(self, output: NDArray[np.floating]) -> str:
        """One row of the output, (len(columns),), in a word: the class, the labels, the number."""
        raise NotImplementedError

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        """A class of every bag, by which folds are balanced: the label, a band of a number, whether the event came."""
        raise NotImplementedError

    def drawn(self, output: NDArray[np.floating]) -> int:
        """Which column of an output (len(columns),) a heatmap draws: of two classes the second, of more the largest."""
        return 1 if len(self.columns) == 2 else int(np.argmax(output))
