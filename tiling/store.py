"""What our Zarr v3 stores have in common: how they are published, the record of what is in them, how they are opened.

A store is written as a draft. Then its arrays are opened again and counted, and flushed to the disk; the completeness
record with a checksum of each array is written last, and only then does the store take its name.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import StoreError
from wsi.publish import UNSEALED, appear, flush_tree, seal

from .arrays import ArrayWriter, Layout, digest, read_array, read_layout, write_array

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class Store:
    """A finished store of one slide, opened for reading.

    attrs  what its makers said of it, see `open_complete`
    """

    path: Path
    attrs: dict[str, Any]

    @property
    def slide_id(self) -> str:
        return str(self.attrs["slide_id"])

    @property
    def fingerprint(self) -> str:
        """Of everything that shaped the store: settings, slide, what it was made from."""
        return str(self.attrs["fingerprint"])

    @property
    def identity(self) -> str:
        """Digest of the slide file's content."""
        return str(self.attrs["identity"])

    @cached_property
    def group(self) -> "zarr.Group":
        """The same, for who works with zarr-python."""
        import zarr

        return zarr.open_group(self.path, mode="r", zarr_format=3)

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return name in self.attrs["complete"]["files"]

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays, whole, in memory. Raises StoreError where some of it is gone or damaged."""
        return read_array(self.path / name)


class StoreWriter:
    """A store that is being written into the folder `draft`; made by `write_store`."""

    def __init__(self, draft: Path):
        self.draft = draft
        self.finished = False
        self._written: dict[str, Layout] = {}

    def put(self, name: str, values: NDArray[Any], rows: int = 4096) -> None:
        """A whole array, checksummed, `rows` rows a chunk."""
        self._written[name] = write_array(self.draft / name, values, rows)

    def array(self, name: str, shape: tuple[int, ...], dtype: Any, rows: int = 4096) -> ArrayWriter:
        """An array to be filled chunk by chunk, `rows` rows a chunk."""
        writer = ArrayWriter(self.draft / name, shape, dtype, rows)
        self._written[name] = writer.layout
        return writer

    def adopt(self, folder: Path) -> None:
        """A finished array of another folder becomes one of the store: the same files under two names, or copies where
        the file system has no links. Files that its layout does not name are left behind. Raises StoreError where one
        is gone."""
        layout, target = read_layout(folder), f"{self.draft}/{folder.name}"
        for file in (f"{folder}/zarr.json", *(layout.files(folder) if 0 not in layout.shape else ())):
            place = target + file.removeprefix(str(folder))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            try:
                _link(file, place)
            except FileNotFoundError:
                named = file.removeprefix(f"{folder.parent}/")
                raise StoreError(folder.parent, f"its file {named} is gone", "run again: it is made anew") from None
        self._written[folder.name] = layout

    def finish(self, schema: str, facts: dict[str, Any], tiles: int, failed: int) -> None:
        """All arrays are written: check them, flush them, and write the record that says so.

        tiles, failed  of the slide; they are in the record, as are the number of files and the crc32c of each array
        Raises StoreError where files are missing, or an array is not what was written.
        """
        files, sums = {}, {}
        for folder in sorted(entry.parent for entry in self.draft.glob("*/zarr.json")):
            layout, name = read_layout(folder), folder.name
            wanted = self._written.pop(name, layout)
            files[name] = _count(folder)
            if layout != wanted or files[name] != int(np.prod(layout.grid)):
                problem = f"its array {name} was not written as it should be: {files[name]} files of {layout}"
                raise StoreError(self.draft, problem, "check the disk and run again")
            sums[name] = f"{digest(folder, layout):08x}"  # which opens every file that is to be there
        if self._written:
            raise StoreError(self.draft, f"its array {next(iter(self._written))} is gone", "check the disk")
        flush_tree(self.draft)
        complete = {"tiles": tiles, "failed": failed, "files": files, "crc32c": sums, "checksum": UNSEALED}
        attributes = {"schema": schema, **facts, "complete": complete}
        record = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        with (self.draft / "zarr.json").open("wb") as stream:
            stream.write(seal(json.dumps(record).encode()))
            stream.flush()
            os.fsync(stream.fileno())
        self.finished = True


@contextmanager
def write_store(path: Path) -> Iterator[StoreWriter]:
    """Write a store that appears at `path` when the block ends well, its last word being `finish`."""
    with appear(path, flushed=True) as draft:
        writer = StoreWriter(draft)
        yield writer
        if not writer.finished:
            raise StoreError(path, "it was not finished", "report this")


def open_complete(path: Path, schema: str, maker: str) -> dict[str, Any]:
    """Attributes of a store that says it is complete and has the arrays it says it has; `maker` is the command that
    makes it. Raises StoreError for any other."""
    try:
        attrs = json.loads((path / "zarr.json").read_bytes())["attributes"]
        stated, complete = attrs.get("schema"), attrs.get("complete")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(path, "there is no such store", f"make it with `{maker}`") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(path, "its record is damaged", f"delete it and run `{maker}` again") from None
    if stated != schema:
        raise StoreError(path, f"its schema is {stated}, this version reads {schema}", f"run `{maker}` again")
    if not isinstance(complete, dict) or complete.get("files") != count_files(path):
        raise StoreError(path, "it is not complete", f"delete it and run `{maker}` again")
    return dict(attrs)


def count_files(path: Path) -> dict[str, int]:
    """Array → files that hold its chunks. Zarr reads a missing file as zeros, so somebody has to count them."""
    with os.scandir(path) as entries:
        folders = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return {name: _count(path / name) for name in folders if (path / name / "zarr.json").is_file()}


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder / "c"))


def _link(file: str, place: str) -> None:
    try:
        os.link(file, place)
    except FileNotFoundError:
        raise
    except OSError:  # some network file systems, and those of memory cards
        shutil.copyfile(file, place)
