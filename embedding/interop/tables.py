"""AnnData (.h5ad) and SpatialData (.zarr): a table of embeddings with the tiles' places.

AnnData as squidpy reads it: `X` float32 (n, d), `obs` x, y, `obsm["spatial"]` the tiles' centres in level-0 pixels,
`uns["spatial"][slide]["scalefactors"]`. SpatialData as LazySlide lays it out: `shapes/tiles`, boxes in level-0 pixels,
`tables/<encoder>_tiles`, and `tile_spec`. What neither has a field for is in `uns["embedding"]`, as JSON.
"""

import json
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import StoreError
from wsi.publish import appear, appear_file

from .features import Features, Known, Report, keep, plain_name, settle
from .hdf5 import array, corners, opened, text_of

_OURS = ("span_px", "tile_px", "mpp", "mpp_source", "slide_mpp", "size", "overlap_px", "encoder", "level")
_INSTALL = {"anndata": 'pip install "slidestream[spatial]"', "spatialdata": "pip install spatialdata"}


@dataclass(frozen=True)
class _Parts:
    """What a table says of its rows: float (n, 2) corners or centres, the side of a tile, and our own record."""

    corners: NDArray[Any] | None
    centres: NDArray[Any] | None
    side_px: float
    record: str | None


def read_anndata(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """`X` with `obs` x and y as corners; without these, `obsm["spatial"]`, taken for centres.

    The file is read as the HDF5 that it is: a damaged one can end the process of whoever trusts it.
    """
    with opened(path) as file:
        values = array(path, file, "X")
        sided = "obs/x" in file and "obs/y" in file
        xy = np.column_stack([array(path, file, f"obs/{name}", (1,)) for name in "xy"]) if sided else None
        centres = array(path, file, "obsm/spatial") if "obsm/spatial" in file else None
        places = [f"uns/spatial/{name}/scalefactors/spot_diameter_fullres" for name in file.get("uns/spatial", ())]
        sides = [float(array(path, file, place, (0,))) for place in places if place in file]
        record = text_of(file, "uns/embedding")
    report = Report(path.stem, "anndata", path)
    parts = _Parts(xy, centres, sides[0] if sides else 0.0, record)
    found = _from_parts(path, Features(path.stem, "anndata", values), parts, report)
    return [(settle(found, known, report), report)]


def read_spatialdata(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """Every table of the store that annotates `tiles`, with their boxes."""
    spatialdata = _package("spatialdata")
    try:
        data = spatialdata.read_zarr(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(path, f"not a sound SpatialData store ({error})", "write it again") from None
    if not data.tables:
        raise StoreError(path, "it has no tables, so no embeddings", "name a store with embeddings")
    found = []
    for name, table in data.tables.items():
        report = Report(path.stem, "spatialdata", path)
        features = Features(path.stem, "spatialdata", _matrix(table), encoder=name.removesuffix("_tiles"))
        features = _from_parts(path, features, _parts_of(table), report)
        if features.xy is None and "tiles" in data.shapes and len(data.shapes["tiles"]) == table.n_obs:
            boxes = data.shapes["tiles"].geometry.bounds.to_numpy()
            width = round(float(np.median(boxes[:, 2] - boxes[:, 0]))) if len(boxes) else None
            features = replace(features, xy=corners(path, boxes), span_px=width)
        found.append((settle(features, known, report), report))
    return found


def _matrix(table: Any) -> Any:
    values = table.X
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def _parts_of(table: Any) -> _Parts:
    sided = {"x", "y"} <= set(table.obs.columns)
    centres = np.asarray(table.obsm["spatial"]) if "spatial" in table.obsm else None
    record = table.uns.get("embedding")
    return _Parts(table.obs[["x", "y"]].to_numpy() if sided else None, centres, 0.0, record)


def _from_parts(path: Path, found: Features, parts: _Parts, report: Report) -> Features:
    """The features with what the table says of them."""
    try:
        stated = json.loads(parts.record) if isinstance(parts.record, str) else {}
    except ValueError as error:
        raise StoreError(path, f"its record of the embedding is no JSON ({error})", "write it again") from None
    values = {name: stated[name] for name in _OURS if stated.get(name) is not None}
    if "size" in values:
        values["size"] = tuple(values["size"])
    found = replace(found, **values, facts={"contract": stated.get("contract")} if stated else {})
    if parts.corners is not None:
        return replace(found, xy=corners(path, parts.corners))
    if parts.centres is not None:
        report.guessed("coords", "obsm spatial", "taken for the tiles' centres, in level-0 pixels")
        span_px = round(parts.side_px) or found.span_px
        return replace(found, xy=corners(path, parts.centres - (span_px or 0) / 2), span_px=span_px)
    return found


def _table(found: Features) -> Any:
    anndata = _package("anndata")
    names = [f"{found.slide_id}_{number}" for number in range(len(found.embeddings))]
    table = anndata.AnnData(found.embeddings.astype(np.float32))
    table.obs_names = names
    stated = {name: getattr(found, name) for name in _OURS} | {"contract": dict(found.facts)}
    table.uns["embedding"] = json.dumps(stated, default=str)
    if found.xy is not None:
        side = found.span_px or 0
        table.obs["x"], table.obs["y"] = found.xy[:, 0], found.xy[:, 1]
        table.obsm["spatial"] = found.xy + side / 2
        scale = {"spot_diameter_fullres": float(side), "tissue_hires_scalef": 1.0}
        table.uns["spatial"] = {found.slide_id: {"scalefactors": scale, "images": {}, "metadata": {}}}
    return table


def write_anndata(found: Features, out: Path, report: Report) -> Path:
    """`<slide>.h5ad`."""
    path = out / f"{found.slide_id}.h5ad"
    with appear_file(path) as draft:
        _table(found).write_h5ad(draft)
    _say_all_kept(found, report)
    return path


def write_spatialdata(found: Features, out: Path, report: Report) -> Path:
    """`<slide>.zarr`. Raises StoreError where the package spatialdata is not installed."""
    import shapely

    spatialdata = _package("spatialdata")
    import geopandas  # type: ignore[import-untyped]  # comes with it

    name = f"{plain_name(found.encoder or 'unknown')}_tiles"
    table, path = _table(found), out / f"{found.slide_id}.zarr"
    shapes, spec = {}, {}
    if found.xy is not None and found.span_px and len(found.xy):
        x, y = found.xy.T
        boxes = shapely.box(x, y, x + found.span_px, y + found.span_px)
        frame = geopandas.GeoDataFrame({"tile_id": np.arange(len(x)), "geometry": boxes})
        shapes = {"tiles": spatialdata.models.ShapesModel.parse(frame)}
        table.obs["tile_id"], table.obs["library_id"] = np.arange(len(x)), "tiles"
        table.obs["library_id"] = table.obs["library_id"].astype("category")
        keys = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
        table = spatialdata.models.TableModel.parse(table, **keys)
        side = {"height": found.tile_px, "width": found.tile_px, "mpp": found.mpp}
        spec = {"tile_spec": {"tiles": side | {"base_height": found.span_px, "base_width": found.span_px}}}
    data = spatialdata.SpatialData(tables={name: table}, shapes=shapes, attrs=spec)
    with appear(path) as draft:
        draft.rmdir()  # spatialdata makes the folder itself, or refuses
        data.write(draft)
    _say_all_kept(found, report)
    return path


def _say_all_kept(found: Features, report: Report) -> None:
    if found.embeddings.dtype != np.float32:
        report.kept("embeddings", None, f"{found.embeddings.dtype} as float32")
    else:
        report.kept("embeddings")
    keep(found, report, "coords", "span_px", "tile_px", "mpp", "slide_mpp", "encoder")
    report.kept("contract")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise StoreError(name, f"the package is not installed ({error})", _INSTALL[name]) from None
