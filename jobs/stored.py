"""What a run folder holds already."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiling.patches import PatchStore
from wsi.errors import StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """Tiles in a finished store, and how many of them could not be read."""

    tiles: int
    failed: int


def find_stored(path: Path, mark: str, max_failed: float, opened: Callable[[Path], object]) -> Stored | None:
    """What the finished store at `path` holds, or None if it is to be made: it is not there, was made from something
    else than `mark` says, holds a larger share of unreadable tiles than is allowed now, or `opened` finds it damaged.
    """
    try:
        attrs = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError) as error:
        _log.warning("%s: its record is damaged (%s), so it is made anew", path, error)
        return None
    complete = attrs.get("complete")
    if not complete or attrs.get("fingerprint") != mark or complete["failed"] > max_failed * complete["tiles"]:
        return None
    try:
        opened(path)
    except StoreError as error:
        _log.warning("%s: %s, so it is made anew", path, error.problem)
        return None
    return Stored(int(complete["tiles"]), int(complete["failed"]))


def made_since(path: Path, store: PatchStore) -> bool:
    """Whether the file or folder at `path` was written after the store: then it shows what is in it."""
    return path.exists() and path.stat().st_mtime_ns >= (store.path / "zarr.json").stat().st_mtime_ns
