"""Decode the JPEG tiles of a TIFF strictly, in the colours that the TIFF says they have."""

from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from .tilewise import BadTile

_SOI = b"\xff\xd8"
_NEXT_IMAGE = b"\xff\xd9\xff\xd8"  # an end marker, and the start of the next image
_HOLE = bytes(64)
_HUFFMAN, _START_OF_SCAN, _END_OF_IMAGE = 0xC4, 0xDA, 0xD9
_PROGRESSIVE = 0xC2
_FRAMES = {0xC0, 0xC1, _PROGRESSIVE}  # baseline, extended, progressive: what libjpeg decodes in 8 bits
_APPLICATION = range(0xE0, 0xF0)


class JpegDecoder:
    """Decodes tiles of one level: they share tables, size and colour space. Thread-safe: it has no state.

    tables       the level's JPEGTables, empty where each tile carries its own
    is_ycbcr     TIFF photometric YCbCr (6) rather than RGB (2)
    channels     3, or 1 for grey, which is decoded to RGB of equal parts
    """

    def __init__(self, tables: bytes, is_ycbcr: bool, channels: int = 3):
        self._channels = channels
        # libjpeg guesses the colour space from markers and component numbers, and guesses wrong for RGB tiles that
        # carry no marker (Aperio writes such). The TIFF knows: say it in an Adobe marker and drop the tile's own.
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if is_ycbcr else b"\x00")
        self._head = _SOI + (adobe if channels == 3 else b"") + _tables(tables)

    def whole(self, data: bytes) -> bytes:
        """A stored tile as a JPEG file of its own, not re-encoded. Raises BadTile unless it has so many channels."""
        body, scan = _checked_body(data, self._channels)
        whole = self._head + body
        hole = data.find(_HOLE, scan)  # a comment before the scan may be zeros
        if hole > 0 and _HOLE in data[hole:].rstrip(b"\0") and not _may_hold_zeros(whole):
            raise BadTile("it has a hole of zero bytes")
        # no scan contains these bytes: the tile's place or size in the file is another's
        if data[-2:] != _NEXT_IMAGE[:2] and data.find(_NEXT_IMAGE, scan) > 0:
            raise BadTile("its bytes hold more than one image")
        return whole

    def decode(self, data: bytes, into: NDArray[np.uint8], factor: int = 1) -> None:
        """Decode one tile into `into`, C-contiguous uint8 (rows, cols, 3) of the tile's size. Raises BadTile.

        factor  2, 4 or 8: libjpeg's scaled inverse transform makes the tile so many times smaller while decoding
        """
        rows, cols = into.shape[:2] if factor > 1 else (0, 0)
        try:
            pixels = simplejpeg.decode_jpeg(
                self.whole(data), "RGB", min_height=rows, min_width=cols, min_factor=1, buffer=into, strict=True
            )
        except ValueError as error:
            raise BadTile(str(error)) from None
        if pixels.shape != into.shape:
            raise BadTile(
                f"it holds {pixels.shape[1]} x {pixels.shape[0]} px instead of {into.shape[1]} x {into.shape[0]}"
            )


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) as a JPEG's frame header states. Raises BadTile where there is none."""
    for marker, at, _ in _segments(data) if data[:2] == _SOI else ():
        if marker in _FRAMES and at + 9 < len(data):
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
    raise BadTile("its bytes are no JPEG image")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments after the start marker, to the first scan's header or as far as they go.

    Any number of fill bytes FF may stand before a marker (ITU-T T.81, B.1.1.2).
    """
    at, marker = len(_SOI), 0
    while at + 4 <= len(data) and data[at] == 0xFF and marker != _START_OF_SCAN:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _END_OF_IMAGE:
            return
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        yield marker, at, end
        at = end


def _tables(tables: bytes) -> bytes:
    """JPEGTables without its start, end and application markers."""
    return b"".join(tables[at:end] for marker, at, end in _segments(tables) if marker not in _APPLICATION)


def _may_hold_zeros(whole: bytes) -> bool:
    """Whether a long run of zero bits can be a flat picture: if each block's shortest code says that it ends.

    It does in tables made for one image; in the standard's luminance table zeros mean a coefficient each, and a run of
    them is no picture but bytes that were lost. ITU-T T.81, Annexes C and K.
    """
    for marker, at, end in _segments(whole):
        if marker == _PROGRESSIVE:
            return True
        table = at + 4
        while marker == _HUFFMAN and table + 17 < min(end, len(whole)):
            if whole[table] >> 4 == 1 and whole[table + 17] != 0:  # of coefficients; its first symbol is no end
                return False
            table += 17 + sum(whole[table + 1 : table + 17])
    return True


def _checked_body(data: bytes, expected: int) -> tuple[bytes, int]:
    """A tile after its start marker, without application markers, and where in `data` its scan begins.

    Raises BadTile unless it is a JPEG so deep.
    """
    if not data:
        raise BadTile("the file holds no bytes for it")
    if data[:2] != _SOI:
        raise BadTile("its bytes are no JPEG image")
    kept, start, channels, scan = b"", len(_SOI), 0, 0
    for marker, at, end in _segments(data):
        if marker == _START_OF_SCAN:
            scan = at
        elif marker in _FRAMES and at + 9 < len(data):
            channels = data[at + 9]
        elif marker in _APPLICATION:
            kept += data[start:at]
            start = end
    if not scan:
        raise BadTile("its JPEG header is damaged")
    if channels != expected:
        raise BadTile(f"its JPEG header claims {channels} channels instead of {expected}")
    return kept + data[start:], scan
