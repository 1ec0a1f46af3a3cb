"""Small DICOM slides for tests, written with pydicom as PS3.3 and PS3.5 say, right or wrong where a test wants it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, generate_uid

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
SYNTAX = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
    "rle": "1.2.840.10008.1.2.5",
}
PHI = "CANARY^PATIENT"


@dataclass(frozen=True)
class DicomOptions:
    """kind: VOLUME, LABEL, OVERVIEW or THUMBNAIL; present: (column, row) of a sparse slide's frames, None for all.

    table     basic, extended or none: how the file says where its frames lie
    more      attributes by keyword, after all others; None takes one away
    """

    codec: str = "jpeg"
    photometric: str = "YBR_FULL_422"
    tile: int = 128
    kind: str = "VOLUME"
    mpp: float | None = 0.5
    series: str = "1.2.3"
    table: str = "basic"
    present: Sequence[tuple[int, int]] | None = None
    planes: int = 1
    fragments: int = 1
    more: dict[str, object] = field(default_factory=dict)


def cut(image: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles in raster order; what reaches beyond the image is green."""
    for top in range(0, image.shape[0], tile):
        for left in range(0, image.shape[1], tile):
            part = image[top : top + tile, left : left + tile]
            padded = np.full((tile, tile, 3), (0, 255, 0), np.uint8)
            padded[: part.shape[0], : part.shape[1]] = part
            yield padded


def encode(tile: NDArray[np.uint8], codec: str, photometric: str) -> bytes:
    if codec == "jpeg":
        if photometric == "RGB":
            return imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", outcolorspace="RGB")
        return simplejpeg.encode_jpeg(tile, 90, "RGB", "422" if photometric == "YBR_FULL_422" else "444")
    if codec == "jpeg2000":
        return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=photometric != "RGB")
    if codec == "htj2k":
        return imagecodecs.htj2k_encode(tile, reversible=True)
    if codec == "jpeg-ls":
        return imagecodecs.jpegls_encode(tile)
    if codec == "rle":
        parts = [imagecodecs.packbits_encode(np.ascontiguousarray(tile[..., part]).tobytes()) for part in range(3)]
        parts = [part + b"\0" * (len(part) % 2) for part in parts]
        starts = [64, 64 + len(parts[0]), 64 + len(parts[0]) + len(parts[1])]
        return np.array([3, *starts, *[0] * 12], "<u4").tobytes() + b"".join(parts)
    return tile.tobytes()


def write_dicom(path: Path, image: NDArray[np.uint8], options: DicomOptions | None = None) -> Path:
    """One instance: a level, or another picture. With several focal planes plane k is the image, k darker."""
    options = options or DicomOptions()
    columns = -(-image.shape[1] // options.tile)
    frames, places = [], []
    for plane in range(options.planes):
        for number, tile in enumerate(cut(image - np.uint8(plane), options.tile)):
            place = number % columns, number // columns
            if options.present is None or place in options.present:
                frames.append(encode(tile, options.codec, options.photometric))
                places.append(place)
    header = _header(image, options, len(frames))
    if options.present is not None:
        header.DimensionOrganizationType = "TILED_SPARSE"
        header.PerFrameFunctionalGroupsSequence = [_place(x, y, options.tile) for x, y in places]
    _add_frames(header, frames, options)
    for name, value in options.more.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(SYNTAX[options.codec])
    header.file_meta.MediaStorageSOPClassUID = UID(SLIDE_CLASS)
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.save_as(path, enforce_file_format=True)
    return path


def write_pyramid(folder: Path, levels: Sequence[NDArray[np.uint8]], options: DicomOptions | None = None) -> Path:
    """A folder with a file a level, finest first."""
    options = options or DicomOptions()
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        mpp = None if options.mpp is None else options.mpp * levels[0].shape[1] / level.shape[1]
        write_dicom(folder / f"level-{number}.dcm", level, DicomOptions(**{**vars(options), "mpp": mpp}))
    return folder


def _header(image: NDArray[np.uint8], options: DicomOptions, frames: int) -> Dataset:
    header = Dataset()
    header.ImageType = ["ORIGINAL", "PRIMARY", options.kind, "NONE"]
    header.SOPClassUID, header.SOPInstanceUID = SLIDE_CLASS, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2", options.series, "1.2.9"
    header.Modality, header.PatientName, header.PatientID, header.DeviceSerialNumber = "SM", PHI, PHI, PHI
    header.Manufacturer, header.ManufacturerModelName = "Maker", "Scanner 3000"
    header.DimensionOrganizationType = "TILED_FULL"
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = image.shape[:2]
    header.TotalPixelMatrixFocalPlanes = options.planes
    header.NumberOfOpticalPaths = 1
    header.NumberOfFrames = frames
    header.Rows = header.Columns = options.tile
    header.SamplesPerPixel, header.PlanarConfiguration, header.PixelRepresentation = 3, 0, 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit = 7
    header.PhotometricInterpretation = options.photometric
    optics = Dataset()
    optics.OpticalPathIdentifier, optics.ObjectiveLensPower, optics.ICCProfile = "1", 20, b"i" * 100_000
    header.OpticalPathSequence = [optics]
    shared, measures = Dataset(), Dataset()
    if options.mpp is not None:
        measures.PixelSpacing = [options.mpp / 1000] * 2
        measures.SpacingBetweenSlices, measures.SliceThickness = 0.001, 0.001
        shared.PixelMeasuresSequence = [measures]
        header.ImagedVolumeWidth, header.ImagedVolumeHeight = (n * options.mpp / 1000 for n in image.shape[1::-1])
        header.ImagedVolumeDepth = 0.001
    header.SharedFunctionalGroupsSequence = [shared]
    return header


def _place(column: int, row: int, tile: int) -> Dataset:
    position, frame = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = column * tile + 1
    position.RowPositionInTotalImagePixelMatrix = row * tile + 1
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = 0.0
    position.ZOffsetInSlideCoordinateSystem = 0.0
    frame.PlanePositionSlideSequence = [position]
    return frame


def _add_frames(header: Dataset, frames: list[bytes], options: DicomOptions) -> None:
    if options.codec in ("uncompressed", "implicit"):
        data = b"".join(frames)
        header.PixelData = data + b"\0" * (len(data) % 2)
        header["PixelData"].VR = "OB" if options.codec == "uncompressed" else "OW"
    elif options.table == "extended":
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        header.PixelData = encapsulate(frames, fragments_per_frame=options.fragments, has_bot=options.table == "basic")
    if options.codec not in ("uncompressed", "implicit"):
        header["PixelData"].VR = "OB"
        header["PixelData"].is_undefined_length = True
