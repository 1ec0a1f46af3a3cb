"""Folders of tile images as the tiles of a run, with their pixels, to be embedded without a slide."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding.interop.features import Known, Report, plain_name, stride_of
from tiling.grid import TileGrid
from tiling.patches import PatchRequest, write_patches
from tiling.spec import QualitySpec, TileSpec, TissueSpec
from tiling.tissue import Tissue
from wsi.errors import EngineError, SlideError, SpecError, StoreError
from wsi.identity import slide_identity
from wsi.publish import fingerprint

from .folder import RunFolder
from .import_features import add_to_manifest
from .tile_pictures import ARCHIVES, Pictures, PictureSlide, Places, find_places, is_image

IMPORT_VERSION = 1  # raised when the same images begin to give another store
MASK_UM = 32.0  # side of a pixel of the tissue mask, which is where tiles are


@dataclass
class ImportedTiles:
    """What came of an import of images: tiles a slide, reports, and folder → problem."""

    tiles: Counter[str] = field(default_factory=Counter)
    reports: list[Report] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def tile_folders(source: Path) -> dict[str, Path]:
    """slide_id → the folder, zip or tar with its tile images: every folder that holds some, and every archive."""
    if source.is_file():
        return {plain_name(source.stem): source} if source.suffix in ARCHIVES else {}
    found = {}
    for path in _holders(source):
        relative = path.relative_to(source)
        name = relative.with_suffix("").as_posix() if path.is_file() else relative.as_posix()
        found[plain_name(source.name if name == "." else name.replace("/", "_"))] = path
    return found


def _holders(folder: Path) -> Iterator[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if any(entry.is_file() and is_image(entry.name) for entry in entries):
        yield folder
    for entry in entries:
        if entry.is_dir() and entry.suffix != ".zarr":
            yield from _holders(entry)
        elif entry.is_file() and entry.suffix in ARCHIVES:
            yield entry


def import_tiles(source: Path, folder: RunFolder, known: Known, threads: int = 2) -> ImportedTiles:
    """Tile images → tiles/<slide_id>.zarr with their pixels and, where there is none, slides.csv.

    A folder that cannot be taken fails alone. Raises StoreError where there is none to take.
    """
    done, taken = ImportedTiles(), dict[str, Path]()
    for slide_id, path in tile_folders(source).items():
        report = Report(slide_id, "tiles", path)
        try:
            done.tiles[slide_id] = _import(path, folder, known, report, threads)
        except EngineError as error:
            done.failed[str(path)] = error.problem
            continue
        done.reports.append(report)
        taken[slide_id] = path
    if not taken:
        why = "; ".join(f"{name}: {problem}" for name, problem in list(done.failed.items())[:3]) or "no PNG or JPEG"
        raise StoreError(source, f"it holds no tile images that can be taken ({why})", "see docs/interop.md")
    add_to_manifest(folder, taken)
    return done


def _import(path: Path, folder: RunFolder, known: Known, report: Report, threads: int) -> int:
    pictures = Pictures(path)
    try:
        if not pictures.names:
            raise SlideError(path, "it holds no PNG or JPEG", "name a folder of tile images")
        names, tile_px, rows = _of_one_size(pictures, known, report)
        places = find_places(pictures)
        mpp = known.mpp or (places.mpp if places else None)
        if mpp is None:
            raise SpecError(path, "nothing says how large a pixel of a tile is", "give --tile-mpp, such as 0.5")
        report.kept("mpp", mpp, "as told" if known.mpp else "")
        xy, span_px = _layout(places, rows, tile_px, mpp, known, report)
        _write(PictureSlide(pictures, names, xy, span_px, mpp), folder, report, threads)
    finally:
        pictures.close()
    return len(names)


def _of_one_size(pictures: Pictures, known: Known, report: Report) -> tuple[list[str], int, NDArray[np.int64]]:
    """Names of the tiles of the size that most have, that size, and their numbers among all names."""
    sizes = pictures.sizes()
    square = Counter(width for width, height in sizes if width == height and width)
    if not square:
        raise SlideError(pictures.path, "none of its images is square", "tiles are square")
    tile_px = known.tile_px or square.most_common(1)[0][0]
    rows = np.array([number for number, size in enumerate(sizes) if size == (tile_px, tile_px)], np.int64)
    if len(rows) == 0:
        raise SlideError(pictures.path, f"none of its images is {tile_px} x {tile_px} px", "leave out --tile-px")
    report.kept("tile_px", tile_px)
    if len(rows) < len(sizes):
        report.dropped("images", f"not {tile_px} x {tile_px} px, or no image", len(sizes) - len(rows))
    return [pictures.names[row] for row in rows.tolist()], int(tile_px), rows


def _layout(
    places: Places | None, rows: NDArray[np.int64], tile_px: int, mpp: float, known: Known, report: Report
) -> tuple[NDArray[np.int64], int]:
    """Corners in level-0 pixels of the tiles in `rows`, and their side there."""
    if places is None:
        across = int(np.ceil(np.sqrt(len(rows))))
        xy = np.stack([np.arange(len(rows)) % across, np.arange(len(rows)) // across], axis=1) * tile_px
        report.guessed("coords", f"{across} a row", "no names say places: a made-up grid, row by row in order of names")
        report.guessed("span_px", tile_px, "level 0 is taken to be as fine as the tiles")
        return xy.astype(np.int64), tile_px
    said = places.xy[rows]
    told = max(1, round(tile_px * mpp / known.slide_mpp)) if known.slide_mpp else None
    if places.by == "stamp":
        span_px = told or tile_px
        report.kept("coords", "tile_(x, y), µm", "as level-0 pixels")
        if told is None:
            report.guessed("span_px", tile_px, "level 0 is taken to be as fine as the tiles: --slide-mpp was not given")
        return _corners(said * span_px / (tile_px * mpp)), span_px
    xy, step = _corners(said), stride_of(_corners(said))
    report.kept("coords", places.by)
    if places.by == "x_y" and step == 1:
        report.guessed("coords", "column_row", "names count tiles: they are as far apart as they are wide")
        xy, step = xy * (told or tile_px), told or tile_px
    span_px = told or places.span_px or max(tile_px, step or tile_px)
    if told or places.span_px:
        report.kept("span_px", span_px, "from --slide-mpp" if told else "")
    else:
        report.guessed("span_px", span_px, "the smallest distance between two tiles, as if they did not overlap")
    if span_px < tile_px:
        problem = f"its tiles have {tile_px} px and cover {span_px} of level 0: they were enlarged"
        raise SpecError(report.file, problem, "correct --slide-mpp or --tile-mpp")
    return xy, span_px


def _corners(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole level-0 pixels; where some are negative, all are moved so that none is."""
    xy = np.rint(values).astype(np.int64)
    return xy - np.minimum(xy.min(axis=0), 0)


def _write(slide: PictureSlide, folder: RunFolder, report: Report, threads: int) -> None:
    mpp, xy = slide.levels[-1].mpp, slide.corners
    assert mpp is not None
    spec = TileSpec(slide.tile_px, mpp, min_tissue=0, tissue=TissueSpec("none"), quality=QualitySpec(measure=False))
    ones = np.ones(len(xy), np.float32)
    grid = TileGrid(spec, len(slide.levels) - 1, slide.span_px, mpp, xy, ones)
    identity = slide_identity(report.file)
    grid_mark = fingerprint(IMPORT_VERSION, spec, slide.span_px, sha256(xy.tobytes()).hexdigest(), identity)
    pixels = "native" if slide.info.codec == "jpeg" else "raw"
    report.kept("pixels", None, "the JPEG files as they are" if pixels == "native" else "every pixel as it is")
    request = PatchRequest(
        report.slide_id, fingerprint(grid_mark, pixels), grid_mark, identity, pixels, threads, notes={"imported": True}
    )
    failed = write_patches(folder.tiles(report.slide_id), slide, grid, _tissue(slide), request)
    if failed:
        report.dropped("failed tiles", "they cannot be decoded", failed)


def _tissue(slide: PictureSlide) -> Tissue:
    """Tissue is where tiles are."""
    base = slide.levels[0]
    assert base.mpp is not None
    scale = max(1, round(MASK_UM / base.mpp))
    mask = np.zeros((-(-base.height // scale), -(-base.width // scale)), np.bool_)
    for x, y in slide.corners.tolist():
        mask[y // scale : -(-(y + slide.span_px) // scale), x // scale : -(-(x + slide.span_px) // scale)] = True
    return Tissue(mask, scale, float(mask.sum()) * (scale * base.mpp) ** 2)
