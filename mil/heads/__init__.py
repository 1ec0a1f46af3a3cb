"""Bag → logits. A head is one file with its paper and one line in HEADS."""

from collections.abc import Callable

from torch import nn

from wsi.errors import SpecError

from ..spec import HeadSpec
from .abmil import ABMIL
from .maximum import MaxPool
from .mean import MeanPool
from .output import MILOutput

HEADS: dict[str, Callable[[HeadSpec], nn.Module]] = {
    "abmil": ABMIL,
    "mean": MeanPool,
    "max": MaxPool,
}


def build_head(spec: HeadSpec) -> nn.Module:
    """The head named by `spec`, with fresh weights from torch's current random state."""
    if spec.name not in HEADS:
        raise SpecError("head", f"there is none called {spec.name!r}", f"choose one of: {', '.join(HEADS)}")
    return HEADS[spec.name](spec)


__all__ = ["ABMIL", "HEADS", "HeadSpec", "MILOutput", "MaxPool", "MeanPool", "build_head"]
