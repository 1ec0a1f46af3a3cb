"""A run's results as the files of other tools."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from tiling.coords import SlideTiles, export_clam, export_trident
from tiling.export import export_patches
from tiling.patches import PatchStore, open_patches
from wsi.errors import SpecError, StoreError
from wsi.geometry import Level

from .folder import RunFolder
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


def _is_of(table: Path, kind: str) -> bool:
    """Whether the files that coords.csv lists are of this kind; an empty table is of any."""
    with table.open(encoding="utf-8") as stream:
        first = list(islice(stream, 2))[1:]
    return not first or first[0].partition(",")[0].endswith(f".{kind}")


def export_coords(folder: RunFolder, flavour: str, out: Path) -> tuple[int, list[Path]]:
    """Write the coordinates of a run's tiled slides in the layout of `flavour`; returns their number and the folders.

    Raises SpecError for an unknown flavour, StoreError where the folder holds no tiled slides.
    """
    if flavour not in EXPORTS:
        raise SpecError("--to", f"{flavour!r} is unknown", f"choose {' or '.join(EXPORTS)}")
    stores = [open_patches(path) for path in sorted((folder.root / "tiles").glob("*.zarr"))]
    if not stores:
        raise StoreError(folder.root, "it holds no tiled slides", "run `wsi tile` first")
    tiles = [SlideTiles(store.slide_id, store.grid, slide_levels(store)) for store in stores]
    places = EXPORTS[flavour](tiles, out)
    return len(stores), [places] if isinstance(places, Path) else places


def slide_levels(store: PatchStore) -> list[Level]:
    """The levels of the slide as they were when it was tiled."""
    return [Level(**level) for level in store.attrs["slide"]["levels"]]
