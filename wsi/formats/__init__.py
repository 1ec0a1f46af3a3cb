"""The table of slide formats, and the one function that opens a slide.

A new format is one file in this folder and one line in FORMATS. Its module loads only when a file gets that far.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from ..channels import Channels
from ..errors import SlideError, SpecError
from ..slide import Slide
from ..source import is_url, name_of, place_of
from .file_check import check_file, what_it_is
from .match import Match
from .scale import Scale, user_scale


class Reader(Protocol):
    """A class in a format's module, or for a format with channels an object that knows the choice of them."""

    def matches(self, path: Path | str, /) -> Match:
        """Whether this reader takes the file; a URL only if its line says so. Raises SlideError if it is damaged."""
        ...

    def __call__(self, path: Path | str, why: str, override: Scale | None, /) -> Slide:
        """Open it; `override` replaces the scale that the file states."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One line of FORMATS.

    suffixes   files that end so are offered to it first
    reader     "module:name" of a Reader; with `channels`, of a function `(Channels | None) -> Reader`
    channels   it reads multi-channel and 16-bit files, if told which channels to show
    places     where its files may lie: here, behind a URL
    folders    a slide of it may be a folder
    in_folder  what has its suffixes is a slide where a folder of slides is given as the source
    """

    name: str
    suffixes: tuple[str, ...]
    reader: str
    channels: bool = False
    places: tuple[str, ...] = ("here",)
    folders: bool = False
    in_folder: bool = True

    def load(self, channels: Channels | None = None) -> Reader:
        module, _, name = self.reader.partition(":")
        found: Any = getattr(import_module(module), name)
        return cast(Reader, found(channels) if self.channels else found)

    def may_read(self, place: Path | str) -> bool:
        if isinstance(place, str):
            return "url" in self.places
        return "here" in self.places and (self.folders or not place.is_dir())


_TIFF = (".tif", ".tiff", ".qptiff", ".btf", ".tf8", ".tf2")

# Order is detection order among formats that do not claim the suffix.
FORMATS = (
    Format("tiff", (".svs", *_TIFF), "wsi.formats.tiff:TiffSlide", places=("here", "url")),
    Format("channel_tiff", _TIFF, "wsi.formats.channel_tiff:ChannelTiffReader", channels=True, places=("here", "url")),
    Format("dicom", (".dcm",), "wsi.formats.dicom:DicomSlide", folders=True),
    Format(
        "openslide",
        (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".dcm", ".czi", ".svslide"),
        "wsi.formats.openslide:OpenSlideSlide",
    ),
    Format("ome_zarr", (".zarr",), "wsi.formats.ome_zarr:OmeZarrReader", channels=True, folders=True),
    Format(
        "plain",
        (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
        "wsi.formats.plain:PlainReader",
        channels=True,
        in_folder=False,  # thumbnails and screenshots lie beside slides
    ),
    Format("tiffslide", (".ndpi",), "wsi.formats.remote_tiffslide:TiffSlideSlide", places=("url",)),
)

_COMPANIONS = {
    ".mrxs": "a MIRAX slide needs the folder of the same name beside it",
    ".vms": "a VMS slide needs the files it names beside it",
    ".vsi": "no reader here knows Olympus VSI: convert it, with Bio-Formats, to a tiled pyramidal TIFF or OME-TIFF",
    ".vmu": "a VMU slide needs the files it names beside it",
}


def open_slide(
    path: str | Path, mpp: float | None = None, mpp_source: str = "user", channels: Channels | None = None
) -> Slide:
    """Open a slide of any known format.

    path        a file or folder, or a URL that fsspec knows, such as s3://bucket/a.svs or https://host/a.svs
    mpp         µm per level-0 pixel, replaces what the file states; `mpp_source` (user, manifest) says who gave it
    channels    how a multi-channel or 16-bit file is shown in RGB
    Raises SlideError if the file is missing, damaged, of no known format, or needs channels and none are given;
    RemoteError if the store behind a URL does not answer; SpecError for an absurd mpp, channels that the file does not
    have, or any channels for an RGB file.
    """
    if not str(path):
        raise SlideError("''", "no file is named", "give the path or URL of a slide")
    path = place_of(path)
    override = None if mpp is None else user_scale(mpp, mpp_source)
    head = check_file(path)
    suffix = Path(name_of(path)).suffix.lower()
    declined: list[str] = []
    wants_channels = channels is not None
    offered = [form for form in FORMATS if form.may_read(path)]
    for form in sorted(offered, key=lambda form: (wants_channels and not form.channels, suffix not in form.suffixes)):
        reader = form.load(channels)
        match = reader.matches(path)
        if match.takes and wants_channels and not form.channels:
            raise SpecError("channels", f"{name_of(path)} has none to choose ({match.why})", "leave the setting out")
        if match.takes:
            return reader(path, "; ".join([match.why, *declined]), override)
        declined.append(f"{form.name} declined: {match.why}")
    raise _not_a_slide(path, head, declined)


def _not_a_slide(path: Path | str, head: bytes, declined: list[str]) -> SlideError:
    kind = what_it_is(head) if head else "a folder"
    problem = f"not a slide in a known format ({'; '.join(declined)})"
    if kind is not None:
        problem = f"this is {kind}, {problem}"
    remedy = "give the scanner's own file, or convert it to a tiled pyramidal TIFF"
    if is_url(path):
        remedy = "copy it to this machine, where more formats are read, or convert it to a tiled pyramidal TIFF"
    return SlideError(path, problem, _COMPANIONS.get(Path(name_of(path)).suffix.lower(), remedy))
