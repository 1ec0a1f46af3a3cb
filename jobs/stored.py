"""What a run folder holds already."""

import json
from pathlib import Path

from tiling.patches import PatchStore
from wsi.errors import StoreError


def stored_count(path: Path, mark: str, max_failed: float) -> int | None:
    """Tiles in the finished store at `path`, or None if it is to be made: it is not there, was made from something else
    than `mark` says, or holds a larger share of unreadable tiles than is allowed now."""
    try:
        attrs = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError) as error:
        raise StoreError(path, f"its record is damaged ({error})", "delete the store and run again") from error
    complete = attrs.get("complete")
    if not complete or attrs.get("fingerprint") != mark or complete["failed"] > max_failed * complete["tiles"]:
        return None
    return int(complete["tiles"])


def made_since(path: Path, store: PatchStore) -> bool:
    """Whether the file or folder at `path` was written after the store: then it shows what is in it."""
    return path.exists() and path.stat().st_mtime_ns >= (store.path / "zarr.json").stat().st_mtime_ns
