"""A number in a unit of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec
from .reading import FEW, number_of
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag

_BANDS = 4  # quartiles that folds are balanced by


class Regression(Task):
    """Smooth L1 (Huber, Ann Math Stat 1964) of the target in standard deviations: squared within one, linear beyond,
    so that a wild value in a table does not rule the fit.

    middle, spread  mean and standard deviation of the cohort's target. They only set the logits' unit; a model's bias
                    and weights undo any other choice, so they tell nothing of the bags it does not see
    low, high       range of the cohort's target
    """

    name: ClassVar[str] = "regression"
    columns = ("value",)
    outputs = 1

    def __init__(self, spec: TaskSpec, middle: float, spread: float, low: float, high: float):
        super().__init__(spec)
        self.middle, self.spread = float(middle), float(spread)
        self.limits = (float(low), float(high))

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "Regression":
        """See Task.of_cohort. Raises SpecError for a target that does not vary."""
        target = np.array([number_of(bag, spec.target) for bag in bags])
        if len(target) < 2 or target.min() == target.max():
            raise SpecError(spec.target, "the target is the same for every bag", "give a column that varies")
        return cls(spec, target.mean(), target.std(), target.min(), target.max())

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "Regression":
        return cls(spec, *(facts[name] for name in ("mean", "sd", "low", "high")))

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self.middle, "sd": self.spread, "low": self.limits[0], "high": self.limits[1]}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.float64]:
        """The number of each bag, float64 (n,), in its own unit."""
        return np.array([number_of(bag, self.spec.target) for bag in bags], np.float64)

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """In standard deviations from the cohort's mean, float32 (n,)."""
        import torch

        return torch.from_numpy(((truth.astype(np.float64) - self.middle) / self.spread).astype(np.float32))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss; there are no weights."""
        from torch.nn import functional

        self.refuse_focal(focal)
        return functional.smooth_l1_loss(logits.float().squeeze(1), targets)

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """The number, (n, 1), in its own unit."""
        return (self.middle + self.spread * np.asarray(logits, np.float64)).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """The number, in standard deviations of the cohort."""
        return logits[:, 0].float()

    def said(self, output: NDArray[np.floating]) -> str:
        """The number to three digits of the cohort's spread: 12.3 where the standard deviation is 4.5."""
        decimals = max(0, 1 - int(np.floor(np.log10(self.spread))))
        return f"{float(output[0]):.{decimals}f}"

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        """Quarters of the bags by their number, fewer where bags are few; equal numbers are never parted."""
        values = truth.astype(np.float64)
        bands = max(1, min(_BANDS, len(values) // FEW))
        shares = np.arange(1, bands) / bands
        edges = np.quantile(values, shares, method="inverted_cdf") if bands > 1 else np.empty(0)
        return [f"band {band + 1}" for band in np.searchsorted(edges, values, side="left")]
