"""Read the directories of a TIFF file strictly: a cut, circular or lying directory is an error, not a shorter file.

General TIFF libraries are lenient here (a chain that leaves the file just ends), which turns a truncated slide into a
smaller one without a word. Only tags that a slide reader needs are kept. Classic TIFF and BigTIFF, both byte orders.
Source: TIFF 6.0 specification, section 2; BigTIFF design of the libtiff project; sub-directories: Adobe TIFF Technical
Note 1 (TIFF Trees).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError
from ..source import ByteSource
from .file_check import COPY_AGAIN

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
DESCRIPTION, MAKE, MODEL, STRIP_OFFSETS, ORIENTATION, SAMPLES = 270, 271, 272, 273, 274, 277
STRIP_ROWS, STRIP_BYTES = 278, 279
X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE, PREDICTOR = 282, 283, 284, 296, 305, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUB_DIRECTORIES = 322, 323, 324, 325, 330
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, XMP = 338, 339, 347, 700
OLYMPUS, ICC_PROFILE, NDPI_FORMAT = 33560, 34675, 65420

_KEPT = {value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}
_TEXT = {DESCRIPTION, MAKE, MODEL, SOFTWARE, JPEG_TABLES, XMP}  # kept as bytes
_SIZE_ONLY = {ICC_PROFILE, OLYMPUS, NDPI_FORMAT}  # that they are there, and how long, is all that is asked
_RATIONAL = {X_RESOLUTION, Y_RESOLUTION}
TEXT_LIMIT_BYTES = 16 << 20  # a longer description is cut; Philips keeps label and macro in it, some MB
_MAX_DIRECTORIES = 1_000
_MAX_ENTRIES = 4_096
_MAX_PARTS = 1 << 24  # tiles or strips of an image: 1.1e12 px in tiles of 256 px

# Every other kept tag is of whole numbers: tag -> the most values that it may have. A tag's claimed length is read
# whole, and what follows from the values takes their number and kind for granted.
_MOST = (
    dict.fromkeys(_KEPT - _TEXT - _SIZE_ONLY - _RATIONAL, 1)
    | dict.fromkeys((BITS, COMPRESSION, EXTRA_SAMPLES, SAMPLE_FORMAT), 65_535)  # one a sample, whose number is 16 bits
    | dict.fromkeys((STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES), _MAX_PARTS)
    | {SUB_DIRECTORIES: _MAX_DIRECTORIES}
)
_MAY_BE_EMPTY = {EXTRA_SAMPLES, SUB_DIRECTORIES}  # then as absent

# TIFF type code -> (numpy type without byte order, values per element)
_TYPES = {
    1: ("u1", 1), 2: ("u1", 1), 3: ("u2", 1), 4: ("u4", 1), 5: ("u4", 2), 6: ("i1", 1), 7: ("u1", 1), 8: ("i2", 1),
    9: ("i4", 1), 10: ("i4", 2), 11: ("f4", 1), 12: ("f8", 1), 13: ("u4", 1), 16: ("u8", 1), 17: ("i8", 1),
    18: ("u8", 1),
}  # fmt: skip
_RATIONAL_TYPES = {5, 10}
_WHOLE_TYPES = set(_TYPES) - _RATIONAL_TYPES - {2, 7, 11, 12}  # no text, no opaque bytes, no floating point


@dataclass(frozen=True)
class Directory:
    """One image of a TIFF file.

    index   place in the chain of directories; of a sub-directory, that of the directory it belongs to
    arrays  tag -> values: one or more whole numbers, none negative; or (1, 2), a rational's numerator and denominator
    texts   tag -> bytes
    sizes   tag -> length in bytes, for every known tag present
    sub     place among the sub-directories of directory `index`, None in the chain itself
    offset  byte of the file where it lies
    places  tag -> byte of the file where a value begins that was not read
    """

    index: int
    arrays: dict[int, NDArray]
    texts: dict[int, bytes]
    sizes: dict[int, int]
    sub: int | None = None
    offset: int = 0
    places: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"image {self.index}" if self.sub is None else f"sub-image {self.sub} of image {self.index}"

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

    @property
    def is_reduced(self) -> bool:
        """NewSubfileType says: a reduced version of another image of the file."""
        return bool((self.number(SUBFILE_TYPE, 0) or 0) & 1)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px as stated, 0 where a tag is missing."""
        return self.number(WIDTH, 0) or 0, self.number(HEIGHT, 0) or 0


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


def is_tiff(source: ByteSource) -> bool:
    """A TIFF file that can be read here; none of Hamamatsu's beyond 4 GiB, which look like classic TIFF and keep the
    upper halves of their offsets in a place of their own."""
    head = source.read_at(0, 4)
    return head in _LAYOUTS and (_LAYOUTS[head].offset_bytes == 8 or source.size < 1 << 32)


def read_directories(source: ByteSource) -> Iterator[Directory]:
    """The directories of the chain in file order, one at a time: a caller may stop after the first.

    Raises SlideError where one of them, or a value of it that matters, lies outside the file.
    """
    head = source.read_at(0, 16)
    layout = _LAYOUTS[head[:4]]
    offset = _integer(head[layout.first :], layout.order + layout.offset, source)
    seen: set[int] = set()
    while offset:
        number = len(seen)
        _check_place(source, offset, seen, f"directory {number}")
        directory, offset = _read_directory(source, layout, Directory(number, {}, {}, {}, None, offset))
        yield directory
    if not seen:
        raise SlideError(source.name, "a TIFF file without a directory", COPY_AGAIN)


def read_subdirectories(source: ByteSource, chain: list[Directory]) -> list[Directory]:
    """The sub-directories (tag 330) of all directories of a chain, in order; theirs are not followed. Raises alike."""
    layout = _LAYOUTS[source.read_at(0, 4)]
    found: list[Directory] = []
    seen = {directory.offset for directory in chain}
    for parent in chain:
        for number, offset in enumerate(parent.arrays.get(SUB_DIRECTORIES, np.empty(0, np.int64)).flat):
            _check_place(source, int(offset), seen, f"sub-directory {number} of directory {parent.index}")
            directory = Directory(parent.index, {}, {}, {}, number, int(offset))
            found.append(_read_directory(source, layout, directory)[0])
    return found


def _check_place(source: ByteSource, offset: int, seen: set[int], name: str) -> None:
    """A directory lies inside the file and is none of those `seen`, to which it is added."""
    if offset in seen:
        raise SlideError(source.name, f"its {name} leads back to an earlier one", COPY_AGAIN)
    if len(seen) >= _MAX_DIRECTORIES:
        raise SlideError(source.name, f"it has more than {_MAX_DIRECTORIES:,} directories", "give a slide, not a stack")
    if not 0 < offset < source.size:
        where = f"its {name} would lie at byte {offset:,}"
        raise SlideError(source.name, f"{where}, but the file ends at byte {source.size:,}", COPY_AGAIN)
    seen.add(offset)


def _read_directory(source: ByteSource, layout: _Layout, into: Directory) -> tuple[Directory, int]:
    """The directory at its offset, filled, and the offset of the next one (0 at the end)."""
    count_bytes = int(layout.count[1:])
    entries = _integer(source.read_at(into.offset, count_bytes), layout.order + layout.count, source)
    if not 0 < entries <= _MAX_ENTRIES:
        raise SlideError(source.name, f"its directory of {into.name} claims {entries:,} entries", COPY_AGAIN)
    body = source.read_at(into.offset + count_bytes, entries * layout.entry_bytes + layout.offset_bytes)
    following = _integer(body[entries * layout.entry_bytes :], layout.order + layout.offset, source)
    for start in range(0, entries * layout.entry_bytes, layout.entry_bytes):
        _read_entry(source, layout, body[start : start + layout.entry_bytes], into)
    return into, following


def _read_entry(source: ByteSource, layout: _Layout, entry: bytes, into: Directory) -> None:
    tag, code = (int(value) for value in np.frombuffer(entry, layout.order + "u2", 2))
    count = _integer(entry[4:], layout.order + layout.offset, source)
    if tag in into.sizes:  # of a tag given twice the first counts, as in libtiff and tifffile
        return
    if tag not in _KEPT or not _is_of_use(source, into, tag, code, count):
        return
    kind, width = _TYPES[code]
    length = count * width * int(kind[1:])
    into.sizes[tag] = length
    field = entry[4 + layout.offset_bytes :]
    if length > len(field):
        offset = _integer(field, layout.order + layout.offset, source)
        if offset + length > source.size:
            extent = f"bytes {offset:,} to {offset + length:,}, but the file ends at byte {source.size:,}"
            raise SlideError(source.name, f"tag {tag} of {into.name} would lie at {extent}", COPY_AGAIN)
        if tag in _SIZE_ONLY:
            into.places[tag] = offset
            return
        if tag in _TEXT:
            length = min(length, TEXT_LIMIT_BYTES)
        field = source.read_at(offset, length)
    if tag in _TEXT:
        into.texts[tag] = field[:length]
    elif tag not in _SIZE_ONLY:
        values = np.frombuffer(field[:length], layout.order + kind)
        if tag in _MOST and kind.startswith("i") and (values < 0).any():
            raise SlideError(source.name, f"tag {tag} of {into.name} is negative", COPY_AGAIN)
        into.arrays[tag] = values.reshape(-1, 2) if width == 2 else values


def _is_of_use(source: ByteSource, into: Directory, tag: int, code: int, count: int) -> bool:
    """Whether a kept tag has values of its kind; one that can as well be absent is, any other is damage."""
    if tag in _RATIONAL:
        return code in _RATIONAL_TYPES and count == 1
    if tag not in _MOST:
        return code in _TYPES
    if tag in _MAY_BE_EMPTY and count == 0:
        return False
    if code not in _WHOLE_TYPES or not 0 < count <= _MOST[tag]:
        problem = f"tag {tag} of {into.name} claims {count:,} values of TIFF type {code}, which it never has"
        raise SlideError(source.name, problem, COPY_AGAIN)
    return True


def _integer(data: bytes, dtype: str, source: ByteSource) -> int:
    size = np.dtype(dtype).itemsize
    if len(data) < size:
        raise SlideError(source.name, "the file ends within a TIFF directory", COPY_AGAIN)
    return int(np.frombuffer(data[:size], dtype)[0])
