"""A heatmap's numbers as one small file: what every export is made from, and what the viewer shows.

The file is a NumPy archive (.npz: a zip with a CRC-32 of each member) of plain arrays; nothing in it is unpickled.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError, StoreError
from wsi.publish import appear_file

from .heatmap import Heatmap

SCHEMA = "scores/1"
_REMEDY = "draw it again with `wsi heatmap`"
_DAMAGED = (
    *(ValueError, KeyError, TypeError, EOFError, OSError, SpecError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),  # zipfile, of a flag for another compression or a password
)


def write_scores(heatmap: Heatmap, path: Path) -> None:
    """Write `heatmap` so that `read_scores` gives back an equal one. Equal heatmaps give equal bytes."""
    head = {
        "schema": SCHEMA,
        "slide_id": heatmap.slide_id,
        "name": heatmap.name,
        "class_name": heatmap.class_name,
        "span_px": heatmap.span_px,
        "limits": list(heatmap.limits),
        "origin": heatmap.origin,
        "measurements": list(heatmap.measurements),
    }
    text = np.frombuffer(json.dumps(head, ensure_ascii=False, allow_nan=False).encode(), np.uint8)
    arrays: dict[str, NDArray[Any]] = {"head": text, "xy": heatmap.xy.astype(np.int32)}
    arrays |= {"failed_xy": heatmap.failed_xy.astype(np.int32), "scores": heatmap.scores}
    arrays |= {f"measurement_{number}": values for number, values in enumerate(heatmap.measurements.values())}
    with appear_file(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_scores(path: Path) -> Heatmap:
    """The heatmap of a file of `write_scores`. Raises StoreError where it is missing, damaged or no such file."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            head = json.loads(found["head"].tobytes())
            if head["schema"] != SCHEMA:
                raise StoreError(path, f"its schema is {head['schema']!r}, not {SCHEMA!r}", _REMEDY)
            return Heatmap(
                head["slide_id"],
                head["name"],
                head["class_name"],
                found["scores"],
                found["xy"].astype(np.int64),
                head["span_px"],
                tuple(head["limits"]),
                {name: found[f"measurement_{number}"] for number, name in enumerate(head["measurements"])},
                found["failed_xy"].astype(np.int64),
                head["origin"],
            )
    except FileNotFoundError:
        raise StoreError(path, "there are no scores of this slide", _REMEDY) from None
    except _DAMAGED as error:
        raise StoreError(path, f"its scores are damaged ({error})", _REMEDY) from None
