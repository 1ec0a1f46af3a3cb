"""Between an EmbeddingStore and Features."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tiling.patches import PatchStore
from wsi.errors import SpecError, StoreError
from wsi.publish import fingerprint

from ..store import EmbeddingStore, write_embeddings
from .features import Features, Report

IMPORT_VERSION = 1  # raised when the same file begins to give other embeddings


def from_store(store: EmbeddingStore, tiles: PatchStore | None, report: Report) -> Features:
    """A slide's embeddings as they go to another tool: tiles that could not be read are left out.

    tiles  of the run, where it has them: they know the slide's size and the tiles' overlap
    Raises SpecError for embeddings with a grid of vectors a tile, for which no tool has a place.
    """
    values, ok, contract = store.embeddings, store.ok, store.contract
    if values.ndim != 2:
        problem = f"its embeddings are {values.shape[1:]} a tile"
        raise SpecError(store.slide_id, problem, "export those of a backbone with one vector a tile")
    if not ok.all():
        report.dropped("failed tiles", "they could not be read and have no embedding", int((~ok).sum()))
    if store.views is not None:
        report.dropped("views", "there is a place for one vector a tile: that of the patch as it is")
    tile_px, mpp, span_px = contract.get("tile_px"), store.attrs.get("mpp"), store.span_px or None
    slide_mpp = store.attrs.get("slide_mpp")
    if "origin" not in contract and mpp and tile_px and span_px:  # an imported scale may be nominal
        slide_mpp = mpp * tile_px / span_px
    size, overlap = None, None
    if tiles is not None:
        size = int(tiles.attrs["slide"]["width"]), int(tiles.attrs["slide"]["height"])
        overlap = max(0, tiles.grid.spec.tile_px - tiles.grid.spec.stride)
    return Features(
        slide_id=store.slide_id,
        origin="slidestream",
        embeddings=values[ok],
        xy=store.xy[ok] if is_placed(store) else None,
        span_px=span_px,
        tile_px=tile_px,
        mpp=contract.get("mpp"),
        mpp_source="file",
        slide_mpp=slide_mpp,
        size=size,
        overlap_px=overlap,
        encoder=contract.get("encoder") if "origin" in contract else contract["backbone"],
        facts=contract,
    )


def is_placed(store: EmbeddingStore) -> bool:
    """Whether the places of the tiles are known."""
    return bool(store.attrs.get("placed", True))


def to_store(
    found: Features, contract: Mapping[str, Any], file: Path, path: Path, tiles: PatchStore | None = None
) -> str:
    """Publish features of another tool as an EmbeddingStore at `path`; returns its fingerprint.

    file   where they are from
    tiles  the run's own tiles at the same places: then heatmaps can be drawn on that slide. Without, the content
           counts as the slide's identity: the same features under another name are the same slide
    Where the places are unknown, xy is -1 and `placed` False. Raises StoreError where the tiles lie elsewhere.
    """
    if tiles is not None and not _same_places(found, tiles):
        problem = f"the run folder has other tiles of {found.slide_id} than these features were made of"
        raise StoreError(file, problem, "tile with --coords and the tool's coordinates, or name another run folder")
    values = np.ascontiguousarray(found.embeddings)
    digest = sha256(values.tobytes())
    placed = found.xy is not None
    xy = found.xy if found.xy is not None else np.full((len(values), 2), -1, np.int64)
    mark = fingerprint(IMPORT_VERSION, contract["hash"], digest.hexdigest(), sha256(xy.tobytes()).hexdigest())
    tile_px, span_px = found.tile_px, found.span_px
    exact = found.slide_mpp * span_px / tile_px if found.slide_mpp and span_px and tile_px else found.mpp
    facts = {
        "slide_id": found.slide_id,
        "fingerprint": mark,
        "identity": tiles.identity if tiles else f"features-{digest.hexdigest()}" if len(values) else "",
        "grid_fingerprint": tiles.attrs["grid_fingerprint"] if tiles else None,
        "contract": dict(contract),
        "span_px": span_px or 0,
        "mpp": exact,
        "mpp_source": found.mpp_source,
        "slide_mpp": found.slide_mpp,
        "placed": placed,
        "source": str(file),
    }
    with write_embeddings(path, len(values), values.shape[1:], str(values.dtype)) as writer:
        writer.write(values[:, None], np.ones(len(values), np.bool_))
        writer.finish(xy, facts)
    return mark


def _same_places(found: Features, tiles: PatchStore) -> bool:
    if found.xy is None or found.span_px != tiles.grid.span_px:
        return False
    return set(map(tuple, found.xy.tolist())) <= set(map(tuple, tiles.grid.xy.tolist()))
