"""What networks learn from beside the cohort's bags: regions whose class people gave. They are never judged.

A region's class holds for each of its tiles, and so each is a bag of its own, of that tile alone: the label reaches the
tile, as it does where a heatmap asks for its score. A region as one small bag teaches only what bags of one tissue are,
which no slide is; on a planted cohort that made models worse, and the tiles made them better (docs/review.md).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .bag import Bag, require_contract
from .covariates import Covariates
from .model import CohortRow
from .outcome import truth_text
from .splits import Partition
from .train import Part

if TYPE_CHECKING:
    from .crossval import Cohort


MOST_TILES = 16  # of a region that are learnt from: one drawn around half a slide must not count like a thousand


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """Tiles of regions, each a bag with its region's class as a slide's bag has it, and where networks may see them.

    kin   of each, the places of the cohort's bags that show the same patient, case or slide
    folds int64 (repeats, n): the fold of a region whose patient has no bag in the cohort, drawn from who it is; so
          that some networks know nothing of that patient either, and can predict its slides. -1 of all others
    """

    part: Part
    kin: tuple[frozenset[int], ...]
    folds: NDArray[np.int64]

    def seen_by(self, partition: Partition, place: int, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Which a network learns from, given its (training, validation, test) places in the cohort.

        Those whose patient is not held back from it: neither to judge it nor to stop it.
        """
        repeat, fold = divmod(place, partition.folds)
        held = frozenset(np.concatenate(parts[1:]).tolist())
        mine = [not (kin & held) and self.folds[repeat, i] != fold for i, kin in enumerate(self.kin)]
        return np.flatnonzero(mine)

    def rows(
        self, cohort: "Cohort", partition: Partition, parts: Sequence[Sequence[NDArray[np.int64]]]
    ) -> list[CohortRow]:
        """What the model keeps of each: whose it is, and the networks that did not see it."""
        seen = [set(self.seen_by(partition, place, one).tolist()) for place, one in enumerate(parts)]
        rows = []
        first = {bag.region: i for i, bag in reversed(list(enumerate(self.part.bags)))}
        for i, bag in enumerate(self.part.bags):
            if first[bag.region] != i:
                continue  # another tile of that region
            unseen = tuple(place for place, those in enumerate(seen) if i not in those)
            who = (bag.region, bag.slide_ids, bag.patient_id, bag.case_id, bag.identity, truth_text(cohort.task, bag))
            rows.append(CohortRow(*who, tiles=bag.tiles, folds=unseen, logits=None))
        return rows

    def told(self) -> str:
        """What the reader of a model's figures must know."""
        slides = {name for bag in self.part.bags for name in bag.slide_ids}
        regions = len({bag.region for bag in self.part.bags})
        return (
            f"it also learnt from {regions} drawn regions of {len(slides)} slides, never of a patient by whom "
            "it was judged or stopped; no figure is of regions"
        )


def beside_cohort(bags: Sequence[Bag], cohort: "Cohort", partition: Partition) -> Beside | None:
    """The regions for a cohort that is cross-validated on this partition; None where there are none.

    Raises SpecError for tasks that have no classes, and for a region without tiles or of a class that the cohort does
    not have; BackboneError for embeddings of another contract.
    """
    if not bags:
        return None
    task, first = cohort.task, cohort.bags[0]
    if task.name not in ("classification", "ordinal"):
        raise SpecError("regions", f"a region's class cannot teach {task.name}", "train a classification, or leave out")
    for bag in bags:
        require_contract(bag, first.contract, first.contract_hash, first.dim)
        if not bag.tiles or bag.value(task.spec.target) not in task.classes:
            problem = f"region {bag.region} has no tiles, or is of class {bag.value(task.spec.target)!r}"
            raise SpecError(bag.name, problem, f"classes are {', '.join(task.classes)}")
    related = {bag.region: _kin(bag, cohort.bags) for bag in bags}
    bags = [tile for bag in bags for tile in _tiles(bag)]
    known = cohort.covariates.encode(bags) if isinstance(cohort.covariates, Covariates) else None
    kin = tuple(related[bag.region] for bag in bags)
    fixed = partition.validation is not None
    drawn = [
        [-1 if fixed or kin[i] else _drawn(bag.group, repeat, partition.folds) for i, bag in enumerate(bags)]
        for repeat in range(partition.repeats)
    ]
    return Beside(Part(bags, task.truth(bags), known), kin, np.array(drawn, np.int64))


def joined(part: Part, beside: Beside | None, places: NDArray[np.int64]) -> Part:
    """The bags of a part, and of the regions those at `places`."""
    if beside is None or not len(places):
        return part
    more = beside.part.at(places)
    known = None
    if part.covariates is not None and more.covariates is not None:
        known = np.concatenate([part.covariates, more.covariates])
    return Part([*part.bags, *more.bags], np.concatenate([part.truth, more.truth]), known)


def _tiles(bag: Bag) -> list[Bag]:
    """Bags of single tiles of a region: all, or of a large one so many, evenly spaced."""
    chosen = np.unique(np.linspace(0, bag.tiles - 1, MOST_TILES).astype(np.int64))
    return [
        replace(
            bag,
            features=bag.features[row : row + 1],
            xy=bag.xy[row : row + 1],
            views=None if bag.views is None else bag.views[row : row + 1],
        )
        for row in chosen.tolist()
    ]


def _kin(bag: Bag, cohort: Sequence[Bag]) -> frozenset[int]:
    mine = {part for part in bag.identity.split("+") if part}
    return frozenset(
        i
        for i, other in enumerate(cohort)
        if other.group == bag.group
        or (bag.case_id is not None and other.case_id == bag.case_id)
        or set(other.slide_ids) & set(bag.slide_ids)
        or mine & set(other.identity.split("+"))
    )


def _drawn(group: str, repeat: int, folds: int) -> int:
    return int(hashlib.sha256(f"{repeat} {group}".encode()).hexdigest(), 16) % folds
