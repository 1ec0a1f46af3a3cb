"""Decide which tiles of a slide count, and read or store their patches."""

from .grid import TileGrid, plan_grid, tissue_fraction
from .patches import PatchRequest, PatchStore, open_patches, write_patches
from .outside import read_mask
from .spec import TileSpec, TissueSpec
from .stream import PatchBatch, iter_patches
from .thumbnail import Thumbnail, read_thumbnail
from .tissue import Tissue, find_tissue, tissue_outline

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
    "read_mask",
    "read_thumbnail",
    "tissue_fraction",
    "tissue_outline",
    "write_patches",
]
