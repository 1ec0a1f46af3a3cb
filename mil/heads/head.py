"""What every head is, and what it returns."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor], Tensor]
"""A task's loss: logits (B, O) and the targets of these bags → a scalar, the mean over bags."""


class MILOutput(NamedTuple):
    """A head's answer for a batch of bags.

    logits     (B, O), before the task's activation
    attention  (B, N), or (B, O, N) where each output attends by itself; sums to 1 over a bag's real tiles and is
               exactly 0 on padding. None for a head that has nothing of the kind: `mil.explain` scores any head's tiles
    extra      what the head's own training loss is computed from; empty for most
    """

    logits: Tensor
    attention: Tensor | None
    extra: Mapping[str, Any] = MappingProxyType({})


class Head(nn.Module):
    """Bag → logits. One forward, one mask convention: True is a real tile, and every bag has at least one.

    classes_only  whether it needs one class per bag, so that it serves the task `classification` alone
    order_free    whether the order of tiles means nothing to it
    needs_xy      whether it raises SpecError without the tiles' positions
    """

    classes_only: ClassVar[bool] = False
    order_free: ClassVar[bool] = True
    needs_xy: ClassVar[bool] = False

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """features (B, N, D) float; mask (B, N) bool, True is a real tile; xy (B, N, 2) float, in tiles, or None."""
        raise NotImplementedError

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """The scalar that training lowers. Heads with a loss of their own (CLAM, DSMIL, …) add it here.

        target  as the task encodes it; class indices, int64 (B,), for classification
        """
        return criterion(output.logits, target)
