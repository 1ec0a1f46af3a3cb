"""Read the pixels of any whole-slide image in one coordinate frame."""

from ._compat import install_torchvision_hook
from .errors import (
    AnnotationError,
    BackboneError,
    EngineError,
    ManifestError,
    RemoteError,
    SlideError,
    SpecError,
    StoreError,
    TileError,
)
from .formats import open_slide
from .geometry import Level, Region
from .identity import slide_identity
from .resample import pick_level, read_at, read_tiles
from .slide import Slide, SlideInfo

__all__ = [
    "AnnotationError",
    "BackboneError",
    "EngineError",
    "Level",
    "ManifestError",
    "Region",
    "RemoteError",
    "Slide",
    "SlideError",
    "SlideInfo",
    "SpecError",
    "StoreError",
    "TileError",
    "open_slide",
    "pick_level",
    "read_at",
    "read_tiles",
    "slide_identity",
]

# timm, torchmetrics and peft import torchvision; the hook must be in place before any of them is.
install_torchvision_hook()
