"""Slide encoders: the embeddings of a slide's tiles → one vector. Names that need torch load it when first used."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi.errors import BackboneError

from .catalogue import ENTRIES
from .encoder import SlideEncoder
from .spec import DEFAULT_ENCODER, EncodeSpec

if TYPE_CHECKING:
    from .build import SlideModel, build_encoder
    from .contract import check_fits, make_slide_contract

SLIDE_ENCODERS: dict[str, SlideEncoder] = {encoder.name: encoder for encoder in ENTRIES}

_HOMES = {
    "SlideModel": "build", "build_encoder": "build", "check_fits": "contract", "make_slide_contract": "contract",
}  # fmt: skip

__all__ = [
    "DEFAULT_ENCODER", "SLIDE_ENCODERS", "EncodeSpec", "SlideEncoder", "SlideModel", "build_encoder", "check_fits",
    "find_slide_encoder", "make_slide_contract",
]  # fmt: skip


def find_slide_encoder(name: str) -> SlideEncoder:
    """The entry called `name`. Raises BackboneError naming the nearest."""
    if name in SLIDE_ENCODERS:
        return SLIDE_ENCODERS[name]
    near = get_close_matches(name, SLIDE_ENCODERS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "choose one of " + ", ".join(SLIDE_ENCODERS)
    raise BackboneError(name, "there is no slide encoder of this name", hint)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
