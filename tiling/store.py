"""What our Zarr v3 stores have in common: checksums, a record of what is in them, and how they are opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from wsi.errors import StoreError

CHECKED = (ZstdCodec(level=1, checksum=True),)  # Zarr's default codecs do not notice a flipped bit


@dataclass(frozen=True)
class Store:
    """A finished store of one slide, opened for reading."""

    path: Path
    group: zarr.Group

    @property
    def attrs(self) -> dict[str, Any]:
        return self.group.attrs.asdict()

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

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays, whole, in memory."""
        stored = self.group[name]
        assert isinstance(stored, zarr.Array)
        return np.asarray(stored[...])


def open_complete(path: Path, schema: str, maker: str) -> zarr.Group:
    """A Zarr group that says it is complete and has the arrays it says it has; `maker` is the command that makes it."""
    if not (path / "zarr.json").is_file():
        raise StoreError(path, "there is no such store", f"make it with `{maker}`")
    group = zarr.open_group(path, mode="r", zarr_format=3)
    attrs = group.attrs.asdict()
    if attrs.get("schema") != schema:
        raise StoreError(
            path, f"its schema is {attrs.get('schema')}, this version reads {schema}", f"run `{maker}` again"
        )
    complete = attrs.get("complete")
    if not isinstance(complete, dict) or complete["files"] != count_files(path):
        raise StoreError(path, "it is not complete", f"delete it and run `{maker}` again")
    return group


def count_files(path: Path) -> dict[str, int]:
    """Array → files that hold its chunks. Zarr reads a missing file as zeros, so somebody has to count them."""
    return {
        array.parent.name: sum(entry.is_file() for entry in (array.parent / "c").rglob("*"))
        for array in sorted(path.glob("*/zarr.json"))
    }


def empty(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, rows: int = 4096) -> zarr.Array:
    """A checksummed array to be filled, `rows` rows a chunk."""
    return group.create_array(
        name,
        shape=shape,
        chunks=(min(rows, max(1, shape[0])), *(max(1, side) for side in shape[1:])),
        dtype=dtype,
        compressors=CHECKED,
        config={"write_empty_chunks": True},  # so that a missing file is a missing file
    )


def put(group: zarr.Group, name: str, values: NDArray[Any], rows: int = 4096) -> None:
    """A whole array, checksummed, `rows` rows a chunk."""
    array = empty(group, name, values.shape, values.dtype, rows)
    if values.size:
        array[...] = values
