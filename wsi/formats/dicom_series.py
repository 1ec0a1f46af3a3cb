"""The pictures of a DICOM slide, put together from its files: levels, label, overview and thumbnail."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.config import disable_value_validation

from ..errors import SlideError
from .dicom_files import files_of_slide
from .dicom_frames import FrameDecoder, choose_decoder, unwrap
from .dicom_parts import Facts, Part, read_part
from .file_check import COPY_AGAIN
from .tilewise import BadTile, Grid

_ASPECT_TOLERANCE = 0.05  # levels are rounded to whole pixels, small ones show it
_SAME_PLACE_MM = 0.5  # levels of one pyramid begin at one place, within a pixel of the coarsest
_SAMPLES = 16  # frames that are asked for their colours until one answers


@dataclass(frozen=True)
class Frames:
    """Where each tile of a picture lies, int64 (tiles,), in raster order.

    file     index in Picture.files, -1 for a tile that the slide leaves out by design
    offsets, counts  bytes; count 0 marks a damaged entry
    """

    file: NDArray[np.int64]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """A level, or a label, overview or thumbnail; `notes` are clauses that the user should know."""

    kind: str
    grid: Grid
    codec: str
    files: tuple[Path, ...]
    frames: Frames
    wrapped: bool
    decoder: FrameDecoder
    factors: tuple[int, ...]
    notes: tuple[str, ...]
    z: float
    facts: Facts


@dataclass(frozen=True)
class Series:
    """A slide: its levels from fine to coarse, its other pictures by kind, and how many files they lie in."""

    levels: tuple[Picture, ...]
    others: dict[str, Picture]
    files: int

    @property
    def why(self) -> str:
        notes = dict.fromkeys(note for level in self.levels for note in level.notes)
        return "; ".join([f"DICOM whole-slide image in {self.files} file{'s' * (self.files > 1)}", *notes])


def read_series(path: Path) -> Series | str:
    """The slide that a DICOM file or a folder of such files holds, or the reason why it is not read here.

    Raises SlideError for damaged files, and for a folder that holds several slides.
    """
    with disable_value_validation():  # its warnings would quote values of the header
        return _read_series(path)


def _read_series(path: Path) -> Series | str:
    files = files_of_slide(path)
    if not files:
        return "no DICOM whole-slide image in this folder"
    parts: dict[str, list[Part]] = defaultdict(list)
    for file in files:
        part = read_part(file)
        if isinstance(part, str):
            return part if len(files) == 1 else f"{file.name}: {part}"
        parts[part.picture].append(part)
    levels: list[Picture] = []
    others: dict[str, Picture] = {}
    for group in parts.values():
        picture = _assemble(sorted(group, key=lambda part: part.first))
        if isinstance(picture, str):
            return picture
        if picture.kind == "volume":
            levels.append(picture)
        else:
            others.setdefault(picture.kind, picture)
    chosen = _choose_levels(path, levels)
    return chosen if isinstance(chosen, str) else Series(chosen, others, len(files))


def _assemble(parts: list[Part]) -> Picture | str:
    """One picture from the file, or the files of a concatenation, that hold its frames."""
    first = parts[0]
    _check_concatenation(parts)
    grid = Grid.of(*first.size, *first.tile)
    frames = Frames(
        np.repeat(np.arange(len(parts)), [len(part.offsets) for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
    found = _full(first, grid, frames) if first.places is None else _sparse(parts, grid, frames)
    if isinstance(found, str):
        return found
    frames, z, plane = found
    choice = choose_decoder(first.codec, first.photometric, _samples(parts, frames))
    if isinstance(choice, str):
        return choice
    files = tuple(part.path for part in parts)
    notes = tuple(note for note in (plane, choice.note) if note)
    return Picture(
        kind=first.kind,
        grid=grid,
        codec=first.codec,
        files=files,
        frames=frames,
        wrapped=first.wrapped,
        decoder=choice.decoder,
        factors=tuple(f for f in choice.factors if first.tile[0] % f == 0 and first.tile[1] % f == 0),
        notes=notes,
        z=z,
        facts=first.facts,
    )


def _check_concatenation(parts: list[Part]) -> None:
    first, expected = parts[0], 0
    for part in parts:
        for field in ("kind", "size", "tile", "codec", "photometric", "planes"):
            if getattr(part, field) != getattr(first, field) or (part.places is None) != (first.places is None):
                raise SlideError(part.path, f"its {field} is not that of {first.path.name}", COPY_AGAIN)
        if part.first != expected:
            problem = (
                f"its frames begin at {part.first:,}, where {expected:,} is expected: a file of the slide is missing"
            )
            raise SlideError(part.path, problem, COPY_AGAIN)
        expected += len(part.offsets)
    if first.total is not None and len(parts) != first.total:
        problem = f"it is one of {first.total} files that hold a level together, and {len(parts)} of them are there"
        raise SlideError(first.path, problem, COPY_AGAIN)


def _full(part: Part, grid: Grid, frames: Frames) -> tuple[Frames, float, str]:
    """The middle focal plane of frames that are all there, in raster order, plane after plane."""
    tiles = grid.columns * -(-grid.height // grid.tile_height)
    if len(frames.file) != tiles * part.planes:
        needed = f"{grid.width:,} x {grid.height:,} px need {tiles * part.planes:,} frames"
        raise SlideError(part.path, f"{needed} and it holds {len(frames.file):,}", COPY_AGAIN)
    middle = part.planes // 2
    cut = slice(middle * tiles, (middle + 1) * tiles)
    note = f"the middle of {part.planes} focal planes" if part.planes > 1 else ""
    return Frames(frames.file[cut], frames.offsets[cut], frames.counts[cut]), part.z, note


def _sparse(parts: list[Part], grid: Grid, frames: Frames) -> tuple[Frames, float, str] | str:
    """Frames that state their places; of several at one place the one nearest to the middle focal plane.

    Each frame may have a height of its own, where the scanner found the focus. Places without a frame are unscanned
    glass.
    """
    places = [part.places for part in parts if part.places is not None]
    corners = np.concatenate([place.corners for place in places])
    z = np.concatenate([place.z for place in places])
    inside = (corners >= 0).all(axis=1) & (corners < [grid.width, grid.height]).all(axis=1)
    if not inside.all():
        outside = f"{int((~inside).sum()):,} of {inside.size:,} frames"
        problem = f"{outside} lie outside its {grid.width:,} x {grid.height:,} px"
        raise SlideError(parts[0].path, problem, COPY_AGAIN)
    if (corners % [grid.tile_width, grid.tile_height]).any():
        return "frames that do not lie on a grid"
    tile = corners[:, 1] // grid.tile_height * grid.columns + corners[:, 0] // grid.tile_width
    if len(np.unique(np.stack([tile, z]), axis=1).T) < tile.size:
        return "several frames at one place"
    middle = float(np.unique(z)[np.unique(z).size // 2])
    order = np.lexsort((np.abs(z - middle), tile))
    used, first = np.unique(tile[order], return_index=True)
    chosen = order[first]
    tiles = grid.columns * -(-grid.height // grid.tile_height)
    table = [np.full(tiles, empty, np.int64) for empty in (-1, 0, 0)]
    for column, values in zip(table, (frames.file, frames.offsets, frames.counts), strict=True):
        column[used] = values[chosen]
    note = f"the middle of {np.unique(z).size} focal planes" if used.size < tile.size else ""
    return Frames(*table), middle, note


def _samples(parts: list[Part], frames: Frames) -> Iterator[bytes]:
    """Some of the frames, evenly spread."""
    present = np.flatnonzero((frames.file >= 0) & (frames.counts > 0))
    for tile in present[:: max(1, len(present) // _SAMPLES)].tolist():
        part, count = parts[int(frames.file[tile])], int(frames.counts[tile])
        with part.path.open("rb") as file:
            file.seek(int(frames.offsets[tile]) - 8 * part.wrapped)
            data = file.read(count + 8 * part.wrapped)
        try:
            yield unwrap(data, count) if part.wrapped else data
        except BadTile:
            continue


def _choose_levels(path: Path, pictures: list[Picture]) -> tuple[Picture, ...] | str:
    """One picture of each size, the largest first; of several focal planes in files of their own the middle one."""
    pyramids = {picture.facts.pyramid for picture in pictures} - {None}
    origins = np.array([picture.facts.origin for picture in pictures if picture.facts.origin]).reshape(-1, 2)
    if len(pyramids) > 1 or (len(origins) and np.ptp(origins, axis=0).max() > _SAME_PLACE_MM):
        raise SlideError(path, "its series holds several pyramids", "give each pyramid its own folder")
    by_size: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: picture.z):
        by_size[picture.grid.width, picture.grid.height].append(picture)
    levels = []
    for size in sorted(by_size, reverse=True):
        same = by_size[size]
        if len({picture.z for picture in same}) < len(same):
            return f"{len(same)} pictures of {size[0]:,} x {size[1]:,} px in one series"
        levels.append(same[len(same) // 2])
    if not levels:
        return "a series without a level (a VOLUME image)"
    base = levels[0].grid
    for level in levels[1:]:
        grid = level.grid
        factor = (base.width / grid.width + base.height / grid.height) / 2
        off_x, off_y = abs(base.width / factor - grid.width), abs(base.height / factor - grid.height)
        if off_x > max(2, _ASPECT_TOLERANCE * grid.width) or off_y > max(2, _ASPECT_TOLERANCE * grid.height):
            shapes = f"{grid.width:,} x {grid.height:,} px, level 0 {base.width:,} x {base.height:,} px"
            raise SlideError(level.files[0], f"it has other proportions than level 0 ({shapes})", COPY_AGAIN)
    return tuple(levels)
