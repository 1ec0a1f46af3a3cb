"""Time to an event, as a risk: who has it earlier."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec
from .reading import event_strata, follow_up, require_events
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag

TIES = ("efron", "breslow")


class Cox(Task):
    """Proportional hazards (Cox, J R Stat Soc B 1972): the one logit is the log hazard relative to the batch's others.

    The loss compares the bags of a batch; over small batches it estimates that of the cohort with noise, and a batch
    without an event teaches nothing.
    """

    name: ClassVar[str] = "cox"
    pairwise: ClassVar[bool] = True
    columns = ("risk",)
    outputs = 1
    limits = (-3.0, 3.0)  # hazards from a twentieth to twenty times the reference

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "Cox":
        """See Task.of_cohort. Raises SpecError for fewer than two events."""
        require_events(follow_up(bags, spec.time, spec.event), spec.event)
        return cls(spec)

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "Cox":
        return cls(spec)

    def as_dict(self) -> dict[str, Any]:
        return {}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.float64]:
        """Time and event, float64 (n, 2)."""
        return follow_up(bags, self.spec.time, self.spec.event)

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """Time and event, float32 (n, 2): whole days stay apart, and not every device has float64."""
        import torch

        return torch.from_numpy(np.asarray(truth, np.float32))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss: the negative log partial likelihood, ties after Efron. There are no weights."""
        self.refuse_focal(focal)
        return partial_likelihood(logits.squeeze(1), targets[:, 0], targets[:, 1])

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Log hazard, (n, 1)."""
        return np.asarray(logits, np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """The log hazard."""
        return logits[:, 0].float()

    def said(self, output: NDArray[np.floating]) -> str:
        """The risk to three digits."""
        return f"{float(output[0]):.3g}"

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        """Whether the event was seen."""
        return event_strata(truth)


def partial_likelihood(log_hazard: "Tensor", time: "Tensor", event: "Tensor", ties: str = "efron") -> "Tensor":
    """Negative log partial likelihood per event, a scalar; 0, with a graph, where there is none.

    log_hazard (n,), time (n,) > 0, event (n,) 1 or 0. At an event all with an equal or later time are at risk. Of
    events at one time, `breslow` (Biometrics 1974) lets each see the whole risk set; `efron` (J Am Stat Assoc 1977)
    takes from it, for the l-th of d, l / d of the tied events' hazard, which is nearer the truth where ties are many.
    Raises SpecError for other ties.
    """
    import torch

    if ties not in TIES:
        raise SpecError("ties", f"{ties!r} is unknown", f"choose {' or '.join(TIES)}")
    seen = event > 0.5
    if not bool(seen.any()):
        return log_hazard.sum() * 0.0
    order = torch.argsort(time, descending=True, stable=True)
    hazard, seen = log_hazard.float()[order], seen[order]
    _, group, size = torch.unique_consecutive(time[order], return_inverse=True, return_counts=True)
    last = size.cumsum(0) - 1  # the risk set of a time ends with the last of its equals
    at_risk = torch.logcumsumexp(hazard, dim=0)[last[group]]
    pooled = at_risk[seen]
    if ties == "efron":
        places, own = group[seen], (hazard - at_risk)[seen].exp()
        tied = torch.zeros(len(size), dtype=own.dtype, device=own.device).index_add(0, places, own)  # share of events
        count = torch.bincount(places, minlength=len(size))
        before = torch.arange(len(places), device=places.device) - (count.cumsum(0) - count)[places]
        pooled = pooled + torch.log1p(-(before / count[places]) * tied[places])
    return (pooled - hazard[seen]).mean()
