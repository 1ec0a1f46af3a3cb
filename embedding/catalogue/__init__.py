"""The backbones, as tables: one entry each, and nothing else to write for a model of a known family."""

from .pathology import PATHOLOGY

ENTRIES = PATHOLOGY
