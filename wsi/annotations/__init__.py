"""Regions that people drew in QuPath, ASAP or ImageScope, in level-0 pixels."""

from .annotation import Annotation
from .read import read_annotations

__all__ = ["Annotation", "read_annotations"]
