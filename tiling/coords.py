"""Tile coordinates in the HDF5 files of other tools: CLAM and TRIDENT both ways, five more to read."""

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError, StoreError
from wsi.geometry import Level
from wsi.publish import appear_file
from wsi.resample import pick_level

from .grid import TileGrid, tissue_fraction
from .spec import TileSpec
from .tissue import Tissue

log = logging.getLogger(__name__)

PROCESS_LIST = "process_list_autogen.csv"  # CLAM's table of slides
FAILED_SEG = "failed_seg"
MAX_TILES = 20_000_000
DEFLATE = 1032  # what deflate can shrink at most: a table beyond it is not in the file, and h5py would make it up
MAX_PX = 1e8  # level-0 px; a coordinate beyond is no coordinate
# TRIDENT's names for pixel sizes: below each µm per pixel, the magnification (WSI._fetch_magnification)
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
CLAM_COLUMNS = (
    "slide_id", "process", "status", "seg_level", "sthresh", "mthresh", "close", "use_otsu", "keep_ids", "exclude_ids",
    "a_t", "a_h", "max_n_holes", "vis_level", "line_thickness", "use_padding", "contour_fn",
)  # fmt: skip


@dataclass(frozen=True)
class ForeignCoords:
    """Tiles of one slide as another tool cut them.

    path     the file
    flavour  trident, clam, clam-patches (the old pipeline), mussel, wsinfer, atlaspatch or stamp
    xy       int64 (n, 2), top-left corners in level-0 pixels, in the file's order
    span_px  side of a tile in level-0 pixels
    size     (width, height) of the slide in level-0 pixels, None where the file does not say
    attrs    the numbers among the attributes they came with
    """

    path: Path
    flavour: str
    xy: NDArray[np.int64]
    span_px: int
    size: tuple[int, int] | None
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class SlideTiles:
    """What an export needs of a slide: its id, its tiles and its levels (as `Slide.levels`)."""

    slide_id: str
    grid: TileGrid
    levels: Sequence[Level]


def read_coords(path: Path | str, mpp: float | None = None) -> ForeignCoords:
    """The coordinates in an HDF5 file of TRIDENT, CLAM, Mussel, WSInfer, AtlasPatch or STAMP.

    mpp  µm per level-0 pixel of the slide; needed for STAMP, which keeps µm
    Raises StoreError where the file is missing, damaged or of another kind, SpecError for STAMP without `mpp`.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise StoreError(path, "no such file", "check the path")
    try:
        with h5py.File(path, "r") as file:
            root = _plain(file.attrs)
            dataset = file.get("coords")
            if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 2 or dataset.shape[1] not in (2, 5):
                raise StoreError(path, "no table of tile coordinates in it", "name a coords or patches file")
            if len(dataset) > MAX_TILES or dataset.nbytes > DEFLATE * path.stat().st_size:
                raise StoreError(path, f"{len(dataset)} tiles in so small a file cannot be", "write it again")
            images = file.get("imgs")
            images = images if isinstance(images, h5py.Dataset) and images.ndim == 4 else None
            attrs = root | (_plain(images.attrs) if images is not None else {}) | _plain(dataset.attrs)
            if images is not None:
                attrs["patch_size"] = images.shape[1]
            corners = dataset[:, :2]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # all are h5py's for damaged files
        raise StoreError(path, f"not a sound HDF5 file ({error})", "write it again") from None
    if corners.dtype.kind not in "iuf" or not (np.abs(corners) <= MAX_PX).all():  # NaN is not <= either
        raise StoreError(path, "its coordinates are no numbers of pixels", "write it again")
    return _understood(path, corners, attrs, mpp, old=images is not None)


def _understood(
    path: Path, corners: NDArray[Any], attrs: dict[str, Any], mpp: float | None, old: bool
) -> ForeignCoords:
    def made(flavour: str, span: Any, factor: float = 1.0, size: Any = None) -> ForeignCoords:
        if isinstance(span, bool) or not isinstance(span, int | float) or not 1 <= span * factor <= MAX_PX:
            raise StoreError(path, f"its tile size is {span!r}", "write it again")
        xy = np.rint(corners * factor).astype(np.int64)
        known = size is not None and all(isinstance(extent, int) for extent in size)
        return ForeignCoords(path, flavour, xy, round(span * factor), tuple(size) if known else None, attrs)

    whole = (attrs.get("level0_width"), attrs.get("level0_height"))
    if "passport_version" in attrs:
        return made("atlaspatch", attrs.get("patch_size_level0"), size=whole)
    if attrs.get("unit") == "um" and "tile_size_um" in attrs:
        if mpp is None:
            raise SpecError("mpp", f"{path} is of STAMP, in µm", "give the slide's µm per level-0 pixel")
        return made("stamp", attrs["tile_size_um"], 1 / mpp)
    if "level0_magnification" in attrs and "patch_size_level0" in attrs:
        return made("trident", attrs["patch_size_level0"], size=whole)
    if "patch_size_to_resize_to_for_desired_mpp" in attrs:
        return made("mussel", attrs.get("patch_size"), size=attrs.get("level_dim"))
    if "patch_spacing_um_px" in attrs:
        return made("wsinfer", attrs.get("patch_size"))
    if "patch_level" in attrs and "downsample" in attrs:
        return _of_clam(path, attrs, made, old)
    raise StoreError(
        path,
        "tile coordinates that do not say how large a tile is, as in CLAM's feature files",
        "name the matching patches/<slide>.h5",
    )


def _of_clam(path: Path, attrs: dict[str, Any], made: Callable[..., ForeignCoords], old: bool) -> ForeignCoords:
    """CLAM's coords are in level-0 pixels; beside stored patches, in those of the patches."""
    downsample = attrs["downsample"]
    downsample = downsample[0] if isinstance(downsample, list) and downsample else downsample
    size, reduced = attrs.get("level_dim"), attrs.get("downsampled_level_dim")
    if not isinstance(downsample, int | float) or not 1 <= downsample <= 1024:
        raise StoreError(path, f"its downsample is {downsample!r}", "write it again")
    size = size if attrs["patch_level"] == 0 else None
    if not old:
        patch_size = attrs.get("patch_size")
        return made("clam", patch_size * downsample if isinstance(patch_size, int) else patch_size, size=size)
    whole = attrs.get("level_dim")
    custom = round(whole[0] / reduced[0]) if whole and reduced and reduced[0] else 1  # CLAM's --custom_downsample
    return made("clam-patches", attrs["patch_size"], int(downsample) * custom, size)


def _plain(attrs: Any) -> dict[str, Any]:
    """HDF5 attributes as Python values: the numbers, and the unit of files that keep a length in µm.

    No other text: where a byte of its heap is wrong, libhdf5 (1.14) can loop for ever.
    """
    names = [
        name for name in attrs if attrs.get_id(name).dtype.kind != "O" or (name == "unit" and "tile_size_um" in attrs)
    ]
    values = {name: attrs[name] for name in names}
    return {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value for name, value in values.items()
    }


def grid_from_coords(
    levels: Sequence[Level], coords: ForeignCoords, spec: TileSpec, tissue: Tissue | None = None
) -> TileGrid:
    """The grid of another tool's tiles, to be read and embedded as our own, in the file's order.

    A tile that the file lists again is left out, with a warning in the log; otherwise row i is row i of the file.
    The tiles' side is the file's, so `grid.mpp` is the side in µm over `spec.tile_px`: it must be `spec.mpp` within
    `spec.tolerance`. Tiles that reach over the edge are kept, and white there. Without `tissue` every tile counts as
    full of it. Raises SpecError where the file contradicts `spec` or is of another slide, SlideError without mpp.
    """
    base = levels[0]
    pick_level(levels, spec.mpp, spec.tolerance, spec.cheap_levels)  # refuses a slide without scale, or too coarse
    assert base.mpp is not None
    mpp = base.mpp * coords.span_px / spec.tile_px
    if abs(mpp / spec.mpp - 1) > spec.tolerance:
        side = f"{coords.span_px * base.mpp:.1f} µm"
        problem = f"tiles in {coords.path} are {side} wide, {spec.tile_px} px at {spec.mpp:g} µm per pixel are not"
        suited = round(coords.span_px * base.mpp / spec.mpp)  # what their own patches had, where the scale is theirs
        raise SpecError("tile", problem, f"ask for --tile-px {suited}, or for --tile-mpp {mpp:.4g}")
    outside = (coords.xy + coords.span_px <= 0) | (coords.xy >= [base.width, base.height])
    if (coords.size is not None and coords.size != (base.width, base.height)) or outside.any():
        problem = f"its coordinates are not of this slide, of {base.width} x {base.height} px"
        raise SpecError(coords.path, problem, "name the file made from this slide")
    fit = [
        (level.downsample, index)
        for index, level in enumerate(levels)
        if (level.stored or spec.cheap_levels) and round(coords.span_px / level.downsample) >= spec.tile_px
    ]
    if not fit:
        problem = f"tiles in {coords.path} have {coords.span_px} px at level 0, fewer than the {spec.tile_px} asked for"
        raise SpecError("tile.tile_px", problem, "ask for smaller patches: enlarging invents no detail")
    xy = _without_repeats(coords)
    share = tissue_fraction(tissue.mask, xy, coords.span_px, tissue.scale) if tissue else np.ones(len(xy))
    return TileGrid(spec, max(fit)[1], coords.span_px, mpp, xy, share.astype(np.float32))


def _without_repeats(coords: ForeignCoords) -> NDArray[np.int64]:
    first = np.sort(np.unique(coords.xy, axis=0, return_index=True)[1])
    repeats = len(coords.xy) - len(first)
    if repeats == 0:
        return coords.xy
    log.warning("%s lists %d of its %d tiles again: each is taken once", coords.path, repeats, len(coords.xy))
    return coords.xy[first]


def write_trident(path: Path, slide: SlideTiles) -> None:
    """One slide's tiles as TRIDENT's `<slide>_patches.h5`; it appears when it is whole.

    `level0_magnification` is TRIDENT's name for the pixel size. `target_magnification` is not the nominal one but that
    by which TRIDENT, reading `patch_size` of it, comes to the true side at level 0. Raises SpecError for a slide too
    coarse to have a magnification there.
    """
    grid, base = slide.grid, slide.levels[0]
    attrs = {
        **trident_attrs(grid.spec.tile_px, grid.span_px, base.mpp),
        "overlap": _overlap(grid.spec),
        "name": slide.slide_id,
        "savetodir": str(path.parent.name),
        "level0_width": base.width,
        "level0_height": base.height,
    }
    _write(path, grid.xy, attrs, rows=1)


def trident_attrs(tile_px: int, span_px: int, mpp: float | None) -> dict[str, Any]:
    """Size and scale of tiles as TRIDENT says them; mpp is of level 0. Raises SpecError beyond its table."""
    source = trident_magnification(mpp)
    target = source * tile_px / span_px
    return {
        "patch_size": tile_px,
        "patch_size_level0": span_px,
        "level0_magnification": source,
        "target_magnification": int(target) if target.is_integer() else target,
    }


def trident_folder(mpp: float, tile_px: int, overlap_px: int) -> str:
    """TRIDENT's name for a folder of tiles of one size and scale, µm per pixel of the patch."""
    return f"{10 / mpp:g}x_{tile_px}px_{overlap_px}px_overlap"


def trident_magnification(mpp: float | None) -> int:
    """What TRIDENT calls a slide of `mpp` µm per pixel; 0.35 is 20x there. Raises SpecError beyond its table."""
    for limit, magnification in MAGNIFICATIONS:
        if mpp is not None and 0 < mpp < limit:
            return magnification
    raise SpecError("mpp", f"TRIDENT has no magnification for {mpp} µm per pixel", "export to CLAM")


def write_clam(path: Path, slide: SlideTiles) -> None:
    """One slide's tiles as CLAM's `patches/<slide>.h5`; it appears when it is whole.

    `patch_level` counts stored levels, as OpenSlide does. It is the coarsest with at least `tile_px` pixels a tile
    that meets the tile's side to half a level-0 pixel: CLAM does not resample, so patches may be larger than ours.
    """
    grid, base = slide.grid, slide.levels[0]
    stored = [level for level in slide.levels if level.stored]
    number = 0
    for index, level in enumerate(stored):
        side = round(grid.span_px / level.downsample)
        if side >= grid.spec.tile_px and abs(side * level.downsample - grid.span_px) <= 0.5:
            number = index
    level = stored[number]
    attrs = {
        "patch_size": round(grid.span_px / level.downsample),
        "patch_level": number,
        "downsample": (base.width / level.width, base.height / level.height),
        "downsampled_level_dim": (level.width, level.height),
        "level_dim": (level.width, level.height),
        "name": slide.slide_id,
        "save_path": str(path.parent.name),
    }
    _write(path, grid.xy, attrs, rows=32)


def _write(path: Path, xy: NDArray[np.int64], attrs: dict[str, Any], rows: int) -> None:
    import h5py

    with appear_file(path) as draft, h5py.File(draft, "w") as file:
        data = file.create_dataset("coords", data=xy.astype(np.int64), chunks=(rows, 2), maxshape=(None, 2))
        data.attrs.update(attrs)


def export_trident(slides: Iterable[SlideTiles], out: Path) -> list[Path]:
    """TRIDENT's tree of coordinates: `<mag>x_<px>px_<overlap>px_overlap/patches/<slide>_patches.h5` in `out`.

    Returns the folders of the first kind, one for each TileSpec there is.
    """
    folders = []
    for slide in slides:
        spec = slide.grid.spec
        folder = out / trident_folder(spec.mpp, spec.tile_px, _overlap(spec))
        write_trident(folder / "patches" / f"{_file_name(slide)}_patches.h5", slide)
        folders.append(folder)
    return list(dict.fromkeys(folders))


def export_clam(slides: Iterable[SlideTiles], out: Path) -> Path:
    """CLAM's tree of coordinates: `patches/<slide>.h5` and `process_list_autogen.csv` in `out`, which is returned.

    As with CLAM, a slide without tiles has no file: an older one of it is removed. The list's columns on CLAM's own
    segmentation stay empty.
    """
    rows = []
    for slide in slides:
        path = out / "patches" / f"{_file_name(slide)}.h5"
        if len(slide.grid):
            write_clam(path, slide)
        else:
            path.unlink(missing_ok=True)
        rows.append([slide.slide_id, 0, "processed" if len(slide.grid) else FAILED_SEG])
    with appear_file(out / PROCESS_LIST) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(CLAM_COLUMNS)
        table.writerows(row + [""] * (len(CLAM_COLUMNS) - len(row)) for row in rows)
    return out


def known_empty(place: Path, slide_id: str) -> bool:
    """Whether the tree of `export_clam` at `place` says that the slide has no tiles, and so has no file of it.

    The list says failed_seg then, and nothing on a segmentation. CLAM itself writes failed_seg, with the level it
    tried, for slides too large for it: those are not empty. Raises StoreError for a damaged list.
    """
    path = place / PROCESS_LIST
    if not path.is_file():
        return False
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("slide_id") == slide_id]
    except (UnicodeDecodeError, csv.Error) as error:
        raise StoreError(path, f"it is no table ({error})", "export again") from None
    return any(row.get("status") == FAILED_SEG and not row.get("seg_level") for row in rows)


def _overlap(spec: TileSpec) -> int:
    """Pixels of a patch that the next one shows too."""
    return max(0, spec.tile_px - spec.stride)


def _file_name(slide: SlideTiles) -> str:
    if Path(slide.slide_id).name != slide.slide_id:
        raise SpecError(f"slide {slide.slide_id!r}", "its id is no plain file name", "change it in the manifest")
    return slide.slide_id
