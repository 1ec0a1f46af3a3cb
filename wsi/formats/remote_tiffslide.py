"""TIFF flavours behind a URL that are not read directly (Hamamatsu NDPI, striped vendor files), known to TiffSlide.

TiffSlide says which images are levels, and the scale; tifffile cuts the stored tiles; these are fetched in few
requests, and JPEG decoded strictly, as in any slide here. Flavours whose tiles overlap or whose image is put together
from several areas (Ventana BIF, Leica SCN, Trestle) are declined: read as one grid they would look whole and be wrong.
"""

import io
import lzma
import struct
import warnings
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tiffslide
from numpy.typing import NDArray

from ..errors import EngineError, SlideError, TileError
from ..slide import SlideInfo
from ..source import ByteSource, open_source
from .file_check import COPY_AGAIN
from .jpeg import JpegDecoder
from .match import Match
from .scale import Scale, as_objective, stated_scale
from .source_reader import SourceReader
from .stored_tile import MAX_TILE_PX, read_stored
from .tiled import TiledSlide
from .tilewise import BadTile, Grid

_JPEG, _YCBCR, _ICC_PROFILE = 7, 6, 34675
_COMPOSED = ("ventana", "leica", "trestle")
_COPY_HERE = "copy the file to this machine, where OpenSlide reads it"

warnings.filterwarnings("ignore", ".*metadata parsing only partially implemented", UserWarning)

# What tifffile, TiffSlide and the codecs raise on damaged files. Errors of the store are none of these and fly.
_LIBRARY = (
    ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError, MemoryError,
    EOFError, OSError, struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip


class PageLevel:
    """The tiles or strips of one image as tifffile knows it; see tiled.TileLevel."""

    factors: tuple[int, ...] = ()

    def __init__(self, source: ByteSource, page: Any):
        rows, cols = page.chunks[:2]
        self.grid = Grid.of(page.imagewidth, page.imagelength, cols, rows)
        self._source, self._page = source, page
        self._offsets = np.asarray(page.dataoffsets, np.int64)
        self._counts = np.asarray(page.databytecounts, np.int64)
        plain = page.compression == _JPEG and page.samplesperpixel == 3
        self._jpeg = JpegDecoder(page.jpegtables or b"", page.photometric == _YCBCR) if plain else None

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        data = self._stored(tile)
        if self._jpeg is not None and into.shape[:2] == self._page.chunks[:2] and self._is_whole(tile):
            head = self._page.jpegheader or b""
            # NDPI keeps one JPEG of the whole image; a tile of it is the part between two restart markers
            self._jpeg.decode(head + data + b"\xff\xd9" if head else data, into)
            return
        try:
            part = self._page.decode(data, tile, jpegtables=self._page.jpegtables, jpegheader=self._page.jpegheader)[0]
        except _LIBRARY as error:
            raise BadTile(f"{type(error).__name__}: {error}") from None
        if part is None:
            raise BadTile("the file holds no bytes for it")
        into.fill(255)
        into[: part.shape[1], : part.shape[2]] = part[0]

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        self._source.prefetch(list(zip(self._offsets[tiles].tolist(), self._counts[tiles].tolist(), strict=True)))

    def jpeg(self, tile: int) -> bytes | None:
        return None

    def _is_whole(self, tile: int) -> bool:
        """Whether the tile is stored in full: strips end with the image."""
        grid = self.grid
        return bool(self._page.is_tiled) or (tile // grid.columns + 1) * grid.tile_height <= grid.height

    def _stored(self, tile: int) -> bytes:
        return read_stored(self._source, int(self._offsets[tile]), int(self._counts[tile]))


class TiffSlideSlide(TiledSlide):
    """A remote TIFF in TiffSlide's eyes. Reads are thread-safe."""

    def __init__(self, path: Path | str, why: str, override: Scale | None = None):
        self._source = open_source(path)
        try:
            self._opened = _Opened(self._source)
            if self._opened.reason is not None:
                raise SlideError(path, self._opened.reason, _COPY_HERE)
            _check_extents(self._source, self._opened.pages)
            info = self._opened.describe(why, override)
        except EngineError:
            self._source.close()
            raise
        super().__init__(path, info, [PageLevel(self._source, page) for page in self._opened.pages])

    @staticmethod
    def matches(path: Path | str) -> Match:
        with closing(open_source(path)) as source:
            opened = _Opened(source)
            return Match(opened.reason is None, opened.reason or f"TiffSlide knows its levels ({opened.vendor})")

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        if name not in self.info.associated:
            raise KeyError(name)
        try:
            return np.asarray(self._opened.file.associated_images[name].convert("RGB"))
        except _LIBRARY as error:
            self._opened.check()
            raise TileError(self.path, f"its {name} image cannot be decoded: {error}", COPY_AGAIN) from None

    def icc_profile(self) -> bytes:
        """See Slide.icc_profile."""
        profile = self._opened.pages[0].tags.get(_ICC_PROFILE)
        return b"" if profile is None else self._source.read_at(profile.valueoffset, profile.count)

    def close(self) -> None:
        self._source.close()


class _Opened:
    """A file as TiffSlide understands it. reason: why it is not read here, None if it is; pages: its levels."""

    def __init__(self, source: ByteSource):
        self._reader = SourceReader(source)
        self.vendor = ""
        self.pages: list[Any] = []
        self.reason: str | None = None
        try:
            self.file = tiffslide.TiffSlide(io.BufferedReader(self._reader))
            self._stated = self.file.properties
            series = self.file.ts_tifffile.series[self._stated["tiffslide.series-index"]]
            self.pages = [level.pages[0].aspage() for level in series.levels]
            self.vendor = self._stated.get("tiffslide.vendor") or "generic-tiff"
            self.reason = self._why_not()
        except _LIBRARY as error:
            self.reason = f"TiffSlide: {type(error).__name__}: {error}"
        self.check()

    def check(self) -> None:
        """See SourceReader.check."""
        self._reader.check()

    def _why_not(self) -> str | None:
        base = self.pages[0]
        if self.vendor in _COMPOSED:
            return f"a {self.vendor} slide, whose image is put together from several areas or overlapping tiles"
        if self._stated.get("tiffslide.series-axes") != "YXS" or base.dtype != np.uint8 or base.samplesperpixel != 3:
            return f"pixels that are not 8-bit RGB ({base.samplesperpixel} samples of {base.bitspersample} bits)"
        if any(page.chunks[0] * page.chunks[1] > MAX_TILE_PX for page in self.pages):
            return f"stored in parts of {base.chunks[1]:,} x {base.chunks[0]:,} px, too large to read one by one"
        return None

    def describe(self, why: str, override: Scale | None) -> SlideInfo:
        stated, base = self._stated, self.pages[0]
        objective = as_objective(stated.get("tiffslide.objective-power"))
        across, down = stated.get("tiffslide.mpp-x"), stated.get("tiffslide.mpp-y")
        origin = "tiff" if self.vendor == "generic-tiff" else "vendor"
        scale = override or stated_scale(across, down, origin, objective)
        profile = base.tags.get(_ICC_PROFILE)
        images = {"label", "macro", "thumbnail"}.intersection(self.file.associated_images)
        return SlideInfo(
            reader="tiffslide",
            why=why,
            vendor=self.vendor,
            mpp=scale.mpp,
            mpp_source=scale.source,
            mpp_problem=scale.problem,
            objective=objective,
            codec=base.compression.name.lower(),
            tile_px=(base.chunks[1], base.chunks[0]),
            associated=tuple(sorted(images)),
            icc_bytes=profile.count if profile else 0,
        )


def _check_extents(source: ByteSource, pages: list[Any]) -> None:
    """All tiles of all levels lie inside the file; lenient readers make a smaller slide of a cut one."""
    for number, page in enumerate(pages):
        rows, cols = page.chunks[:2]
        expected = -(-page.imagelength // rows) * -(-page.imagewidth // cols)
        if len(page.dataoffsets) != expected or len(page.databytecounts) != expected:
            problem = f"level {number} needs {expected:,} tiles and lists {len(page.dataoffsets):,}"
            raise SlideError(source.name, problem, COPY_AGAIN)
        ends = np.asarray(page.dataoffsets, np.float64) + np.asarray(page.databytecounts, np.float64)
        outside = int((ends > source.size).sum())
        if outside:
            problem = f"{outside:,} of {expected:,} tiles of level {number} lie beyond the end of the file"
            raise SlideError(source.name, problem, COPY_AGAIN)
