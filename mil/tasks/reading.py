"""Truth as texts of a manifest → classes and numbers. Whatever cannot be read is refused by name: bag and column."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ManifestError, SpecError
from wsi.missing import said

if TYPE_CHECKING:
    from ..bag import Bag

FEW = 10  # bags: a stratum of fewer is not worth spreading over folds for its own sake
_EVENTS = {"1": 1.0, "true": 1.0, "0": 0.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}


def text_of(bag: "Bag", column: str) -> str:
    """What the manifest says. Raises ManifestError where it says nothing, or NA, or its slides say different things."""
    text = said(bag.value(column))
    if not text:
        raise ManifestError(bag.name, f"has nothing in column {column!r}", "fill it in, or leave this row out")
    return same_for_all_slides(bag, column, text)


def same_for_all_slides(bag: "Bag", column: str, text: str) -> str:
    """The text. Raises ManifestError where the bag's slides say different things in that column."""
    if len(bag.slide_ids) > 1 and " | " in text:  # how merge_bags joins texts that differ
        problem = f"its slides differ in column {column!r}: {text}"
        raise ManifestError(bag.name, problem, "correct the rows, or train at the level of slides")
    return text


def number_of(bag: "Bag", column: str) -> float:
    """A finite number, with a point for the decimals. Raises ManifestError for anything else."""
    text = text_of(bag, column)
    number = as_number(text)
    if number is None:
        raise ManifestError(bag.name, f"column {column!r} says {text!r}, which is no number", "give it as 12.3")
    return number


def as_number(text: str) -> float | None:
    """The finite number that a text is, None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None  # float() takes 1_000; no table means it


def class_names(bags: "Sequence[Bag]", column: str, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """`classes` where given, else the sorted that occur. Raises SpecError for fewer than two, or one without bags."""
    found = {text_of(bag, column) for bag in bags}
    names = tuple(classes) or tuple(sorted(found))
    if len(found) < 2 and not found - set(names):
        only = next(iter(found), "none")
        raise SpecError(column, f"all bags are of one class ({only})", "training needs bags of at least two classes")
    missing = [name for name in names if name not in found]
    if missing and not found - set(names):
        raise SpecError("task.classes", f"no bag is of class {missing[0]!r}", "correct its spelling, or leave it out")
    return names


def class_indices(bags: "Sequence[Bag]", column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Place in `classes` of each bag's class, int64 (n,). Raises ManifestError for a class that is none of them."""
    place = {name: i for i, name in enumerate(classes)}
    truth = np.empty(len(bags), np.int64)
    for i, bag in enumerate(bags):
        text = text_of(bag, column)
        if text not in place:
            problem = f"column {column!r} says {text!r}, which is none of {', '.join(classes)}"
            raise ManifestError(bag.name, problem, "correct it, name the class in task.classes, or leave this row out")
        truth[i] = place[text]
    return truth


def follow_up(bags: "Sequence[Bag]", time: str, event: str) -> NDArray[np.float64]:
    """Time > 0 and event 1 or 0, float64 (n, 2). Raises ManifestError for any other time or event."""
    truth = np.empty((len(bags), 2))
    for i, bag in enumerate(bags):
        truth[i, 0] = number_of(bag, time)
        if truth[i, 0] <= 0:
            problem = f"column {time!r} says {truth[i, 0]:g}, but a time to event is greater than 0"
            raise ManifestError(bag.name, problem, "give the time from the start of follow-up, or leave this row out")
        seen = text_of(bag, event)
        if seen.lower() not in _EVENTS:
            problem = f"column {event!r} says {seen!r}"
            raise ManifestError(bag.name, problem, "give 1 or true for an event that was seen, 0 or false for none")
        truth[i, 1] = _EVENTS[seen.lower()]
    return truth


def require_events(truth: NDArray[np.float64], event: str, least: int = 2) -> None:
    """Raises SpecError unless at least so many of the bags, truth (n, 2), had their event."""
    count = int(truth[:, 1].sum())
    if count < least:
        raise SpecError(event, f"{count} event(s) among {len(truth)} bags", f"training needs at least {least} events")


def balance(truth: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """Weight of each class, float32 (C,): inverse to its frequency, with mean 1 over these bags; 0 for absent ones."""
    counts = np.bincount(truth, minlength=classes)
    present = counts > 0
    share = len(truth) / (max(1, int(present.sum())) * np.maximum(counts, 1))
    return np.where(present, share, 0.0).astype(np.float32)


def event_strata(truth: NDArray[np.generic]) -> list[str]:
    """Whether each bag's event was seen, truth (n, 2). A few censored ones are no stratum of their own."""
    seen = truth[:, 1].astype(bool)
    apart = np.count_nonzero(~seen) >= FEW
    return ["censored" if apart and not event else "event" for event in seen]
