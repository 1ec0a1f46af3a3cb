"""The pyramid inside a tiled TIFF, checked for sense before a single tile is decoded.

Truncated and half-copied slides are found here, from 2 ms of directory reading; decoders and lenient readers turn many
of them into wrong pixels without an error.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError
from . import tiff_directory as tags
from .file_check import COPY_AGAIN
from .tiff_directory import Directory, is_tiff, read_directories

_MAX_TILE_PX = 4_096 * 4_096  # 48 MiB decoded; scanners write 240 to 1,024 px a side
_ASPECT_TOLERANCE = 0.05  # levels are rounded to whole pixels, small ones show it

COMPRESSIONS = {
    1: "uncompressed", 5: "lzw", 6: "jpeg (old style)", 7: "jpeg", 8: "deflate", 33003: "jpeg2000", 33005: "jpeg2000",
    34712: "jpeg2000", 34933: "png", 50000: "zstd", 50001: "webp", 50002: "jpeg-xl", 32773: "packbits",
    32946: "deflate",
}  # fmt: skip
_JPEG = 7
_RGB, _YCBCR = 2, 6

# tag, text in it, whose file it is: flavours with a layout of their own, which OpenSlide knows
_FOREIGN = (
    (tags.DESCRIPTION, b"<OME", "OME-TIFF"),
    (tags.DESCRIPTION, b"leica-microsystems.com/scn", "Leica SCN"),
    (tags.DESCRIPTION, b"<PerkinElmer-QPI", "PerkinElmer QPTIFF"),
    (tags.SOFTWARE, b"Philips", "Philips TIFF"),
    (tags.SOFTWARE, b"MedScan", "Trestle"),
    (tags.XMP, b"iScan", "Ventana BIF"),
    (tags.MAKE, b"Hamamatsu", "Hamamatsu NDPI"),
)


@dataclass(frozen=True)
class TiledLevel:
    """One level's tiles. offsets, counts: int64 (tiles,), in raster order; count 0 marks a tile the file lacks."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    jpeg_tables: bytes
    is_ycbcr: bool

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)


@dataclass(frozen=True)
class Pyramid:
    """vendor: aperio or generic-tiff; base: directory of level 0; associated: name -> directory index."""

    vendor: str
    base: Directory
    levels: tuple[TiledLevel, ...]
    associated: dict[str, int]

    @property
    def codec(self) -> str:
        return compression_name(self.base)


def read_pyramid(path: Path) -> Pyramid | str:
    """The pyramid of a tiled JPEG TIFF, or the reason why this is a TIFF of another kind.

    Raises SlideError for an Aperio or generic tiled TIFF whose structure contradicts itself or its length.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not is_tiff(os.pread(descriptor, 4, 0)):
            return "no TIFF file"
        chain = read_directories(path, descriptor)
        base = next(chain)
        foreign = _foreign_flavour(base)
        if foreign is not None:
            return foreign
        directories = [base, *chain]
        file_bytes = os.fstat(descriptor).st_size
        for directory in directories:
            _check_extents(path, directory, file_bytes)
        vendor = "aperio" if base.text(tags.DESCRIPTION).startswith("Aperio") else "generic-tiff"
        chosen = [entry for entry in directories if _is_level(entry, vendor)]
        levels = sorted((_read_level(path, entry) for entry in chosen), key=lambda level: -level.width)
        _check_shapes(path, levels)
        _check_tail(path, descriptor, levels)
    finally:
        os.close(descriptor)
    for entry in chosen:
        unread = _not_plain_jpeg(entry)
        if unread is not None:
            return unread
    return Pyramid(vendor, base, tuple(levels), _associated(directories) if vendor == "aperio" else {})


def first_codec(path: Path) -> str | None:
    """Compression of a TIFF file's first image, None for other files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not is_tiff(os.pread(descriptor, 4, 0)):
            return None
        return compression_name(next(read_directories(path, descriptor)))
    finally:
        os.close(descriptor)


def compression_name(directory: Directory) -> str:
    number = directory.number(tags.COMPRESSION, 1)
    return COMPRESSIONS.get(number or 1, f"TIFF compression {number}")


def _foreign_flavour(base: Directory) -> str | None:
    if tags.NDPI_FORMAT in base.sizes:
        return "Hamamatsu NDPI"
    for tag, needle, name in _FOREIGN:
        if needle in base.texts.get(tag, b"")[:100_000]:
            return name
    return None if base.is_tiled else "not tiled but striped"


def _is_level(directory: Directory, vendor: str) -> bool:
    """As OpenSlide decides: every tiled image of an Aperio file, and the reduced images of a generic one."""
    if not directory.is_tiled or directory.index == 0:
        return directory.is_tiled
    return vendor == "aperio" or bool((directory.number(tags.SUBFILE_TYPE, 0) or 0) & 1)


def _not_plain_jpeg(directory: Directory) -> str | None:
    if directory.number(tags.COMPRESSION, 1) != _JPEG:
        return f"{compression_name(directory)} tiles"
    bits = set(directory.arrays.get(tags.BITS, np.array([1])).tolist())
    samples, planar = directory.number(tags.SAMPLES, 1), directory.number(tags.PLANAR, 1)
    photometric = directory.number(tags.PHOTOMETRIC)
    if bits != {8} or samples != 3 or planar != 1 or photometric not in (_RGB, _YCBCR):
        return f"pixels that are not 8-bit RGB ({samples} samples of {sorted(bits)} bits, photometric {photometric})"
    return None


def _check_extents(path: Path, directory: Directory, file_bytes: int) -> None:
    """All tiles or strips of an image lie inside the file."""
    offset_tag, count_tag = (tags.TILE_OFFSETS, tags.TILE_BYTES) if directory.is_tiled else (
        tags.STRIP_OFFSETS, tags.STRIP_BYTES)  # fmt: skip
    parts = "tiles" if directory.is_tiled else "strips"
    offsets, counts = directory.arrays.get(offset_tag), directory.arrays.get(count_tag)
    if offsets is None or counts is None or offsets.shape != counts.shape:
        problem = f"image {directory.index} lists {_length(offsets)} offsets of {parts} and {_length(counts)} sizes"
        raise SlideError(path, problem, COPY_AGAIN)
    # Python's float holds every real file's length exactly; unsigned 64-bit sums could wrap.
    outside = (counts > 0) & (offsets.astype(np.float64) + counts.astype(np.float64) > file_bytes)
    if outside.any():
        inside = f"{int((~outside).sum()):,} of {outside.size:,} {parts} of image {directory.index}"
        end = int(offsets[outside].max()) + int(counts[outside].max())
        lengths = f"the file has {file_bytes:,} bytes, where about {end:,} are needed"
        raise SlideError(path, f"only {inside} lie inside the file ({lengths})", COPY_AGAIN)


def _length(values: NDArray | None) -> int:
    return 0 if values is None else values.size


def _read_level(path: Path, directory: Directory) -> TiledLevel:
    width, height, tile_width, tile_height = (
        directory.number(tag, 0) or 0 for tag in (tags.WIDTH, tags.HEIGHT, tags.TILE_WIDTH, tags.TILE_HEIGHT)
    )
    name = f"image {directory.index}"
    if min(width, height) < 1 or min(tile_width, tile_height) < 16 or tile_width * tile_height > _MAX_TILE_PX:
        sizes = f"{width:,} x {height:,} px in tiles of {tile_width:,} x {tile_height:,} px"
        raise SlideError(path, f"implausible size: {name} claims {sizes}", COPY_AGAIN)
    planes = (directory.number(tags.SAMPLES, 1) or 1) if directory.number(tags.PLANAR, 1) == 2 else 1
    grid = -(-width // tile_width) * -(-height // tile_height) * planes
    offsets = directory.arrays[tags.TILE_OFFSETS].astype(np.int64)
    counts = directory.arrays[tags.TILE_BYTES].astype(np.int64)
    if offsets.size != grid:
        problem = (
            f"implausible size: {name} of {width:,} x {height:,} px needs {grid:,} tiles and lists {offsets.size:,}"
        )
        raise SlideError(path, problem, COPY_AGAIN)
    # A size no encoder reaches is a damaged entry: that tile is missing, not the slide.
    counts[counts > 4 * 3 * tile_width * tile_height + 65_536] = 0
    is_ycbcr = directory.number(tags.PHOTOMETRIC) == _YCBCR
    tables = directory.texts.get(tags.JPEG_TABLES, b"")
    return TiledLevel(width, height, tile_width, tile_height, offsets, counts, tables, is_ycbcr)


def _check_shapes(path: Path, levels: list[TiledLevel]) -> None:
    """Every level is the same picture: one factor brings level 0's width and height to its own."""
    base = levels[0]
    for number, level in enumerate(levels[1:], 1):
        factor = (base.width / level.width + base.height / level.height) / 2
        off_x, off_y = abs(base.width / factor - level.width), abs(base.height / factor - level.height)
        if off_x > max(2, _ASPECT_TOLERANCE * level.width) or off_y > max(2, _ASPECT_TOLERANCE * level.height):
            shapes = f"{level.width:,} x {level.height:,} px, level 0 {base.width:,} x {base.height:,} px"
            raise SlideError(path, f"level {number} has other proportions than level 0 ({shapes})", COPY_AGAIN)


def _check_tail(path: Path, descriptor: int, levels: list[TiledLevel]) -> None:
    """The tile that lies last in the file was written: a copy that preallocates and stops leaves zeros there."""
    _, offset, count = max(
        (int(level.offsets[at]), int(level.offsets[at]), int(level.counts[at]))
        for level in levels
        for at in [int(np.argmax(np.where(level.counts > 0, level.offsets, -1)))]
    )
    if count > 0 and not any(os.pread(descriptor, count, offset)):
        problem = (
            f"its last tile ({count:,} bytes at byte {offset:,}) is all zeros: the file was never written to its end"
        )
        raise SlideError(path, problem, COPY_AGAIN)


def _associated(directories: list[Directory]) -> dict[str, int]:
    """Aperio's striped images by name: the second is the thumbnail, the others say label or macro in a line's start."""
    found: dict[str, int] = {}
    for directory in directories[1:]:
        if directory.is_tiled:
            continue
        named = re.search(r"^(label|macro)\b", directory.text(tags.DESCRIPTION), re.MULTILINE)
        by_type = {1: "label", 9: "macro"}.get(directory.number(tags.SUBFILE_TYPE, 0) or 0)
        name = named.group(1) if named else by_type or ("thumbnail" if directory.index == 1 else None)
        if name is not None:
            found.setdefault(name, directory.index)
    return found
