"""DICOM whole-slide images (VL Whole Slide Microscopy): a series of files, or the one file that there is.

wsidicom reads the structure; frames are decoded once a batch, strictly, in the colours that they have. Tiles that a
sparsely tiled slide leaves out are unscanned glass, white by design.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError, TileError
from ..slide import SlideInfo
from ..source import ByteSource, open_source
from .dicom_files import file_meta
from .dicom_frames import unwrap
from .file_check import COPY_AGAIN
from .jpeg import JpegDecoder
from .jpeg2000 import Jpeg2000Decoder
from .match import Match
from .scale import Scale, stated_scale
from .stored_tile import read_stored
from .tiled import TiledSlide
from .tilewise import BadTile

if TYPE_CHECKING:  # it loads wsidicom, which takes half a second and only a DICOM slide needs
    from .dicom_series import Picture, Series

_NAMES = {"label": "label", "overview": "macro", "thumbnail": "thumbnail"}  # DICOM's word, everybody else's


class DicomLevel:
    """The frames of one picture of a DICOM series; see tiled.TileLevel."""

    def __init__(self, picture: "Picture", sources: dict[Path, ByteSource]):
        self.grid, self.factors = picture.grid, picture.factors
        self._decoder = picture.decoder
        self.overview = isinstance(self._decoder, Jpeg2000Decoder)
        self._frames, self._sources = picture.frames, [sources[file] for file in picture.files]
        self._header = 8 if picture.wrapped else 0  # bytes of the item header before a frame

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        if self._frames.file[tile] < 0:
            into.fill(255)
        else:
            self._decoder.decode(self._stored(tile), into, factor)

    def stored_bytes(self, tiles: NDArray[np.int64]) -> int:
        """What these tiles take in the files."""
        return int(self._frames.counts[tiles].clip(0).sum())

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        frames = self._frames
        for number, source in enumerate(self._sources):
            here = tiles[(frames.file[tiles] == number) & (frames.counts[tiles] > 0)]
            offsets, counts = frames.offsets[here] - self._header, frames.counts[here] + self._header
            source.prefetch(list(zip(offsets.tolist(), counts.tolist(), strict=True)))

    def jpeg(self, tile: int) -> bytes | None:
        if not isinstance(self._decoder, JpegDecoder) or self._frames.file[tile] < 0:
            return None
        try:
            return self._decoder.whole(self._stored(tile))
        except BadTile:
            return None

    def _stored(self, tile: int) -> bytes:
        count = int(self._frames.counts[tile])
        if not count:
            raise BadTile("its entry in the file's table of frames is damaged")
        source, length = self._sources[self._frames.file[tile]], count + self._header
        data = read_stored(source, int(self._frames.offsets[tile]) - self._header, length)
        return unwrap(data, count) if self._header else data


class DicomSlide(TiledSlide):
    """An open DICOM series. Reads are thread-safe: they share file descriptors and nothing else."""

    def __init__(self, path: Path, why: str, override: Scale | None = None):
        from .dicom_series import read_series

        series = read_series(path)
        if isinstance(series, str):
            raise SlideError(path, f"not a DICOM slide that is read here ({series})", "open it with open_slide")
        self._sources = {file: open_source(file) for level in series.levels for file in level.files}
        super().__init__(path, _describe(series, why, override), [DicomLevel(p, self._sources) for p in series.levels])
        self._others, self._icc = series.others, series.levels[0].facts.icc

    @staticmethod
    def matches(path: Path) -> Match:
        if path.is_file():
            meta = file_meta(path)
            if not meta.is_dicom:
                return Match(False, "no DICOM file")
            if not meta.is_slide:
                return Match(False, "a DICOM file, but not of a whole-slide image")
        from .dicom_series import read_series

        series = read_series(path)
        return Match(False, series) if isinstance(series, str) else Match(True, series.why)

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated."""
        kind = {theirs: kind for kind, theirs in _NAMES.items() if kind in self._others}[name]
        picture = self._others[kind]
        sources = {file: open_source(file) for file in picture.files}
        try:
            return _whole(DicomLevel(picture, sources))
        except BadTile as fault:
            raise TileError(self.path, f"its {name} image cannot be decoded: {fault}", COPY_AGAIN) from None
        finally:
            for source in sources.values():
                source.close()

    def icc_profile(self) -> bytes:
        """See Slide.icc_profile."""
        return self._icc

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


def _whole(level: DicomLevel) -> NDArray[np.uint8]:
    grid = level.grid
    rows = -(-grid.height // grid.tile_height)
    out = np.empty((rows, grid.tile_height, grid.columns, grid.tile_width, 3), np.uint8)
    tile = np.empty((grid.tile_height, grid.tile_width, 3), np.uint8)
    for number in range(rows * grid.columns):
        level.decode(number, tile)
        out[number // grid.columns, :, number % grid.columns] = tile
    merged = out.reshape(rows * grid.tile_height, grid.columns * grid.tile_width, 3)
    return np.ascontiguousarray(merged[: grid.height, : grid.width])


def _describe(series: "Series", why: str, override: Scale | None) -> SlideInfo:
    base, facts = series.levels[0], series.levels[0].facts
    across, down = facts.mpp or (None, None)
    scale = override or stated_scale(across, down, "dicom", facts.objective)
    return SlideInfo(
        reader="dicom",
        why=why,
        vendor="dicom",
        mpp=scale.mpp,
        mpp_source=scale.source,
        mpp_problem=scale.problem,
        objective=facts.objective,
        scanner=facts.scanner,
        codec=base.codec,
        tile_px=(base.grid.tile_width, base.grid.tile_height),
        associated=tuple(sorted(_NAMES[kind] for kind in series.others)),
        icc_bytes=len(facts.icc),
    )
