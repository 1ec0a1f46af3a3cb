"""One DICOM file of a slide: wsidicom reads its structure, which is checked before any decoding.

wsidicom finds the frames (offset tables or none, positions of sparse frames) and the facts of the header; then its file
is closed. The frames themselves are read by place, from threads, by the engine's own decoders.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom.errors
import wsidicom.errors
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from upath import UPath
from wsidicom.errors import WsiDicomNotSupportedError
from wsidicom.file.io import WsiDicomReader
from wsidicom.file.io.sequence_walker import UnwalkableSequenceException
from wsidicom.file.io.wsidicom_io import WsiDicomReadIO
from wsidicom.instance import WsiDataset
from wsidicom.instance.dataset import TileType

from ..errors import SlideError
from .dicom_files import file_meta
from .dicom_frames import CODECS, PHOTOMETRIC
from .file_check import COPY_AGAIN
from .scale import as_objective
from .stored_tile import MAX_TILE_PX

_MAX_PICTURE_PX = 100_000_000  # of a label or overview, which may be one frame
_MAX_TILES = 10_000_000  # 800,000 x 800,000 px in tiles of 256 px

# What pydicom and wsidicom raise on bytes that are not what they expect; they have no class in common.
DAMAGE = (
    *(
        value
        for module in (pydicom.errors, wsidicom.errors)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
    UnwalkableSequenceException, EOFError, OSError, struct.error, ValueError, LookupError, TypeError,
    AttributeError, NotImplementedError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a header says of the slide.

    mpp      (across, down) in µm, as stated
    origin   (x, y) in mm of the picture's corner on the glass
    icc      the ICC profile, b"" if there is none
    pyramid  a UID
    """

    mpp: tuple[float, float] | None
    origin: tuple[float, float] | None
    objective: float | None
    scanner: str | None
    icc: bytes
    pyramid: str | None


@dataclass(frozen=True)
class Places:
    """Where sparse frames lie. corners: int64 (frames, 2), (x, y) in px; z: float64 (frames,), in µm."""

    corners: NDArray[np.int64]
    z: NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A file with frames number `first` to `first + len(offsets) - 1` of a picture.

    picture     UID, the same for all parts of a concatenation; `total` parts, None where that is not said
    kind        volume (a level), label, overview or thumbnail
    size, tile  (width, height) in px
    offsets, counts  int64 (frames,); count 0: a damaged entry
    places      None where the frames are all there, in raster order, `planes` times
    """

    path: Path
    picture: str
    total: int | None
    kind: str
    size: tuple[int, int]
    tile: tuple[int, int]
    codec: str
    photometric: str
    first: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    planes: int
    z: float
    places: Places | None
    facts: Facts

    @property
    def wrapped(self) -> bool:
        """Frames lie in DICOM items, whose header of 8 bytes is before the offset."""
        return self.codec != "uncompressed"


def read_part(path: Path) -> Part | str:
    """What a file holds, or why wsidicom or this reader does not take it. Raises SlideError for a damaged file."""
    codec = CODECS[file_meta(path).syntax]
    file = path.open("rb")  # wsidicom closes it with its reader, but not when making the reader fails
    try:
        reader = WsiDicomReader(WsiDicomReadIO(file, UPath(path)))
        return _describe(path, reader, codec)
    except WsiDicomNotSupportedError as error:
        return f"wsidicom: {str(error).replace(str(path), path.name)}"
    except DAMAGE as error:
        raise damaged(path, error) from None
    finally:
        file.close()


def damaged(path: Path, error: BaseException) -> SlideError:
    said = str(error).replace(str(path), path.name)[:200] or type(error).__name__
    return SlideError(path, f"its DICOM structure is damaged or contradicts itself ({said})", COPY_AGAIN)


def _describe(path: Path, reader: WsiDicomReader, codec: str) -> Part | str:
    data, frames, kind = reader.dataset, int(reader.frame_count), reader.image_type.name.lower()
    photometric = str(data.photometric_interpretation)
    if (data.samples_per_pixel, data.bits) != (3, 8) or photometric not in PHOTOMETRIC:
        return f"pixels that are not 8-bit colour ({data.samples_per_pixel} of {data.bits} bits, {photometric})"
    if len(data.optical_path_identifiers) > 1:
        return f"{len(data.optical_path_identifiers)} optical paths, as of fluorescence"
    tile = int(data.tile_size.width), int(data.tile_size.height)
    size = int(data.image_size.width), int(data.image_size.height)
    file_bytes = path.stat().st_size
    _check_plausible(path, kind, size, tile)
    if not 0 < frames <= file_bytes // (8 if codec != "uncompressed" else 3 * tile[0] * tile[1]):
        raise SlideError(path, f"it claims {frames:,} frames, which its {file_bytes:,} bytes cannot hold", COPY_AGAIN)
    where = np.array(list(reader.frame_index), np.int64).reshape(-1, 2)
    _check_extents(path, where, codec, file_bytes)
    where[where[:, 1] > 4 * 3 * tile[0] * tile[1] + 65_536, 1] = 0  # no encoder reaches it: a damaged entry
    places = _places(path, data, frames) if data.tile_type is TileType.SPARSE else None
    if isinstance(places, str):
        return places
    header = data.as_dataset()
    total = header.get("InConcatenationTotalNumber")
    return Part(
        path=path,
        picture=str(data.uids.identifier),
        total=None if total is None else int(total),
        kind=kind,
        size=size,
        tile=tile,
        codec=codec,
        photometric=photometric,
        first=int(data.frame_offset),
        offsets=where[:, 0],
        counts=where[:, 1],
        planes=int(data.number_of_focal_planes),
        z=float(data.z_offset),
        places=places,
        facts=_facts(data, header, size),
    )


def _check_plausible(path: Path, kind: str, size: tuple[int, int], tile: tuple[int, int]) -> None:
    tiles = -(-size[0] // max(1, tile[0])) * -(-size[1] // max(1, tile[1]))
    pixels = tile[0] * tile[1] if kind == "volume" else max(size[0] * size[1], tiles * tile[0] * tile[1])
    most = MAX_TILE_PX if kind == "volume" else _MAX_PICTURE_PX
    if min(*size, *tile) < 1 or pixels > most or tiles > _MAX_TILES:
        sizes = f"{size[0]:,} x {size[1]:,} px in frames of {tile[0]:,} x {tile[1]:,} px"
        raise SlideError(path, f"implausible size: its {kind} image claims {sizes}", COPY_AGAIN)


def _check_extents(path: Path, where: NDArray[np.int64], codec: str, file_bytes: int) -> None:
    """All frames lie inside the file, and the one that lies last was written."""
    ends = where[:, 0] + where[:, 1]
    inside = (where > 0).all(axis=1) & (ends > where[:, 0]) & (ends <= file_bytes)  # sums of forged offsets may wrap
    if not inside.all():
        lengths = f"the file has {file_bytes:,} bytes, where about {int(ends.max()):,} are needed"
        problem = f"only {int(inside.sum()):,} of {len(where):,} frames lie inside the file ({lengths})"
        raise SlideError(path, problem, COPY_AGAIN)
    if codec == "uncompressed":  # zeros are black pixels there
        return
    offset, count = where[int(where[:, 0].argmax())].tolist()
    with path.open("rb") as file:
        file.seek(offset)
        if not any(file.read(count)):
            problem = (
                f"its last frame ({count:,} bytes at byte {offset:,}) is all zeros: "
                "the file was never written to its end"
            )
            raise SlideError(path, problem, COPY_AGAIN)


def _places(path: Path, data: WsiDataset, frames: int) -> Places | str:
    found = data.frame_positions
    if len(found.columns) != frames:
        raise SlideError(path, f"it holds {frames:,} frames and {len(found.columns):,} positions of them", COPY_AGAIN)
    paths = found.optical_path_identifiers
    if paths is not None and len(np.unique(paths)) > 1:
        return f"{len(np.unique(paths))} optical paths, as of fluorescence"
    z = np.full(frames, data.read_z_offset()) if found.z_offsets is None else found.z_offsets
    return Places(np.stack([found.columns, found.rows], axis=1) - 1, z)  # DICOM counts pixels from 1


def _facts(data: WsiDataset, header: Dataset, size: tuple[int, int]) -> Facts:
    """Names of scanner models only: serial numbers, operators and patients stay in the file."""
    spacing, extent = data.pixel_spacing, data.mm_size
    mpp = None
    if spacing is not None:
        mpp = _um(float(spacing.width)), _um(float(spacing.height))
    elif extent is not None:
        mpp = _um(float(extent.width) / size[0]), _um(float(extent.height) / size[1])
    optics = (header.get("OpticalPathSequence") or [Dataset()])[0]
    place = (header.get("TotalPixelMatrixOriginSequence") or [Dataset()])[0]
    x, y = (place.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
    scanner, pyramid = header.get("ManufacturerModelName"), header.get("PyramidUID")
    return Facts(
        mpp=mpp,
        origin=None if x is None or y is None else (float(x), float(y)),
        objective=as_objective(optics.get("ObjectiveLensPower")),
        scanner=str(scanner).strip() or None if scanner else None,
        icc=bytes(optics.get("ICCProfile") or b""),
        pyramid=str(pyramid) if pyramid else None,
    )


def _um(mm: float) -> float:
    return round(1000 * mm, 9)  # 0.016783 mm are 16.783 µm, and not 16.782999999999998
