"""Pixels that several workers write: the plan of a PatchStore, parts of its pixels, and the store made of them.

A plan is a folder that has all of a store but its pixels. A part is whole files of its array `patches`; any process or
machine may write it, and where two write the same one they write the same bytes. The store is made beside the plan of
links to its files: what a late writer still leaves in the plan is in no store.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from wsi.errors import StoreError
from wsi.publish import draft_of, flush_path, flush_tree, seal_fits, write_json
from wsi.slide import Slide

from .arrays import read_layout
from .grid import TileGrid
from .patches import PatchRequest, PatchStore, finish_pixels, lay_out
from .pixels import check_pixels, declare_pixels, write_pixels
from .shards import PatchShards
from .spec import TileSpec
from .store import StoreWriter, write_store
from .tissue import Tissue

_PLAN = "plan.json"


@dataclass(frozen=True)
class PatchPlan(PatchStore):
    """A plan, opened: it reads as the store will, but for its pixels.

    part_tiles  tiles of a part, whole shards; the last one may have fewer
    """

    part_tiles: int

    @property
    def parts(self) -> int:
        return -(-len(self.grid) // self.part_tiles)

    def rows_of(self, number: int) -> slice:
        """Which tiles part `number` is."""
        start = number * self.part_tiles
        return slice(start, min(start + self.part_tiles, len(self.grid)))

    def write_part(self, slide: Slide, number: int, request: PatchRequest) -> NDArray[np.bool_]:
        """Write the pixels of one part, to the disk; returns ok, bool (rows,): which of its tiles could be read.

        Raises StoreError where they are not there in the end: another has joined the parts, or the disk lost them.
        """
        rows, folder = self.rows_of(number), self.path / "patches"
        part = replace(self.grid, xy=self.grid.xy[rows], tissue=self.grid.tissue[rows])
        ok = write_pixels(folder, slide, part, request, rows.start)
        shards = PatchShards(folder)
        shards.check_files(rows)
        for shard in range(rows.start // shards.per_shard, -(-rows.stop // shards.per_shard)):
            file = shards.path_of(shard)
            for place in (file, *file.parents[:5]):  # a crashed machine must not lose what is called done
                flush_path(place)
        return ok

    def check_part(self, number: int) -> None:
        """Raise StoreError where files of the part are gone or damaged, as far as their lengths and indices say."""
        self.shards.check_files(self.rows_of(number))

    def publish(self, path: Path, slide: Slide, ok: NDArray[np.bool_], spec: TileSpec) -> int:
        """Publish the store at `path` when all parts are written; as `write_patches` would have, to the same bytes.

        ok    bool (n,), which tiles could be read
        spec  today's: it may allow more unreadable tiles than when the plan was made
        Returns how many could not be; raises SlideError when they are more than that, StoreError where files are gone.
        """
        with write_store(path) as writer:
            for folder in sorted(entry.parent for entry in self.path.glob("*/zarr.json")):
                writer.adopt(folder)
            return finish_pixels(writer, slide, {**self.attrs, "spec": asdict(spec)}, ok)


def write_plan(
    folder: Path,
    slide: Slide,
    grid: TileGrid,
    tissue: Tissue,
    request: PatchRequest,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Make the plan of a PatchStore, which appears whole at `folder`, unless there is one.

    request  says how many tiles a part has; extra as for `write_patches`, which raises the same errors
    """
    check_pixels(slide, grid, request)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder, uuid4().hex[:6])
    draft.mkdir()
    try:
        facts = lay_out(StoreWriter(draft), slide, grid, tissue, request, extra)
        declare_pixels(draft, grid, request)
        write_json(draft / _PLAN, {"part_tiles": request.part_tiles, "facts": facts}, sealed=True)
        flush_tree(draft)
        try:
            os.rename(draft, folder)
        except OSError:
            if open_plan(folder) is not None:  # another was faster: parts of its plan may be done already
                return
            shutil.rmtree(folder, ignore_errors=True)  # what a late writer made, or damaged
            os.rename(draft, folder)
        flush_path(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def open_plan(folder: Path) -> PatchPlan | None:
    """The plan at `folder`; None where there is none, or some of it is damaged."""
    try:
        text = (folder / _PLAN).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not seal_fits(text):
        return None
    content = json.loads(text)
    plan = PatchPlan(folder, content["facts"], content["part_tiles"])
    try:
        for array in folder.glob("*/zarr.json"):
            if array.parent.name != "patches":
                plan.array(array.parent.name)
        return plan if read_layout(folder / "patches").shape[0] == len(plan.grid) else None
    except StoreError:
        return None
