"""The table of slide formats, and the one function that opens a slide.

A new format is one file in this folder and one line in FORMATS. Its module loads only when a file gets that far.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from ..errors import SlideError
from ..slide import Slide
from .file_check import check_file, what_it_is
from .match import Match
from .scale import Scale, user_scale


class Reader(Protocol):
    """A class in a format's module."""

    @staticmethod
    def matches(path: Path) -> Match:
        """Whether this reader takes the file. Raises SlideError if it is this reader's, and damaged."""
        ...

    def __call__(self, path: Path, why: str, override: Scale | None) -> Slide:
        """Open it; `override` replaces the scale that the file states."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """name, the suffixes whose files are offered to it first, and "module:class" of the reader."""

    name: str
    suffixes: tuple[str, ...]
    reader: str

    def load(self) -> Reader:
        module, _, name = self.reader.partition(":")
        return cast(Reader, getattr(import_module(module), name))


# Order is detection order among formats that do not claim the suffix.
FORMATS = (
    Format("tiff", (".svs", ".tif", ".tiff"), "wsi.formats.tiff:TiffSlide"),
    Format(
        "openslide",
        (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".dcm", ".czi", ".svslide"),
        "wsi.formats.openslide:OpenSlideSlide",
    ),
)

_COMPANIONS = {
    ".mrxs": "a MIRAX slide needs the folder of the same name beside it",
    ".vms": "a VMS slide needs the files it names beside it",
    ".vmu": "a VMU slide needs the files it names beside it",
}


def open_slide(path: str | Path, mpp: float | None = None, mpp_source: str = "user") -> Slide:
    """Open a slide of any known format.

    mpp         µm per level-0 pixel, replaces what the file states; `mpp_source` (user, manifest) says who gave it
    Raises SlideError if the file is missing, damaged, or of no known format, and SpecError for an absurd mpp.
    """
    path = Path(path)
    override = None if mpp is None else user_scale(mpp, mpp_source)
    head = check_file(path)
    suffix = path.suffix.lower()
    declined: list[str] = []
    for form in sorted(FORMATS, key=lambda form: suffix not in form.suffixes):
        reader = form.load()
        match = reader.matches(path)
        if match.takes:
            return reader(path, "; ".join([match.why, *declined]), override)
        declined.append(f"{form.name} declined: {match.why}")
    raise _not_a_slide(path, head, declined)


def _not_a_slide(path: Path, head: bytes, declined: list[str]) -> SlideError:
    kind = what_it_is(head)
    problem = f"not a slide in a known format ({'; '.join(declined)})"
    if kind is not None:
        problem = f"this is {kind}, {problem}"
    remedy = "give the scanner's own file, or convert it to a tiled pyramidal TIFF"
    return SlideError(path, problem, _COMPANIONS.get(path.suffix.lower(), remedy))
