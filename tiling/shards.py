"""Zarr v3 shards of patches, written and read without zarr-python's cost per chunk (1 to 3 ms, more than a decode).

A shard is one file: the encoded patches back to back, each with its crc32c, then the index, which is (offset, nbytes)
as uint64 for every place in the shard (2**64 - 1 twice where there is no patch), then the index's crc32c; all
little-endian (zarr-specs, v3/codecs/sharding-indexed). zarr-python reads the same files and is the tests' oracle.
"""

import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import StoreError
from wsi.publish import appear_file

from .arrays import write_statement
from .codecs import JPEG, JpegCodec, decode_patch

ABSENT = 2**64 - 1
OPEN_FILES = 64  # a reader keeps at most so many shards open
_CRC = struct.Struct("<I")
_TILE_AGAIN = "delete the store and tile the slide again"
_CODECS = {"bytes": "raw", JPEG: "jpeg"}

Chunk = bytes | NDArray[np.uint8]


def create_patches(store: Path, shape: tuple[int, int], per_shard: int, codec: JpegCodec | None) -> Path:
    """Declare the array `patches` uint8 (n, t, t, 3) of the store in that folder, without data: returns its folder.

    shape  (n, t); one patch is one chunk, `per_shard` of them a file; codec None stores the pixels as they are
    """
    (count, side), little = shape, {"name": "bytes", "configuration": {"endian": "little"}}
    patch: dict[str, Any] = {"name": "bytes"} if codec is None else codec.to_dict()
    sharding = {
        "chunk_shape": [1, side, side, 3],
        # H&E pixels do not compress without loss; without a checksum bits flip unseen
        "codecs": [patch, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    folder = store / "patches"
    folder.mkdir(parents=True)
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    write_statement(folder, (count, side, side, 3), "uint8", (per_shard, side, side, 3), codecs)
    return folder


def write_shard(folder: Path, number: int, per_shard: int, chunks: Sequence[Chunk | None]) -> None:
    """Write one shard of the array in `folder`, whole; the file takes its name when all of it is written.

    Flushing to the disk is left to whoever publishes the store, once and for all of its files (publish.appear).

    chunks  what the array's codec makes of a patch: contiguous pixels, or a JPEG file; None where there is no patch,
            which then reads as zeros. At most `per_shard`
    Shards are independent of each other: any thread, process or machine may write any of them, each one writer.
    """
    index = np.full((per_shard, 2), ABSENT, "<u8")
    offset = 0
    target = folder / "c" / str(number) / "0" / "0" / "0"
    with appear_file(target, flush=False) as draft, draft.open("wb") as stream:
        for place, chunk in enumerate(chunks):
            if chunk is None:
                continue
            data = chunk if isinstance(chunk, bytes) else chunk.reshape(-1)
            stream.write(data if isinstance(data, bytes) else data.data)
            stream.write(_CRC.pack(google_crc32c.value(data)))
            index[place] = offset, len(data) + _CRC.size
            offset += len(data) + _CRC.size
        stream.write(index.data)
        stream.write(_CRC.pack(google_crc32c.value(index)))


class PatchShards:
    """Reads patches of a finished array: one read a patch, straight into the batch. Thread-safe; pickles as its path.

    shape      (n, t, t, 3)
    per_shard  patches a file
    codec      raw or jpeg
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.shape, self.per_shard, self.codec = _layout(self.folder)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[type["PatchShards"], tuple[Path]]:
        return PatchShards, (self.folder,)

    def __len__(self) -> int:
        return self.shape[0]

    def read_at(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Patches of the given numbers, in that order: uint8 (k, t, t, 3); zeros where none was stored.

        Raises IndexError for a number that no patch has, StoreError where the stored bytes are damaged or gone.
        """
        numbers = np.asarray(indices)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise IndexError("patches are read by a list of their numbers")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"the store has patches 0 to {len(self) - 1}")
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for row in np.argsort(numbers, kind="stable").tolist():
            self._read_into(int(numbers[row]), out[row])
        return out

    def path_of(self, shard: int) -> Path:
        """The file of a shard, by its number."""
        return self.folder / "c" / str(shard) / "0" / "0" / "0"

    def check_files(self, rows: slice) -> None:
        """Raise StoreError where a file of these patches is gone or damaged, as far as its length and index say."""
        for number in range(rows.start, rows.stop, self.per_shard):
            self._shard(number)

    def chunk(self, number: int) -> bytes | None:
        """A patch as it is stored: its pixels' bytes, or a JPEG file; None where none was stored."""
        shard, place = self._shard(number)
        if shard.offsets[place] == ABSENT:
            return None
        data = np.empty(shard.sizes[place] - _CRC.size, np.uint8)
        self._read_checked(number, shard, shard.offsets[place], data)
        return data.tobytes()

    def _read_into(self, number: int, into: NDArray[np.uint8]) -> None:
        if self.codec == "raw":
            self._read_pixels(number, into)
            return
        data = self.chunk(number)
        if data is None:
            into[...] = 0
            return
        try:
            decode_patch(data, into)
        except ValueError as error:
            raise self._damaged(number, str(error)) from None

    def _read_pixels(self, number: int, into: NDArray[np.uint8]) -> None:
        shard, place = self._shard(number)
        if shard.offsets[place] == ABSENT:
            into[...] = 0
            return
        if shard.sizes[place] != into.nbytes + _CRC.size:
            raise self._damaged(number, f"it is {shard.sizes[place]} bytes long")
        self._read_checked(number, shard, shard.offsets[place], into.reshape(-1))

    def _read_checked(self, number: int, shard: "_Shard", offset: int, into: NDArray[np.uint8]) -> None:
        crc = np.empty(1, "<u4")
        shard.read_into((into, crc.view(np.uint8)), offset)
        if google_crc32c.value(into) != crc[0]:
            raise self._damaged(number, "its checksum does not fit")

    def _shard(self, number: int) -> tuple["_Shard", int]:
        which, place = divmod(number, self.per_shard)
        with self._turn:
            shard = self._open.get(which)
            if shard is None:
                shard = self._open[which] = _Shard(self.path_of(which), self.folder.parent, self.per_shard)
                if len(self._open) > OPEN_FILES:  # who still reads from it keeps it open until he is done
                    self._open.popitem(last=False)
            self._open.move_to_end(which)
        return shard, place

    def _damaged(self, number: int, why: str) -> StoreError:
        return StoreError(self.folder.parent, f"patch {number} is damaged: {why}", _TILE_AGAIN)


def damage_of(folder: Path) -> Iterator[str]:
    """What is damaged in the finished array in `folder`, a clause each; every byte of its shards is read.

    Raises StoreError where the array is laid out otherwise than ours.
    """
    shape, per_shard, _ = _layout(folder)
    for number in range(-(-shape[0] // per_shard)):
        path = folder / "c" / str(number) / "0" / "0" / "0"
        try:
            shard = _Shard(path, folder.parent, per_shard)
        except StoreError as error:
            yield error.problem
            continue
        places = [(offset, size) for offset, size in zip(shard.offsets, shard.sizes, strict=True) if offset != ABSENT]
        with path.open("rb") as stream:
            at = 0
            for offset, size in places:  # back to back, so that no byte belongs to none
                data = stream.read(size)
                if offset != at or google_crc32c.value(data[:-4]) != _CRC.unpack(data[-4:])[0]:
                    yield f"its file {shard.name} is damaged at byte {at:,}"
                    break
                at += size
            else:
                if at + per_shard * 16 + _CRC.size != os.fstat(stream.fileno()).st_size:
                    yield f"its file {shard.name} is longer than what is in it"


class _Shard:
    """An open shard and its index, checked."""

    def __init__(self, path: Path, store: Path, per_shard: int):
        self._store, self.name = store, path.relative_to(store).as_posix()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise StoreError(store, f"its file {self.name} is gone", _TILE_AGAIN) from None
        self._turn = threading.Lock()  # only where the system has no read at an offset
        index, crc = np.empty((per_shard, 2), "<u8"), np.empty(1, "<u4")
        start = os.fstat(self._descriptor).st_size - index.nbytes - crc.nbytes
        if start < 0:
            raise self._damaged("it is too short")
        self.read_into((index.reshape(-1).view(np.uint8), crc.view(np.uint8)), start)
        if google_crc32c.value(index) != crc[0]:
            raise self._damaged("its index's checksum does not fit")
        self.offsets, self.sizes = index[:, 0].tolist(), index[:, 1].tolist()
        if any(offset != ABSENT and not _CRC.size <= size <= start - offset for offset, size in index.tolist()):
            raise self._damaged("its index reaches beyond the file")

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> None:
        """Fill the buffers (n,), one after the other, with what lies at `offset`."""
        wanted = sum(len(buffer) for buffer in buffers)
        if hasattr(os, "preadv"):
            got = os.preadv(self._descriptor, [buffer.data for buffer in buffers], offset)
        else:  # Windows
            with self._turn:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                data = np.frombuffer(os.read(self._descriptor, wanted), np.uint8)
            got, at = len(data), 0
            for buffer in buffers if got == wanted else ():
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)
        if got != wanted:
            raise self._damaged(f"it ends {wanted - got:,} bytes too early")

    def _damaged(self, why: str) -> StoreError:
        return StoreError(self._store, f"its file {self.name} is damaged: {why}", _TILE_AGAIN)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _layout(folder: Path) -> tuple[tuple[int, int, int, int], int, str]:
    """Shape, patches a shard and codec of the array in `folder`. Raises StoreError for one laid out otherwise."""
    meta = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    sharding = meta["codecs"][0]
    inner = sharding.get("configuration", {})
    names = [codec["name"] for codec in inner.get("codecs", [])]
    index = [codec["name"] for codec in inner.get("index_codecs", [])]
    count, *side = meta["shape"]
    known = (
        len(names) == 2
        and names[0] in _CODECS
        and names[1] == "crc32c"
        and index == ["bytes", "crc32c"]
        and inner.get("index_location", "end") == "end"
        and inner["chunk_shape"] == [1, *side]
    )
    if not known:
        problem = f"its patches are stored as {' + '.join(names) or sharding['name']}, which this version cannot read"
        raise StoreError(folder.parent, problem, "use the version that wrote it, or tile the slide again")
    per_shard = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
    return (count, *side), per_shard, _CODECS[names[0]]
