"""Decode the JPEG 2000 tiles of a TIFF strictly, also at a half, quarter or eighth of their size.

OpenJPEG decodes a stream cut in half, or with a hole of zeros, as if it were whole, and only warns. So the stream's
markers are walked first. Source: ITU-T T.800, Annex A (code stream syntax); JP2 boxes: Annex I.
"""

import re
from struct import error as struct_error
from struct import pack_into, unpack_from
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from .tilewise import BadTile

_SOC, _SIZ, _COD, _QCD, _SOT = 0xFF4F, 0xFF51, 0xFF52, 0xFF5C, 0xFF90
_SOD, _EOC = b"\xff\x93", b"\xff\xd9"
_NEXT_STREAM = b"\xff\x4f\xff\x51"
_MARKERS, _MARKERS_BUT_OF_PACKETS = re.compile(rb"\xff[\x90-\xff]"), re.compile(rb"\xff[\x90\x93-\xff]")
_IN_OTHER_WAYS = {0xFF53, 0xFF5D, 0xFF5F, 0xFF55, 0xFF57, 0xFF60}  # COC, QCC, POC, TLM, PLM, PPM: by component, lengths
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_LAYER_FIRST, _RESOLUTION_FIRST = 0, (1, 2)  # progression orders LRCP; RLCP and RPCL
_HOLE_BYTES = 64  # beyond the one zero byte of each empty packet, a run so long is no entropy-coded data
_QUANTITIES_A_STEP = {0: 3, 1: 0, 2: 6}  # bytes of QCD that each resolution adds, by quantisation style


class Segment(NamedTuple):
    marker: int
    start: int
    end: int


class Jpeg2000Decoder:
    """Decodes tiles of one level. Thread-safe: it has no state.

    is_ycbcr    the three components are Y, Cb, Cr (Aperio's TIFF compression 33003) and not RGB (33005)
    is_certain  a stream whose own colour transform says RGB contradicts that, and is damage; else the stream is right
    """

    def __init__(self, is_ycbcr: bool, is_certain: bool = True):
        self._is_ycbcr, self._is_certain = is_ycbcr, is_certain

    def decode(self, data: bytes, into: NDArray[np.uint8], factor: int = 1) -> None:
        """Decode one tile into `into`, C-contiguous uint8 (rows, cols, 3). Raises BadTile.

        factor  2, 4 or 8: the finest 1, 2 or 3 resolutions of the stream are left undecoded. That is the wavelet's
                low-pass band, sharper than an average; its pixels lie on the first of `factor` stored ones, not in
                their middle
        """
        stream = code_stream(data)
        try:
            head = main_header(stream)
            _check_frame(stream, head, into.shape[1] * factor, into.shape[0] * factor)
            stream = _checked_parts(stream, head)
            is_ycbcr = self._is_ycbcr and not self._says_rgb(stream, head)
        except (struct_error, KeyError, IndexError, StopIteration):
            raise BadTile("its JPEG 2000 header is damaged") from None
        steps = factor.bit_length() - 1
        smaller = without_finest(stream, head, steps) if steps else stream
        if smaller is None:
            _decode_and_average(stream, into, factor)
        else:
            _decode(smaller, into)
        if is_ycbcr:
            into[...] = ycbcr_to_rgb(into)

    def _says_rgb(self, stream: bytes, head: list[Segment]) -> bool:
        cod = next(part.start for part in head if part.marker == _COD)
        if stream[cod + 8] == 1 and self._is_certain:
            raise BadTile("its TIFF says YCbCr, its own code stream RGB")
        return stream[cod + 8] == 1


def code_stream(data: bytes) -> bytes:
    """The code stream of stored bytes, which may lie in a JP2 file. Raises BadTile where there is none."""
    if not data:
        raise BadTile("the file holds no bytes for it")
    at = 0
    while data.startswith(_JP2) and at + 8 <= len(data):
        length, kind = unpack_from(">I4s", data, at)
        if kind == b"jp2c":
            data = data[at + 8 : at + length if length else len(data)]
            break
        at += max(length, 8)
    if unpack_from(">H", data.ljust(2, b"\0"))[0] != _SOC:
        raise BadTile("its bytes are no JPEG 2000 code stream")
    return data


def main_header(stream: bytes) -> list[Segment]:
    """The marker segments up to the first tile-part's, that one included. Raises struct.error where it is cut."""
    found: list[Segment] = []
    at = 2
    while not found or found[-1].marker != _SOT:
        marker, length = unpack_from(">HH", stream, at)
        if marker < 0xFF01 or length < 2:
            raise BadTile("its JPEG 2000 header is damaged")
        found.append(Segment(marker, at, at + 2 + length))
        at += 2 + length
    return found


def is_subsampled(stream: bytes) -> bool:
    """Whether a component has fewer pixels than the image (Aperio's YUV16 has half the chroma columns)."""
    siz = main_header(stream)[0].start
    return any(stream[siz + 41 + 3 * part : siz + 43 + 3 * part] != b"\1\1" for part in range(stream[siz + 39]))


def _check_frame(stream: bytes, head: list[Segment], width: int, height: int) -> None:
    """Size and depth of the stream are what the TIFF says, before the decoder allocates for them."""
    siz = head[0].start
    right, bottom, left, top = unpack_from(">4I", stream, siz + 6)
    channels = unpack_from(">H", stream, siz + 38)[0]
    if head[0].marker != _SIZ or (right - left, bottom - top) != (width, height):
        raise BadTile(f"it holds {right - left} x {bottom - top} px instead of {width} x {height}")
    parts = {stream[siz + 40 + 3 * part : siz + 43 + 3 * part] for part in range(min(channels, 4))}
    if channels != 3 or parts != {b"\7\1\1"}:
        raise BadTile(f"its {channels} components are not three of 8 bits and full size")


def _checked_parts(stream: bytes, head: list[Segment]) -> bytes:
    """The stream, if all its tile-parts lie in it, nothing is missing at its end, and no hole of zeros lies within.

    A missing end marker alone is tolerated, and put there: sound slides without it exist.
    """
    at, tiles = head[-1].start, set()
    while stream[at : at + 2] == b"\xff\x90":
        tile, length = unpack_from(">HI", stream, at + 4)
        last = stream.rfind(_EOC, at)
        end = at + length if length else last if last > at else len(stream)
        if length and (length < 14 or end > len(stream)):
            raise BadTile(f"its code stream is cut: {max(0, end - len(stream)):,} bytes are missing")
        if _never_in_packets(stream, head).search(stream, _packets(stream, at), end):
            raise BadTile("its code stream has bytes in it that are none of its own")
        tiles.add(tile)
        at = end
    expected = _tile_count(stream, head)
    if len(tiles) != expected:
        raise BadTile(f"its code stream holds {len(tiles)} of {expected:,} parts of the image")
    if stream.find(_NEXT_STREAM, at) >= 0:
        raise BadTile("its bytes hold more than one code stream")
    kept = stream.rstrip(b"\0")
    zeros = len(stream) - len(kept)
    if not kept.endswith(_EOC) and zeros > min(_empty_packets(stream, head) + 2, _HOLE_BYTES):
        raise BadTile(f"its code stream ends in {zeros:,} zero bytes instead of its end marker")
    if bytes(_HOLE_BYTES + _empty_packets(stream, head)) in kept:
        raise BadTile("its code stream has a hole of zero bytes")
    return stream if stream[at : at + 2] == _EOC else stream[:at] + _EOC


def _packets(stream: bytes, at: int) -> int:
    """Where the packets of the tile-part at `at` begin, behind its header. Raises struct.error where it is cut."""
    at += 12
    while stream[at : at + 2] != _SOD:
        at += 2 + max(2, int(unpack_from(">H", stream, at + 2)[0]))
    return at + 2


def _never_in_packets(stream: bytes, head: list[Segment]) -> re.Pattern[bytes]:
    """Coded data holds no 0xFF90 to 0xFFFF (T.800, C.2 and B.10.1), but for markers between packets, if any."""
    cod = next(part.start for part in head if part.marker == _COD)
    return _MARKERS_BUT_OF_PACKETS if stream[cod + 4] & 6 else _MARKERS


def _tile_count(stream: bytes, head: list[Segment]) -> int:
    """Tiles of the code stream's own grid; TIFF tiles are one each."""
    right, bottom, _, _, width, height, left, top = unpack_from(">8I", stream, head[0].start + 6)
    return -(-(right - left) // max(1, width)) * -(-(bottom - top) // max(1, height))


def _empty_packets(stream: bytes, head: list[Segment]) -> int:
    """How many zero bytes an empty tile may have in a row: one a packet, of each layer, component and precinct."""
    cod = next(part.start for part in head if part.marker == _COD)
    width, height = unpack_from(">2I", stream, head[0].start + 6)
    layers, levels = unpack_from(">H", stream, cod + 6)[0], stream[cod + 9]
    precincts = 0
    for resolution in range(levels + 1):
        size = stream[cod + 14 + resolution] if stream[cod + 4] & 1 else 0xFF
        halvings = levels - resolution
        across = -(-width >> halvings + (size & 15))
        precincts += across * -(-height >> halvings + (size >> 4))
    return 3 * int(layers) * precincts


def without_finest(stream: bytes, head: list[Segment], steps: int) -> bytes | None:
    """The stream with a header that knows nothing of its finest `steps` resolutions, whose packets lie last.

    A decoder then makes the image smaller by 2 ** steps, without decoding what it does not need. None where the
    packets lie in another order, or there are not so many resolutions.
    """
    markers = {part.marker: part for part in head}
    cod, qcd = markers.get(_COD), markers.get(_QCD)
    if cod is None or qcd is None or markers.keys() & _IN_OTHER_WAYS:
        return None
    order, layers = stream[cod.start + 5], unpack_from(">H", stream, cod.start + 6)[0]
    coarse_first = order in _RESOLUTION_FIRST or (order == _LAYER_FIRST and layers == 1)
    if not coarse_first or not _is_one_part(stream, head) or stream[cod.start + 9] < steps:
        return None
    result = bytearray(stream[:2])
    for part in head:
        segment = bytearray(stream[part.start : part.end])
        if part.marker == _SIZ:
            for field in (6, 10, 22, 26):  # width and height of the image and of its one tile
                pack_into(">I", segment, field, -(-unpack_from(">I", segment, field)[0] >> steps))
        elif part.marker == _COD:
            segment[9] -= steps
            if segment[4] & 1:  # a precinct size for each resolution
                segment = segment[:-steps]
        elif part.marker == _QCD:
            segment = segment[: len(segment) - steps * _QUANTITIES_A_STEP[segment[4] & 31]]
        pack_into(">H", segment, 2, len(segment) - 2)
        result += segment
    return bytes(result) + stream[head[-1].end :]


def _is_one_part(stream: bytes, head: list[Segment]) -> bool:
    """The stream is one tile at the origin, in one part, without a header of its own."""
    siz, sot = head[0].start, head[-1]
    one_tile = unpack_from(">2I", stream, siz + 6) == unpack_from(">2I", stream, siz + 22)
    shifted = any(unpack_from(">2I", stream, siz + 14)) or any(unpack_from(">2I", stream, siz + 30))
    after = sot.start + unpack_from(">I", stream, sot.start + 6)[0]
    one_part = after == sot.start or stream[after : after + 2] != b"\xff\x90"
    return one_tile and not shifted and one_part and stream[sot.end : sot.end + 2] == _SOD


def _decode_and_average(stream: bytes, into: NDArray[np.uint8], factor: int) -> None:
    """For streams whose order of packets hides the coarse resolutions: slower, but the right size."""
    whole = np.empty((into.shape[0] * factor, into.shape[1] * factor, 3), np.uint8)
    _decode(stream, whole)
    blocks = whole.reshape(into.shape[0], factor, into.shape[1], factor, 3)
    into[...] = (blocks.sum(axis=(1, 3), dtype=np.uint32) + factor * factor // 2) // (factor * factor)


def _decode(stream: bytes, into: NDArray[np.uint8]) -> None:
    try:
        imagecodecs.jpeg2k_decode(stream, out=into)
    except (RuntimeError, ValueError) as error:  # imagecodecs' errors derive from RuntimeError
        raise BadTile(f"its JPEG 2000 data cannot be decoded: {error}") from None


def _rounded(values: NDArray[np.floating]) -> NDArray[np.int32]:
    """As C's round(): halves away from zero."""
    return np.trunc(values + np.copysign(0.5, values)).astype(np.int32)


_CHROMA = np.arange(-128, 128)
_R_CR, _B_CB = _rounded(1.402 * _CHROMA), _rounded(1.772 * _CHROMA)
_G_CB, _G_CR = _rounded((1 << 16) * (0.5 - 0.34414 * _CHROMA)), _rounded((1 << 16) * (-0.71414 * _CHROMA))


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range YCbCr (ITU-T T.871) to RGB, uint8 (rows, cols, 3), with the roundings of OpenSlide's tables."""
    luma, cb, cr = (pixels[..., channel] for channel in range(3))
    green = (_G_CB[cb] + _G_CR[cr]) >> 16
    return np.stack([luma + _R_CR[cr], luma + green, luma + _B_CB[cb]], axis=-1).clip(0, 255).astype(np.uint8)
