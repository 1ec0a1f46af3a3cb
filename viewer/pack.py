"""Tiles and their numbers as the browser takes them: a header in JSON, then plain little-endian arrays.

uint32 length of the header, which is padded to a multiple of 4; the header; int32 xy (n, 2); int32 failed (m, 2);
float32 (n,) for each column.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from heatmaps.heatmap import Heatmap
    from tiling.patches import PatchStore

Column = tuple[NDArray[np.float32], float, float]  # values, and the range they are drawn in


def pack_heatmap(heatmap: "Heatmap", display: tuple[float, float] | None = None) -> bytes:
    """The drawn score first, then the measurements: of ranks the range is 0 to 1, of others what occurs.

    display  what the files of this heatmap spread their colours over, None where that is not known
    """
    columns: dict[str, Column] = {heatmap.name: (heatmap.scores, *heatmap.limits)}
    for name, values in heatmap.measurements.items():
        columns[name] = values, *((0.0, 1.0) if name.endswith(" rank") else _range(values))
    return pack(heatmap.span_px, heatmap.xy, heatmap.failed_xy, columns, display)


def pack_grid(store: "PatchStore") -> bytes:
    """The share of tissue of each tile, then what else is measured of tiles; `failed`: those that could not be read."""
    grid = store.grid
    columns: dict[str, Column] = {"tissue": (grid.tissue, 0.0, 1.0)}
    for name, values in store.extra.items():
        if values.ndim == 1:
            numbers = values.astype(np.float32)
            columns[name] = numbers, *((0.0, 1.0) if values.dtype == bool else _range(numbers))
    failed = grid.xy[~store.array("ok")] if store.has("ok") else np.empty((0, 2), np.int64)
    return pack(grid.span_px, grid.xy, failed, columns)


def pack(
    span_px: int,
    xy: NDArray[np.int64],
    failed: NDArray[np.int64],
    columns: Mapping[str, Column],
    display: tuple[float, float] | None = None,
) -> bytes:
    """xy, failed: (n, 2) and (m, 2), top-left corners in level-0 pixels; span_px: the tiles' side there; display: range
    of colours for the first column, of the whole cohort."""
    said = [{"name": name, "low": float(low), "high": float(high)} for name, (_, low, high) in columns.items()]
    head: dict[str, Any] = {"span_px": int(span_px), "n": len(xy), "failed": len(failed), "columns": said}
    head["display"] = None if display is None else [float(end) for end in display]
    text = json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    parts = [len(text).to_bytes(4, "little"), text, xy.astype("<i4").tobytes(), failed.astype("<i4").tobytes()]
    return b"".join([*parts, *(values.astype("<f4").tobytes() for values, _, _ in columns.values())])


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
