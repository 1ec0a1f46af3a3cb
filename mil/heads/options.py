"""Checks of a head's own options: what is wrong is said before any weight is made."""

from collections.abc import Sequence

from wsi.errors import SpecError


def at_least(name: str, value: object, low: int = 1) -> None:
    """Raises SpecError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise _wrong(name, f"{value!r} is not a whole number of at least {low}", f"give {low} or more")


def share(name: str, value: object) -> None:
    """Raises SpecError unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _wrong(name, f"{value!r} is not a number in [0, 1]", "give a share, such as 0.5")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises SpecError unless `value` is among `choices`."""
    if value not in choices:
        raise _wrong(name, f"there is none called {value!r}", f"choose one of: {', '.join(choices)}")


def divides(name: str, value: int, width: int) -> None:
    """Raises SpecError unless `width`, the head's `hidden`, splits evenly among `value` parts."""
    if width % value:
        raise SpecError(
            "head.hidden", f"{width} does not split evenly into {name} = {value}", f"give a multiple of {value}"
        )


def _wrong(name: str, problem: str, remedy: str) -> SpecError:
    return SpecError(f"head_options.{name}", problem, remedy)
