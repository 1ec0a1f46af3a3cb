"""Planes of one channel each in a TIFF, of 8 to 64 bits: where their tiles lie, and their values, decoded strictly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..channels import Blend
from ..errors import SlideError
from ..source import ByteSource
from .codecs import (
    BLACK_IS_ZERO,
    COMPRESSIONS,
    JPEG,
    LOSSLESS,
    OTHER_COLOURS,
    RGB,
    WITH_PREDICTOR,
    Pixels,
    decoder_for,
    unpack,
)
from .file_check import COPY_AGAIN
from .stored_tile import MAX_STRIP_PX, MAX_TILE_PX, read_stored
from .tilewise import Grid

_LZW, _LZW_SURPLUS_BYTES = 5, 16  # a PerkinElmer file at hand has a strip with three pixels too many, otherwise sound
_BAND_ROWS = 64  # strips of fewer rows are read together, uncompressed ones of more are cut


@dataclass(frozen=True)
class Layout:
    """How each plane of one level is stored.

    dtype     in the file's byte order; samples: values a pixel, side by side
    is_tiled  else strips, as wide as the image; all have whole parts, but the last strip may be cut at the image's end
    """

    width: int
    height: int
    part_width: int
    part_height: int
    is_tiled: bool
    compression: int
    predictor: bool
    dtype: np.dtype
    samples: int
    tables: bytes = b""

    @property
    def row_bytes(self) -> int:
        return self.part_width * self.samples * self.dtype.itemsize


@dataclass(frozen=True)
class Plane:
    """One channel. offsets, counts: int64 (parts,), in raster order; sample: its place in each pixel."""

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    sample: int = 0


class PlaneLevel:
    """Tiles of chosen channels, blended to RGB; see tiled.TileLevel. planes: those of `blend.used`."""

    factors: tuple[int, ...] = ()

    def __init__(self, source: ByteSource, layout: Layout, planes: Sequence[Plane], blend: Blend):
        self._source, self._blend = source, blend
        self._layout, self._planes = _in_bands(layout, planes)
        layout = self._layout
        self._parts_a_tile = 1 if layout.is_tiled else max(1, _BAND_ROWS // layout.part_height)
        self.grid = Grid.of(layout.width, layout.height, layout.part_width, layout.part_height * self._parts_a_tile)
        gray = Pixels(layout.compression, BLACK_IS_ZERO, 1, tables=layout.tables)
        self._jpeg = decoder_for(gray) if layout.compression == JPEG else None

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        first = tile * self._parts_a_tile
        parts = range(first, min(first + self._parts_a_tile, len(self._planes[0].offsets)))
        decoded: dict[int, NDArray] = {}  # planes whose samples lie side by side share their parts
        values = []
        for plane in self._planes:
            stored = id(plane.offsets)
            if stored not in decoded:
                decoded[stored] = np.concatenate([self._part(plane, part) for part in parts])
            values.append(decoded[stored][..., plane.sample])
        rows = len(values[0])
        self._blend.blend(values, into[:rows])
        into[rows:] = 255

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        parts = (tiles[:, None] * self._parts_a_tile + np.arange(self._parts_a_tile)).ravel()
        parts = parts[parts < len(self._planes[0].offsets)]
        places = {(int(p.offsets[part]), int(p.counts[part])) for p in self._planes for part in parts}
        self._source.prefetch(sorted(place for place in places if place[1]))

    def jpeg(self, tile: int) -> bytes | None:
        return None

    def _part(self, plane: Plane, part: int) -> NDArray:
        """(rows, cols, samples) of one stored tile or strip."""
        layout = self._layout
        data = read_stored(self._source, int(plane.offsets[part]), int(plane.counts[part]))
        left = layout.height - part * layout.part_height
        rows = layout.part_height if layout.is_tiled else min(layout.part_height, left)
        if self._jpeg is not None:
            rgb = np.empty((rows, layout.part_width, 3), np.uint8)
            self._jpeg.decode([data], rgb)
            return rgb[..., :1]
        surplus = _LZW_SURPLUS_BYTES if layout.compression == _LZW else 0
        content = unpack(layout.compression, data, rows * layout.row_bytes, surplus).view(layout.dtype)
        native = content.astype(layout.dtype.newbyteorder("="), copy=False)
        values = native.reshape(rows, layout.part_width, layout.samples)
        return imagecodecs.delta_decode(values, axis=1) if layout.predictor else values


def read_layout(source: ByteSource, page: Any) -> Layout:
    """How a page of tifffile's is stored. Raises SlideError where it is in no way that is read here."""
    compression, predictor, photometric = int(page.compression), int(page.predictor), int(page.photometric)
    dtype = np.dtype(page.dtype or np.void)
    kind = "1-bit" if page.bitspersample == 1 else OTHER_COLOURS.get(photometric)
    if kind is not None:
        raise SlideError(source.name, f"it is a {kind} TIFF", "convert it to 8-bit RGB")
    reason = None
    if dtype.kind not in "iuf" or page.bitspersample != dtype.itemsize * 8:
        reason = f"its values have {page.bitspersample} bits"
    elif compression not in LOSSLESS and not (compression == JPEG and page.samplesperpixel == 1 and dtype == np.uint8):
        reason = f"its channels are stored as {COMPRESSIONS.get(compression, f'TIFF compression {compression}')}"
    elif predictor not in (1, 2) or (predictor == 2 and dtype.kind == "f"):
        reason = f"its channels are stored with predictor {predictor}"
    elif photometric not in (BLACK_IS_ZERO, RGB) or page.imagedepth != 1:
        reason = f"its channels are stored in a way that is not read (TIFF photometric {photometric})"
    elif int(page.fillorder) != 1 or int(page.tags.valueof(274, default=1)) != 1:
        reason = "rows or bits lie in another order (TIFF Orientation, FillOrder)"
    if reason is not None:
        raise SlideError(source.name, reason, "convert it to an OME-TIFF with deflate or LZW tiles")
    planar = int(page.planarconfig or 1) == 2
    height, width = page.imagelength, page.imagewidth
    part = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip or height, height))
    layout = Layout(
        width,
        height,
        *part,
        page.is_tiled,
        compression,
        predictor == 2 and compression in WITH_PREDICTOR,
        dtype.newbyteorder(page.parent.byteorder),
        1 if planar else page.samplesperpixel,
        page.jpegtables or b"",
    )
    limit = MAX_TILE_PX if page.is_tiled else MAX_STRIP_PX
    if min(width, height, *part) < 1 or (part[0] * part[1] > limit and (page.is_tiled or compression != 1)):
        shape = f"{width:,} x {height:,} px in parts of {part[0]:,} x {part[1]:,}"
        raise SlideError(source.name, f"implausible size: {shape}", COPY_AGAIN)
    return layout


def read_planes(source: ByteSource, page: Any, layout: Layout, samples: int) -> list[Plane]:
    """The `samples` channels of a page of tifffile's. Raises SlideError for what cannot lie in the file."""
    offsets, counts = (np.array(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    needed = -(-layout.width // layout.part_width) * -(-layout.height // layout.part_height)
    groups = samples // layout.samples
    if len(offsets) != needed * groups or len(counts) != len(offsets):
        problem = f"directory {page.index} needs {needed * groups:,} tiles or strips and lists {len(offsets):,}"
        raise SlideError(source.name, f"implausible size: {problem}", COPY_AGAIN)
    outside = (offsets < 0) | (counts < 0) | (counts > source.size - offsets)  # a sum could wrap
    if outside.any():
        inside = f"{int((~outside).sum()):,} of {len(offsets):,} tiles or strips"
        raise SlideError(source.name, f"only {inside} of directory {page.index} lie inside the file", COPY_AGAIN)
    planes = []
    for group in range(groups):
        part = slice(group * needed, (group + 1) * needed)
        shared = offsets[part], counts[part]
        planes += [Plane(*shared, sample) for sample in range(layout.samples)]
    return planes


def _in_bands(layout: Layout, planes: Sequence[Plane]) -> tuple[Layout, list[Plane]]:
    """Uncompressed strips of many rows cut into bands, so that a part of the image can be read alone."""
    if layout.is_tiled or layout.compression != 1 or layout.part_height <= _BAND_ROWS:
        return layout, list(planes)
    band = max(rows for rows in range(1, _BAND_ROWS + 1) if layout.part_height % rows == 0)
    if layout.part_height >= layout.height:
        band = _BAND_ROWS  # a single strip is cut at any row
    starts = np.arange(-(-layout.height // band), dtype=np.int64) * band
    strip, skipped = starts // layout.part_height, starts % layout.part_height * layout.row_bytes
    whole = np.minimum(band, layout.height - starts) * layout.row_bytes
    bands = {
        id(plane.offsets): (plane.offsets[strip] + skipped, np.clip(plane.counts[strip] - skipped, 0, whole))
        for plane in planes
    }
    return replace(layout, part_height=band), [Plane(*bands[id(plane.offsets)], plane.sample) for plane in planes]
