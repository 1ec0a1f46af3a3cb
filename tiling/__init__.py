"""Decide which tiles of a slide count, and read or store their patches."""

from .grid import TileGrid, plan_grid, tissue_fraction
from .patches import PatchRequest, PatchStore, open_patches, write_patches
from .spec import TileSpec, TissueSpec
from .stream import PatchBatch, iter_patches
from .tissue import Thumbnail, Tissue, find_tissue, read_thumbnail, tissue_outline

__all__ = [
    "PatchBatch",
    "PatchRequest",
    "PatchStore",
    "Thumbnail",
    "TileGrid",
    "TileSpec",
    "Tissue",
    "TissueSpec",
    "find_tissue",
    "iter_patches",
    "open_patches",
    "plan_grid",
    "read_thumbnail",
    "tissue_fraction",
    "tissue_outline",
    "write_patches",
]
