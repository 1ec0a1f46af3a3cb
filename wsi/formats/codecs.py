"""Turn the stored bytes of a TIFF tile or strip into RGB, strictly: the whole of it, or BadTile.

General decoders fill up what is missing and cut what is too much; here a result that is not exactly the tile's size is
damage. Nothing is allocated from a size that the stored bytes claim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from .jpeg import JpegDecoder
from .jpeg2000 import Jpeg2000Decoder
from .tilewise import BadTile

# TIFF tag Compression -> name; those without a decoder are here to be named in a refusal
COMPRESSIONS = {
    1: "uncompressed", 5: "lzw", 6: "jpeg (old style)", 7: "jpeg", 8: "deflate", 32773: "packbits", 32946: "deflate",
    33003: "jpeg2000", 33004: "jpeg2000", 33005: "jpeg2000", 34712: "jpeg2000", 34887: "lerc", 34925: "lzma",
    34933: "png", 50000: "zstd", 50001: "webp", 50002: "jpeg-xl", 52546: "jpeg-xl",
}  # fmt: skip
OF_NO_READER = {34887, 34925, 34933, 50002, 52546}  # neither here nor in OpenSlide
JPEG, WEBP, J2K_YCBCR, J2K_RGB, J2K = 7, 50001, 33003, 33005, 34712
J2K_OF_OTHERS = {33003, 33004, 33005}  # Bio-Formats means any JPEG 2000 by these, Aperio a colour space
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6  # TIFF tag PhotometricInterpretation
OTHER_COLOURS = {3: "palette", 5: "CMYK", 8: "CIE L*a*b*", 9: "CIE L*a*b*", 32803: "raw camera"}


_HOLE = bytes(64)  # no run of zeros so long is in WebP data: flat pictures, too, have none beyond 8 bytes


def _copy(data: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(data) > out.size:
        raise ValueError(f"{len(data):,} bytes are stored")
    out[: len(data)] = np.frombuffer(data, np.uint8)
    return out[: len(data)]


# Each writes into `out` and returns as much of it as it filled; each stops, or raises, when `out` is full.
_UNPACK: dict[int, Callable[[bytes, Any], Any]] = {
    1: _copy,
    5: lambda data, out: imagecodecs.lzw_decode(data, out=out),
    8: lambda data, out: imagecodecs.deflate_decode(data, out=out),
    32946: lambda data, out: imagecodecs.deflate_decode(data, out=out),
    32773: lambda data, out: imagecodecs.packbits_decode(data, out=out),
    50000: lambda data, out: imagecodecs.zstd_decode(data, out=out),
}
WITH_PREDICTOR = {5, 8, 32946, 50000}
LOSSLESS = set(_UNPACK)
READ = LOSSLESS | {JPEG, WEBP, J2K} | J2K_OF_OTHERS


def unpack(compression: int, data: bytes, size: int, surplus: int = 0) -> NDArray[np.uint8]:
    """Exactly `size` bytes out of stored ones, by a compression in LOSSLESS. Raises BadTile.

    surplus  so many bytes more may be stored, and are dropped: some encoders end late
    """
    buffer = np.empty(size + surplus + 1, np.uint8)  # one more than is right: too much is seen, and goes no further
    try:
        filled = _UNPACK[compression](data, buffer)
    except (RuntimeError, ValueError) as error:  # imagecodecs' errors derive from RuntimeError
        raise BadTile(f"it does not unpack: {error}") from None
    if not size <= len(filled) <= size + surplus:
        much = "more" if len(filled) > size else f"{len(filled):,}"
        raise BadTile(f"it unpacks to {much} bytes instead of {size:,}")
    return buffer[:size]


@dataclass(frozen=True)
class Pixels:
    """What the stored bytes of an image's tiles mean: 8-bit samples.

    compression, photometric  as in the TIFF's tags
    samples     a pixel: 1 grey, 3 RGB, 4 RGB and one more
    planes      1, or `samples` where each lies in tiles of its own
    predictor   horizontal differences are stored
    has_alpha   the fourth sample is opacity (else it is ignored)
    tables      JPEGTables
    """

    compression: int
    photometric: int
    samples: int = 3
    planes: int = 1
    predictor: bool = False
    has_alpha: bool = False
    tables: bytes = b""


class Decoder(Protocol):
    """Decodes the tiles of one level. Thread-safe.

    factors  as TileLevel.factors, before it is known whether they divide the tile's sides
    """

    factors: tuple[int, ...]

    def decode(self, parts: Sequence[bytes], into: NDArray[np.uint8], factor: int = 1) -> None:
        """Stored bytes, one part a plane, into `into`, C-contiguous uint8 (rows, cols, 3). Raises BadTile."""
        ...


def decoder_for(pixels: Pixels) -> Decoder:
    if pixels.compression == JPEG:
        return _OnePart(JpegDecoder(pixels.tables, pixels.photometric == YCBCR, pixels.samples), (2, 4, 8))
    if pixels.compression == WEBP:
        return _WebpDecoder(pixels)
    if pixels.compression in (J2K_YCBCR, J2K_RGB, J2K):
        if pixels.compression == J2K:
            return _OnePart(Jpeg2000Decoder(pixels.photometric == YCBCR, is_certain=False), (2, 4, 8))
        return _OnePart(Jpeg2000Decoder(pixels.compression == J2K_YCBCR), (2, 4, 8))
    return _LosslessDecoder(pixels)


class _Whole(Protocol):
    def decode(self, data: bytes, into: NDArray[np.uint8], factor: int = 1) -> None: ...


class _OnePart:
    """A codec that keeps whole RGB tiles and can make them smaller."""

    def __init__(self, codec: _Whole, factors: tuple[int, ...]):
        self.codec, self.factors = codec, factors

    def decode(self, parts: Sequence[bytes], into: NDArray[np.uint8], factor: int = 1) -> None:
        self.codec.decode(parts[0], into, factor)


class _LosslessDecoder:
    """Plain samples behind a general compressor, or behind none."""

    factors: tuple[int, ...] = ()

    def __init__(self, pixels: Pixels):
        self._pixels = pixels

    def decode(self, parts: Sequence[bytes], into: NDArray[np.uint8], factor: int = 1) -> None:
        depth = self._pixels.samples // self._pixels.planes
        planes = [self._plane(part, (*into.shape[:2], depth)) for part in parts]
        _to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), self._pixels, into)

    def _plane(self, data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        plane = unpack(self._pixels.compression, data, shape[0] * shape[1] * shape[2]).reshape(shape)
        return imagecodecs.delta_decode(plane, axis=1, out=plane) if self._pixels.predictor else plane


class _WebpDecoder:
    factors: tuple[int, ...] = ()

    def __init__(self, pixels: Pixels):
        self._pixels = pixels

    def decode(self, parts: Sequence[bytes], into: NDArray[np.uint8], factor: int = 1) -> None:
        plane = np.empty((*into.shape[:2], self._pixels.samples), np.uint8)
        if _HOLE in parts[0]:
            raise BadTile("it has a hole of zero bytes")
        try:
            imagecodecs.webp_decode(parts[0], hasalpha=self._pixels.samples == 4, out=plane)
        except (RuntimeError, ValueError) as error:
            raise BadTile(f"it is no WebP image of the tile's size: {error}") from None
        _to_rgb(plane, self._pixels, into)


def _to_rgb(plane: NDArray[np.uint8], pixels: Pixels, into: NDArray[np.uint8]) -> None:
    """Samples (rows, cols, 1, 3 or 4) into RGB; what alpha makes transparent is white."""
    if pixels.samples == 1:
        into[...] = 255 - plane if pixels.photometric == WHITE_IS_ZERO else plane
        return
    into[...] = plane[..., :3]
    if pixels.has_alpha and plane[..., 3].min() < 255:
        alpha = plane[..., 3:].astype(np.uint16)
        into[...] = (plane[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
