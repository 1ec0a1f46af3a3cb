"""Synthetic H&E-like slides with a known truth, for the demo, the examples and the tests. No real data inside."""

from .cohort import (
    CohortSpec,
    PlannedSlide,
    plan_cohort,
    write_manifest,
    write_planned,
    write_synthetic_cohort,
)
from .spec import SCANNERS, STAINS, Scanner, Stain, SyntheticSpec
from .truth import GLASS, TISSUE, TUMOUR, Truth, read_truth, tile_truth, truth_path
from .write import write_synthetic_slide

__all__ = [
    "GLASS",
    "SCANNERS",
    "STAINS",
    "TISSUE",
    "TUMOUR",
    "CohortSpec",
    "PlannedSlide",
    "Scanner",
    "Stain",
    "SyntheticSpec",
    "Truth",
    "plan_cohort",
    "read_truth",
    "tile_truth",
    "truth_path",
    "write_manifest",
    "write_planned",
    "write_synthetic_cohort",
    "write_synthetic_slide",
]
