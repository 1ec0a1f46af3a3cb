"""A run's results as the files of other tools."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from tiling.coords import SlideTiles, export_clam, export_trident
from tiling.export import export_patches
from tiling.patches import PatchStore, open_patches
from wsi.errors import SpecError, StoreError
from wsi.geometry import Level

from .folder import RunFolder
from .receipts import FAILED, latest, read_receipts
from .stored import made_since

EXPORTS: dict[str, Callable[[list[SlideTiles], Path], list[Path] | Path]] = {
    "trident": export_trident,
    "clam": export_clam,
}


def export_slide(store: PatchStore, folder: RunFolder, kind: str, threads: int) -> None:
    """The stored patches as files, patches/<slide_id>/ or .tar, where they are not there since the store is."""
    out = folder.root / "patches"
    place = out / (f"{store.slide_id}.tar" if kind == "tar" else store.slide_id)
    table = place / "coords.csv"
    there = made_since(place, store) if kind == "tar" else made_since(table, store) and _is_of(table, kind)
    if not there:
        export_patches(store, out, kind, threads)


def remove_stale_exports(store: PatchStore, folder: RunFolder) -> None:
    """Remove exported patches, of any kind, that are older than the store: they show tiles that are no more."""
    place = folder.root / "patches" / store.slide_id
    archive = folder.root / "patches" / f"{store.slide_id}.tar"
    if (place / "coords.csv").is_file() and not made_since(place / "coords.csv", store):
        shutil.rmtree(place)
    if archive.is_file() and not made_since(archive, store):
        archive.unlink()


def _is_of(table: Path, kind: str) -> bool:
    """Whether the files that coords.csv lists are of this kind; an empty table is of any."""
    with table.open(encoding="utf-8") as stream:
        first = list(islice(stream, 2))[1:]
    return not first or first[0].partition(",")[0].endswith(f".{kind}")


def export_coords(folder: RunFolder, flavour: str, out: Path) -> tuple[int, list[Path], list[str]]:
    """Write the coordinates of a run's tiled slides in the layout of `flavour`.

    Returns their number, the folders, and the ids of slides that failed when they were tiled last: what is there of
    them is of an earlier command, and left out. Raises SpecError for an unknown flavour, or tiles of several kinds
    for CLAM, which keeps one kind in a folder; StoreError where the folder holds no tiled slides.
    """
    if flavour not in EXPORTS:
        raise SpecError("--to", f"{flavour!r} is unknown", f"choose {' or '.join(EXPORTS)}")
    receipts = latest(read_receipts(folder.receipts("tile")))
    failed = {slide_id for slide_id, receipt in receipts.items() if receipt.status == FAILED}
    paths = {path.name.removesuffix(".zarr"): path for path in sorted((folder.root / "tiles").glob("*.zarr"))}
    stores = [open_patches(path) for slide_id, path in paths.items() if slide_id not in failed]
    if not stores:
        raise StoreError(folder.root, "it holds no tiled slides", "run `wsi tile` first")
    if flavour == "clam":
        _check_one_kind(stores)
    tiles = [SlideTiles(store.slide_id, store.grid, slide_levels(store)) for store in stores]
    places = EXPORTS[flavour](tiles, out)
    return len(stores), [places] if isinstance(places, Path) else places, [name for name in paths if name in failed]


def _check_one_kind(stores: list[PatchStore]) -> None:
    first = stores[0]
    for other in stores[1:]:
        kinds = [(store.grid.spec.tile_px, store.grid.spec.mpp) for store in (first, other)]
        if kinds[0] != kinds[1]:
            said = [
                f"{store.slide_id} has {px} px at {mpp:g}"
                for store, (px, mpp) in zip((first, other), kinds, strict=True)
            ]
            problem = f"tiles are of several kinds: {said[0]} µm/px, {said[1]} µm/px"
            raise SpecError("--to clam", problem, "tile all slides alike, or export to trident")


def slide_levels(store: PatchStore) -> list[Level]:
    """The levels of the slide as they were when it was tiled."""
    return [Level(**level) for level in store.attrs["slide"]["levels"]]
