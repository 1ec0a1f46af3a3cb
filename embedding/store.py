"""The EmbeddingStore: the embeddings of one slide and the contract they were made under, as a Zarr v3 group."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tiling.spec import TileSpec
from tiling.store import Store, count_files, open_complete, put
from wsi.channels import Channels
from wsi.errors import StoreError
from wsi.publish import appear, fingerprint

from .backbones import Backbone

SCHEMA = "embeddings/1"


def make_contract(backbone: Backbone, digest: str, tile: TileSpec) -> dict[str, Any]:
    """All that determines an embedding of a patch, and a hash over it.

    digest  sha256 of the weights file
    tile    how the tiles were asked for; of it size, scale and colours count
    What computed it (GPU in fp16, CPU in fp32) is not part of it: the difference is below the float16 that is stored.
    """
    contract: dict[str, Any] = {
        "backbone": backbone.name,
        "arch": backbone.arch,
        "options": backbone.options,
        "weights_sha256": digest,
        "dim": backbone.dim,
        "resize_px": backbone.resize_px,
        "input_px": backbone.input_px,
        "interpolation": "bicubic, antialiased",
        "mean": list(backbone.norm[0]),
        "std": list(backbone.norm[1]),
        "pooling": backbone.pooling,
        "precision": backbone.precision,
        "tile_px": tile.tile_px,
        "mpp": tile.mpp,
        "icc": tile.icc,
        "channels": tile.channels and str(Channels.parse(tile.channels)),
    }
    return {**contract, "hash": fingerprint(contract)}


def contract_name(contract: dict[str, Any]) -> str:
    """Short name of a contract, as used for folders: backbone and the first digits of the hash."""
    return f"{contract['backbone']}-{contract['hash'][:8]}"


@dataclass(frozen=True)
class EmbeddingStore(Store):
    """A finished store, opened for reading.

    embeddings  float16 (n, d); rows whose tile could not be read are zero and must not be used
    ok          bool (n,), False for those rows
    xy          int64 (n, 2), tiles' top-left corners in level-0 pixels
    span_px     side of a tile in level-0 pixels
    contract    see `make_contract`
    """

    @property
    def contract(self) -> dict[str, Any]:
        return dict(self.attrs["contract"])

    @property
    def contract_hash(self) -> str:
        return str(self.contract["hash"])

    @property
    def span_px(self) -> int:
        return int(self.attrs["span_px"])

    @cached_property
    def embeddings(self) -> NDArray[np.float16]:
        return self._array("embeddings")

    @cached_property
    def xy(self) -> NDArray[np.int64]:
        return self._array("xy")

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        return self._array("ok")

    def _array(self, name: str) -> NDArray[Any]:
        values = self.array(name)
        if len(values) != self.attrs["complete"]["tiles"]:
            raise StoreError(
                self.path, f"{name} has {len(values)} rows, not those it was finished with", "run `wsi embed` again"
            )
        return values


@dataclass(frozen=True)
class Embedded:
    """What `embed_patches` made of one slide: embeddings float16 (n, d), ok bool (n,)."""

    embeddings: NDArray[np.float16]
    ok: NDArray[np.bool_]


def write_embeddings(path: Path, embedded: Embedded, xy: NDArray[np.int64], facts: dict[str, Any]) -> None:
    """Publish an EmbeddingStore at `path`.

    facts  slide_id, fingerprint, identity, contract, span_px and what else is worth keeping
    """
    with appear(path) as draft:
        group = zarr.open_group(draft, mode="w", zarr_format=3)
        put(group, "embeddings", embedded.embeddings)
        put(group, "xy", xy)
        put(group, "ok", embedded.ok)
        complete = {"tiles": len(xy), "failed": int((~embedded.ok).sum()), "files": count_files(draft)}
        group.attrs.update({"schema": SCHEMA, **facts, "complete": complete})  # type: ignore[dict-item]


def open_embeddings(path: str | Path) -> EmbeddingStore:
    """Open a finished EmbeddingStore. Raises StoreError when it is missing, unfinished or of another schema."""
    return EmbeddingStore(Path(path), open_complete(Path(path), SCHEMA, "wsi embed"))
