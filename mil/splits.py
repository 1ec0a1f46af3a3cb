"""Who is trained on and who is tested: by patient, stratified by label, the same for the same seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .bag import Bag


def make_splits(patients: Sequence[str], labels: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each bag, int64 (n,) in [0, folds): a patient lies in one fold, classes are spread evenly over folds.

    A patient whose bags have different labels counts for each of them. Raises SpecError when a class has fewer
    patients than there are folds, or when there is only one class.
    """
    named = np.asarray(labels, dtype=object)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise SpecError("labels", f"all bags are of one class ({', '.join(classes)})", "training needs at least two")
    for name in classes:
        count = len({patient for patient, label in zip(patients, labels, strict=True) if label == name})
        if count < folds:
            raise SpecError(
                "folds",
                f"class {name!r} has {count} patient(s), fewer than the {folds} folds",
                f"ask for at most {count} folds" if count >= 2 else "add patients of that class",
            )
    fold_of = _spread(patients, labels, folds, seed)
    for fold in range(folds):
        missing = set(classes) - set(named[fold_of != fold])
        if missing:
            raise SpecError(
                "folds", f"without fold {fold} no bag of class {missing.pop()!r} is left", "use fewer folds"
            )
    return fold_of


def validation_part(patients: Sequence[str], labels: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """About a fifth of a fold's training bags, by patient, to choose when to stop: bool (n,), True is validation.

    Smaller classes get a larger share: each must keep a patient on both sides. Where a class has only one patient
    nothing can be held back and all is False: such a fold trains for its full number of epochs.
    """
    per_class = [
        len({patient for patient, label in zip(patients, labels, strict=True) if label == name}) for name in set(labels)
    ]
    parts = min(5, *per_class)
    if parts < 2:
        return np.zeros(len(labels), bool)
    part_of = _spread(patients, labels, parts, seed)
    held_back: NDArray[np.bool_] = part_of == 0
    both = set(labels)
    names = np.asarray(labels, dtype=object)
    if set(names[held_back]) != both or set(names[~held_back]) != both:  # patients of very unequal size
        return np.zeros(len(labels), bool)
    return held_back


def who(bags: Sequence[Bag]) -> list[str]:
    """Who each bag belongs to: bags that share a patient, a case, a slide or its content, if only through a third
    bag, get one name and are never parted."""
    names = [f"{i}" for i in range(len(bags))]
    first: dict[tuple[str, str], int] = {}
    for i, bag in enumerate(bags):
        for mark in _marks(bag):
            mine, other = names[i], names[first.setdefault(mark, i)]
            if mine != other:
                names = [other if name == mine else name for name in names]
    return [bags[int(name)].group for name in names]


def check_leakage(bags: Sequence[Bag], fold_of: NDArray[np.int64]) -> None:
    """Raises SpecError when a patient, a case or one slide's content lies in two folds."""
    seen: dict[tuple[str, str], tuple[int, Bag]] = {}
    for bag, fold in zip(bags, fold_of.tolist(), strict=True):
        for kind, value in _marks(bag):
            other_fold, other = seen.setdefault((kind, value), (fold, bag))
            if other_fold != fold:
                raise SpecError(
                    bag.name,
                    f"shares its {kind} with {other.name}, but they lie in different folds ({fold} and {other_fold})",
                    "give both the same patient_id in the manifest, or remove the duplicate",
                )


def _marks(bag: Bag) -> list[tuple[str, str]]:
    """All by which a bag may be recognised as someone's."""
    marks = [("patient", bag.patient_id), ("case", bag.case_id), ("slide content", bag.identity)]
    return [(kind, value) for kind, value in [*marks, *(("slide", name) for name in bag.slide_ids)] if value]


def _spread(patients: Sequence[str], labels: Sequence[str], parts: int, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # seconds to import

    part_of = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    for part, (_, chosen) in enumerate(splitter.split(np.zeros((len(labels), 1)), list(labels), list(patients))):
        part_of[chosen] = part
    return part_of
