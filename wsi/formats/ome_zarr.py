"""OME-Zarr (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3), read chunk by chunk with zarr-python.

**Chunks that are not there.** Zarr gives the array's fill value for a chunk without a file and says nothing, and the
usual writers leave out chunks that hold nothing but the fill value. A lost file looks just the same. So:

- of an RGB image, such a chunk is unscanned glass: white, whatever the fill value. It is never shown as black;
- of chosen channels it is the fill value, as Zarr defines it: no signal;
- where a coarser level, or the next finer one, shows something else than the fill value in its place, the chunk was
  lost: its tile is bad;
- an RGB level without a single chunk, and a level 0 without one, is refused.

A chunk whose checksum is wrong or which its codec cannot decode is a bad tile. Most OME-Zarr carry no checksums: a
changed bit that the codec does not notice is not noticed here either.
"""

import lzma
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..channels import Blend, Channels, FileChannels, refusal
from ..errors import SlideError
from ..slide import SlideInfo
from .file_check import COPY_AGAIN
from .match import Match
from .ngff import NgffImage, read_image
from .scale import Scale
from .stored_tile import MAX_TILE_PX
from .tiled import TiledSlide
from .tilewise import BadTile, Grid

if TYPE_CHECKING:
    import zarr

_ASPECT_TOLERANCE = 0.05
_METADATA = {"zarr.json", ".zarray", ".zattrs"}
_SPREAD_PX = 2  # how far a coarser pixel may be averaged from beyond its place
_LOST_SHARE = 0.01  # of the coarser pixels in a missing chunk's place: so many that differ from the fill value
_LOSSY_STEP = 32  # what a lossy codec may do to an 8-bit fill value
# what numcodecs' and zarr's codecs, and reading a file, raise over damaged bytes
_UNDECODABLE = (
    ValueError, RuntimeError, OSError, TypeError, LookupError, EOFError, MemoryError, ArithmeticError, zlib.error,
    lzma.LZMAError, struct.error,
)  # fmt: skip


class ZarrLevel:
    """The chunks of one level, a chunk in y and x with all its channels a tile; see tiled.TileLevel.

    blend   how the channels become RGB; None for three 8-bit channels that are RGB
    others  levels that show whether a missing chunk was left out or lost
    """

    factors: tuple[int, ...] = ()

    def __init__(self, folder: Path, array: "zarr.Array[Any]", axes: Sequence[str], blend: Blend | None):
        from .zarr_arrays import open_array

        size, chunk = dict(zip(axes, array.shape, strict=True)), dict(zip(axes, array.chunks, strict=True))
        self.grid = Grid.of(size["x"], size["y"], chunk["x"], chunk["y"])
        self.others: list[ZarrLevel] = []
        self._array, self._axes, self._blend = array, tuple(axes), blend
        self._channels = blend.used if blend else tuple(range(size.get("c", 1)))
        self._fill = np.asarray(array.fill_value if array.fill_value is not None else 0, array.dtype)
        low, high = (0, 1) if array.dtype.kind == "f" else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
        self._marks = np.asarray(high, array.dtype), np.asarray(low, array.dtype)
        self._marked = tuple(open_array(folder, mark) for mark in self._marks)

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        grid = self.grid
        top, left = tile // grid.columns * grid.tile_height, tile % grid.columns * grid.tile_width
        bottom, right = min(top + grid.tile_height, grid.height), min(left + grid.tile_width, grid.width)
        planes, absent = self.planes((top, bottom), (left, right))
        for channel in absent:
            if any(level.shows_something(channel, grid, (top, bottom), (left, right)) for level in self.others):
                raise BadTile("its chunk is missing, but another level shows something in its place")
        into[bottom - top :] = 255
        into[:, right - left :] = 255
        target = into[: bottom - top, : right - left]
        if self._blend is not None:
            self._blend.blend(planes, target)
        elif len(absent) == len(self._channels):
            target[...] = 255
        elif absent:
            raise BadTile(f"its chunk is missing for {len(absent)} of its {len(self._channels)} channels")
        else:
            target[...] = np.moveaxis(planes, 0, 2)

    def planes(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[NDArray, list[int]]:
        """The level's values in a rectangle, and which channels have no chunk there (known for whole chunks only).

        Returns (channels, rows, cols) in the file's type with the fill value where chunks are missing, and positions
        in the first axis. A missing chunk is what changes with the fill value: no other way serves all layouts.
        """
        high, low = self._marks
        planes = self._values(self._marked[0], rows, cols)
        absent = []
        for number, plane in enumerate(planes):
            if (plane == high).all():
                again = self._values(self._marked[1], rows, cols)
                if (again[number] == low).all():
                    absent.append(number)
                    plane[...] = self._fill
        return planes, absent

    def shows_something(self, channel: int, grid: Grid, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
        """Whether a channel differs from the fill value in the place that is (rows, cols) in the finer `grid`."""
        down, across = grid.height / self.grid.height, grid.width / self.grid.width
        top, bottom = math.ceil(rows[0] / down) + _SPREAD_PX, int(rows[1] / down) - _SPREAD_PX
        left, right = math.ceil(cols[0] / across) + _SPREAD_PX, int(cols[1] / across) - _SPREAD_PX
        if bottom <= top or right <= left:
            return False
        plane = self._values(self._array, (top, bottom), (left, right))[channel].astype(np.float64)
        step = _LOSSY_STEP if self._blend is None else 0
        return bool((np.abs(plane - float(self._fill)) > step).mean() > _LOST_SHARE)

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        """Nothing to do: the folder is local."""

    def jpeg(self, tile: int) -> bytes | None:
        return None

    def _values(self, array: "zarr.Array[Any]", rows: tuple[int, int], cols: tuple[int, int]) -> NDArray:
        """(channels, rows, cols) of the channels in use. Raises BadTile."""
        first = min(self._channels)
        parts = {"y": slice(*rows), "x": slice(*cols), "c": slice(first, max(self._channels) + 1)}
        try:
            values = np.asarray(array[tuple(parts.get(axis, 0) for axis in self._axes)])
        except _UNDECODABLE as error:
            raise BadTile(f"its chunk cannot be decoded ({type(error).__name__}: {error})") from None
        kept = [axis for axis in self._axes if axis in parts]
        if "c" not in kept:
            kept, values = ["c", *kept], values[None]
        ordered = values.transpose([kept.index(axis) for axis in ("c", "y", "x")])
        return ordered[[channel - first for channel in self._channels]]


class OmeZarrSlide(TiledSlide):
    """An open OME-Zarr image. Reads are thread-safe."""

    def __init__(self, path: Path, image: NgffImage, scale: Scale, channels: Channels | None, why: str):
        arrays = [_open_array(path, folder) for folder in image.levels]
        found = _channels(path, image, arrays)
        is_rgb = channels is None and len(found.names) == 3 and found.dtype == np.uint8 and image.says_rgb()
        if channels is None and not is_rgb:
            raise refusal(path, found)
        blend = None if channels is None else Blend(channels, found)
        stored = [ZarrLevel(*level, image.axes, blend) for level in zip(image.levels, arrays, strict=True)]
        for number, level in enumerate(stored):
            level.others = [*stored[number + 1 :], *stored[max(0, number - 1) : number]]
        _check_levels(path, stored)
        _check_chunks(path, image, is_rgb)
        info = SlideInfo(
            reader="ome_zarr",
            why=why,
            vendor="ome-zarr",
            mpp=scale.mpp,
            mpp_source=scale.source,
            mpp_problem=scale.problem,
            codec=_codec(arrays[0]),
            tile_px=(stored[0].grid.tile_width, stored[0].grid.tile_height),
            channels=None if blend is None else str(blend.channels),
        )
        super().__init__(path, info, stored)

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class OmeZarrReader:
    """Opens OME-Zarr folders, in RGB or with a choice of channels."""

    channels: Channels | None

    def matches(self, path: Path) -> Match:
        image = read_image(path)
        if image is None:
            return Match(False, "no Zarr folder")
        return Match(True, f"OME-Zarr image{': ' if image.note else ''}{image.note}")

    def __call__(self, path: Path, why: str, override: Scale | None) -> OmeZarrSlide:
        image = read_image(path)
        if image is None:
            raise SlideError(path, "this is no OME-Zarr folder", "open it with open_slide")
        return OmeZarrSlide(path, image, override or image.scale, self.channels, why)


def _open_array(path: Path, folder: Path) -> "zarr.Array[Any]":
    from .zarr_arrays import open_array

    try:
        return open_array(folder)
    except FileNotFoundError:
        raise SlideError(path, f"its level {folder.name} is missing", COPY_AGAIN) from None
    except _UNDECODABLE as error:  # unknown codecs and data types, and metadata that contradicts itself
        remedy = "write it with codecs of Zarr's specification, such as zstd, blosc or gzip"
        raise SlideError(path, f"its level {folder.name} cannot be opened ({error})", remedy) from None


def _channels(path: Path, image: NgffImage, arrays: list["zarr.Array[Any]"]) -> FileChannels:
    """The image's channels. Raises SlideError for time series, focal stacks, and levels that contradict each other."""
    shapes = []
    for array in arrays:
        if array.ndim != len(image.axes):
            raise SlideError(path, f"its arrays have {array.ndim} dimensions for {len(image.axes)} axes", COPY_AGAIN)
        if array.dtype.kind not in "iuf":
            raise SlideError(path, f"its values are of type {array.dtype}", "give an image of integers or floats")
        shape, chunk = (dict(zip(image.axes, values, strict=True)) for values in (array.shape, array.chunks))
        for axis, name in (("t", "time points"), ("z", "focal planes")):
            if shape.get(axis, 1) != 1:
                raise SlideError(path, f"it has {shape[axis]} {name}", "write one of them to an image of its own")
        if chunk["y"] * chunk["x"] > MAX_TILE_PX:
            problem = f"its chunks of {chunk['x']:,} x {chunk['y']:,} px are too large to read it in parts"
            raise SlideError(path, problem, "write it again with chunks of 256 to 1,024 px")
        shapes.append((shape.get("c", 1), array.dtype))
    if len(set(shapes)) > 1:
        raise SlideError(path, "its levels differ in channels or data type", COPY_AGAIN)
    count, dtype = shapes[0]
    listed = len(image.names) == count
    names, colours = (image.names, image.colours) if listed else (("",) * count, ())
    return FileChannels(names, np.dtype(dtype), colours)


def _check_levels(path: Path, stored: Sequence[ZarrLevel]) -> None:
    base = stored[0].grid
    for number, (finer, level) in enumerate(pairwise(stored), start=1):
        grid = level.grid
        across, down = base.width / grid.width, base.height / grid.height
        rounding = max(across / grid.width, down / grid.height)
        if grid.width >= finer.grid.width or abs(across - down) > _ASPECT_TOLERANCE * down + rounding:
            sizes = f"{grid.width:,} x {grid.height:,} px after {finer.grid.width:,} x {finer.grid.height:,} px"
            raise SlideError(path, f"its level {number} is no smaller picture of the same ({sizes})", COPY_AGAIN)


def _check_chunks(path: Path, image: NgffImage, is_rgb: bool) -> None:
    """Raises SlideError where a level has no pixels at all, as a copy of the metadata leaves it."""
    filled = [_has_chunks(folder) for folder in image.levels]
    for number, has_chunks in enumerate(filled):
        if not has_chunks and (is_rgb or number == 0 or any(filled[number:])):
            raise SlideError(path, f"its level {number} has no chunks, only metadata", COPY_AGAIN)


def _has_chunks(folder: Path) -> bool:
    return any(not _METADATA.issuperset(files) for _, _, files in os.walk(folder))


def _codec(array: "zarr.Array[Any]") -> str:
    """Names of the compressors, "uncompressed" for none."""
    names = []
    for compressor in array.compressors:
        stated: Any = compressor.to_dict() if hasattr(compressor, "to_dict") else compressor.get_config()
        names.append(str(stated.get("name") or stated.get("id")))
    return "+".join(names) or "uncompressed"
