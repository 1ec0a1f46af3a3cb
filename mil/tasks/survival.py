"""Time to an event, as the chance to live past each of several times."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from ..spec import TaskSpec
from .numeric import survival
from .reading import event_strata, follow_up, require_events
from .task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ..bag import Bag


class DiscreteSurvival(Task):
    """Hazards of K intervals of time (Gensheimer & Narasimhan, PeerJ 2019), the loss and risk that MIL papers use
    (Zadeh & Schmid, IEEE TPAMI 2021; MCAT, PORPOISE).

    times  ends of all intervals but the last, which is open: quantiles of the times of events. Interval k is
           (times[k - 1], times[k]]
    end    time of the last event; half way to it decides whether someone censored in the last interval lived it

    Who is censored counts as having lived an interval where at least half of it was seen (Gensheimer & Narasimhan,
    equation 3); MCAT counts every interval that was begun, which makes early censoring look like survival.
    Risk is minus the sum of the chances to live past each interval, in [-K, 0].
    """

    name: ClassVar[str] = "survival"

    def __init__(self, spec: TaskSpec, times: Sequence[float], end: float):
        super().__init__(spec)
        self.times, self.end = tuple(float(time) for time in times), float(end)
        self.outputs = len(self.times) + 1
        self.columns = ("risk", *(f"survival_{time:g}" for time in self.times))
        self.limits = (-float(self.outputs), 0.0)

    @classmethod
    def of_cohort(cls, spec: TaskSpec, bags: "Sequence[Bag]") -> "DiscreteSurvival":
        """See Task.of_cohort. Raises SpecError where there are fewer events than bins, or too many at one time."""
        truth = follow_up(bags, spec.time, spec.event)
        require_events(truth, spec.event, max(2, spec.bins))
        events = truth[truth[:, 1] == 1, 0]
        edges = np.quantile(events, np.arange(1, spec.bins) / spec.bins, method="inverted_cdf")
        # Six digits are what a column's name shows; the bins are those of the rounded times.
        times = [float(f"{edge:.6g}") for edge in edges]
        if len(set(np.searchsorted(times, events, side="left").tolist())) < spec.bins:
            problem = f"{len(events)} events fall into fewer than {spec.bins} intervals: many are at one time"
            raise SpecError("task.bins", problem, "ask for fewer bins, or give times more finely")
        return cls(spec, times, events.max())

    @classmethod
    def from_dict(cls, spec: TaskSpec, facts: Mapping[str, Any]) -> "DiscreteSurvival":
        return cls(spec, facts["times"], facts["end"])

    def as_dict(self) -> dict[str, Any]:
        return {"times": list(self.times), "end": self.end}

    def truth(self, bags: "Sequence[Bag]") -> NDArray[np.float64]:
        """Time and event, float64 (n, 2)."""
        return follow_up(bags, self.spec.time, self.spec.event)

    def targets(self, truth: NDArray[np.generic]) -> "Tensor":
        """Intervals lived through, and whether the event came in the next, float32 (n, 2)."""
        import torch

        time, event = np.asarray(truth, np.float64).T
        edges = np.array([0.0, *self.times, max(self.end, *self.times)])
        begun = np.searchsorted(self.times, time, side="left")  # the interval that the time lies in
        middle = (edges[begun] + edges[begun + 1]) / 2
        lived = np.where((event == 0) & (time >= middle), begun + 1, begun)
        return torch.from_numpy(np.stack([lived, event], axis=1).astype(np.float32))

    def loss(
        self, logits: "Tensor", targets: "Tensor", weights: "Tensor | None" = None, focal: float = 0.0
    ) -> "Tensor":
        """See Task.loss: minus the log likelihood of each follow-up. There are no weights."""
        import torch
        from torch.nn import functional

        self.refuse_focal(focal)
        logits = logits.float()
        step = torch.arange(self.outputs, device=logits.device)
        lived, event = targets[:, :1], targets[:, 1:]
        # log of a hazard is logsigmoid(logit), log of living on is logsigmoid(-logit)
        likelihood = (step < lived) * functional.logsigmoid(-logits)
        likelihood = likelihood + (step == lived) * event * functional.logsigmoid(logits)
        return -likelihood.sum(dim=1).mean()

    def activate(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Risk, then the chance to live past each of `times`, (n, K)."""
        lived = survival(logits)
        return np.concatenate([-lived.sum(axis=1, keepdims=True), lived[:, :-1]], axis=1).astype(np.float32)

    def evidence(self, logits: "Tensor", column: int) -> "Tensor":
        """The risk, or the log odds of living past a time."""
        from torch.nn import functional

        lived = functional.logsigmoid(-logits.float()).cumsum(dim=1)
        if column == 0:
            return -lived.exp().sum(dim=1)
        chance = lived[:, column - 1].clamp(max=-1e-7)  # a chance of exactly 1 has no odds
        return chance - (-chance.expm1()).log()

    def said(self, output: NDArray[np.floating]) -> str:
        """The risk to three digits."""
        return f"{float(output[0]):.3g}"

    def strata(self, truth: NDArray[np.generic]) -> list[str]:
        """Whether the event was seen."""
        return event_strata(truth)

    def drawn(self, output: NDArray[np.floating]) -> int:
        """The risk."""
        return 0
