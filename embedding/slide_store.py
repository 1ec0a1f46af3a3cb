"""The SlideVector store: one vector of one slide and the contract it was made under, as a small Zarr v3 group."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.store import Store, open_complete, write_store
from wsi.errors import StoreError

SCHEMA = "slide_embeddings/1"


@dataclass(frozen=True)
class SlideStore(Store):
    """A finished store, opened for reading.

    vector      float32 (dim,); None of a slide without tiles
    contract    see `slide_encoders.contract.make_slide_contract`
    embeddings  fingerprint of the tiles' embeddings it was made from
    notes       in words, how those differ from what the encoder was trained on
    """

    @property
    def contract(self) -> dict[str, Any]:
        return dict(self.attrs["contract"])

    @property
    def contract_hash(self) -> str:
        return str(self.contract["hash"])

    @property
    def embeddings(self) -> str:
        return str(self.attrs["embeddings"])

    @property
    def notes(self) -> list[str]:
        return list(self.attrs["notes"])

    @cached_property
    def vector(self) -> NDArray[np.float32] | None:
        rows = self.array("vector")
        if rows.shape[1:] != (self.contract["dim"],) or len(rows) > 1:
            raise StoreError(self.path, f"its vector has shape {rows.shape}", "run `wsi encode` again")
        return rows[0] if len(rows) else None


def write_slide_vector(
    path: Path, vector: NDArray[np.float32] | None, facts: dict[str, Any], tiles: int, failed: int
) -> None:
    """Write a store that appears whole at `path`.

    facts   slide_id, fingerprint, identity, contract, embeddings and notes
    tiles   of the slide; failed: those that could not be read and did not take part
    """
    dim = facts["contract"]["dim"]
    rows = np.zeros((0, dim), np.float32) if vector is None else np.asarray(vector, np.float32)[None]
    with write_store(path) as writer:
        writer.put("vector", rows)
        writer.finish(SCHEMA, facts, tiles, failed)


def open_slide_vector(path: str | Path) -> SlideStore:
    """Open a finished store. Raises StoreError when it is missing, unfinished or of another schema."""
    return SlideStore(Path(path), open_complete(Path(path), SCHEMA, "wsi encode"))
