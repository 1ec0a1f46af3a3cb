"""Small slides for tests: SVS-like pyramids written with tifffile, and a slide held in memory."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi import Level, Region, SlideInfo

HEAD = "Aperio Image Library v12.0.15 \r\n"


@dataclass(frozen=True)
class SvsOptions:
    """How `write_svs` writes; the defaults are a sound Aperio slide.

    colour         420, 422 or 444 (YCbCr with that chroma sampling) or rgb (JPEG in RGB, no marker says so)
    shared_tables  tiles without tables, which lie in the JPEGTables tag, as scanners write; else whole JPEG files
    mpp, objective as written into the description, None leaves the key out
    aperio         with Aperio's description and associated images; else a generic pyramid with TIFF resolution tags
    """

    tile: int = 240
    downsamples: tuple[int, ...] = (1, 2, 4)
    colour: str = "420"
    quality: int = 80
    shared_tables: bool = True
    mpp: str | None = "0.5"
    objective: str | None = "20"
    aperio: bool = True
    bigtiff: bool = False
    big_endian: bool = False


def tissue_like(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pink and violet blobs with grain, uint8 (height, width, 3): noisy but compressible."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 40 + 2, width // 40 + 2, 3), np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.array([150, 90, 140]) + smooth * np.array([90, 130, 80]) + rng.normal(0, 6, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_svs(path: Path, image: NDArray[np.uint8], options: SvsOptions | None = None) -> Path:
    """Write `image`, uint8 (rows, cols, 3), as a tiled JPEG pyramid; returns `path`."""
    options = options or SvsOptions()
    rows, cols = image.shape[:2]
    order = ">" if options.big_endian else "<"
    with tifffile.TiffWriter(path, bigtiff=options.bigtiff, byteorder=order) as file:
        for number, downsample in enumerate(options.downsamples):
            size = cols // downsample, rows // downsample
            level = image if downsample == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            _write_level(file, level, options, (cols, rows), number)
            if number == 0 and options.aperio:
                _write_associated(file, image, "thumbnail", (cols, rows))
        if options.aperio:
            _write_associated(file, np.full((60, 50, 3), 240, np.uint8), "label", (cols, rows))
            _write_associated(file, tissue_like(160, 60), "macro", (cols, rows))
    return path


def _write_level(
    file: tifffile.TiffWriter, level: NDArray[np.uint8], options: SvsOptions, base: tuple[int, int], number: int
) -> None:
    tiles = [_encode(tile, options) for tile in _cut(level, options.tile)]
    tables = None
    if options.shared_tables:
        tables = _split(tiles[0])[0]
        tiles = [_split(tile)[1] for tile in tiles]
    text = None
    if options.aperio:
        text = f"{HEAD}{base[0]}x{base[1]} ({options.tile}x{options.tile}) -> {level.shape[1]}x{level.shape[0]} JPEG"
        text += f"|AppMag = {options.objective}" if options.objective is not None else ""
        text += f"|MPP = {options.mpp}" if options.mpp is not None else ""
    resolution = None
    if not options.aperio and options.mpp is not None:
        resolution = (1e4 / float(options.mpp), 1e4 / float(options.mpp))
    file.write(
        iter(tiles),
        shape=level.shape,
        dtype=np.uint8,
        tile=(options.tile, options.tile),
        compression="jpeg",
        # Without this argument tifffile declares every JPEG to be YCbCr, whatever `photometric` says.
        compressionargs={"outcolorspace": "rgb"} if options.colour == "rgb" else None,
        photometric="rgb" if options.colour == "rgb" else "ycbcr",
        subsampling={"420": (2, 2), "422": (2, 1)}.get(options.colour, (1, 1)),
        jpegtables=tables,
        description=text,
        software=False,
        metadata=None,
        subfiletype=0 if options.aperio or number == 0 else 1,
        resolution=resolution,
        resolutionunit="CENTIMETER" if resolution else None,
    )


def _cut(level: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles in raster order; what reaches beyond the image repeats its edge in garish colours."""
    for top in range(0, level.shape[0], tile):
        for left in range(0, level.shape[1], tile):
            part = level[top : top + tile, left : left + tile]
            padded = np.full((tile, tile, 3), (0, 255, 0), np.uint8)
            padded[: part.shape[0], : part.shape[1]] = part
            yield padded


def _encode(tile: NDArray[np.uint8], options: SvsOptions) -> bytes:
    if options.colour != "rgb":
        return simplejpeg.encode_jpeg(tile, options.quality, "RGB", options.colour)
    data = imagecodecs.jpeg8_encode(tile, level=options.quality, colorspace="RGB", outcolorspace="RGB")
    return _anonymous_components(data) if options.shared_tables else data


def jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each header segment; the last one is the scan up to the end of the data."""
    found, at = [], 2
    while True:
        marker = data[at + 1]
        end = len(data) if marker == 0xDA else at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        found.append((marker, at, end))
        if marker == 0xDA:
            return found
        at = end


def _split(data: bytes) -> tuple[bytes, bytes]:
    """(JPEGTables, tile without tables or application markers)."""
    tables, rest = b"\xff\xd8", b"\xff\xd8"
    for marker, start, end in jpeg_segments(data):
        if marker in (0xDB, 0xC4):
            tables += data[start:end]
        elif marker not in range(0xE0, 0xF0):
            rest += data[start:end]
    return tables + b"\xff\xd9", rest


def _anonymous_components(data: bytes) -> bytes:
    """Number an RGB JPEG's components 0, 1, 2 as Aperio does, so that nothing in the tile says RGB."""
    changed = bytearray(data)
    for marker, start, _ in jpeg_segments(data):
        if marker in (0xC0, 0xC1):
            for index in range(3):
                changed[start + 10 + 3 * index] = index
        elif marker == 0xDA:
            for index in range(3):
                changed[start + 5 + 2 * index] = index
    return bytes(changed)


def _write_associated(file: tifffile.TiffWriter, image: NDArray[np.uint8], name: str, base: tuple[int, int]) -> None:
    image = cv2.resize(image, (128, 96), interpolation=cv2.INTER_AREA) if name == "thumbnail" else image
    size = f"{image.shape[1]}x{image.shape[0]}"
    text = f"{HEAD}{base[0]}x{base[1]} -> {size} - |AppMag = 20" if name == "thumbnail" else f"{HEAD}{name} {size}"
    file.write(
        image,
        photometric="rgb",
        compression="lzw",
        predictor=True,
        rowsperstrip=16,
        description=text,
        software=False,
        metadata=None,
        subfiletype={"label": 1, "macro": 9}.get(name, 0),
    )


class ArraySlide:
    """A slide held in memory as RGB arrays, finest level first."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]], mpp: float | None = 0.5):
        rows, cols = arrays[0].shape[:2]
        self.path, self._arrays = Path("memory"), tuple(arrays)
        downsamples = [(cols / a.shape[1] + rows / a.shape[0]) / 2 for a in arrays]
        self.levels = tuple(
            Level(a.shape[1], a.shape[0], d, None if mpp is None else mpp * d)
            for a, d in zip(arrays, downsamples, strict=True)
        )
        problem = None if mpp is not None else "it was made without a pixel size"
        self.info = SlideInfo("array", "a slide in memory", "array", mpp, "user" if mpp else None, problem)

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        rows, cols = region.shape_at(self.levels[level].downsample)
        return self._cut(region.x, region.y, level, (rows, cols))

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        for number, (x, y) in enumerate(xy.tolist()):
            out[number] = self._cut(x, y, level, out.shape[1:3])
        return np.ones(len(xy), np.bool_)

    def associated(self, name: str) -> NDArray[np.uint8]:
        raise KeyError(name)

    def icc_profile(self) -> bytes:
        return b""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _cut(self, x: int, y: int, level: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
        pixels, scale = self._arrays[level], self.levels[level].downsample
        left, top = round(x / scale), round(y / scale)
        out = np.full((*shape, 3), 255, np.uint8)
        y0, y1 = np.clip((top, top + shape[0]), 0, pixels.shape[0])
        x0, x1 = np.clip((left, left + shape[1]), 0, pixels.shape[1])
        out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
        return out
