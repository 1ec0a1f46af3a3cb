"""The PatchStore: what a slide was cut into, and its pixels if they are wanted, as a Zarr v3 group."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from wsi.errors import StoreError
from wsi.publish import appear
from wsi.slide import Slide

from .grid import TileGrid
from .spec import TileSpec
from .store import Store, count_files, open_complete, put
from .stream import check_failed_tiles, iter_patches
from .tissue import Thumbnail, Tissue, read_thumbnail, tissue_outline

SCHEMA = "patches/1"
SHARD_BYTES = 48 << 20  # a shard is written whole, from one batch


@dataclass(frozen=True)
class PatchStore(Store):
    """A finished store, opened for reading.

    Arrays: xy int64 (n, 2) · tissue float32 (n,) · mask bool (rows, cols) · thumbnail uint8 (rows, cols, 3) and, if
    pixels were kept, patches uint8 (n, t, t, 3), one patch a chunk in sharded files, and ok bool (n,).
    """

    @cached_property
    def grid(self) -> TileGrid:
        attrs = self.attrs
        spec = TileSpec.from_plain(attrs["spec"])
        grid = attrs["grid"]
        return TileGrid(spec, grid["level"], grid["span_px"], grid["mpp"], self.array("xy"), self.array("tissue"))

    @property
    def mask_scale(self) -> int:
        """Level-0 pixels per pixel of the mask."""
        return int(self.attrs["mask_scale"])

    @property
    def thumbnail(self) -> Thumbnail:
        return Thumbnail(self.array("thumbnail"), int(self.attrs["thumbnail_scale"]), self.array("thumbnail_unread"))

    @property
    def has_patches(self) -> bool:
        return "patches" in self.group

    def read_patches(self, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 (stop - start, t, t, 3). Raises StoreError if the pixels were not kept."""
        if not self.has_patches:
            raise StoreError(self.path, "it holds no pixels", "tile again with --patches, or read from the slide")
        stored = self.group["patches"]
        assert isinstance(stored, zarr.Array)
        return np.asarray(stored[start:stop])

    def as_dask(self) -> Any:
        """The patches as a Dask array, one task a shard."""
        import dask.array as da

        if not self.has_patches:
            raise StoreError(self.path, "it holds no pixels", "tile again with --patches")
        stored = self.group["patches"]
        assert isinstance(stored, zarr.Array)
        return da.from_array(stored, chunks=stored.shards or stored.chunks, name=False)


@dataclass(frozen=True)
class PatchRequest:
    """Whose the store is, and whether it keeps pixels.

    fingerprint       of all that shaped the store; grid_fingerprint: of what shaped the grid alone
    identity          digest of the slide's content
    """

    slide_id: str
    fingerprint: str
    grid_fingerprint: str = ""
    identity: str = ""
    keep_pixels: bool = False
    threads: int = 2


def write_patches(path: Path, slide: Slide, grid: TileGrid, tissue: Tissue, request: PatchRequest) -> int:
    """Publish the PatchStore of one slide at `path`, replacing an older one only when it is whole.

    Returns the number of unreadable tiles (always 0 when pixels are not kept: nothing was read). Raises SlideError
    when they are more than the spec allows.
    """
    with appear(path) as draft:
        group = zarr.open_group(draft, mode="w", zarr_format=3)
        for name, values in (("xy", grid.xy), ("tissue", grid.tissue)):
            put(group, name, values)
        thumbnail = read_thumbnail(slide)
        put(group, "thumbnail", thumbnail.pixels)
        put(group, "thumbnail_unread", thumbnail.unread)
        put(group, "mask", tissue.mask)
        failed = _write_pixels(group, slide, grid, request.threads) if request.keep_pixels else 0
        info = {item.name: getattr(slide.info, item.name) for item in fields(slide.info)}
        group.attrs.update(
            {
                "schema": SCHEMA,
                "slide_id": request.slide_id,
                "fingerprint": request.fingerprint,
                "grid_fingerprint": request.grid_fingerprint,
                "identity": request.identity,
                "slide": {"width": slide.levels[0].width, "height": slide.levels[0].height, **info},
                "spec": asdict(grid.spec),
                "grid": {"level": grid.level, "span_px": grid.span_px, "mpp": grid.mpp},
                "mask_scale": tissue.scale,
                "thumbnail_scale": thumbnail.scale,
                "tissue_um2": tissue.area_um2,
                "tissue_outline": tissue_outline(tissue),
                "complete": {"tiles": len(grid), "failed": failed, "files": count_files(draft)},
            }
        )
    return failed


def open_patches(path: str | Path) -> PatchStore:
    """Open a finished PatchStore. Raises StoreError when it is missing, unfinished, damaged or of another schema."""
    return PatchStore(Path(path), open_complete(Path(path), SCHEMA, "wsi tile"))


def _write_pixels(group: zarr.Group, slide: Slide, grid: TileGrid, threads: int) -> int:
    size = grid.spec.tile_px
    shard = max(1, SHARD_BYTES // (size * size * 3))
    array = group.create_array(
        "patches",
        shape=(len(grid), size, size, 3),
        chunks=(1, size, size, 3),
        shards=(shard, size, size, 3),
        dtype="uint8",
        compressors=(Crc32cCodec(),),  # H&E pixels do not compress without loss; a checksum costs nothing
        config={"write_empty_chunks": True},  # else every chunk is scanned for the fill value first
    )
    ok = np.zeros(len(grid), bool)
    # a batch of the stream is exactly one shard: each is written once, whole, by one writer
    for batch in iter_patches(slide, grid, threads):
        stop = batch.start + len(batch.patches)
        batch.patches[~batch.ok] = 0
        array[batch.start : stop] = batch.patches
        ok[batch.start : stop] = batch.ok
    put(group, "ok", ok)
    return check_failed_tiles(slide, ok, grid.spec.max_failed_tiles)
