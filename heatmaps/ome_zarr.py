"""Heatmaps as OME-Zarr (NGFF 0.5): scores at the tiles' own resolution, laid on the slide by scale and translation."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.publish import appear

from .colour import NO_DATA
from .heatmap import Heatmap
from .raster import BACKGROUND, FAILED, SCORED, Raster, tile_raster

_SMALLEST_PX = 256
_CHUNK_PX = 1024
STATES = {BACKGROUND: "no tile", SCORED: "scored", FAILED: "no data"}

_STATE_RGBA = {BACKGROUND: (255, 255, 255, 0), SCORED: (47, 111, 196, 255), FAILED: (*NO_DATA, 255)}


def write_ome_zarr(heatmap: Heatmap, path: Path, mpp: float, *, display: tuple[float, float] | None = None) -> None:
    """Write the heatmap as an OME-Zarr image of axes y, x in micrometres, whose pixels are cells of the tile lattice.

    Arrays: float32 scores, NaN where no tile has one; and the label image `state`, uint8: 0 no tile, 1 scored, 2 no
    data. Coarser levels are means of the scored pixels. A viewer that follows the transforms lays it on the slide.
    mpp: µm per level-0 pixel. display: contrast limits for viewers, `heatmap.limits` by default.
    """
    import zarr

    raster = tile_raster(heatmap)
    levels = _levels(raster)
    low, high = display or heatmap.limits
    with appear(path) as draft:
        group = zarr.open_group(draft, mode="w", zarr_format=3)
        image = _multiscales(group, [mean for mean, _ in levels], raster, mpp, np.nan)
        facts: dict[str, Any] = {"slide_id": heatmap.slide_id, "score": heatmap.name, "class": heatmap.class_name}
        facts |= {"span_px": heatmap.span_px, "origin": heatmap.origin, "limits": list(heatmap.limits)}
        channel: dict[str, Any] = {"label": heatmap.name, "active": True, "color": "DD4F2B"}
        channel["window"] = {"min": heatmap.limits[0], "max": heatmap.limits[1], "start": low, "end": high}
        omero: dict[str, Any] = {"channels": [channel], "rdefs": {"model": "greyscale"}}
        name = f"{heatmap.slide_id}: {heatmap.name}"
        group.attrs.update(
            {"ome": {"version": "0.5", "multiscales": [{"name": name, **image}], "omero": omero}, "slidestream": facts}
        )
        labels = group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["state"]}})
        state = labels.create_group("state")
        shown = _multiscales(state, [state for _, state in levels], raster, mpp, 0)
        colours = [{"label-value": value, "rgba": list(_STATE_RGBA[value])} for value in STATES]
        properties = [{"label-value": value, "meaning": meaning} for value, meaning in STATES.items()]
        label: dict[str, Any] = {"colors": colours, "properties": properties, "source": {"image": "../../"}}
        state.attrs.update({"ome": {"version": "0.5", "multiscales": [shown], "image-label": label}})


def _multiscales(group: Any, levels: list[NDArray], raster: Raster, mpp: float, fill: float) -> dict[str, Any]:
    datasets = []
    for number, values in enumerate(levels):
        array = group.create_array(
            str(number),
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(min(side, _CHUNK_PX) for side in values.shape),
            fill_value=fill,
            dimension_names=("y", "x"),
        )
        array[:] = values
        side = raster.cell_px * 2**number
        # a pixel's place is its centre
        place = [(start + side / 2) * mpp for start in reversed(raster.origin)]
        moves = [{"type": "scale", "scale": [side * mpp] * 2}, {"type": "translation", "translation": place}]
        datasets.append({"path": str(number), "coordinateTransformations": moves})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")]
    return {"axes": axes, "datasets": datasets}


def _levels(raster: Raster) -> list[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    levels = [(raster.mean, raster.state)]
    while max(levels[-1][0].shape) > _SMALLEST_PX:
        levels.append(_halved(*levels[-1]))
    return levels


def _halved(mean: NDArray[np.float32], state: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Means over scored pixels of 2 × 2; the state that is most there, a score before no data before nothing."""
    odd = [(0, side % 2) for side in mean.shape]
    mean, state = np.pad(mean, odd, constant_values=np.nan), np.pad(state, odd)
    blocks = (mean.shape[0] // 2, 2, mean.shape[1] // 2, 2)
    scored = (state == SCORED).reshape(blocks)
    count = scored.sum(axis=(1, 3))
    total = np.where(scored, np.nan_to_num(mean.reshape(blocks)), 0).sum(axis=(1, 3))
    half = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0).astype(np.float32)
    order = (BACKGROUND, FAILED, SCORED)
    votes = [(state.reshape(blocks) == value).sum(axis=(1, 3)) * 4 + rank for rank, value in enumerate(order)]
    chosen = np.array(order, np.uint8)[np.argmax(votes, axis=0)]
    half[chosen != SCORED] = np.nan
    return half, chosen
