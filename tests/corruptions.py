"""Damaged slides, made from a sound one: every family of damage that reliability asks about, the same for each seed.

`corpus(path)` gives cases; each writes one file. The slide is a classic little-endian Aperio file.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.corruptions_fields import Base, read_base

Bytes = Callable[[], bytes]
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, TABLES = 277, 284, 322, 323, 324, 325, 347


@dataclass(frozen=True)
class Case:
    """One damaged file.

    knowable  the file contradicts itself, or a strict decoder must notice: wrong pixels that are not marked are a
              fault of the reader. Otherwise what is stored is as valid as what was there before
    sound     not damaged in a way that matters: must be read, and rightly
    alike     what is shown can be compared with the sound slide's pixels
    make      writes it, at the path given
    """

    family: str
    name: str
    make: Callable[[Path], None]
    knowable: bool = True
    sound: bool = False
    alike: bool = True


def corpus(path: Path, seed: int = 0) -> list[Case]:
    """Every case made from the slide at `path`."""
    base, rng = read_base(path), np.random.default_rng([seed, path.stat().st_size])
    families = (truncated, flipped, zeroed, garbage, directories, tagged, indexed, headed, scaled, described, good)
    return [case for family in families for case in family(base, rng)]


def case(family: str, name: str, content: bytes | Bytes, **facts: bool) -> Case:
    def make(path: Path) -> None:
        path.write_bytes(content() if callable(content) else content)

    return Case(family, name, make, **facts)


def truncated(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    length = len(base.data)
    at = [4, 8, 100, *(int(length * share / 100) for share in (1, 5, 10, 20, 30, 40, 50, 60, 65, 70, 80, 90, 95, 99))]
    at += [length - 1, length - 1000, base.first + 1, base.first + 30, base.first - 1]
    for end in at:
        yield case("truncate", f"at_{end}", partial(base.cut, end))


def flipped(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    """Bits turned in tile data and tables, which no reader can know of; and in the directory, where it can."""
    start, stop = base.tile_bytes
    for count, cases in ((1, 30), (8, 10), (64, 6)):
        for number in range(cases):
            bits = rng.integers(start * 8, stop * 8, count)
            yield case("bit flip", f"data_{count}_{number}", partial(base.flipped, bits), knowable=False)
    if TABLES in base.tags[0]:
        place, size = base.tags[0][TABLES].value, base.tags[0][TABLES].size
        for number in range(10):
            bits = rng.integers(place * 8, (place + size) * 8, 1)
            yield case("bit flip", f"tables_{number}", partial(base.flipped, bits), knowable=False)
    for tag in (BITS, COMPRESSION, SAMPLES, TILE_WIDTH, TILE_HEIGHT):
        for number in range(2):
            place = base.tags[0][tag].value * 8
            bits = rng.integers(place + (6 if tag in (TILE_WIDTH, TILE_HEIGHT) else 0), place + 12, 1)
            yield case("bit flip", f"tag_{tag}_{number}", partial(base.flipped, bits))
    for number in range(10):
        tag = base.tags[0][OFFSETS if number % 2 else COUNTS]
        bits = rng.integers(tag.value * 8, (tag.value + tag.size) * 8, 1)
        yield case("bit flip", f"index_{number}", partial(base.flipped, bits))


def zeroed(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    tiles = base.tiles
    for number in rng.choice(len(tiles), min(5, len(tiles)), replace=False):
        offset, count = tiles[number]
        yield case("zeroed", f"tile_{number}", partial(base.zeros, offset, count))
        yield case("zeroed", f"second_half_{number}", partial(base.zeros, offset + count // 2, count - count // 2))
    for number in range(6):
        offset = int(rng.integers(base.tile_bytes[0], base.tile_bytes[1] - 4096)) // 512 * 512
        yield case("zeroed", f"page_{number}", partial(base.zeros, offset, 4096))
    for number in range(4):
        offset, count = tiles[int(rng.integers(len(tiles)))]
        yield case("zeroed", f"16_bytes_{number}", partial(base.zeros, offset + count // 2, 16), knowable=False)
    for share in (10, 35, 65, 90, 99):
        start = len(base.data) * share // 100
        yield case("zeroed", f"tail_from_{share}", partial(base.zeros, start, len(base.data) - start))
    yield case("zeroed", "header", partial(base.zeros, 0, 8))
    yield case("zeroed", "directory", partial(base.zeros, base.first, 100))
    yield case("zeroed", "all", partial(base.zeros, 0, len(base.data)))
    for tag in (TABLES, OFFSETS, COUNTS, BITS):
        if tag in base.tags[0]:
            found = base.tags[0][tag]
            yield case("zeroed", f"tag_{tag}", partial(base.zeros, found.value, found.size))


def garbage(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    tiles = base.tiles
    for number in rng.choice(len(tiles), min(4, len(tiles)), replace=False):
        offset, count = tiles[number]
        yield case("garbage", f"tile_{number}", partial(base.noise, offset, count, int(rng.integers(1 << 30))))
    for size, cases in ((16, 4), (4096, 6), (65536, 4)):
        for number in range(cases):
            start, stop = base.tile_bytes
            length = min(size, (stop - start) // 2)
            offset = int(rng.integers(start, stop - length))
            content = partial(base.noise, offset, length, int(rng.integers(1 << 30)))
            yield case("garbage", f"{size}_bytes_{number}", content, knowable=base.shows(offset, length))
    yield case("garbage", "header", partial(base.noise, 0, 64, 1))
    yield case("garbage", "directory", partial(base.noise, base.first, 100, 2))
    for tag in (OFFSETS, COUNTS):
        found = base.tags[0][tag]
        yield case("garbage", f"tag_{tag}", partial(base.noise, found.value, found.size, tag))
        yield case("garbage", f"tag_{tag}_one", partial(base.noise, found.value + 4, 4, tag))


def directories(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    first, data = base.first, base.data
    following = first + 2 + 12 * len(base.tags[0])
    for name, value in (("to_itself", first), ("beyond", len(data) + 100), ("huge", 2**32 - 2), ("into_tiles", 16)):
        yield case("directory", f"next_{name}", partial(base.put, following, "<I", value))
        yield case("directory", f"first_{name}", partial(base.put, 4, "<I", value))
    last = base.starts[-1]
    yield case("directory", "last_to_first", partial(base.put, last + 2 + 12 * len(base.tags[-1]), "<I", first))
    yield case("directory", "chain_of_20000", partial(_chain, base, following, 20_000))
    for entries in (0, 1, len(base.tags[0]) - 3, len(base.tags[0]) + 40, 65535):
        yield case("directory", f"entries_{entries}", partial(base.put, first, "<H", entries))
    for name, head in (("motorola", b"MM\0*"), ("big", b"II+\0"), ("version_41", b"II)\0"), ("magic", b"XX*\0")):
        yield case("directory", f"head_{name}", partial(base.write, 0, head))
    for tag in (
        WIDTH,
        HEIGHT,
        BITS,
        COMPRESSION,
        PHOTOMETRIC,
        SAMPLES,
        TILE_WIDTH,
        TILE_HEIGHT,
        OFFSETS,
        COUNTS,
        TABLES,
    ):
        if tag in base.tags[0]:
            # without PhotometricInterpretation the colours, without BitsPerSample nothing is left to contradict
            yield case("directory", f"without_{tag}", partial(base.put, base.tags[0][tag].entry, "<H", 60_000))
            yield case("directory", f"type_{tag}", partial(base.put, base.tags[0][tag].entry + 2, "<H", 99))


def _chain(base: Base, at: int, count: int) -> bytes:
    """`count` directories of one entry behind the first."""
    start = len(base.data) + len(base.data) % 2
    body = b"".join(
        struct.pack("<HHHIII", 1, 254, 4, 1, 1, start + 18 * (number + 1) if number + 1 < count else 0)
        for number in range(count)
    )
    return base.put(at, "<I", start).ljust(start, b"\0") + body


def tagged(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    """Other values in the tags of level 0, and of the next level where there is one."""
    structural = {
        WIDTH: (0, 1, 100, 65535), HEIGHT: (0, 1, 100, 65535), TILE_WIDTH: (0, 1, 16, 7, 1024, 65535),
        TILE_HEIGHT: (0, 1, 16, 7, 1024, 65535), COMPRESSION: (0, 1, 5, 6, 8, 32773, 34712, 34892, 50000, 50001, 65535),
        BITS: (0, 1, 4, 16, 32), SAMPLES: (0, 1, 2, 4, 5, 65535), PLANAR: (2,),
    }  # fmt: skip
    colours = {PHOTOMETRIC: (0, 1, 2, 3, 4, 5, 6, 8, 65535), COMPRESSION: (33003, 33005)}
    for level in base.levels[:2]:
        for tag, values in structural.items():
            for value in values:
                yield from _tag_case(base, level, tag, value, tag not in (PLANAR,))
        for tag, values in colours.items():
            for value in values:
                yield from _tag_case(base, level, tag, value, value not in (2, 6, 33003, 33005))
        for tag in (WIDTH, HEIGHT):  # within the last tile: as good a size as the right one
            for step in (-1, 1):
                yield from _tag_case(base, level, tag, base.value(level, tag) + step, False)
        wide = partial(base.widen, level, WIDTH, 2**31 - 1)
        yield case("tags", f"level{level}_width_2147483647", wide)
        both = partial(base.put_both, level, 200_000)
        yield case("tags", f"level{level}_both_200000", both)


def _tag_case(base: Base, level: int, tag: int, value: int, knowable: bool) -> Iterator[Case]:
    if base.value(level, tag) != value:
        content = partial(base.put, base.tags[level][tag].value, "<H", value)
        yield case("tags", f"level{level}_{tag}_{value}", content, knowable=knowable)


def indexed(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    """Offsets and sizes of tiles that lie."""
    offsets, counts = base.tags[0][OFFSETS].value, base.tags[0][COUNTS].value
    number = len(base.tiles) // 2
    for name, value in (("zero", 0), ("one", 1), ("end", len(base.data) - 10), ("beyond", 2**31), ("max", 2**32 - 1)):
        yield case("tile index", f"offset_{name}", partial(base.put, offsets + 4 * number, "<I", value))
        yield case("tile index", f"count_{name}", partial(base.put, counts + 4 * number, "<I", value))
    for step in (-100, -1, 1, 100):
        moved = partial(base.put, offsets + 4 * number, "<I", base.tiles[number][0] + step)
        yield case("tile index", f"offset_{step:+}", moved)
        sized = partial(base.put, counts + 4 * number, "<I", base.tiles[number][1] + step)
        yield case("tile index", f"count_{step:+}", sized)
    yield case("tile index", "all_counts_zero", partial(base.zeros, counts, 4 * len(base.tiles)))
    yield case("tile index", "one_for_all", partial(base.repeat, offsets, counts, len(base.tiles)), knowable=False)
    yield case("tile index", "swapped", partial(base.swap, (offsets, counts), 0, number), knowable=False)
    yield case("tile index", "offsets_swapped", partial(base.swap, (offsets,), *base.two_sizes()))
    for tag in (OFFSETS, COUNTS):
        for values in (1, len(base.tiles) - 1, len(base.tiles) + 5, 2**31 - 1):
            content = partial(base.put, base.tags[0][tag].entry + 4, "<I", values)
            yield case("tile index", f"tag_{tag}_holds_{values}", content)


def headed(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    """The header of one tile's JPEG or JPEG 2000 stream."""
    number = int(np.argmax([count for _, count in base.tiles]))
    offset, count = base.tiles[number]
    tile = base.data[offset : offset + count]
    for name, change, knowable in _jpeg_changes(tile) if tile[:2] == b"\xff\xd8" else _j2k_changes(tile):
        yield case("tile header", name, partial(base.write, offset, change), knowable=knowable)


def _jpeg_changes(tile: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """(name, the first bytes of the tile, whether it can be known)"""

    def changed(at: int, value: bytes) -> bytes:
        return tile[:at] + value + tile[at + len(value) :]

    frame = next(at for at in range(2, len(tile)) if tile[at] == 0xFF and tile[at + 1] in (0xC0, 0xC1, 0xC2))
    scan = tile.index(b"\xff\xda")
    for rows, cols in ((65500, 65500), (1, 1), (0, 0), (16, 16), (480, 480), (1, 65500)):
        yield f"jpeg_dims_{rows}x{cols}", changed(frame + 5, struct.pack(">HH", rows, cols)), True
    for bits in (12, 16, 2):
        yield f"jpeg_{bits}_bit", changed(frame + 4, bytes([bits])), True
    for channels in (0, 1, 2, 4, 255):
        yield f"jpeg_{channels}_components", changed(frame + 9, bytes([channels])), True
    for marker in (0xC2, 0xC3, 0xC9, 0xCB, 0xC4):
        yield f"jpeg_frame_{marker:x}", changed(frame + 1, bytes([marker])), True
    for factors in (0x00, 0x11, 0x44, 0x22):
        if tile[frame + 11] != factors:
            yield f"jpeg_sampling_{factors:02x}", changed(frame + 11, bytes([factors])), True
    yield "jpeg_no_start", changed(0, b"\0\0"), True
    yield "jpeg_no_scan", changed(scan, b"\0\0"), True
    yield "jpeg_no_end", changed(len(tile) - 2, b"\0\0"), True
    yield "jpeg_early_end", changed(scan + (len(tile) - scan) // 2, b"\xff\xd9"), True
    yield "jpeg_huffman_table_9", changed(scan + 6, b"\x99"), True
    yield "jpeg_quantisation_3", changed(frame + 12, b"\x03"), True


def _j2k_changes(tile: bytes) -> Iterator[tuple[str, bytes, bool]]:
    def changed(at: int, value: bytes) -> bytes:
        return tile[:at] + value + tile[at + len(value) :]

    siz, cod, sot = tile.index(b"\xff\x51"), tile.index(b"\xff\x52"), tile.index(b"\xff\x90")
    for size in (0, 1, 128, 65500, 2**31 - 1):
        yield f"j2k_width_{size}", changed(siz + 6, struct.pack(">I", size)), True
        yield f"j2k_tile_width_{size}", changed(siz + 22, struct.pack(">I", size)), True
    for channels in (0, 1, 4, 16384):
        yield f"j2k_{channels}_components", changed(siz + 38, struct.pack(">H", channels)), True
    for bits in (0, 1, 15, 37):
        yield f"j2k_{bits + 1}_bit", changed(siz + 40, bytes([bits])), True
    yield "j2k_signed", changed(siz + 40, b"\x87"), True
    yield "j2k_levels_33", changed(cod + 9, bytes([33])), True
    yield "j2k_transform", changed(cod + 13, bytes([1 - tile[cod + 13]])), False
    yield "j2k_no_start", changed(0, b"\0\0"), True
    yield "j2k_half", changed(len(tile) // 2, bytes(len(tile) - len(tile) // 2)), True
    yield "j2k_part_beyond", changed(sot + 6, struct.pack(">I", 2**31)), True
    yield "j2k_part_short", changed(sot + 6, struct.pack(">I", 20)), True
    yield "j2k_no_part", changed(sot, b"\0\0"), True


def scaled(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    """Pixel sizes that cannot be true; the pixels are as they were. The scale must not be taken for true."""
    values = (
        "0",
        "-0.499",
        "nan",
        "inf",
        "-inf",
        "1e-9",
        "4.9e-09",
        "499000",
        "4.99",
        "unknown",
        "",
        "0,499",
        "0.499um",
    )
    for value in values:
        yield case("scale", f"mpp_{value}", partial(base.with_description, f"|AppMag = 20|MPP = {value}"))
    for magnification in ("80", "1"):
        text = f"|AppMag = {magnification}|MPP = 0.499"
        yield case("scale", f"contradicts_{magnification}x", partial(base.with_description, text))


def described(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    texts = {
        "log_forge": "\n2030-01-01 ERROR root: all is lost\x1b[2J",
        "html": "<script>alert(1)</script>",
        "nul": "a\0b\0c",
        "bars": "|" * 100_000,
        "equals": "=" * 100_000,
        "json_deep": "[" * 100_000,
        "xml_bomb": '<!DOCTYPE a [<!ENTITY b "bbbb">]><OME>&b;</OME>',
        "xml_deep": "<a>" * 50_000,
        "one_megabyte": "x" * (1 << 20),
        "not_utf8": "\udcff\udcfe",
    }
    for name, text in texts.items():
        yield case("description", name, partial(base.with_description, text), sound=name in ("log_forge", "html"))
    if DESCRIPTION in base.tags[0]:
        length = base.tags[0][DESCRIPTION].entry + 4
        yield case("description", "claims_4_gib", partial(base.put, length, "<I", 2**32 - 1))


def good(base: Base, rng: np.random.Generator) -> Iterator[Case]:
    yield case("good", "copy", base.data, sound=True)
    yield case("good", "bytes_behind", partial(base.cut, len(base.data), b"\1" * 1000), sound=True)
    yield case("good", "zeros_behind", partial(base.cut, len(base.data), bytes(100_000)), sound=True)
    if 254 in base.tags[0]:
        yield case("good", "unknown_tag", partial(base.put, base.tags[0][254].entry, "<H", 65_000), sound=True)
