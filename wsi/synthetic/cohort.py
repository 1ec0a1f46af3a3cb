"""A cohort of synthetic slides: patients, labels, sites and a manifest."""

import csv
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import SpecError
from ..publish import appear_file
from .spec import SCANNERS, STAINS, SyntheticSpec
from .truth import Truth
from .write import write_synthetic_slide

COLUMNS = ("slide_id", "path", "case_id", "patient_id", "label", "site")
POSITIVE, NEGATIVE = "tumor", "normal"


@dataclass(frozen=True)
class CohortSpec:
    """Synthetic patients, half of them with tumour; equal specs give equal cohorts.

    patients       number of patients, even and at least 2
    second_slides  patients that have two slides; None: every fourth, at least one
    sites          number of sites, each a stain and a scanner, each with both labels; at most 5 and patients / 2
    small_nests    share of the positive patients whose tumour is only one or two small nests
    """

    seed: int = 0
    patients: int = 24
    second_slides: int | None = None
    sites: int = 4
    width_px: int = 3584
    height_px: int = 3584
    mpp: float = 0.5
    small_nests: float = 0.25

    def __post_init__(self) -> None:
        if self.patients < 2 or self.patients % 2:
            raise SpecError("CohortSpec.patients", f"{self.patients} is not even or below 2", "choose 2, 4, 6 …")
        if not 1 <= self.sites <= len(STAINS):
            raise SpecError("CohortSpec.sites", f"{self.sites} is out of range", f"choose 1 to {len(STAINS)}")
        if self.second_slides is not None and not 0 <= self.second_slides <= self.patients:
            raise SpecError("CohortSpec.second_slides", f"{self.second_slides} is out of range", "choose 0 to patients")


class PlannedSlide(NamedTuple):
    """path of the slide to write; its spec; its row of the manifest (keys are COLUMNS)."""

    path: Path
    spec: SyntheticSpec
    row: dict[str, str]


def plan_cohort(folder: Path, cohort: CohortSpec) -> list[PlannedSlide]:
    """Everything about a cohort but its pixels: each slide can then be written in a process of its own."""
    rng = np.random.default_rng(cohort.seed)
    sites = min(cohort.sites, cohort.patients // 2)
    second = cohort.second_slides if cohort.second_slides is not None else max(1, cohort.patients // 4)
    number = rng.permutation(cohort.patients) + 1  # so that neither a label nor a site can be read off an id
    twice = set(rng.permutation(cohort.patients)[:second].tolist())
    positives = cohort.patients // 2
    small = set(rng.permutation(positives)[: round(cohort.small_nests * positives)].tolist())
    planned = []
    for patient in range(cohort.patients):
        pair, positive = patient // 2, patient % 2 == 1
        site = pair % sites
        for slide in range(2 if patient in twice else 1):
            spec = _slide_spec(cohort, rng, site)
            tumour = _tumour(rng, spec, pair in small)  # drawn for negatives too: labels must not shift the seeds
            name = f"{number[patient]:02d}"
            slide_id = f"synthetic-{name}-{'ab'[slide]}"
            row = dict(zip(COLUMNS, (
                slide_id, f"{slide_id}.svs", f"case-{name}", f"patient-{name}",
                POSITIVE if positive else NEGATIVE, f"{spec.stain}/{spec.scanner}",
            ), strict=True))  # fmt: skip
            planned.append(PlannedSlide(Path(folder) / row["path"], replace(spec, **tumour) if positive else spec, row))
    return sorted(planned, key=lambda slide: slide.row["slide_id"])


def _slide_spec(cohort: CohortSpec, rng: np.random.Generator, site: int) -> SyntheticSpec:
    return SyntheticSpec(
        seed=int(rng.integers(2**31)),
        width_px=cohort.width_px,
        height_px=cohort.height_px,
        mpp=cohort.mpp,
        stain=list(STAINS)[site],
        scanner=list(SCANNERS)[site % len(SCANNERS)],
        hematoxylin=float(rng.uniform(0.85, 1.18)),
        eosin=float(rng.uniform(0.8, 1.2)),
        tissue=float(rng.uniform(0.38, 0.5)),
    )


def _tumour(rng: np.random.Generator, spec: SyntheticSpec, small: bool) -> dict[str, Any]:
    count, radius = (rng.integers(1, 4), rng.uniform(80, 115)) if small else (rng.integers(3, 7), rng.uniform(140, 250))
    # A small slide has room for small nests only.
    limit = 0.11 * spec.mpp * (spec.width_px * spec.height_px) ** 0.5
    return {"nests": int(count), "nest_radius_um": float(min(radius, max(60.0, limit)))}


def write_planned(planned: PlannedSlide) -> Truth:
    """Write one slide of a plan (a plain function, so that it travels to a worker process)."""
    return write_synthetic_slide(planned.path, planned.spec)


def write_manifest(folder: Path, planned: list[PlannedSlide]) -> Path:
    """`manifest.csv` of a plan; its paths are relative to the folder."""
    target = Path(folder) / "manifest.csv"
    with appear_file(target) as draft, draft.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(slide.row for slide in planned)
    return target


def write_synthetic_cohort(
    folder: Path, cohort: CohortSpec | None = None, executor: Executor | None = None, **fields: Any
) -> Path:
    """Write all slides of a cohort and its manifest; returns the manifest's path.

    fields  override fields of the cohort: write_synthetic_cohort(folder, patients=4, width_px=1024, height_px=1024)
    """
    planned = plan_cohort(folder, replace(cohort or CohortSpec(), **fields))
    for _ in (executor.map if executor else map)(write_planned, planned):
        pass
    return write_manifest(folder, planned)
