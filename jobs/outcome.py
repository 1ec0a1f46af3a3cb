"""What a stage says of a slide, and the units of work that slides are cut into."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of one slide it has finished; problem: why an empty one is."""

    status: str
    fingerprint: str = ""
    tiles: int = 0
    failed_tiles: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """What a stage says of a slide that is more than one unit of work: its parts may be done anywhere, in any order.

    folder  where part `number` is when it is done: the file `name_of(number)`. It is there until the parts are joined
    parts   how many there are
    tiles   of the whole slide
    part    importable: does one part, returns its number of tiles and of those that could not be read
    join    importable: makes the result of all parts, in one step, and removes them
    """

    folder: Path
    parts: int
    tiles: int
    part: Callable[[SlideRecord, RunSpec, RunFolder, int], tuple[int, int]]
    join: Callable[[SlideRecord, RunSpec, RunFolder], Outcome]

    @staticmethod
    def name_of(number: int) -> str:
        return f"part-{number:05d}.npz"

    def has(self, number: int) -> bool:
        return (self.folder / self.name_of(number)).is_file()


Stage = Callable[[SlideRecord, RunSpec, RunFolder], Outcome | Split]


def stage_name(stage: Stage) -> str:
    """tile_slide → tile."""
    return stage.__name__.removesuffix("_slide")


class Unit(NamedTuple):
    """What one worker does at a time: a slide at a stage, or where it was split a part of it, or their join."""

    stage: str
    slide_id: str
    part: int | None = None
    join: bool = False

    @property
    def name(self) -> str:
        """A plain file name; the whole slide and the join are one: never two processes at once."""
        return self.slide_id if self.part is None else f"{self.slide_id}+{self.part}"
