"""Decide which tiles of a slide count, and read or store their patches."""

from .grid import TileGrid, plan_grid, plan_scales, tissue_fraction
from .outside import read_mask
from .patches import PatchRequest, PatchStore, open_patches, write_patches
from .quality import TileQuality, measure_quality
from .regions import Regions, load_regions, regions_digest
from .spec import QualitySpec, RegionSpec, TileSpec, TissueSpec
from .stream import PatchBatch, iter_patches
from .thumbnail import Thumbnail, read_thumbnail
from .tissue import Tissue, find_tissue, tissue_outline

__all__ = [
    "PatchBatch",
    "PatchRequest",
    "PatchStore",
    "QualitySpec",
    "RegionSpec",
    "Regions",
    "Thumbnail",
    "TileGrid",
    "TileQuality",
    "TileSpec",
    "Tissue",
    "TissueSpec",
    "find_tissue",
    "iter_patches",
    "load_regions",
    "measure_quality",
    "open_patches",
    "plan_grid",
    "plan_scales",
    "read_mask",
    "read_thumbnail",
    "regions_digest",
    "tissue_fraction",
    "tissue_outline",
    "write_patches",
]
