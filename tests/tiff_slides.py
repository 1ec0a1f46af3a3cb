"""TIFF slides of every flavour for tests, written with tifffile as scanners and converters write them."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from tests.slides import HEAD


@dataclass(frozen=True)
class TiffOptions:
    """How `write_tiff` writes. compression as tifffile names it; tile None: strips of `strip_rows` rows."""

    compression: str | None = "deflate"
    tile: int | None = 256
    strip_rows: int | None = 100
    predictor: bool = False
    planar: bool = False
    bigtiff: bool = False
    big_endian: bool = False
    lossless: bool = True


def write_tiff(path: Path, levels: Sequence[NDArray[np.uint8]], options: TiffOptions | None = None) -> Path:
    """A generic pyramid of 8-bit images (rows, cols[, samples]), the later ones marked as reduced."""
    options = options or TiffOptions()
    with tifffile.TiffWriter(path, bigtiff=options.bigtiff, byteorder=">" if options.big_endian else "<") as file:
        for number, level in enumerate(levels):
            file.write(level, **layout_of(level, options), subfiletype=min(number, 1), metadata=None, software=False)
    return path


def layout_of(image: NDArray[np.uint8], options: TiffOptions) -> dict[str, Any]:
    """Arguments of TiffWriter.write; planar images are (samples, rows, cols)."""
    wanted: dict[str, Any] = {"compression": options.compression, "predictor": options.predictor or None}
    if options.compression == "webp":
        wanted["compressionargs"] = {"lossless": options.lossless}
    if options.compression in ("jpeg2000", "aperio_jp2000_rgb"):
        wanted["compressionargs"] = {"level": 0 if options.lossless else 40, "reversible": options.lossless}
    samples = image.shape[0 if options.planar else -1] if image.ndim == 3 else 1
    wanted["photometric"] = "minisblack" if samples == 1 else "rgb"
    if samples == 4:
        wanted["extrasamples"] = ["unassalpha"]
    if samples > 1:
        wanted["planarconfig"] = "separate" if options.planar else "contig"
    if options.tile is not None:
        return {**wanted, "tile": (options.tile, options.tile)}
    return {**wanted, "rowsperstrip": options.strip_rows}


def smaller(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    size = image.shape[1] // factor, image.shape[0] // factor
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def cut(image: NDArray[np.uint8], tile: int) -> list[NDArray[np.uint8]]:
    """Whole tiles in raster order; what reaches beyond the image repeats its edge."""
    rows, cols = (-(-side // tile) * tile for side in image.shape[:2])
    padded = np.pad(image, ((0, rows - image.shape[0]), (0, cols - image.shape[1]), (0, 0)), mode="edge")
    return [padded[y : y + tile, x : x + tile] for y in range(0, rows, tile) for x in range(0, cols, tile)]


def to_ycbcr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def encode_j2k(tile: NDArray[np.uint8], quality: int = 0, mct: bool = True, resolutions: int = 6) -> bytes:
    """A code stream of so many resolutions; quality 0 is reversible, else a signal-to-noise ratio in dB."""
    wanted = {"reversible": quality == 0, "resolutions": resolutions, "mct": mct}
    return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), quality, codecformat="j2k", **wanted))


def join_components(planes: Sequence[NDArray[np.uint8]], halved: bool) -> bytes:
    """A code stream of three components from single ones, component after component, without a colour transform.

    halved: the second and third have half the columns, as in Aperio's YUV16
    """
    streams = [encode_j2k(plane, resolutions=5) for plane in planes]
    heads = [jpeg_2000_segments(stream) for stream in streams]
    body = b"".join(stream[head[-1][2] + 2 : -2] for stream, head in zip(streams, heads, strict=True))
    joined = bytearray(b"\xff\x4f")
    for marker, start, end in heads[0]:
        segment = bytearray(streams[0][start:end])
        if marker == 0xFF51:
            steps = [1, 2, 2] if halved else [1, 1, 1]
            segment = segment[:40] + b"".join(bytes([7, step, 1]) for step in steps)
            struct.pack_into(">H", segment, 2, len(segment) - 2)
            struct.pack_into(">H", segment, 38, 3)
        elif marker == 0xFF52:
            segment[5], segment[8] = 4, 0  # progression: component, position, resolution, layer
        elif marker == 0xFF90:
            struct.pack_into(">I", segment, 6, 14 + len(body))
        joined += segment
    return bytes(joined + b"\xff\x93" + body + b"\xff\xd9")


def jpeg_2000_segments(stream: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of the header's segments, the first tile-part's included."""
    found, at = [], 2
    while not found or found[-1][0] != 0xFF90:
        marker, length = struct.unpack_from(">HH", stream, at)
        found.append((marker, at, at + 2 + length))
        at += 2 + length
    return found


def write_j2k_svs(path: Path, image: NDArray[np.uint8], compression: int, streams: list[list[bytes]]) -> Path:
    """An Aperio slide of 256-px JPEG 2000 tiles: one list of code streams for each of the downsamples 1 and 2."""
    with tifffile.TiffWriter(path) as file:
        for tiles, level in zip(streams, (image, smaller(image, 2)), strict=False):
            file.write(
                iter(tiles),
                shape=level.shape,
                dtype=np.uint8,
                tile=(256, 256),
                compression=compression,
                photometric="rgb",
                description=f"{HEAD}{image.shape[1]}x{image.shape[0]} (256x256) J2K/KDU Q=70|AppMag = 20|MPP = 0.5",
                metadata=None,
                software=False,
            )
    return path


def write_ome(
    path: Path, images: dict[str, list[NDArray[np.uint8]]], mpp: float | None = 0.25, unit: str = "µm"
) -> Path:
    """An OME-TIFF of RGB series by name, each a list of levels: the smaller ones lie in SubIFDs."""
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        for number, (name, levels) in enumerate(images.items()):
            metadata: dict[str, Any] = {"axes": "YXS" if levels[0].ndim == 3 else "YX", "Name": name}
            if number == 0 and mpp is not None:
                metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"}
                metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
            wanted: dict[str, Any] = {"photometric": "rgb" if levels[0].ndim == 3 else "minisblack", "tile": (128, 128)}
            wanted["compression"] = "lzw"
            file.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **wanted)
            for level in levels[1:]:
                file.write(level, subfiletype=1, metadata=None, **wanted)
    return path


def philips_xml(downsamples: Sequence[int], spacing_mm: float, label: bytes = b"", slides: int = 1) -> str:
    """The description of a Philips TIFF, as far as it matters for pixels and scale."""

    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}" Group="0x301D" Element="0x1001" PMSVR="IString">{value}</Attribute>'

    def spacing(downsample: int) -> str:
        return attribute("DICOM_PIXEL_SPACING", " ".join([f"&quot;{spacing_mm * downsample:.9f}&quot;"] * 2))

    def objects(name: str, kind: str, contents: list[str]) -> str:
        inner = "".join(f'<DataObject ObjectType="{kind}">{content}</DataObject>' for content in contents)
        return attribute(name, f"<Array>{inner}</Array>")

    levels = [spacing(downsample) for downsample in downsamples]
    slide = (
        attribute("PIM_DP_IMAGE_TYPE", "WSI")
        + spacing(1)
        + attribute("DICOM_DERIVATION_DESCRIPTION", "tiff-useBigTIFF=1-levels=40,10002,10003-processing=0")
        + objects("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "PixelDataRepresentation", levels)
    )
    scanned = [slide] * slides
    if label:
        data = base64.b64encode(label).decode()
        scanned.append(attribute("PIM_DP_IMAGE_TYPE", "LABELIMAGE") + attribute("PIM_DP_IMAGE_DATA", data))
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURERS_MODEL_NAME", "UFS Scanner")
        + objects("PIM_DP_SCANNED_IMAGES", "DPScannedImage", scanned)
        + "</DataObject>"
    )


def write_philips(path: Path, image: NDArray[np.uint8], downsamples: Sequence[int], xml: str, tile: int = 128) -> Path:
    """A Philips TIFF: sizes in the tags padded to whole tiles, a macro in strips. Level 0 must be of whole tiles."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, downsample in enumerate(downsamples):
            level = image if downsample == 1 else smaller(image, downsample)
            tiles = cut(level, tile)
            rows, cols = (-(-side // tile) * tile for side in level.shape[:2])
            file.write(
                (simplejpeg.encode_jpeg(np.ascontiguousarray(part), 85, "RGB", "444") for part in tiles),
                shape=(rows, cols, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(1, 1),
                subfiletype=min(number, 1),
                description=xml if number == 0 else f"level={number} mag={40 / downsample:g} quality=80",
                software="Philips DP v1.0",
                metadata=None,
            )
        macro = smaller(image, 8)
        file.write(macro, photometric="rgb", rowsperstrip=16, description="Macro", metadata=None, software=False)
    return path
