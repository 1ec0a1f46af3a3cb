"""Arrays of a Zarr v3 store, written and read without zarr-python's cost per array (1 to 3 ms).

They are cut into chunks of whole rows, each compressed with a checksum of its content, byte for byte as zarr-python
writes them; it is the tests' oracle. Arrays laid out otherwise, of other libraries or of text, are left to it. Paths
are put together as text, which takes a tenth of the time.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from wsi.errors import StoreError

_ZSTD = Zstd(level=1, checksum=True)  # Zarr's default codecs do not notice a flipped bit
_CODEC = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
_BYTES = {"name": "bytes"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_PLAIN = ("bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)))
PLAIN = (*_PLAIN, "float16", "float32", "float64")  # what the specification of Zarr v3 knows, of what is used here
_INDEX_ENTRY, _CRC_BYTES, _BLOCK_BYTES = 16, 4, 1 << 20
_FEW, _READERS = 4, 4
_MEND = "run `wsi run --verify`, which makes damaged results anew"


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array lies on the disk: `chunks` is the shape of what one file holds.

    sharded  a file is a shard of smaller chunks, with an index at its end
    ours     chunks of whole rows, compressed as `ArrayWriter` does it
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    sharded: int = 0
    ours: bool = True

    @property
    def grid(self) -> tuple[int, ...]:
        """Files along each axis."""
        return tuple(-(-length // step) for length, step in zip(self.shape, self.chunks, strict=True))

    def files(self, folder: Path) -> Iterator[str]:
        """Where its files are to be, in order."""
        for place in product(*map(range, self.grid)):
            yield f"{folder}/c/{'/'.join(map(str, place))}"


def read_layout(folder: Path) -> Layout:
    """The layout that the array in `folder` states. Raises StoreError where the statement is gone or damaged."""
    try:
        meta = json.loads(_content(f"{folder}/zarr.json"))
        chunks = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        shape, codecs, dtype = tuple(meta["shape"]), meta["codecs"], meta["data_type"]
        sharding = codecs[0] if codecs[0]["name"] == "sharding_indexed" else None
        per_shard = chunks[0] // sharding["configuration"]["chunk_shape"][0] if sharding else 0
        known = meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        if not known or len(shape) != len(chunks) or not all(isinstance(step, int) and step > 0 for step in chunks):
            raise ValueError("its chunks are numbered in an unknown way")
    except FileNotFoundError:
        raise StoreError(folder.parent, f"its array {folder.name} is gone", _MEND) from None
    except (ValueError, KeyError, TypeError, IndexError, NotADirectoryError) as error:
        raise StoreError(
            folder.parent, f"what it says of its array {folder.name} is damaged ({error})", _MEND
        ) from None
    ours = dtype in PLAIN and codecs == _codecs(dtype) and chunks[1:] == tuple(max(1, side) for side in shape[1:])
    return Layout(shape, dtype if isinstance(dtype, str) else dtype["name"], chunks, per_shard, ours)


class ArrayWriter:
    """A new array in the folder `folder`, to be written chunk by chunk; each is a file of `rows` rows.

    shape, dtype  of all of it; dtype is bool, a whole number or a float
    Nothing is flushed to the disk: that is left to whoever publishes the store.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any, rows: int = 4096):
        name = np.dtype(dtype).name
        if name not in PLAIN:
            raise ValueError(f"arrays of {name} are not written")
        self.folder, self._dtype = folder, np.dtype(dtype).newbyteorder("<")
        chunks = (min(rows, max(1, shape[0])), *(max(1, side) for side in shape[1:]))
        self.layout = Layout(tuple(map(int, shape)), name, chunks)
        self._below, self._chunks = "/0" * (len(shape) - 1), f"{folder}/c"
        os.mkdir(folder)
        if 0 not in shape:
            os.mkdir(self._chunks)
        write_statement(folder, self.layout.shape, name, chunks, _codecs(name))

    def write(self, number: int, values: NDArray[Any]) -> None:
        """Chunk `number`: values (rows, ...), fewer only in the last one."""
        rows = self.layout.chunks[0]
        wanted = min(rows, self.layout.shape[0] - number * rows)
        if values.shape != (wanted, *self.layout.shape[1:]):
            raise ValueError(f"chunk {number} is {values.shape}, not of {wanted} rows")
        if wanted < rows:  # all chunks are of one size: the rest is never read
            padded = np.zeros((rows, *values.shape[1:]), self._dtype)
            padded[:wanted] = values
            values = padded
        file = f"{self._chunks}/{number}{self._below}"
        if self._below:
            os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as stream:  # buffered: on a full disk a single write ends early and says nothing
            stream.write(_ZSTD.encode(np.ascontiguousarray(values, self._dtype)))


def write_array(folder: Path, values: NDArray[Any], rows: int = 4096) -> Layout:
    """A whole array, checksummed, `rows` rows a chunk."""
    if values.dtype.name not in PLAIN:
        return _write_by_zarr(folder, values, rows)
    writer = ArrayWriter(folder, values.shape, values.dtype, rows)
    step = writer.layout.chunks[0]
    for number in range(-(-len(values) // step) if values.size else 0):
        writer.write(number, values[number * step : (number + 1) * step])
    return writer.layout


def read_array(folder: Path) -> NDArray[Any]:
    """A whole array. Raises StoreError where some of it is gone or damaged."""
    layout = read_layout(folder)
    if not layout.ours:
        return _read_by_zarr(folder)
    out = np.empty(layout.shape, np.dtype(layout.dtype).newbyteorder("<"))
    rows, files = layout.chunks[0], list(enumerate(layout.files(folder))) if out.size else []

    def read(item: tuple[int, str]) -> None:
        number, file = item
        part = out[number * rows : (number + 1) * rows]
        try:
            data = _ZSTD.decode(_content(file))
            part[...] = np.frombuffer(data, out.dtype).reshape(layout.chunks)[: len(part)]
        except FileNotFoundError:
            raise StoreError(folder.parent, f"its file {_named(file, folder)} is gone", _MEND) from None
        except (RuntimeError, ValueError) as error:  # what numcodecs says of damage, or it is of another length
            problem = f"its file {_named(file, folder)} is damaged ({error})"
            raise StoreError(folder.parent, problem, _MEND) from None

    if len(files) <= _FEW:
        for item in files:
            read(item)
    else:
        with ThreadPoolExecutor(_READERS, "chunks") as pool:
            list(pool.map(read, files))
    return out


def digest(folder: Path, layout: Layout) -> int:
    """crc32c of the array's statement and of its files in order.

    Of a shard, whose chunks have checksums of their own, only its size and its index are read.
    Raises StoreError where a file is gone, or is shorter than its index.
    """
    crc = google_crc32c.value(_content(f"{folder}/zarr.json"))
    for file in layout.files(folder) if 0 not in layout.shape else ():
        try:
            crc = _extend_shard(crc, file, layout.sharded) if layout.sharded else _extend(crc, file)
        except FileNotFoundError:
            raise StoreError(folder.parent, f"its file {_named(file, folder)} is gone", _MEND) from None
    return int(crc)


def write_statement(
    folder: Path, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...], codecs: list[dict[str, Any]]
) -> None:
    """The array's zarr.json, which says what zarr-python's would."""
    fill: Any = False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0
    meta = {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    with open(f"{folder}/zarr.json", "wb") as stream:
        stream.write(json.dumps(meta).encode())


def _codecs(dtype: str) -> list[dict[str, Any]]:
    return [_BYTES if dtype in ("bool", "int8", "uint8") else _LITTLE, _CODEC]


def _named(file: str, folder: Path) -> str:
    return file.removeprefix(f"{folder.parent}/")


def _content(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        return stream.read()


def _extend(crc: int, file: str) -> int:
    with open(file, "rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
    return crc


def _extend_shard(crc: int, file: str, per_shard: int) -> int:
    tail = per_shard * _INDEX_ENTRY + _CRC_BYTES
    with open(file, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - tail))
        return int(google_crc32c.extend(google_crc32c.extend(crc, size.to_bytes(8, "little")), stream.read(tail)))


def _write_by_zarr(folder: Path, values: NDArray[Any], rows: int) -> Layout:
    import zarr
    from zarr.codecs import ZstdCodec

    array = zarr.create_array(
        str(folder),
        shape=values.shape,
        chunks=(min(rows, max(1, values.shape[0])), *(max(1, side) for side in values.shape[1:])),
        dtype=values.dtype,
        compressors=(ZstdCodec(level=1, checksum=True),),
        config={"write_empty_chunks": True},  # so that a missing file is a missing file
    )
    if values.size:
        array[...] = values
    return read_layout(folder)


def _read_by_zarr(folder: Path) -> NDArray[Any]:
    import zarr

    return np.asarray(zarr.open_array(str(folder), mode="r")[...])
