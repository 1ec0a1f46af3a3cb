"""Decode the frames of a DICOM slide strictly: JPEG, JPEG 2000, JPEG-LS, RLE or plain samples to RGB of the exact size.

What a stream says of itself goes before what the header says of it: writers copy frames and keep a wrong header.
"""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .jpeg import JpegDecoder
from .jpeg2000 import Jpeg2000Decoder, code_stream, is_subsampled, main_header, ycbcr_to_rgb
from .tilewise import BadTile

# Transfer syntaxes that are read, and the name of their codec; all are little endian.
CODECS = {
    "1.2.840.10008.1.2": "uncompressed",
    "1.2.840.10008.1.2.1": "uncompressed",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpeg-ls",
    "1.2.840.10008.1.2.4.81": "jpeg-ls",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
    "1.2.840.10008.1.2.4.201": "htj2k",
    "1.2.840.10008.1.2.4.202": "htj2k",
    "1.2.840.10008.1.2.4.203": "htj2k",
    "1.2.840.10008.1.2.5": "rle",
}
PHOTOMETRIC = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_COD = 0xFF52  # JPEG 2000: coding style
_FRAMES = {0xC0, 0xC1, 0xC2}  # JPEG: baseline, extended, progressive
_ITEM = b"\xfe\xff\x00\xe0"
_MISPLACED = "no frame begins where the file's table of frames says"


class FrameDecoder(Protocol):
    def decode(self, data: bytes, into: NDArray[np.uint8], factor: int = 1) -> None:
        """One frame as RGB into `into`, C-contiguous uint8 (rows, cols, 3) of its size. Raises BadTile."""
        ...


class Choice(NamedTuple):
    """The decoder of a picture's frames.

    factors  reductions that it makes cheap, before it is known whether they divide the frame's sides
    note     how the frames contradict the header, empty where they do not
    """

    decoder: FrameDecoder
    factors: tuple[int, ...] = ()
    note: str = ""


def choose_decoder(codec: str, photometric: str, samples: Iterable[bytes]) -> Choice | str:
    """The decoder for all frames of an image, by its header and some frames, or why they are not read."""
    tagged_ycbcr = photometric.startswith("YBR_FULL")
    if codec == "jpeg":
        return _jpeg_decoder(photometric, samples)
    if codec in ("jpeg2000", "htj2k"):
        return _jpeg2000_decoder(tagged_ycbcr, samples)
    return Choice(PixelDecoder(_UNPACK[codec], tagged_ycbcr), ())


def _jpeg_decoder(photometric: str, samples: Iterable[bytes]) -> Choice:
    tagged, found, note = photometric != "RGB", None, ""
    for sample in samples:
        try:
            found = _jpeg_colours(sample)
        except BadTile:
            continue
        break
    is_ycbcr = tagged if found is None else found[0]
    if found is not None and is_ycbcr != tagged:
        colours = "YCbCr" if is_ycbcr else "RGB"
        note = f"its frames are {colours} ({found[1]}) though its header says {photometric}"
    return Choice(JpegDecoder(b"", is_ycbcr), (2, 4, 8), note)


def _jpeg2000_decoder(tagged_ycbcr: bool, samples: Iterable[bytes]) -> Choice | str:
    """A stream that transforms its colours itself decodes to RGB, whatever the header says."""
    is_ycbcr = tagged_ycbcr
    for sample in samples:
        try:
            stream = code_stream(sample)
            head = main_header(stream)
            if is_subsampled(stream):
                return "JPEG 2000 frames with subsampled colours"
        except (BadTile, struct.error, IndexError):
            continue
        is_ycbcr = tagged_ycbcr and not any(part.marker == _COD and stream[part.start + 8] for part in head)
        break
    return Choice(Jpeg2000Decoder(is_ycbcr), (2, 4, 8))


def unwrap(data: bytes, count: int) -> bytes:
    """A frame of `count` bytes without the item header of 8 bytes that `data` begins with. Raises BadTile.

    Encapsulated frames may be cut into several items; offset tables know only where the first begins.
    """
    length = int.from_bytes(data[4:8], "little")
    if data[:4] != _ITEM or not count:
        raise BadTile(_MISPLACED)
    if 0 <= length - count <= 1:  # tables may leave out the byte that makes an odd length even
        return data[8:]
    parts, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] != _ITEM or at + 8 + length > len(data):
            raise BadTile(_MISPLACED)
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return b"".join(parts)


class PixelDecoder:
    """Decodes frames that are not JPEG or JPEG 2000. Thread-safe: it has no state."""

    def __init__(self, unpack: Callable[[bytes, NDArray[np.uint8]], None], is_ycbcr: bool):
        self._unpack, self._is_ycbcr = unpack, is_ycbcr

    def decode(self, data: bytes, into: NDArray[np.uint8], factor: int = 1) -> None:
        if factor != 1:
            raise ValueError("frames of this codec are not made smaller while decoding")
        try:
            self._unpack(data, into)
        except (RuntimeError, ValueError) as error:  # the codecs' own classes derive from these, as does BadTile
            raise BadTile(str(error)) from None
        if self._is_ycbcr:
            into[...] = ycbcr_to_rgb(into)


def _jpeg_colours(data: bytes) -> tuple[bool, str] | None:
    """(is YCbCr, the evidence for it) of a JPEG stream, None if it does not say. Raises BadTile if it is none."""
    adobe: int | None = None
    jfif, at = False, 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF:
        marker, body = data[at + 1], data[at + 4 : at + 2 + (data[at + 2] << 8 | data[at + 3])]
        if marker == 0xE0 and body.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker in _FRAMES and len(body) >= 15:
            if len({body[7], body[10], body[13]}) > 1:
                return True, "their chroma is subsampled"
            if adobe is not None:
                return adobe == 1, "their Adobe marker says so"
            if jfif:
                return True, "they are JFIF"
            return (False, "their components say so") if body[6:15:3] == b"RGB" else None
        at += 4 + len(body)
    raise BadTile("its JPEG header is damaged")


def _check_size(size: tuple[int, int], into: NDArray[np.uint8]) -> None:
    if size != into.shape[:2]:
        raise BadTile(f"it holds {size[1]} x {size[0]} px instead of {into.shape[1]} x {into.shape[0]}")


def _unpack_jpegls(data: bytes, into: NDArray[np.uint8]) -> None:
    import imagecodecs

    at = data.find(b"\xff\xf7", 0, 4096)
    if data[:2] != b"\xff\xd8" or at < 0 or at + 10 > len(data):
        raise BadTile("its bytes are no JPEG-LS image")
    bits, rows, cols, channels = struct.unpack_from(">BHHB", data, at + 4)
    if (bits, channels) != (8, 3):
        raise BadTile(f"its JPEG-LS header claims {channels} channels of {bits} bits")
    _check_size((rows, cols), into)
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # CharLS takes seconds to find out
        raise BadTile("its JPEG-LS image ends too early")
    imagecodecs.jpegls_decode(data, out=into)


def _unpack_rle(data: bytes, into: NDArray[np.uint8]) -> None:
    """PS3.5 Annex G: a header of 16 numbers, then one PackBits segment a channel."""
    import imagecodecs

    if len(data) < 64:
        raise BadTile("its RLE header is damaged")
    channels, *offsets = struct.unpack_from("<16I", data)
    bounds = [*offsets[:3], len(data)]
    if channels != 3 or bounds[0] != 64 or sorted(bounds) != bounds:
        raise BadTile(f"its RLE header is damaged: it claims {channels} channels")
    pixels = into.shape[0] * into.shape[1]
    for channel in range(3):
        plane = imagecodecs.packbits_decode(data[bounds[channel] : bounds[channel + 1]], out=pixels)
        if len(plane) != pixels:
            raise BadTile(f"channel {channel} holds {len(plane):,} of {pixels:,} px")
        into[..., channel] = np.frombuffer(plane, np.uint8).reshape(into.shape[:2])


def _unpack_plain(data: bytes, into: NDArray[np.uint8]) -> None:
    if len(data) != into.size:
        raise BadTile(f"it holds {len(data):,} of {into.size:,} bytes")
    into[...] = np.frombuffer(data, np.uint8).reshape(into.shape)


_UNPACK = {
    "uncompressed": _unpack_plain,
    "jpeg-ls": _unpack_jpegls,
    "rle": _unpack_rle,
}
