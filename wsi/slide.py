"""What every reader offers, and what is known of a slide without reading its pixels."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .geometry import Level, Region


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """Facts about a slide file.

    reader       name in FORMATS of the reader in use; `why` says in a clause why it was chosen
    vendor       file flavour: aperio, hamamatsu, generic-tiff, dicom …
    mpp          µm per level-0 pixel, None if unknown; then `mpp_problem` says what is wrong
    mpp_source   vendor, tiff, ome, dicom, manifest or user; without mpp: of a stated one that cannot be true, else None
    objective    nominal magnification as the file states it
    codec        compression of the level-0 pixels, as far as the reader knows it
    tile_px      (width, height) of the stored tiles, None where unknown
    associated   names of the associated images (label, macro, thumbnail)
    icc_bytes    size of the embedded ICC profile, 0 if there is none
    colour       "as stored", or "srgb" where the ICC profile was applied (colour.in_srgb)
    channels     of a multi-channel or 16-bit file: the choice that its RGB pixels come from, as text, ranges filled in
    """

    reader: str
    why: str
    vendor: str
    mpp: float | None
    mpp_source: str | None
    mpp_problem: str | None = None
    objective: float | None = None
    scanner: str | None = None
    codec: str | None = None
    tile_px: tuple[int, int] | None = None
    associated: tuple[str, ...] = ()
    icc_bytes: int = 0
    colour: str = "as stored"
    channels: str | None = None


class Slide(Protocol):
    """An open slide. Reads are thread-safe. Use it as a context manager: `with open_slide(path) as slide`."""

    info: SlideInfo
    levels: tuple[Level, ...]

    @property
    def path(self) -> Path | str:
        """Where it lies: a path on this machine, or a URL as text."""
        ...

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """RGB pixels of `region` at `level`: uint8 (rows, cols, 3), rows and cols by `Region.shape_at`.

        Outside the slide, and where a format leaves unscanned glass out of the file, it is white.
        Raises TileError when a stored pixel cannot be decoded.
        """
        ...

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Square patches of one level, straight into a batch.

        xy   int64 (n, 2), top-left corners in level-0 pixels
        out  uint8 (n, side, side, 3), written in place; `side` is in the level's pixels
        Returns ok, bool (n,): False where any pixel of the patch inside the slide could not be decoded or is
        missing from the file; the content of such a patch is undefined and must not be used.
        """
        ...

    def associated(self, name: str) -> NDArray[np.uint8]:
        """An associated image as RGB uint8 (rows, cols, 3). Raises KeyError for a name not in `info.associated`."""
        ...

    def icc_profile(self) -> bytes:
        """The embedded ICC profile, which nothing here applies (colour.in_srgb does); b"" if there is none."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
