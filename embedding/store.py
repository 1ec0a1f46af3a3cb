"""The EmbeddingStore: the embeddings of one slide and the contract they were made under, as a Zarr v3 group."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.store import Store, StoreWriter, open_complete, write_store
from wsi.errors import StoreError

SCHEMA = "embeddings/1"
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class EmbeddingStore(Store):
    """A finished store, opened for reading.

    embeddings  float16 or float32 (n, d), or (n, grid, grid, d) of a dense backbone; rows whose tile could not be read
                are zero and must not be used
    views       the same of the patch's other views (n, v - 1, d), where more than one was embedded, else None
    ok          bool (n,), False for those rows
    xy          int64 (n, 2), tiles' top-left corners in level-0 pixels
    span_px     side of a tile in level-0 pixels
    contract    see `contract.make_contract`
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
    def embeddings(self) -> NDArray[Any]:
        return self._array("embeddings")

    @cached_property
    def views(self) -> NDArray[Any] | None:
        return self._array("views") if self.has("views") else None

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


class EmbeddingWriter:
    """Writes an EmbeddingStore while its embeddings are made, chunk by chunk, so that memory does not grow with the
    slide. Made by `write_embeddings`; safe to use from one thread.
    """

    def __init__(self, store: StoreWriter, tiles: int, row_shape: tuple[int, ...], dtype: str, views: int):
        self._store, self.tiles = store, tiles
        self.rows = max(1, min(tiles, CHUNK_BYTES // (int(np.prod(row_shape)) * views * np.dtype(dtype).itemsize)))
        shape = (tiles, *row_shape)
        self._arrays = {"embeddings": store.array("embeddings", shape, dtype, self.rows)}
        if views > 1:
            views_shape = (tiles, views - 1, *row_shape)
            self._arrays["views"] = store.array("views", views_shape, dtype, self.rows)
        # one buffer, filled again and again: thousands of small arrays that wait would keep the heap in pieces
        self._waiting = np.empty((self.rows, views, *row_shape), dtype)
        self._filled = self._written = 0
        self.ok = np.zeros(tiles, np.bool_)

    def write(self, vectors: NDArray[Any], ok: NDArray[np.bool_]) -> None:
        """The next rows: vectors (b, views, *row_shape), zero where `ok` (b,) is False."""
        start = self._written + self._filled
        self.ok[start : start + len(ok)] = ok
        while len(vectors):
            taken = vectors[: self.rows - self._filled]
            self._waiting[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            vectors = vectors[len(taken) :]
            if self._filled == self.rows:
                self._flush()

    def _flush(self) -> None:
        chunk = self._written // self.rows
        self._arrays["embeddings"].write(chunk, self._waiting[: self._filled, 0])
        if "views" in self._arrays:
            self._arrays["views"].write(chunk, self._waiting[: self._filled, 1:])
        self._written, self._filled = self._written + self._filled, 0

    def finish(self, xy: NDArray[np.int64], facts: dict[str, Any]) -> None:
        """All rows are written: add coordinates and facts. Raises StoreError when some are not."""
        if self._filled:
            self._flush()
        if self._written != self.tiles:
            raise StoreError(self._store.draft, f"{self._written} of {self.tiles} rows were written", "report this")
        self._store.put("xy", xy)
        self._store.put("ok", self.ok)
        self._store.finish(SCHEMA, facts, self.tiles, int((~self.ok).sum()))


@contextmanager
def write_embeddings(
    path: Path, tiles: int, row_shape: tuple[int, ...], dtype: str = "float16", views: int = 1
) -> Iterator[EmbeddingWriter]:
    """Write an EmbeddingStore that appears at `path` when the block ends well and the writer was finished."""
    with write_store(path) as store:
        yield EmbeddingWriter(store, tiles, row_shape, dtype, views)


def open_embeddings(path: str | Path) -> EmbeddingStore:
    """Open a finished EmbeddingStore. Raises StoreError when it is missing, unfinished or of another schema."""
    return EmbeddingStore(Path(path), open_complete(Path(path), SCHEMA, "wsi embed"))
