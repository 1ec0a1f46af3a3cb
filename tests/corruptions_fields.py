"""Where the fields of a TIFF file lie, and the file's bytes with one of them changed."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

WIDTH, HEIGHT, DESCRIPTION, OFFSETS, COUNTS = 256, 257, 270, 324, 325


@dataclass(frozen=True)
class Field:
    """A tag: bytes in the file where its entry and its values lie, and how many bytes these have."""

    entry: int
    value: int
    size: int


@dataclass(frozen=True)
class Base:
    """A sound classic little-endian TIFF.

    starts  byte of each directory; tags: tag -> Field of each
    levels  directories that are tiled, finest first
    tiles   (offset, size) of level 0's
    """

    data: bytes
    starts: tuple[int, ...]
    tags: tuple[dict[int, Field], ...]
    levels: tuple[int, ...]
    tiles: tuple[tuple[int, int], ...]

    @property
    def first(self) -> int:
        return self.starts[0]

    @cached_property
    def tile_bytes(self) -> tuple[int, int]:
        return min(offset for offset, _ in self.tiles), max(offset + count for offset, count in self.tiles)

    def value(self, level: int, tag: int) -> int:
        return int(struct.unpack_from("<H", self.data, self.tags[level][tag].value)[0])

    def write(self, at: int, content: bytes) -> bytes:
        return self.data[:at] + content + self.data[at + len(content) :]

    def put(self, at: int, layout: str, value: int) -> bytes:
        return self.write(at, struct.pack(layout, value))

    def cut(self, end: int, tail: bytes = b"") -> bytes:
        return self.data[:end] + tail

    def zeros(self, at: int, count: int) -> bytes:
        return self.write(at, bytes(count))

    def noise(self, at: int, count: int, seed: int) -> bytes:
        return self.write(at, np.random.default_rng(seed).bytes(count))

    def flipped(self, bits: NDArray[np.int64]) -> bytes:
        changed = bytearray(self.data)
        for bit in bits.tolist():
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def widen(self, level: int, tag: int, value: int) -> bytes:
        """A tag as a 32-bit number, whatever it was."""
        return self.write(self.tags[level][tag].entry + 2, struct.pack("<HII", 4, 1, value))

    def put_both(self, level: int, value: int) -> bytes:
        changed = self.widen(level, WIDTH, value)
        at = self.tags[level][HEIGHT].entry + 2
        return changed[:at] + struct.pack("<HII", 4, 1, value) + changed[at + 10 :]

    def swap(self, starts: Sequence[int], one: int, other: int) -> bytes:
        """Numbers `one` and `other` of each table of 32-bit numbers that begins at one of `starts`."""
        changed = bytearray(self.data)
        for start in starts:
            a, b = start + 4 * one, start + 4 * other
            changed[a : a + 4], changed[b : b + 4] = changed[b : b + 4], changed[a : a + 4]
        return bytes(changed)

    def two_sizes(self) -> tuple[int, int]:
        """The tiles of least and of most bytes; the first is not the last in the file."""
        counts = [count for _, count in self.tiles]
        last = max(offset for offset, _ in self.tiles)
        return min((count, n) for n, (offset, count) in enumerate(self.tiles) if offset != last)[1], int(
            np.argmax(counts)
        )

    def shows(self, start: int, length: int) -> bool:
        """Whether random bytes there show in each tile that they touch: in its header, or in thousands of bytes."""
        return all(
            start <= offset < start + length or min(start + length, offset + count) - start >= 3_000
            for offset, count in self.tiles
            if start < offset + count and offset < start + length
        )

    def repeat(self, offsets: int, counts: int, number: int) -> bytes:
        """Every tile is the first one."""
        changed = bytearray(self.data)
        for start in (offsets, counts):
            changed[start : start + 4 * number] = changed[start : start + 4] * number
        return bytes(changed)

    def with_description(self, extra: str) -> bytes:
        """The first image's description with `extra` behind it."""
        field = self.tags[0][DESCRIPTION]
        text = self.data[field.value : field.value + field.size].rstrip(b"\0")
        text += extra.encode(errors="surrogateescape") + b"\0"
        place = len(self.data) + len(self.data) % 2
        changed = self.write(field.entry + 4, struct.pack("<II", len(text), place))
        return changed.ljust(place, b"\0") + text


def read_base(path: Path) -> Base:
    with tifffile.TiffFile(path) as file:
        tags, levels = [], []
        for number, page in enumerate(file.pages):
            tags.append({tag.code: Field(tag.offset, tag.valueoffset, tag.valuebytecount) for tag in page.tags})
            if page.is_tiled:
                levels.append(number)
        base = file.pages[0]
        tiles = tuple(zip(base.dataoffsets, base.databytecounts, strict=True))
        return Base(path.read_bytes(), tuple(page.offset for page in file.pages), tuple(tags), tuple(levels), tiles)
