"""The pyramid inside a TIFF: which of its images are the levels of the slide, and which its label.

Each vendor has a habit of its own. A file is either declined with a reason (another reader may take it), refused with
the damage that was found, or read.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import SlideError
from ..source import ByteSource, open_source
from . import ome, philips
from . import tiff_directory as tags
from .codecs import OF_NO_READER
from .file_check import COPY_AGAIN
from .scale import Number
from .tiff_directory import Directory, is_tiff, read_directories
from .tiff_tiles import (
    CHANNELS,
    TiledLevel,
    check_jpeg2000,
    check_shapes,
    check_tail,
    compression_name,
    is_same_picture,
    read_all,
    read_tiles,
    unreadable,
)

# tag, text in it, whose file it is: flavours with a layout of their own, which other readers know
QPTIFF = "perkinelmer-qptiff"
OLYMPUS_VSI = "Olympus VSI, whose slide lies in a folder beside it"
_FOREIGN = (
    (tags.DESCRIPTION, b"leica-microsystems.com/scn", "Leica SCN"),
    (tags.SOFTWARE, b"MedScan", "Trestle"),
    (tags.XMP, b"iScan", "Ventana BIF"),
)


@dataclass(frozen=True)
class Stated:
    """The scale in the vendor's own words, as far as there are any: µm per pixel across and down, and its source."""

    mpp: tuple[Number, Number] = (None, None)
    source: str = "vendor"
    objective: Number = None
    scanner: str | None = None


@dataclass(frozen=True)
class Pyramid:
    """A slide in a TIFF.

    vendor      aperio, generic-tiff, ome-tiff, perkinelmer-qptiff or philips
    base        directory of level 0
    levels      finest first
    associated  name -> place in `directories`
    embedded    name -> JPEG file kept in the metadata
    """

    vendor: str
    base: Directory
    levels: tuple[TiledLevel, ...]
    associated: dict[str, int]
    directories: tuple[Directory, ...]
    stated: Stated = Stated()
    embedded: dict[str, bytes] = field(default_factory=dict)

    @property
    def codec(self) -> str:
        return compression_name(self.base)


@dataclass(frozen=True)
class _Choice:
    """What a flavour's habit says; downsamples only where the sizes in the tags are not the levels' own."""

    vendor: str
    levels: list[Directory]
    associated: dict[str, int] = field(default_factory=dict)
    stated: Stated = Stated()
    embedded: dict[str, bytes] = field(default_factory=dict)
    downsamples: tuple[int, ...] = ()


def read_pyramid(file: ByteSource | Path | str) -> Pyramid | str:
    """The pyramid of a TIFF that can be shown as RGB, or the reason why this is a file of another kind.

    file  an open source, which stays open; or a path or URL, which is opened and closed
    Raises SlideError for a TIFF whose structure contradicts itself or its length.
    """
    if not isinstance(file, Path | str):
        return _read_pyramid(file)
    source = open_source(file)
    try:
        return _read_pyramid(source)
    finally:
        source.close()


def first_codec(path: Path) -> str | None:
    """Compression of a TIFF file's first image, None for other files."""
    source = open_source(path)
    try:
        return compression_name(next(read_directories(source))) if is_tiff(source) else None
    finally:
        source.close()


def _read_pyramid(source: ByteSource) -> Pyramid | str:
    if not is_tiff(source):
        return "no TIFF file"
    chain = read_directories(source)
    base = next(chain)
    foreign = _foreign_flavour(base)
    if foreign is not None:
        return foreign
    directories = read_all(source, base, list(chain))
    choice = _flavour(base)(directories)
    if isinstance(choice, str):
        return choice
    for entry in choice.levels:
        reason = unreadable(entry)
        if reason and CHANNELS not in reason and entry.number(tags.COMPRESSION, 1) in OF_NO_READER:
            remedy = "convert it to a tiled pyramidal TIFF with JPEG or deflate tiles"
            raise SlideError(source.name, f"its pixels are stored as {compression_name(entry)}, not read here", remedy)
        if reason is not None:
            return reason
    levels = [read_tiles(source, entry) for entry in choice.levels]
    if choice.downsamples:
        levels = _true_sizes(source, levels, choice.downsamples)
    levels.sort(key=lambda level: -level.width)
    check_shapes(source, levels)
    check_tail(source, levels)
    reason = check_jpeg2000(source, levels[0], base.text(tags.DESCRIPTION))
    if reason is not None:
        return reason
    return Pyramid(
        choice.vendor,
        choice.levels[0],
        tuple(levels),
        choice.associated,
        tuple(directories),
        choice.stated,
        choice.embedded,
    )


def _foreign_flavour(base: Directory) -> str | None:
    if tags.NDPI_FORMAT in base.sizes:
        return "Hamamatsu NDPI"
    if tags.OLYMPUS in base.sizes:
        return OLYMPUS_VSI
    for tag, needle, name in _FOREIGN:
        if needle in base.texts.get(tag, b"")[:100_000]:
            return name
    return None


def _flavour(base: Directory) -> Callable[[list[Directory]], _Choice | str]:
    description = base.text(tags.DESCRIPTION)
    if description.startswith("Aperio") and base.is_tiled:
        return _aperio
    if ome.is_ome(description):
        return _ome
    if "<PerkinElmer-QPI" in description[:100_000]:
        return _qptiff
    if philips.is_philips(base.text(tags.SOFTWARE), description):
        return _philips
    return _generic


def _aperio(directories: list[Directory]) -> _Choice | str:
    """As OpenSlide decides: every tiled image is a level."""
    found = aperio_properties(directories[0].text(tags.DESCRIPTION))
    stated = Stated((found.get("MPP"), None), "vendor", found.get("AppMag"), found.get("ScannerType"))
    levels = [entry for entry in directories if entry.is_tiled and entry.sub is None]
    return _Choice("aperio", levels, _aperio_images(directories), stated)


def aperio_properties(description: str) -> dict[str, str]:
    """`key = value` pairs of an Aperio ImageDescription; a later pair replaces an earlier one, as in OpenSlide."""
    pairs = (re.split(r"\s*=\s*", part, maxsplit=1) for part in description.split("|")[1:])
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _aperio_images(directories: list[Directory]) -> dict[str, int]:
    """Aperio's striped images by name: the second is the thumbnail, the others say label or macro in a line's start."""
    found: dict[str, int] = {}
    for place, directory in enumerate(directories[1:], 1):
        if directory.is_tiled or directory.sub is not None:
            continue
        named = re.search(r"^(label|macro)\b", directory.text(tags.DESCRIPTION), re.MULTILINE)
        by_type = {1: "label", 9: "macro"}.get(directory.number(tags.SUBFILE_TYPE, 0) or 0)
        name = named.group(1) if named else by_type or ("thumbnail" if place == 1 else None)
        if name is not None:
            found.setdefault(name, place)
    return found


def _generic(directories: list[Directory]) -> _Choice | str:
    """The first image and its reduced ones, tiled as OpenSlide has it, or small ones in strips, or all in strips."""
    base = directories[0]
    others = [entry for entry in directories[1:] if entry.sub is None or (entry.index == 0 and entry.is_reduced)]
    full = [entry for entry in others if entry.size == base.size and not entry.is_reduced]
    if full and (not base.is_tiled or base.number(tags.SAMPLES, 1) == 1):
        remedy = f": {CHANNELS}" if base.number(tags.SAMPLES, 1) == 1 else ""
        return f"a stack of {len(full) + 1} images of one size, channels or focal planes{remedy}"
    if not base.is_tiled and any(entry.size[0] * entry.size[1] > base.size[0] * base.size[1] for entry in others):
        return "its first image is striped and not its largest"
    return _Choice("generic-tiff", [base, *(entry for entry in others if _is_reduced_level(base, entry))])


def _is_reduced_level(base: Directory, entry: Directory) -> bool:
    if not entry.is_reduced:
        return False
    # What lies in strips may also be a thumbnail with a border or a label: only the same picture is a level.
    fits = is_same_picture(base.size, entry.size) and entry.size[0] < base.size[0] and unreadable(entry) is None
    return (entry.is_tiled and base.is_tiled) or fits


def _ome(directories: list[Directory]) -> _Choice | str:
    """The largest series; its reduced resolutions are sub-images of its directory."""
    if directories[0].sizes[tags.DESCRIPTION] > tags.TEXT_LIMIT_BYTES:
        return "an OME-TIFF whose XML is too long"
    images = ome.read_images(directories[0].text(tags.DESCRIPTION))
    choice = images if isinstance(images, str) else ome.choose(images)
    if isinstance(choice, str):
        return choice
    main, associated = choice
    chain = [entry for entry in directories if entry.sub is None]
    if max([main.directory, *associated.values()]) >= len(chain) or chain[main.directory].size != (
        main.width,
        main.height,
    ):
        return "its OME-XML does not describe the images of this file"
    base = chain[main.directory]
    samples = base.number(tags.SAMPLES, 1)
    if samples not in (3, 4) or main.channels != samples:
        return f"an OME-TIFF with {main.channels} channel{'s' * (main.channels > 1)}: {CHANNELS}"
    smaller = [entry for entry in directories if entry.sub is not None and entry.index == base.index] or [
        entry for entry in chain if entry is not base and _is_reduced_level(base, entry)
    ]
    stated = Stated(main.mpp, "ome", main.objective, main.scanner)
    return _Choice("ome-tiff", [base, *smaller], associated, stated)


def _qptiff(directories: list[Directory]) -> _Choice | str:
    """Brightfield: each page says in its XML what it is; of fluorescence, whose channels are pages, there are several
    in full resolution. Source: Akoya, Image format description of QPTIFF."""
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(directories):
        kind = re.search(r"<ImageType>\s*(\w+)\s*<", entry.text(tags.DESCRIPTION)[:100_000])
        places.setdefault(kind.group(1) if kind else "", []).append(place)
    if directories[0].number(tags.SAMPLES, 1) != 3 or places.get("FullResolution") != [0]:
        return f"a PerkinElmer QPTIFF that is not one RGB image: {CHANNELS}"
    levels = [directories[place] for place in (0, *places.get("ReducedResolution", []))]
    names = {"Label": "label", "Overview": "macro", "Thumbnail": "thumbnail"}
    associated = {name: places[kind][0] for kind, name in names.items() if kind in places}
    stated = Stated(objective=qptiff_magnification(directories[0].text(tags.DESCRIPTION)))
    return _Choice(QPTIFF, levels, associated, stated)


def qptiff_magnification(description: str) -> str | None:
    """The scan's in a QPTIFF's XML. Its objective is the lens, 10x for 0.5 µm per pixel; others state the scan's."""
    scan = re.search(r"<ScanResolution\b.*?<Magnification>([^<]*)<", description, re.DOTALL)
    return scan.group(1) if scan else None


def _philips(directories: list[Directory]) -> _Choice | str:
    """As OpenSlide decides: tiled images are levels, label and macro say so in a word or lie in the XML."""
    if directories[0].sizes[tags.DESCRIPTION] > tags.TEXT_LIMIT_BYTES:
        return "a Philips TIFF whose XML is too long"
    slide = philips.read_slide(directories[0].text(tags.DESCRIPTION))
    if isinstance(slide, str):
        return f"Philips TIFF: {slide}"
    levels = [entry for entry in directories if entry.is_tiled]
    if len(levels) != len(slide.downsamples) or not directories[0].is_tiled:
        return f"Philips TIFF: {len(levels)} tiled images, and {len(slide.downsamples)} levels in its XML"
    associated: dict[str, int] = {}
    for place, entry in enumerate(directories):
        name = next((n for n in ("label", "macro") if entry.text(tags.DESCRIPTION).startswith(n.capitalize())), None)
        if name is not None and not entry.is_tiled:
            associated.setdefault(name, place)
    stated = Stated(slide.mpp, "vendor", slide.objective, slide.scanner)
    embedded = {name: data for name, data in slide.images.items() if name not in associated}
    return _Choice("philips", levels, associated, stated, embedded, slide.downsamples)


def _true_sizes(source: ByteSource, levels: list[TiledLevel], downsamples: tuple[int, ...]) -> list[TiledLevel]:
    """Levels whose tags state a size padded to whole tiles, cut to the size of level 0 divided."""
    base, fitted = levels[0], []
    for level, downsample in zip(levels, downsamples, strict=True):
        width, height = base.width // max(downsample, 1), base.height // max(downsample, 1)
        if not (0 < width <= level.width and 0 < height <= level.height):
            stored = f"{level.width:,} x {level.height:,} px stored, {width:,} x {height:,} px expected"
            raise SlideError(source.name, f"its levels contradict their pixel spacings ({stored})", COPY_AGAIN)
        fitted.append(replace(level, width=width, height=height, downsample=float(downsample), white_gaps=True))
    return fitted
