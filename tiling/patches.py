"""The PatchStore: what a slide was cut into, and its pixels if they are wanted, as a Zarr v3 group."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import StoreError
from wsi.slide import Slide

from .grid import TileGrid
from .pixels import PatchRequest, check_pixels, declare_pixels, write_pixels
from .shards import PatchShards
from .spec import TileSpec
from .store import Store, StoreWriter, open_complete, write_store
from .stream import check_failed_tiles
from .thumbnail import Thumbnail, read_thumbnail
from .tissue import Tissue, tissue_outline

__all__ = ["PatchRequest", "PatchStore", "open_patches", "write_patches"]

# 1 knew pixels as they are only, and fewer settings. It is refused rather than read: its fingerprints are of other
# settings, so no run would take it for what is asked for now.
SCHEMA = "patches/2"


@dataclass(frozen=True)
class PatchStore(Store):
    """A finished store, opened for reading.

    Arrays: xy int64 (n, 2) · tissue float32 (n,) · mask and pen bool (rows, cols) · thumbnail uint8 (rows, cols, 3) ·
    those of `extra`, (n, ...) and, if pixels were kept, patches uint8 (n, t, t, 3), one patch a chunk in sharded files,
    and ok bool (n,).
    """

    @cached_property
    def grid(self) -> TileGrid:
        attrs = self.attrs
        spec = TileSpec.from_plain(attrs["spec"])
        grid = attrs["grid"]
        xy, tissue = self.array("xy"), self.array("tissue")
        return TileGrid(spec, grid["level"], grid["span_px"], grid["mpp"], xy, tissue, grid.get("found"))

    @property
    def mask_scale(self) -> int:
        """Level-0 pixels per pixel of the mask."""
        return int(self.attrs["mask_scale"])

    @property
    def thumbnail(self) -> Thumbnail:
        return Thumbnail(self.array("thumbnail"), int(self.attrs["thumbnail_scale"]), self.array("thumbnail_unread"))

    @property
    def pixels(self) -> str:
        """How pixels are kept: none, raw, jpeg or native."""
        return str(self.attrs["pixels"])

    @property
    def has_patches(self) -> bool:
        return self.pixels != "none"

    @property
    def extra(self) -> dict[str, NDArray[Any]]:
        """What else is known of each tile, by name: arrays (n, ...)."""
        return {name: self.array(name) for name in self.attrs["extra"]}

    @property
    def notes(self) -> dict[str, Any]:
        """What the maker of the store wanted kept, as it was given: see PatchRequest."""
        return dict(self.attrs.get("notes", {}))

    @cached_property
    def shards(self) -> PatchShards:
        """The reader of the patches. Raises StoreError if the pixels were not kept."""
        if not self.has_patches:
            raise StoreError(self.path, "it holds no pixels", "tile again with --patches, or read from the slide")
        return PatchShards(self.path / "patches")

    def read_patches(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 (stop - start, t, t, 3), zeros where a tile is not ok. Raises as `read_at`."""
        return self.shards.read_at(np.arange(*slice(start, stop).indices(len(self.shards))))

    def read_at(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Patches of the given numbers, in that order: uint8 (k, t, t, 3), zeros where a tile is not ok. Thread-safe.

        Raises StoreError if the pixels were not kept or are damaged.
        """
        return self.shards.read_at(indices)

    def as_dask(self) -> Any:
        """The patches as a Dask array, one task a shard. Workers read the files themselves, under the same path."""
        import dask.array as da

        shards = self.shards
        rows = da.core.normalize_chunks((shards.per_shard,), shape=shards.shape[:1])
        chunks = (*rows, *((side,) for side in shards.shape[1:]))
        empty = np.empty((0, 0, 0, 0), np.uint8)
        # a name of its own: a cluster must not take what it knows of an older store at this path for this one's
        return da.map_blocks(partial(_read_block, shards), chunks=chunks, meta=empty, name=f"patches-{uuid4().hex}")


def write_patches(
    path: Path,
    slide: Slide,
    grid: TileGrid,
    tissue: Tissue,
    request: PatchRequest,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> int:
    """Publish the PatchStore of one slide at `path`, replacing an older one only when it is whole.

    extra  further arrays (n, ...), one row a tile, to keep by name
    Returns the number of unreadable tiles (always 0 when pixels are not kept: nothing was read). Raises SlideError
    when they are more than the spec allows, SpecError when native pixels are asked for that the grid does not allow.
    """
    check_pixels(slide, grid, request)
    with write_store(path) as writer:
        facts = lay_out(writer, slide, grid, tissue, request, extra)
        if request.pixels == "none":
            writer.finish(SCHEMA, facts, len(grid), 0)
            return 0
        ok = write_pixels(declare_pixels(writer.draft, grid, request), slide, grid, request)
        return finish_pixels(writer, slide, facts, ok)


def lay_out(
    writer: StoreWriter,
    slide: Slide,
    grid: TileGrid,
    tissue: Tissue,
    request: PatchRequest,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """Write all of a PatchStore but its pixels; returns what its record is to say."""
    thumbnail, outline = read_thumbnail(slide), tissue_outline(tissue)
    arrays: dict[str, NDArray[Any]] = {"xy": grid.xy, "tissue": grid.tissue, "mask": tissue.mask}
    arrays |= {"thumbnail": thumbnail.pixels, "thumbnail_unread": thumbnail.unread}
    if tissue.pen is not None:
        arrays["pen"] = tissue.pen
    extra = extra or {}
    for name, values in extra.items():
        if name in (*arrays, "ok", "patches") or len(values) != len(grid):
            raise ValueError(
                f"extra array {name!r} {values.shape}: its name is taken, or it is not of {len(grid)} rows"
            )
    for name, values in {**arrays, **extra}.items():
        writer.put(name, values)
    info = {item.name: getattr(slide.info, item.name) for item in fields(slide.info)}
    levels = [asdict(level) for level in slide.levels]
    return {
        "slide_id": request.slide_id,
        "fingerprint": request.fingerprint,
        "grid_fingerprint": request.grid_fingerprint,
        "identity": request.identity,
        "slide": {"width": slide.levels[0].width, "height": slide.levels[0].height, **info, "levels": levels},
        "spec": asdict(grid.spec),
        "grid": {"level": grid.level, "span_px": grid.span_px, "mpp": grid.mpp, "found": grid.found},
        "mask_scale": tissue.scale,
        "thumbnail_scale": thumbnail.scale,
        "tissue_um2": tissue.area_um2,
        "tissue_outline": outline,
        "pixels": request.pixels,
        "extra": sorted(extra),
        "notes": dict(request.notes or {}),
    }


def finish_pixels(writer: StoreWriter, slide: Slide, facts: dict[str, Any], ok: NDArray[np.bool_]) -> int:
    """The last of a PatchStore whose pixels are written; returns how many tiles are not `ok`, bool (n,).

    Raises SlideError when these are more than the spec allows.
    """
    writer.put("ok", ok)
    failed = check_failed_tiles(slide, ok, facts["spec"]["max_failed_tiles"])
    writer.finish(SCHEMA, facts, len(ok), failed)
    return failed


def open_patches(path: str | Path) -> PatchStore:
    """Open a finished PatchStore. Raises StoreError when it is missing, unfinished, damaged or of another schema."""
    return PatchStore(Path(path), open_complete(Path(path), SCHEMA, "wsi tile"))


def _read_block(shards: PatchShards, block_info: Any = None) -> NDArray[np.uint8]:
    start, stop = block_info[None]["array-location"][0]
    return shards.read_at(np.arange(start, stop))
