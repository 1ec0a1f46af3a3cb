"""Who is trained on and who is tested: by patient, stratified by label and site, the same for the same seed."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError
from wsi.missing import said

from .bag import Bag


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Which bags each network is tested on; all others are trained on.

    folds_of    int64 (repeats, n): the fold whose test part a bag lies in, in each repeat; -1 for a bag that is never
                tested, which only a fixed division into training, validation and test has
    seed        it was drawn with; None for one that was read from elsewhere
    notes       what the user should know of it: strata that were too rare, or a file whose origin is unknown
    validation  bool (n,): the bags that decide when to stop, where the division fixes them; None to hold back a fifth
                of each training part
    mark        SHA-256 of its table, "" where none was made yet
    """

    folds_of: NDArray[np.int64]
    seed: int | None
    notes: tuple[str, ...] = ()
    validation: NDArray[np.bool_] | None = None
    mark: str = ""

    @property
    def folds(self) -> int:
        return int(self.folds_of.max()) + 1

    @property
    def repeats(self) -> int:
        return len(self.folds_of)

    def tested_by(self, bag: int) -> tuple[int, ...]:
        """The networks that do not see this bag, one a repeat, counted through repeats; () if it is trained on."""
        own = self.folds_of[:, bag]
        return tuple(int(repeat * self.folds + fold) for repeat, fold in enumerate(own) if fold >= 0)


def draw_partition(
    bags: Sequence[Bag], strata: Sequence[str], folds: int, repeats: int, seed: int, options: "Strata | None" = None
) -> Partition:
    """Patient-wise folds, `repeats` times with different seeds; the first is `make_splits` where labels alone count.

    strata  the class of each bag, (n,): `Task.strata`
    Raises SpecError for a cohort too small for its folds.
    """
    options = options or Strata()
    patients, notes = who(bags), list[str]()
    if options.merge:
        strata, merged = merge_rare(patients, strata, folds)
        notes += merged
    else:
        require_patients(patients, strata, folds)
    fine, fallen = _refined(bags, patients, strata, options.columns, folds)
    drawn = []
    for repeat in range(repeats):
        fold_of = _spread(patients, fine, folds, seed_of(seed, repeat))
        _require_all(fold_of, [] if options.merge else strata, folds)
        check_leakage(bags, fold_of)
        drawn.append(fold_of)
    return Partition(np.stack(drawn), seed, (*notes, *fallen))


@dataclass(frozen=True, slots=True)
class Strata:
    """How folds are balanced: `columns` of the manifest beside the label; `merge` puts strata with fewer patients than
    folds together instead of refusing them, for tasks whose strata are bands or combinations."""

    columns: tuple[str, ...] = ()
    merge: bool = False


def make_splits(patients: Sequence[str], labels: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each bag, int64 (n,) in [0, folds): a patient lies in one fold, classes are spread evenly over folds.

    A patient whose bags have different labels counts for each of them. Raises SpecError when a class has fewer
    patients than there are folds, or when there is only one class.
    """
    require_patients(patients, labels, folds)
    fold_of = _spread(patients, labels, folds, seed)
    _require_all(fold_of, labels, folds)
    return fold_of


def require_patients(patients: Sequence[str], labels: Sequence[str], folds: int) -> None:
    """Raises SpecError unless there are two classes, and each has a patient for every fold."""
    counts = _patients_of(patients, labels)
    if len(counts) < 2:
        raise SpecError("labels", f"all bags are of one class ({', '.join(counts)})", "training needs at least two")
    for name, count in sorted(counts.items()):
        if count < folds:
            raise SpecError(
                "folds",
                f"class {name!r} has {count} patient(s), fewer than the {folds} folds",
                f"ask for at most {count} folds" if count >= 2 else "add patients of that class",
            )


def merge_rare(patients: Sequence[str], strata: Sequence[str], folds: int) -> tuple[list[str], list[str]]:
    """Strata (n,) with those of fewer patients than folds put together, and a note that says so.

    Raises SpecError when the whole cohort has fewer patients than folds.
    """
    if len(set(patients)) < folds:
        problem = f"there are {len(set(patients))} patient(s), fewer than the {folds} folds"
        raise SpecError("folds", problem, "ask for fewer folds, or add patients")
    counts = _patients_of(patients, strata)
    rare = sorted(name for name, count in counts.items() if count < folds)
    if not rare:
        return list(strata), []
    told = f"strata with fewer patients than folds are one: {', '.join(rare)}"
    return ["others" if name in rare else name for name in strata], [told]


def validation_part(
    patients: Sequence[str], labels: Sequence[str], seed: int, merge: bool = False
) -> NDArray[np.bool_]:
    """About a fifth of a fold's training bags, by patient, to choose when to stop: bool (n,), True is validation.

    Smaller classes get a larger share: each must keep a patient on both sides. Where a class has only one patient
    nothing can be held back and all is False: such a fold trains for its full number of epochs. `merge` as in Strata.
    """
    parts = min([5, len(set(patients)), *([] if merge else _patients_of(patients, labels).values())])
    if parts < 2:
        return np.zeros(len(labels), bool)
    strata = merge_rare(patients, labels, parts)[0] if merge else list(labels)
    held_back: NDArray[np.bool_] = _spread(patients, strata, parts, seed) == 0
    both, names = set(strata), np.asarray(strata, dtype=object)
    if merge:
        return held_back
    if set(names[held_back]) != both or set(names[~held_back]) != both:  # patients of very unequal size
        return np.zeros(len(labels), bool)
    return held_back


def seed_of(seed: int, repeat: int) -> int:
    """The seed of a repeat: the first is the seed itself, the others are unlike any seed a user is likely to give."""
    return seed if repeat == 0 else int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])


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
    """Raises SpecError when a patient, a case, a slide or one slide's content lies in two folds."""
    found = find_leak(bags, fold_of)
    if found is not None:
        first, second, shared, folds = found
        raise SpecError(
            first.name,
            f"shares its {shared} with {second.name}, but they lie in different folds ({folds[0]} and {folds[1]})",
            "give both the same patient_id in the manifest, or remove the duplicate",
        )


def find_leak(bags: Sequence[Bag], fold_of: NDArray[np.int64]) -> tuple[Bag, Bag, str, tuple[int, int]] | None:
    """The first two bags in different folds that share something, what that is, and their folds; None without."""
    seen: dict[tuple[str, str], tuple[int, Bag]] = {}
    for bag, fold in zip(bags, fold_of.tolist(), strict=True):
        for kind, value in _marks(bag):
            other_fold, other = seen.setdefault((kind, value), (fold, bag))
            if other_fold != fold:
                return bag, other, kind, (fold, other_fold)
    return None


def _marks(bag: Bag) -> list[tuple[str, str]]:
    """All by which a bag may be recognised as someone's; a case's identity is the digests of its slides."""
    marks = [("patient", bag.patient_id), ("case", bag.case_id)]
    marks += [("slide content", digest) for digest in bag.identity.split("+")]
    return [(kind, value) for kind, value in [*marks, *(("slide", name) for name in bag.slide_ids)] if value]


def _refined(
    bags: Sequence[Bag], patients: Sequence[str], strata: Sequence[str], columns: tuple[str, ...], folds: int
) -> tuple[list[str], list[str]]:
    """Strata by label and the columns, (n,); combinations with fewer patients than folds keep the label alone."""
    for column in columns:
        if not any(said(bag.value(column)) for bag in bags):
            problem = f"no bag has anything in column {column!r}"
            raise SpecError("stratify", problem, "name a column of the manifest, or leave it out")
    if not columns:
        return list(strata), []
    texts = [
        " / ".join([stratum, *(said(bag.value(column)) or "unknown" for column in columns)])
        for bag, stratum in zip(bags, strata, strict=True)
    ]
    counts = _patients_of(patients, texts)
    rare = sorted(text for text, count in counts.items() if count < folds)
    notes = [f"too few patients to be spread over folds, so balanced by label alone: {text}" for text in rare]
    return [stratum if text in rare else text for text, stratum in zip(texts, strata, strict=True)], notes


def _patients_of(patients: Sequence[str], labels: Sequence[str]) -> Counter[str]:
    """How many patients have each label."""
    return Counter(label for _, label in set(zip(patients, labels, strict=True)))


def _require_all(fold_of: NDArray[np.int64], labels: Sequence[str], folds: int) -> None:
    """Raises SpecError for an empty fold, and where without one a class is gone; labels (n,), or () for none."""
    named, classes = np.asarray(labels, dtype=object), set(labels)
    for fold in range(folds):
        missing = classes - set(named[fold_of != fold]) if classes else set()
        if missing:
            raise SpecError("folds", f"without fold {fold} no bag of class {min(missing)!r} is left", "use fewer folds")
        if not (fold_of == fold).any():
            raise SpecError("folds", f"fold {fold} would be empty: a few patients own most bags", "use fewer folds")


def _spread(patients: Sequence[str], labels: Sequence[str], parts: int, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # seconds to import

    part_of = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of strata with fewer members than parts, which the notes name
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for part, (_, chosen) in enumerate(splitter.split(np.zeros((len(labels), 1)), list(labels), list(patients))):
            part_of[chosen] = part
    return part_of
