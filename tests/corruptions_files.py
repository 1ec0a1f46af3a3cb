"""Files that are no slides at all, files that lie about their size, and what lies where a file should be."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tifffile

from tests.corruptions import Case, case


def strangers(scratch: Path) -> list[Case]:
    """All of them; `scratch` is a folder for what links point to."""
    return [*not_slides(), *special(scratch), *bombs()]


def not_slides() -> Iterator[Case]:
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
    contents = {
        "empty": b"", "one_byte": b"I", "zeros": bytes(100_000), "ones": b"\xff" * 100_000,
        "html": b"<!DOCTYPE html><html><title>Log in</title></html>",
        "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "appledouble": b"\0\5\x16\7" + bytes(4000), "png_bomb": png, "jpeg": b"\xff\xd8\xff\xe0" + bytes(500),
        "gzip": zlib.compress(bytes(10_000), wbits=31), "zip": b"PK\3\4" + bytes(100), "pickle": b"\x80\4}.",
        "text": b"case,label\n1,tumour\n", "json": json.dumps({"a": 1}).encode(), "noise": bytes(range(256)) * 99,
        "tiff_head": b"II*\0", "tiff_no_directory": b"II*\0\0\0\0\0", "bigtiff_head": b"II+\0\10\0\0\0",
        "vms": b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=/etc/passwd\n",
        "dicm": bytes(128) + b"DICM" + bytes(9),
    }  # fmt: skip
    for name, content in contents.items():
        yield case("not a slide", name, content, alike=False)


def special(scratch: Path) -> Iterator[Case]:
    def link(target: Path) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    if hasattr(os, "mkfifo"):
        yield Case("special", "fifo", lambda path: os.mkfifo(path), alike=False)
    yield Case("special", "folder", lambda path: path.mkdir(), alike=False)
    yield Case("special", "dangling_link", link(scratch / "nothing"), alike=False)
    yield Case("special", "link_to_itself", lambda path: path.symlink_to(path), alike=False)
    yield Case("special", "link_to_folder", link(scratch), alike=False)
    yield Case("special", "device", link(Path("/dev/zero")), alike=False)
    yield Case("special", "missing", lambda path: None, alike=False)


def bombs() -> Iterator[Case]:
    """Files of a few kilobytes that claim gigapixels."""
    for name, size, tile, striped in (
        ("grid_of_1e6_px", 1_000_000, 256, False), ("grid_of_2e9_px", 2_000_000_000, 60_000, False),
        ("tile_20000", 20_000, 20_000, False), ("tile_40000", 40_000, 40_000, False), ("strip_65000", 65_000, 0, True),
    ):  # fmt: skip
        for compression in (7, 8, 33005):
            yield case("bomb", f"{name}_{compression}", partial(_bomb, size, tile, striped, compression), alike=False)


def _bomb(size: int, tile: int, striped: bool, compression: int) -> bytes:
    """One tile or strip of deflated zeros, and a claim."""
    stored = zlib.compress(bytes(1 << 20), 9)
    fields = [(256, 4, size), (257, 4, size), (258, 3, 8), (259, 3, compression), (262, 3, 2), (277, 3, 3), (284, 3, 1)]
    place = 8 + len(stored) + len(stored) % 2
    index = [(273, 4, 8), (278, 4, size), (279, 4, len(stored))] if striped else [
        (322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(stored))]  # fmt: skip
    entries = sorted(fields + index)
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<I", place) + stored.ljust(place - 8, b"\0")
    return head + struct.pack("<H", len(entries)) + body + bytes(4)


def crop(source: Path, target: Path, side: int, start: int = 0) -> Path:
    """`side` x `side` tiles of an Aperio file, and those of its smaller levels, as stored, in a file of their own.

    start  row and column of the first
    """
    with tifffile.TiffFile(source) as file, tifffile.TiffWriter(target) as out:
        for page in file.pages:
            if not page.is_tiled:
                continue
            wide = -(-page.shape[1] // page.tile[1])
            reduction = round(file.pages[0].shape[1] / page.shape[1])
            first, count = start // reduction, -(-side // reduction)
            numbers = [(first + row) * wide + first + column for row in range(count) for column in range(count)]
            tiles = []
            for number in numbers:
                file.filehandle.seek(page.dataoffsets[number])
                tiles.append(file.filehandle.read(page.databytecounts[number]))
            out.write(
                iter(tiles), shape=(count * page.tile[0], count * page.tile[1], 3), dtype=np.uint8, tile=page.tile,
                compression=page.compression, compressionargs={"outcolorspace": "rgb"}, photometric="rgb",
                jpegtables=page.jpegtables, description=page.description, software=False, metadata=None,
            )  # fmt: skip
    return target
