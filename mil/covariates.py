"""Columns of the manifest as numbers beside the tiles: age, sex, stage, a laboratory value.

What the cohort fixes is only how texts are read: which columns are numbers, the names of categories, and the number
that stands for a missing one. Means and spreads that a model sees are taken on each fold's training part by Network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ManifestError, SpecError, StoreError
from wsi.missing import said

from .tasks.reading import as_number, same_for_all_slides

if TYPE_CHECKING:
    from .bag import Bag

MAX_CATEGORIES = 10  # more distinct texts are names or free text: each would be learned from a bag or two


@dataclass(frozen=True, slots=True)
class Column:
    """How one column of the manifest is read.

    middle      median of the cohort's numbers, which stands for a missing one; None for categories
    categories  the distinct texts that occur, sorted; one output each, 1 where the bag is of it. () for numbers
    gaps        whether numbers were missing in the cohort: then an output beside them is 1 where one is missing

    The median of the whole cohort is one constant per column; with `gaps` beside it a linear model can replace it by
    any other, so that it tells a training fold nothing of the bags it does not see.
    """

    name: str
    middle: float | None = None
    categories: tuple[str, ...] = ()
    gaps: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its outputs."""
        if self.middle is None:
            return tuple(f"{self.name}={category}" for category in self.categories)
        return (self.name, f"{self.name} missing") if self.gaps else (self.name,)


@dataclass(frozen=True, slots=True)
class Covariates:
    """Manifest columns → float32 (K,) per bag. Categories are one-hot, and all 0 where missing or never seen."""

    columns: tuple[Column, ...]

    @classmethod
    def of_cohort(cls, names: Sequence[str], bags: "Sequence[Bag]") -> "Covariates":
        """How these columns are read: as numbers where every text is one, else as at most MAX_CATEGORIES categories.

        Raises SpecError for a column named twice, empty everywhere or without variation; ManifestError for one that
        is neither numbers nor few categories, naming a bag, or that differs between slides of one bag.
        """
        if len(set(names)) != len(names):
            raise SpecError("covariates", "a column is named twice", "name each once")
        return cls(tuple(_column(name, bags) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K outputs: `age`, `age missing`, `sex=f`, `sex=m`."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def width(self) -> int:
        return len(self.names)

    def encode(self, bags: "Sequence[Bag]") -> NDArray[np.float32]:
        """float32 (n, K), finite, not standardised. Raises ManifestError for a text where a number belongs."""
        rows = [[value for column in self.columns for value in _encoded(column, bag)] for bag in bags]
        return np.array(rows, np.float32).reshape(len(bags), self.width)

    def notes(self, bag: "Bag") -> tuple[str, ...]:
        """What a reader of a prediction should know: values that are missing, or categories the cohort had not."""
        found = []
        for column in self.columns:
            text = _text(bag, column.name)
            if not text:
                said = "taken as 0 for all categories" if column.middle is None else f"taken as {column.middle:g}"
                found.append(f"{column.name} is missing, {said}")
            elif column.middle is None and text not in column.categories:
                found.append(f"{column.name} {text!r} did not occur in the cohort, taken as missing")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Covariates":
        """What `as_dict` described. Raises StoreError where an entry is missing or misshapen."""
        try:
            return cls(tuple(Column(**{**fact, "categories": tuple(fact["categories"])}) for fact in facts["columns"]))
        except (KeyError, TypeError) as error:
            problem = f"an entry is missing or misshapen ({error!r})"
            raise StoreError("covariates", problem, "copy the model's folder again or train it again") from error


def _text(bag: "Bag", name: str) -> str:
    return same_for_all_slides(bag, name, said(bag.value(name)))


def _column(name: str, bags: "Sequence[Bag]") -> Column:
    texts = [_text(bag, name) for bag in bags]
    given = [text for text in texts if text]
    if not given:
        raise SpecError("covariates", f"no bag has anything in column {name!r}", "correct its name, or leave it out")
    numbers = [as_number(text) for text in given]
    known = [number for number in numbers if number is not None]
    distinct = sorted(set(given))
    gaps = len(given) < len(texts)
    if len(set(known) if len(known) == len(given) else distinct) + gaps < 2:
        raise SpecError("covariates", f"column {name!r} says the same of every bag", "leave it out")
    if len(known) == len(given):
        return Column(name, float(np.median(known)), gaps=gaps)
    if len(distinct) > MAX_CATEGORIES:
        odd = given[numbers.index(None)]
        raise ManifestError(
            bags[texts.index(odd)].name,
            f"column {name!r} says {odd!r}, which is no number, and has {len(distinct)} distinct texts",
            f"give numbers (empty where unknown) or at most {MAX_CATEGORIES} categories, or leave the column out",
        )
    return Column(name, categories=tuple(distinct))


def _encoded(column: Column, bag: "Bag") -> list[float]:
    text = _text(bag, column.name)
    if column.middle is None:
        return [float(text == category) for category in column.categories]
    number = as_number(text) if text else column.middle
    if number is None:
        problem = f"column {column.name!r} says {text!r}, which is no number"
        raise ManifestError(bag.name, problem, "give it as 12.3, or leave it empty where it is unknown")
    return [number, float(not text)] if column.gaps else [number]
