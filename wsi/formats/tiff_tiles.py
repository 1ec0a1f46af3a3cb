"""Where the tiles or strips of one image of a TIFF lie and what they hold, checked for sense before any is decoded.

Truncated and half-copied slides are found here, from 2 ms of directory reading; decoders and lenient readers turn many
of them into wrong pixels without an error.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError
from ..source import ByteSource
from . import tiff_directory as tags
from .codecs import (
    BLACK_IS_ZERO,
    COMPRESSIONS,
    J2K,
    J2K_OF_OTHERS,
    J2K_RGB,
    J2K_YCBCR,
    JPEG,
    LOSSLESS,
    OTHER_COLOURS,
    READ,
    RGB,
    WEBP,
    WHITE_IS_ZERO,
    WITH_PREDICTOR,
    YCBCR,
    Pixels,
)
from .file_check import COPY_AGAIN
from .jpeg2000 import is_subsampled
from .stored_tile import MAX_STRIP_PX, MAX_TILE_PX
from .tiff_directory import Directory, read_subdirectories
from .tilewise import BadTile

_MAX_SIDE_PX = 4_000_000  # a metre at 0.25 µm/px
_BAND_PX = 1 << 20  # an uncompressed image in one strip is read in bands of so many pixels
_ASPECT_TOLERANCE = 0.05  # levels are rounded to whole pixels, small ones show it
CHANNELS = "give channels explicitly"
_PALETTE = 3
_IN_JPEG = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, 5, YCBCR)  # 5: CMYK
_ABSURD = -1  # in TiledLevel.counts: the file states a size that no encoder reaches


@dataclass(frozen=True)
class TiledLevel:
    """One image's tiles, or its strips, which are tiles as wide as the image.

    offsets, counts  int64 (planes x tiles,), in raster order, plane after plane; count 0 marks a tile the file lacks
    columns          tiles side by side, as stored (Philips stores more than the level is wide)
    is_striped       the last strip holds only the rows that are left
    white_gaps       a tile without offset and bytes is unscanned glass, by the format's design
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    columns: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    pixels: Pixels
    is_striped: bool = False
    white_gaps: bool = False
    downsample: float | None = None

    def rows_of(self, tile: int) -> int:
        """Rows that the stored tile has."""
        return min(self.tile_height, self.height - tile * self.tile_height) if self.is_striped else self.tile_height


def compression_name(directory: Directory) -> str:
    number = directory.number(tags.COMPRESSION, 1)
    return COMPRESSIONS.get(number or 1, f"TIFF compression {number}")


def read_all(source: ByteSource, base: Directory, chain: list[Directory]) -> list[Directory]:
    """All images, which lie in the file for certain, sub-images last. Raises SlideError."""
    directories = [base, *chain, *read_subdirectories(source, [base, *chain])]
    for directory in directories:
        _check_extents(source, directory)
    return directories


def unreadable(directory: Directory) -> str | None:
    """Why this image's pixels are none that the direct reader shows as RGB, None if they are."""
    bits = set(directory.arrays.get(tags.BITS, np.array([1])).tolist())
    formats = set(directory.arrays.get(tags.SAMPLE_FORMAT, np.array([1])).tolist())
    samples, planar = directory.number(tags.SAMPLES, 1) or 1, directory.number(tags.PLANAR, 1)
    photometric, compression = directory.number(tags.PHOTOMETRIC), directory.number(tags.COMPRESSION, 1)
    if tags.TILE_OFFSETS not in directory.arrays and tags.STRIP_OFFSETS not in directory.arrays:
        return "neither tiles nor strips"
    if formats - {1, 4}:
        kind = {2: "signed", 3: "floating-point"}.get(max(formats), "complex")
        return f"{max(bits)}-bit {kind} pixels: {CHANNELS}"
    if bits != {8}:
        return f"{max(bits)}-bit pixels: {CHANNELS}" if max(bits) > 8 else f"pixels of {sorted(bits)} bits"
    if samples > 4:
        return f"{samples} channels: {CHANNELS}"
    if compression not in READ:
        return f"{compression_name(directory)} tiles"
    kinds = {1: (WHITE_IS_ZERO, BLACK_IS_ZERO), 3: (RGB,), 4: (RGB,)}.get(samples, ())
    if compression not in LOSSLESS:
        grey, alpha = ((BLACK_IS_ZERO,) if compression == JPEG else ()), ((RGB,) if compression == WEBP else ())
        kinds = {1: grey, 3: (RGB, YCBCR), 4: alpha}.get(samples, ())
    if photometric not in kinds or (planar == 2 and compression not in LOSSLESS and samples > 1):
        colours = OTHER_COLOURS.get(photometric or 0, f"photometric {photometric}")
        layout = f"{samples} samples of 8 bits, {colours}{', planar' if planar == 2 else ''}"
        return f"pixels that are not 8-bit RGB or grey ({layout}, {compression_name(directory)})"
    if compression in WITH_PREDICTOR and directory.number(tags.PREDICTOR, 1) not in (1, 2):
        return f"predictor {directory.number(tags.PREDICTOR)}"
    if directory.number(tags.FILL_ORDER, 1) != 1 or directory.number(tags.ORIENTATION, 1) not in (0, 1):
        return "rows or bits in another order (TIFF Orientation, FillOrder)"
    return None


def read_tiles(source: ByteSource, directory: Directory) -> TiledLevel:
    """Where a readable image's tiles or strips lie. Raises SlideError where that contradicts its size."""
    width, height = directory.size
    tile_width, tile_height, limit = width, height, MAX_STRIP_PX
    if directory.is_tiled:
        tile_width, tile_height = (directory.number(tag, 0) or 0 for tag in (tags.TILE_WIDTH, tags.TILE_HEIGHT))
        limit = MAX_TILE_PX
    else:
        tile_height = min(height, directory.number(tags.STRIP_ROWS) or height)
    pixels = _pixels(directory)
    offset_tag, count_tag, parts = _part_tags(directory)
    offsets = directory.arrays[offset_tag].astype(np.int64)
    counts = directory.arrays[count_tag].astype(np.int64)
    band = None
    if not directory.is_tiled and pixels.compression == 1 and offsets.size == 1:
        band = max(1, _BAND_PX // max(1, width))
    shape = f"{width:,} x {height:,} px in {parts} of {tile_width:,} x {tile_height:,} px"
    small = directory.is_tiled and min(tile_width, tile_height) < 16
    if min(width, height, tile_width, tile_height) < 1 or small or max(width, height) > _MAX_SIDE_PX:
        raise SlideError(source.name, f"implausible size: {directory.name} claims {shape}", COPY_AGAIN)
    if band is None and tile_width * tile_height > limit:
        problem = f"implausible size: {directory.name} claims {shape}, the limit is {limit:,} px each"
        raise SlideError(source.name, problem, f"{COPY_AGAIN}; if they agree, convert it to a tiled pyramidal TIFF")
    columns = -(-width // tile_width)
    needed = columns * -(-height // tile_height) * pixels.planes
    if offsets.size != needed:
        problem = f"{directory.name} of {width:,} x {height:,} px needs {needed:,} {parts} and lists {offsets.size:,}"
        raise SlideError(source.name, f"implausible size: {problem}", COPY_AGAIN)
    # A size no encoder reaches is a damaged entry: that tile is missing, not the slide.
    counts[counts > 4 * pixels.samples * tile_width * tile_height + 65_536] = _ABSURD
    level = TiledLevel(width, height, tile_width, tile_height, columns, offsets, counts, pixels, not directory.is_tiled)
    return level if band is None else _in_bands(level, band)


def _in_bands(level: TiledLevel, rows: int) -> TiledLevel:
    """An uncompressed image in one strip as strips of `rows` rows, so that a part of it can be read alone."""
    rows = min(rows, level.height)
    band_bytes = rows * level.width * level.pixels.samples
    starts = np.arange(-(-level.height // rows), dtype=np.int64) * band_bytes
    whole = min(max(int(level.counts[0]), 0), level.height * level.width * level.pixels.samples)
    counts = np.clip(whole - starts, 0, band_bytes)
    return replace(level, tile_height=rows, offsets=level.offsets[0] + starts, counts=counts)


def _pixels(directory: Directory) -> Pixels:
    samples = directory.number(tags.SAMPLES, 1) or 1
    compression = directory.number(tags.COMPRESSION, 1) or 1
    if compression in J2K_OF_OTHERS and not directory.text(tags.DESCRIPTION).startswith("Aperio"):
        compression = J2K
    return Pixels(
        compression,
        directory.number(tags.PHOTOMETRIC, RGB) or 0,
        samples,
        planes=samples if directory.number(tags.PLANAR, 1) == 2 else 1,
        predictor=compression in WITH_PREDICTOR and directory.number(tags.PREDICTOR, 1) == 2,
        has_alpha=samples == 4 and directory.number(tags.EXTRA_SAMPLES, 0) in (1, 2),
        tables=directory.texts.get(tags.JPEG_TABLES, b""),
    )


def _part_tags(directory: Directory) -> tuple[int, int, str]:
    if directory.is_tiled:
        return tags.TILE_OFFSETS, tags.TILE_BYTES, "tiles"
    return tags.STRIP_OFFSETS, tags.STRIP_BYTES, "strips"


def _check_extents(source: ByteSource, directory: Directory) -> None:
    """All tiles or strips of an image lie inside the file."""
    offset_tag, count_tag, parts = _part_tags(directory)
    offsets, counts = directory.arrays.get(offset_tag), directory.arrays.get(count_tag)
    if offsets is None and counts is None and not directory.is_tiled:
        return  # no image at all: a directory of metadata, or old-style JPEG
    if offsets is None or counts is None or offsets.shape != counts.shape:
        problem = f"{directory.name} lists {_length(offsets)} offsets of {parts} and {_length(counts)} sizes"
        raise SlideError(source.name, problem, COPY_AGAIN)
    # Python's float holds every real file's length exactly; unsigned 64-bit sums could wrap.
    outside = (counts > 0) & (offsets.astype(np.float64) + counts.astype(np.float64) > source.size)
    if outside.any():
        inside = f"{int((~outside).sum()):,} of {outside.size:,} {parts} of {directory.name}"
        end = int(offsets[outside].max()) + int(counts[outside].max())
        lengths = f"the file has {source.size:,} bytes, where about {end:,} are needed"
        raise SlideError(source.name, f"only {inside} lie inside the file ({lengths})", COPY_AGAIN)


def check_sense(source: ByteSource, directory: Directory) -> None:
    """What a tiled image's tags say of its pixels can be true together.

    For other readers, who take the tags' word: the direct one marks each tile that does not decode as the tags say.
    """
    compression, samples = directory.number(tags.COMPRESSION, 1), directory.number(tags.SAMPLES, 1)
    photometric, bits = directory.number(tags.PHOTOMETRIC), directory.number(tags.BITS, 1) or 0
    name = f"{directory.name} claims {compression_name(directory)} tiles"
    if samples == 0 or (photometric == _PALETTE and samples != 1):
        raise SlideError(source.name, f"{name} of {samples} samples with photometric {photometric}", COPY_AGAIN)
    if compression in (JPEG, J2K, J2K_RGB, J2K_YCBCR) and photometric not in (None, *_IN_JPEG):
        raise SlideError(source.name, f"{name} with photometric {photometric}, which there are none of", COPY_AGAIN)
    counts = directory.arrays[tags.TILE_BYTES]
    # planes have tiles of their own, and of YCbCr only brightness is kept for every pixel for certain
    depth = 1 if directory.number(tags.PLANAR, 1) == 2 or photometric == YCBCR else samples or 1
    row_bytes = -(-(directory.number(tags.TILE_WIDTH, 0) or 0) * depth * bits // 8)
    whole = row_bytes * (directory.number(tags.TILE_HEIGHT, 0) or 0)
    if compression == 1 and ((counts > 0) & (counts < whole)).any():
        problem = f"{name} of {whole:,} bytes each, and {int((counts < whole).sum()):,} have fewer"
        raise SlideError(source.name, problem, COPY_AGAIN)


def _length(values: NDArray | None) -> int:
    return 0 if values is None else values.size


def is_same_picture(base: tuple[int, int], size: tuple[int, int]) -> bool:
    """One factor brings the width and height of level 0 to those of another level, up to rounding."""
    if min(*base, *size) < 1:
        return False
    factor = (base[0] / size[0] + base[1] / size[1]) / 2
    off = (abs(whole / factor - part) for whole, part in zip(base, size, strict=True))
    return all(far <= max(2, _ASPECT_TOLERANCE * part) for far, part in zip(off, size, strict=True))


def check_shapes(source: ByteSource, levels: list[TiledLevel]) -> None:
    """Every level is the same picture."""
    base = levels[0]
    for number, level in enumerate(levels[1:], 1):
        if not is_same_picture((base.width, base.height), (level.width, level.height)):
            shapes = f"{level.width:,} x {level.height:,} px, level 0 {base.width:,} x {base.height:,} px"
            raise SlideError(source.name, f"level {number} has other proportions than level 0 ({shapes})", COPY_AGAIN)


def check_tail(source: ByteSource, levels: list[TiledLevel]) -> None:
    """The tile that lies last in the file was written: a copy that preallocates and stops leaves zeros there.

    Not for uncompressed tiles: theirs may be black.
    """
    ends = [
        (int(level.offsets[at]), int(level.counts[at]))
        for level in levels
        if level.pixels.compression != 1
        for at in [int(np.argmax(np.where(level.counts > 0, level.offsets, -1)))]
    ]
    offset, count = max(ends, default=(0, 0))
    if count > 0 and not any(source.read_at(offset, count)):
        place = f"its last tile ({count:,} bytes at byte {offset:,})"
        problem = f"{place} is all zeros: the file was never written to its end"
        raise SlideError(source.name, problem, COPY_AGAIN)


def check_jpeg2000(source: ByteSource, level: TiledLevel, description: str) -> str | None:
    """A reason to leave JPEG 2000 to another reader. Raises SlideError where tag, text and stream contradict."""
    if level.pixels.compression not in (J2K_YCBCR, J2K_RGB, J2K) or not (level.counts > 0).any():
        return None
    first = int(np.argmax(level.counts > 0))
    try:
        halved = is_subsampled(source.read_at(int(level.offsets[first]), min(int(level.counts[first]), 4_096)))
    except (BadTile, ValueError, IndexError):  # a damaged tile is marked when it is read
        halved = False
    if level.pixels.compression == J2K_RGB and (halved or "J2K/YUV" in description):
        said = "its tiles hold fewer" if halved else "its description says YUV, with fewer"
        problem = f"its TIFF says RGB in JPEG 2000 (compression 33005), but {said} colour than brightness samples"
        raise SlideError(source.name, problem, COPY_AGAIN)
    return "JPEG 2000 tiles with half the colour columns" if halved else None
