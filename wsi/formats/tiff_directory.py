"""Read the directories of a TIFF file strictly: a cut, circular or lying directory is an error, not a shorter file.

General TIFF libraries are lenient here (a chain that leaves the file just ends), which turns a truncated slide into a
smaller one without a word. Only tags that a slide reader needs are kept. Classic TIFF and BigTIFF, both byte orders.
Source: TIFF 6.0 specification, section 2; BigTIFF design of the libtiff project.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError
from .file_check import COPY_AGAIN

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
DESCRIPTION, MAKE, MODEL, STRIP_OFFSETS, SAMPLES, STRIP_BYTES = 270, 271, 272, 273, 277, 279
X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE = 282, 283, 284, 296, 305
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, JPEG_TABLES, XMP = 322, 323, 324, 325, 347, 700
ICC_PROFILE, NDPI_FORMAT = 34675, 65420

_KEPT = {value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}
_TEXT = {DESCRIPTION, MAKE, MODEL, SOFTWARE, JPEG_TABLES, XMP}  # kept as bytes
_TEXT_LIMIT_BYTES = 1 << 20  # a longer description is cut: nothing a reader looks for lies that deep
_MAX_DIRECTORIES = 1_000
_MAX_ENTRIES = 4_096

# TIFF type code -> (numpy type without byte order, values per element)
_TYPES = {
    1: ("u1", 1), 2: ("u1", 1), 3: ("u2", 1), 4: ("u4", 1), 5: ("u4", 2), 6: ("i1", 1), 7: ("u1", 1), 8: ("i2", 1),
    9: ("i4", 1), 10: ("i4", 2), 11: ("f4", 1), 12: ("f8", 1), 13: ("u4", 1), 16: ("u8", 1), 17: ("i8", 1),
    18: ("u8", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Directory:
    """One image of a TIFF file.

    index   place in the chain of directories
    arrays  tag -> values; rationals are (n, 2) numerator and denominator
    texts   tag -> bytes
    sizes   tag -> length in bytes, for every known tag present
    """

    index: int
    arrays: dict[int, NDArray]
    texts: dict[int, bytes]
    sizes: dict[int, int]

    def number(self, tag: int, default: int | None = None) -> int | None:
        values = self.arrays.get(tag)
        return default if values is None or values.size == 0 else int(values.flat[0])

    def rational(self, tag: int) -> float | None:
        values = self.arrays.get(tag)
        if values is None or values.shape[1:] != (2,) or values.shape[0] == 0 or values[0, 1] == 0:
            return None
        return float(values[0, 0]) / float(values[0, 1])

    def text(self, tag: int) -> str:
        return self.texts.get(tag, b"").rstrip(b"\0").decode("utf-8", "replace")

    @property
    def is_tiled(self) -> bool:
        return TILE_OFFSETS in self.arrays


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie in this file's flavour of TIFF."""

    order: str  # "<" or ">"
    count: str  # numpy type of a directory's entry count
    offset: str  # numpy type of offsets and value counts
    first: int  # byte of the header that holds the first directory's offset

    @property
    def offset_bytes(self) -> int:
        return int(self.offset[1:])

    @property
    def entry_bytes(self) -> int:
        return 4 + 2 * self.offset_bytes


_LAYOUTS = {
    b"II*\0": _Layout("<", "u2", "u4", 4),
    b"MM\0*": _Layout(">", "u2", "u4", 4),
    b"II+\0": _Layout("<", "u8", "u8", 8),
    b"MM\0+": _Layout(">", "u8", "u8", 8),
}


def is_tiff(head: bytes) -> bool:
    return head[:4] in _LAYOUTS


def read_directories(path: Path, descriptor: int) -> Iterator[Directory]:
    """The directories in file order, one at a time: a caller may stop after the first.

    Raises SlideError where one of them, or a value of it that matters, lies outside the file.
    """
    file_bytes = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 16, 0)
    layout = _LAYOUTS[head[:4]]
    offset = _integer(head[layout.first :], layout.order + layout.offset, path)
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise SlideError(path, f"its directory {len(seen)} leads back to an earlier one", COPY_AGAIN)
        if len(seen) >= _MAX_DIRECTORIES:
            raise SlideError(path, f"it has more than {_MAX_DIRECTORIES:,} directories", "give a slide, not a stack")
        if offset >= file_bytes:
            where = f"its directory {len(seen)} would lie at byte {offset:,}"
            raise SlideError(path, f"{where}, but the file ends at byte {file_bytes:,}", COPY_AGAIN)
        seen.add(offset)
        directory, offset = _read_directory(path, descriptor, layout, offset, len(seen) - 1)
        yield directory
    if not seen:
        raise SlideError(path, "a TIFF file without a directory", COPY_AGAIN)


def _read_directory(path: Path, descriptor: int, layout: _Layout, offset: int, index: int) -> tuple[Directory, int]:
    """The directory at `offset`, and the offset of the next one (0 at the end)."""
    count_bytes = int(layout.count[1:])
    entries = _integer(os.pread(descriptor, count_bytes, offset), layout.order + layout.count, path)
    if not 0 < entries <= _MAX_ENTRIES:
        raise SlideError(path, f"its directory {index} claims {entries:,} entries", COPY_AGAIN)
    body = os.pread(descriptor, entries * layout.entry_bytes + layout.offset_bytes, offset + count_bytes)
    following = _integer(body[entries * layout.entry_bytes :], layout.order + layout.offset, path)
    directory = Directory(index, {}, {}, {})
    for start in range(0, entries * layout.entry_bytes, layout.entry_bytes):
        _read_entry(path, descriptor, layout, body[start : start + layout.entry_bytes], directory)
    return directory, following


def _read_entry(path: Path, descriptor: int, layout: _Layout, entry: bytes, into: Directory) -> None:
    tag, code = (int(value) for value in np.frombuffer(entry, layout.order + "u2", 2))
    if tag not in _KEPT or code not in _TYPES:
        return
    kind, width = _TYPES[code]
    count = _integer(entry[4:], layout.order + layout.offset, path)
    length = count * width * int(kind[1:])
    into.sizes[tag] = length
    field = entry[4 + layout.offset_bytes :]
    if length > len(field):
        offset = _integer(field, layout.order + layout.offset, path)
        file_bytes = os.fstat(descriptor).st_size
        if offset + length > file_bytes:
            extent = f"bytes {offset:,} to {offset + length:,}, but the file ends at byte {file_bytes:,}"
            raise SlideError(path, f"tag {tag} of its directory {into.index} would lie at {extent}", COPY_AGAIN)
        if tag == ICC_PROFILE:
            return  # its size is all that is asked
        if tag in _TEXT:
            length = min(length, _TEXT_LIMIT_BYTES)
        field = os.pread(descriptor, length, offset)
    if tag in _TEXT:
        into.texts[tag] = field[:length]
    else:
        values = np.frombuffer(field[:length], layout.order + kind)
        into.arrays[tag] = values.reshape(-1, 2) if width == 2 else values


def _integer(data: bytes, dtype: str, path: Path) -> int:
    size = np.dtype(dtype).itemsize
    if len(data) < size:
        raise SlideError(path, "the file ends within a TIFF directory", COPY_AGAIN)
    return int(np.frombuffer(data[:size], dtype)[0])
