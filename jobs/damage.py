"""Whether the files of a run are still what was written: JSON, gzip, PNG. Every byte is read."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from wsi.publish import seal_fits

_PNG = b"\x89PNG\r\n\x1a\n"
# ours: neither time nor name, so that equal content is an equal file; then how hard it was compressed, and no system
_GZIP = (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", b"\xff")
_BLOCK_BYTES = 1 << 20


def read_sealed(path: Path) -> tuple[dict[str, Any], str]:
    """(content, what is wrong with it, "" for nothing) of a JSON object, by its checksum where it has one."""
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        return {}, f"it is no JSON ({error})"
    if not isinstance(content, dict):
        return {}, "it is no JSON object"
    return content, "its checksum does not fit" if seal_fits(text) is False else ""


def gzip_damage(path: Path) -> str:
    """What is wrong with a gzip file as we write them, "" for nothing."""
    with path.open("rb") as stream:
        head = stream.read(10)
        if not head.startswith(_GZIP[0]) or not head.endswith(_GZIP[1]) or head[8:9] not in (b"\x00", b"\x02", b"\x04"):
            return "its head is damaged"
        inflate, crc, size = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        try:
            while not inflate.eof and (block := stream.read(_BLOCK_BYTES)):
                text = inflate.decompress(block)
                crc, size = zlib.crc32(text, crc), size + len(text)
        except zlib.error as error:
            return f"it cannot be unpacked ({error})"
        tail = inflate.unused_data + stream.read(_BLOCK_BYTES)
    if not inflate.eof:
        return "it ends too early"
    return "" if tail == struct.pack("<II", crc, size & 0xFFFFFFFF) else "its checksum does not fit"


def png_damage(path: Path) -> str:
    """What is wrong with a PNG file, "" for nothing: each of its chunks has a checksum."""
    data, at, kind, pixels = path.read_bytes(), len(_PNG), b"", zlib.decompressobj()
    if not data.startswith(_PNG):
        return "its head is damaged"
    while at + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        body, stated = data[at + 4 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if stated != struct.pack(">I", zlib.crc32(body)):
            return f"its chunk at byte {at:,} is damaged"
        try:
            if kind == b"IDAT":
                pixels.decompress(body[4:])
        except zlib.error as error:
            return f"its pixels cannot be unpacked ({error})"
        at += 12 + length
    if kind != b"IEND" or at != len(data) or not pixels.eof:
        return "it ends too early or too late"
    return ""
