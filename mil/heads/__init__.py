"""Bag → logits. A head is one file with its paper and one line in HEADS."""

import inspect
from collections.abc import Callable

from wsi.errors import SpecError

from ..spec import HeadSpec
from .abmil import ABMIL
from .head import Criterion, Head, MILOutput
from .maximum import MaxPool
from .mean import MeanPool

HEADS: dict[str, Callable[..., Head]] = {
    "abmil": ABMIL,
    "mean": MeanPool,
    "max": MaxPool,
}


def build_head(spec: HeadSpec) -> Head:
    """The head named by `spec`, with fresh weights from torch's current random state.

    Raises SpecError for an unknown head, and for an option that the head does not have.
    """
    if spec.name not in HEADS:
        raise SpecError("head", f"there is none called {spec.name!r}", f"choose one of: {', '.join(HEADS)}")
    kind = HEADS[spec.name]
    known = [name for name in inspect.signature(kind).parameters if name != "spec"]
    unknown = sorted(set(spec.options) - set(known))
    if unknown:
        remedy = f"it knows {', '.join(known)}" if known else "it has none"
        raise SpecError("head_options", f"{spec.name} has no option {unknown[0]!r}", remedy)
    return kind(spec, **spec.options)


__all__ = ["ABMIL", "HEADS", "Criterion", "Head", "HeadSpec", "MILOutput", "MaxPool", "MeanPool", "build_head"]
