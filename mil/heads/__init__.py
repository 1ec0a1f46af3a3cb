"""Bag → logits. A head is one file with its paper and one line in HEADS."""

import inspect
from collections.abc import Callable

from wsi.errors import SpecError

from ..spec import HeadSpec
from .abmil import ABMIL, PlainABMIL
from .acmil import ACMIL
from .clam import ClamMB, ClamSB
from .dsmil import DSMIL, dsmil_from_reference
from .dtfd import DTFD
from .head import Criterion, Head, MILOutput
from .ilra import ILRA
from .instance_max import InstanceMax
from .linear import LinearProbe
from .maximum import MaxPool
from .mean import MeanPool
from .transformer import Transformer, TransformerPosition
from .transmil import TransMIL
from .wikg import WiKG

HEADS: dict[str, Callable[..., Head]] = {
    "abmil": ABMIL,
    "abmil-ungated": PlainABMIL,
    "mean": MeanPool,
    "max": MaxPool,
    "instance-max": InstanceMax,
    "clam-sb": ClamSB,
    "clam-mb": ClamMB,
    "dsmil": DSMIL,
    "transmil": TransMIL,
    "dtfd": DTFD,
    "acmil": ACMIL,
    "ilra": ILRA,
    "wikg": WiKG,
    "transformer": Transformer,
    "transformer-position": TransformerPosition,
    "linear": LinearProbe,
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


def described() -> dict[str, str]:
    """Name of every head → what it is, in a line, and the options that only it has with what they are by default."""
    found = {}
    for name, kind in HEADS.items():
        text = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        options = [item for item in inspect.signature(kind).parameters.values() if item.name != "spec"]
        own = ", ".join(f"{item.name}={item.default}" for item in options)
        found[name] = f"{text} [{own}]" if own else text
    return found


__all__ = [
    "ABMIL",
    "ACMIL",
    "DSMIL",
    "DTFD",
    "HEADS",
    "ILRA",
    "ClamMB",
    "ClamSB",
    "Criterion",
    "Head",
    "HeadSpec",
    "InstanceMax",
    "LinearProbe",
    "MILOutput",
    "MaxPool",
    "MeanPool",
    "PlainABMIL",
    "TransMIL",
    "Transformer",
    "TransformerPosition",
    "WiKG",
    "build_head",
    "described",
    "dsmil_from_reference",
]
