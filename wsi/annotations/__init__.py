"""Regions that people drew in QuPath, ASAP, ImageScope and other tools, in level-0 pixels: read and written."""

from .annotation import Annotation
from .read import read_annotations
from .write import write_annotations

__all__ = ["Annotation", "read_annotations", "write_annotations"]
