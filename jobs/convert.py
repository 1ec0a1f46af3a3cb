"""A run's results as the files of other tools."""

from pathlib import Path

from tiling.coords import SlideTiles, export_clam, export_trident
from tiling.patches import PatchStore, open_patches
from wsi.errors import SpecError, StoreError
from wsi.geometry import Level

from .folder import RunFolder

EXPORTS = {"trident": export_trident, "clam": export_clam}


def export_coords(folder: RunFolder, flavour: str, out: Path) -> tuple[int, Path]:
    """Write the coordinates of a run's tiled slides in the layout of `flavour`; returns their number and the place.

    Raises SpecError for an unknown flavour, StoreError where the folder holds no tiled slides.
    """
    if flavour not in EXPORTS:
        raise SpecError("--to", f"{flavour!r} is unknown", f"choose {' or '.join(EXPORTS)}")
    stores = [open_patches(path) for path in sorted((folder.root / "tiles").glob("*.zarr"))]
    if not stores:
        raise StoreError(folder.root, "it holds no tiled slides", "run `wsi tile` first")
    EXPORTS[flavour]([SlideTiles(store.slide_id, store.grid, slide_levels(store)) for store in stores], out)
    return len(stores), out


def slide_levels(store: PatchStore) -> list[Level]:
    """The levels of the slide as they were when it was tiled."""
    return [Level(**level) for level in store.attrs["slide"]["levels"]]
