"""What a backbone is fine-tuned on: labelled tiles or slides with their pixels, and who is held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.publish import fingerprint

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Items that have a label: single tiles, or slides with their tiles.

    classes  names in the order of the labels
    truth    int64 (m,), class of each item
    groups   (m,) who an item is of: items of one patient are never parted
    names    (m,) of the items, for tables
    tiles    int64 (m,) arrays of tile numbers, those of each item; None where item i is tile i
    count    tiles in all
    read     tile numbers int64 (k,) → their pixels, uint8 (k, t, t, 3)
    tile_px  side t; mpp: µm per pixel of them, None where it is not known
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    groups: tuple[str, ...]
    names: tuple[str, ...]
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    count: int
    tile_px: int
    mpp: float | None = None
    tiles: tuple[NDArray[np.int64], ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.truth) == len(self.groups) == len(self.names):
            raise ValueError(f"{len(self.truth)} labels, {len(self.groups)} groups, {len(self.names)} names")
        if len(np.unique(self.truth)) < 2:
            only = ", ".join(self.classes[i] for i in np.unique(self.truth)) or "none"
            problem = f"all {len(self.truth)} items are of one class ({only})"
            raise SpecError("labels", problem, "fine-tuning needs at least two")

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def of_slides(self) -> bool:
        return self.tiles is not None

    def tiles_of(self, item: int) -> NDArray[np.int64]:
        return np.array([item]) if self.tiles is None else self.tiles[item]

    def mark(self) -> str:
        """Twelve hex digits over labels, groups, names and places: another cohort has another mark."""
        counts = [] if self.tiles is None else [len(one) for one in self.tiles]
        return fingerprint(self.classes, self.truth.tolist(), self.groups, self.names, counts, self.tile_px, self.mpp)

    def in_words(self, part: NDArray[np.int64]) -> str:
        """412 tiles of 24 patients (breast 96, kidney 108, …)."""
        counts = ", ".join(
            f"{name} {int((self.truth[part] == place).sum())}" for place, name in enumerate(self.classes)
        )
        what = "slides" if self.of_slides else "tiles"
        return f"{len(part)} {what} of {len({self.groups[i] for i in part})} groups ({counts})"


def split_cohort(cohort: Cohort, folds: int, seed: int, test_fold: int = 0) -> NDArray[np.int8]:
    """Part of each item, int8 (m,): TEST where its group is in fold `test_fold`, VALIDATION in the next, else TRAIN.

    Groups are spread over `folds` by scikit-learn's StratifiedGroupKFold. Raises SpecError where a class has fewer
    groups than three: it cannot be trained on, stopped by and tested on.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # seconds to import

    for place, name in enumerate(cohort.classes):
        count = len({group for group, label in zip(cohort.groups, cohort.truth, strict=True) if label == place})
        if count < 3:
            problem = f"class {name!r} has {count} group(s): it cannot be in training, validation and test"
            raise SpecError("groups", problem, "give at least three patients of it, or a `split` column")
        folds = min(folds, count)
    fold_of = np.empty(len(cohort), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, chosen) in enumerate(splitter.split(np.zeros((len(cohort), 1)), cohort.truth, cohort.groups)):
        fold_of[chosen] = fold
    parts = np.full(len(cohort), TRAIN, np.int8)
    parts[fold_of == (test_fold + 1) % folds] = VALIDATION
    parts[fold_of == test_fold % folds] = TEST
    check_split(cohort, parts)
    return parts


def given_split(cohort: Cohort, said: Sequence[str], folds: int, seed: int) -> NDArray[np.int8]:
    """The parts that a table states: train, test and, where it says so, validation; else some training groups, about
    one of `folds`, are held out for it. Raises SpecError for another word, a missing part, or a group in two parts.
    """
    words = {"train": TRAIN, "validation": VALIDATION, "val": VALIDATION, "test": TEST}
    unknown = sorted({word for word in said if word not in words})
    if unknown:
        raise SpecError("split", f"{unknown[0]!r} is no part", f"write {', '.join(PARTS)}")
    parts = np.array([words[word] for word in said], np.int8)
    check_leakage(cohort, parts)
    if not (parts == VALIDATION).any():
        parts[_held_back(cohort, np.flatnonzero(parts == TRAIN), folds, seed)] = VALIDATION
    check_split(cohort, parts)
    return parts


def _held_back(cohort: Cohort, train: NDArray[np.intp], folds: int, seed: int) -> NDArray[np.intp]:
    """Items of `train` to stop by: those of about a `folds`-th of the groups of every class, at least one of each; of a
    class with one group alone, a `folds`-th of its items, as no group can be spared."""
    rng, chosen = np.random.default_rng(seed), []
    groups = np.array(cohort.groups)
    for place in range(len(cohort.classes)):
        mine = train[cohort.truth[train] == place]
        names = np.unique(groups[mine])
        if len(names) > 1:
            out = rng.permutation(names)[: max(1, len(names) // folds)]
            chosen.append(train[np.isin(groups[train], out)])
        else:
            chosen.append(rng.permutation(mine)[: max(1, len(mine) // folds)])
    return np.unique(np.concatenate(chosen))


def check_leakage(cohort: Cohort, parts: NDArray[np.int8]) -> None:
    """Raise SpecError where a group that is tested on is also trained on, or stops the training."""
    tested = {group for group, part in zip(cohort.groups, parts, strict=True) if part == TEST}
    for name, group, part in zip(cohort.names, cohort.groups, parts, strict=True):
        if part != TEST and group in tested:
            problem = f"its group {group!r} is in {PARTS[part]} and in test"
            raise SpecError(name, problem, "put all of a patient into one part")


def check_split(cohort: Cohort, parts: NDArray[np.int8]) -> None:
    """Raise SpecError where a group is tested on that is not held out, or a part lacks a class."""
    check_leakage(cohort, parts)
    for part, name in enumerate(PARTS):
        missing = sorted(set(range(len(cohort.classes))) - set(cohort.truth[parts == part].tolist()))
        if missing:
            problem = f"{name} has nothing of class {cohort.classes[missing[0]]!r}"
            raise SpecError("split", problem, "add groups of that class, or give another --seed or split")
