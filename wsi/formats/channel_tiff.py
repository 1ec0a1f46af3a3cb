"""Multi-channel and 16-bit TIFF (OME-TIFF, PerkinElmer QPTIFF, plain), shown in RGB by an explicit choice of channels.

tifffile says which directory is which channel and level, in each vendor's way; the directories are walked strictly
before, and the pixels are read and decoded by this project's own strict code.
"""

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..channels import Blend, Channels, FileChannels, refusal
from ..errors import SlideError
from ..slide import SlideInfo
from ..source import ByteSource, open_source
from . import ome
from . import tiff_directory as tags
from .codecs import COMPRESSIONS
from .file_check import COPY_AGAIN
from .match import Match
from .scale import Number, Scale, as_objective, resolution_to_mpp, stated_scale
from .source_reader import SourceReader
from .tiff_directory import Directory, is_tiff, read_directories
from .tiff_planes import Layout, Plane, PlaneLevel, read_layout, read_planes
from .tiff_structure import OLYMPUS_VSI, QPTIFF, qptiff_magnification
from .tiff_tiles import is_same_picture
from .tiled import TiledSlide

_STACKS = {"T": "time points", "Z": "focal planes", "H": "phases", "E": "wavelengths", "A": "angles"}
_COLOUR_SAMPLES = ("red", "green", "blue", "alpha")
# what tifffile raises over metadata that contradicts itself; its own error derives from ValueError
_UNREADABLE = (ValueError, RuntimeError, OSError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error)


@dataclass(frozen=True)
class _Series:
    """The slide among a file's images. levels: each with the planes of all channels."""

    vendor: str
    found: FileChannels
    levels: tuple[tuple[Layout, tuple[Plane, ...]], ...]
    mpp: tuple[Number, Number]
    mpp_source: str
    objective: float | None


class ChannelTiffSlide(TiledSlide):
    """An open TIFF with a choice of channels. Reads are thread-safe."""

    def __init__(self, path: Path | str, series: _Series, channels: Channels, why: str, override: Scale | None):
        blend = Blend(channels, series.found)
        scale = override or stated_scale(*series.mpp, series.mpp_source, series.objective)
        base = series.levels[0][0]
        info = SlideInfo(
            reader="channel_tiff",
            why=why,
            vendor=series.vendor,
            mpp=scale.mpp,
            mpp_source=scale.source,
            mpp_problem=scale.problem,
            objective=series.objective,
            codec=COMPRESSIONS[base.compression],
            tile_px=(base.part_width, base.part_height) if base.is_tiled else None,
            channels=str(blend.channels),
        )
        self._source = open_source(path)
        stored = [
            PlaneLevel(self._source, layout, [planes[channel] for channel in blend.used], blend)
            for layout, planes in series.levels
        ]
        super().__init__(path, info, stored)

    def close(self) -> None:
        self._source.close()


@dataclass(frozen=True)
class ChannelTiffReader:
    """Opens multi-channel and 16-bit TIFF files with a choice of channels; without one, it refuses them helpfully."""

    channels: Channels | None

    def matches(self, path: Path | str) -> Match:
        series = _read(path)
        if isinstance(series, str):
            return Match(False, series)
        if self.channels is None:
            if len(series.found.names) == 1 and series.found.dtype == np.uint8:
                return Match(False, "a grey image of 8 bits, and no channels chosen")
            raise refusal(path, series.found)
        return Match(True, f"{series.found} in a TIFF file")

    def __call__(self, path: Path | str, why: str, override: Scale | None) -> ChannelTiffSlide:
        series = _read(path)
        if isinstance(series, str) or self.channels is None:
            raise SlideError(path, "this is no TIFF file with chosen channels", "open it with open_slide")
        return ChannelTiffSlide(path, series, self.channels, why, override)


def _read(path: Path | str) -> _Series | str:
    """The series of a TIFF that is not 8-bit RGB, or why it is none. Raises SlideError for stacks and for damage."""
    source = open_source(path)
    try:
        if not is_tiff(source):
            return "no TIFF file"
        directories = list(read_directories(source))  # strictly: tifffile makes a cut file a shorter one
        if tags.OLYMPUS in directories[0].sizes:
            return OLYMPUS_VSI
        description = directories[0].text(tags.DESCRIPTION)
        images = ome.read_images(description) if ome.is_ome(description) else []
        if isinstance(images, str):
            return images
        return _read_with_tifffile(source, directories[0], images)
    finally:
        source.close()


def _read_with_tifffile(source: ByteSource, base: Directory, images: list[ome.OmeImage]) -> _Series | str:
    import tifffile

    # Under a name of its own, because tifffile reads any file called .ndpi as Hamamatsu's variant of TIFF.
    reader = SourceReader(source)
    try:  # around all that is asked of its pages, which read tags when asked, and tags that nobody has checked
        with tifffile.TiffFile(io.BufferedReader(reader), name="slide.tif", _multifile=False) as file:
            stored = _stored_levels(source, file)
    except _UNREADABLE as error:
        stored = f"tifffile finds no image in it ({type(error).__name__}: {error})"
    reader.check()
    if isinstance(stored, str):
        return stored
    _check_levels(source, [layout for layout, _ in stored.levels])
    width, height = stored.levels[0][0].width, stored.levels[0][0].height
    mine = [image for image in images if (image.width, image.height) == (width, height)]
    is_qpi, count = stored.is_qpi, len(stored.levels[0][1])
    names, colours = (
        _qpi_channels(stored.descriptions) if is_qpi else _ome_channels(base, width, height) if mine else ((), ())
    )
    if len(names) != count:
        names = _COLOUR_SAMPLES[:count] if count in (3, 4) and stored.samples > 1 else ("",) * count
        colours = ()
    found = FileChannels(names, stored.levels[0][0].dtype.newbyteorder("="), colours)
    if mine:
        return _Series("ome-tiff", found, stored.levels, mine[0].mpp, "ome", as_objective(mine[0].objective))
    unit = base.number(tags.RESOLUTION_UNIT)
    mpp = tuple(resolution_to_mpp(base.rational(tag), unit) for tag in (tags.X_RESOLUTION, tags.Y_RESOLUTION))
    objective = as_objective(qptiff_magnification(stored.descriptions[0])) if is_qpi else None
    vendor = QPTIFF if is_qpi else "generic-tiff"
    return _Series(vendor, found, stored.levels, (mpp[0], mpp[1]), "tiff", objective)


class _Stored(NamedTuple):
    """What tifffile's pages say. levels: as in _Series; samples: of a page; descriptions: of level 0's pages."""

    levels: tuple[tuple[Layout, tuple[Plane, ...]], ...]
    samples: int
    is_qpi: bool
    descriptions: tuple[str, ...]


def _stored_levels(source: ByteSource, file: Any) -> _Stored | str:
    """The largest series of an open tifffile.TiffFile, or why it needs no channels. Raises SlideError, and anything
    that tifffile does."""
    from tifffile import TiffPage

    series = max(file.series, key=lambda entry: entry.keyframe.imagewidth * entry.keyframe.imagelength)
    sizes = [list(zip(one.get_axes(False), one.get_shape(False), strict=True)) for one in series.levels]
    levels_pages = [list(one.pages) for one in series.levels]
    first = series.keyframe
    if first.dtype == np.uint8 and first.samplesperpixel in (3, 4) and int(first.photometric) in (2, 6):
        return "an RGB image of 8 bits"
    counts = [_count_channels(source, level) for level in sizes]
    if len(set(counts)) > 1:
        raise SlideError(source.name, f"its levels have {' and '.join(map(str, counts))} channels", COPY_AGAIN)
    levels = tuple(_level(source, pages, counts[0]) for pages in levels_pages)
    descriptions = tuple(page.description for page in levels_pages[0] if isinstance(page, TiffPage))
    return _Stored(levels, int(first.samplesperpixel), bool(file.is_qpi), descriptions)


def _count_channels(source: ByteSource, sizes: Sequence[tuple[str, int]]) -> int:
    """Planes of a series, by its axes as tifffile names them. Raises SlideError where they are more than channels."""
    for axis, size in sizes:
        if axis in _STACKS and size > 1:
            raise SlideError(source.name, f"it has {size} {_STACKS[axis]}", "write one of them to a file of its own")
    return prod(size for axis, size in sizes if axis not in "YX")


def _level(source: ByteSource, pages: Sequence[Any], channels: int) -> tuple[Layout, tuple[Plane, ...]]:
    """The channels of one level out of tifffile's pages, None among them for what the file lacks."""
    present = [page for page in pages if page is not None]
    samples = present[0].keyframe.samplesperpixel if present else 1
    if len(present) * samples != channels:
        problem = f"of {channels} channels {len(present) * samples} have a directory of their own in the file"
        raise SlideError(source.name, problem, COPY_AGAIN)
    layout = read_layout(source, present[0].keyframe)
    if any(read_layout(source, page) != layout for page in present if page.keyframe is page):
        raise SlideError(source.name, "its channels are stored each in another way", "convert it to an OME-TIFF")
    return layout, tuple(plane for page in present for plane in read_planes(source, page, layout, samples))


def _check_levels(source: ByteSource, layouts: Sequence[Layout]) -> None:
    base = layouts[0]
    for number, (finer, layout) in enumerate(pairwise(layouts), start=1):
        same = is_same_picture((base.width, base.height), (layout.width, layout.height))
        if layout.width >= finer.width or not same:
            sizes = f"{layout.width:,} x {layout.height:,} px after {finer.width:,} x {finer.height:,} px"
            raise SlideError(source.name, f"its level {number} is no smaller picture of the same ({sizes})", COPY_AGAIN)


def _qpi_channels(descriptions: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours in the XML of each plane of a QPTIFF."""
    names, colours = [], []
    for text in descriptions:
        root = ome.parse_xml(text)
        stated = ("", "") if isinstance(root, str) else (root.findtext("Name", ""), root.findtext("Color", ""))
        names.append(stated[0].strip())
        parts = [int(part) for part in stated[1].split(",") if part.strip().isdecimal()]
        colours.append(bytes(parts).hex().upper() if len(parts) == 3 and max(parts) < 256 else "")
    return tuple(names), tuple(colours)


def _ome_channels(base: Directory, width: int, height: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours in the OME-XML, of the first image of that size; of one entry for several samples nothing."""
    root = ome.parse_xml(base.text(tags.DESCRIPTION))
    if isinstance(root, str):
        return (), ()
    size = str(width), str(height)
    pixels = next(p for p in root.iterfind("{*}Image/{*}Pixels") if (p.get("SizeX"), p.get("SizeY")) == size)
    entries = pixels.findall("{*}Channel")
    names = (entry.get("Name") or entry.get("Fluor") or "" for entry in entries)
    packed = (entry.get("Color", "") for entry in entries)  # RGBA in one signed number
    colours = (f"{int(value) & 0xFFFFFFFF:08X}"[:6] if re.fullmatch(r"-?\d+", value) else "" for value in packed)
    return tuple(name.strip() for name in names), tuple(colours)
