"""Zarr arrays opened so that damage shows: blosc headers are checked, and the fill value can be another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ShardingCodec

_HEADER_BYTES, _MAX_CHUNK_BYTES = 16, 1 << 30


def open_array(folder: Path, fill: NDArray | None = None) -> "zarr.Array[Any]":
    """An array for reading, Zarr v2 or v3. `fill`: the value for chunks that are missing, in place of the array's own.

    Raises what zarr raises; FileNotFoundError where there is no array.
    """
    array: zarr.Array[Any] = zarr.open_array(str(folder), mode="r")
    stated = array.metadata.to_dict()
    if fill is not None:
        stated["fill_value"] = fill.item()
    metadata: Any = type(array.metadata).from_dict(stated)
    if metadata.zarr_format == 2:
        if isinstance(metadata.compressor, numcodecs.Blosc):
            metadata = replace(metadata, compressor=_CheckedBlosc.from_config(_config(metadata.compressor)))
    else:
        # replace() would run the constructor, which takes other arguments than the fields
        object.__setattr__(metadata, "codecs", tuple(map(_checked, metadata.codecs)))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def _config(codec: numcodecs.abc.Codec) -> dict[str, Any]:
    return {name: value for name, value in codec.get_config().items() if name != "id"}


class _CheckedBlosc(numcodecs.Blosc):  # type: ignore[misc]  # numcodecs has no types
    def decode(self, buf: Any, out: Any = None) -> Any:
        _check_blosc(memoryview(buf).cast("B"))
        return super().decode(buf, out)


class _CheckedBloscCodec(BloscCodec):
    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        _check_blosc(memoryview(chunk_bytes.to_bytes()))
        return await super()._decode_single(chunk_bytes, chunk_spec)


def _checked(codec: Any) -> Any:
    """The codec, with blosc anywhere in it replaced by the one that checks."""
    if isinstance(codec, ShardingCodec):
        return ShardingCodec(
            chunk_shape=codec.chunk_shape,
            codecs=tuple(map(_checked, codec.codecs)),
            index_codecs=codec.index_codecs,
            index_location=codec.index_location,
        )
    if isinstance(codec, BloscCodec):
        return _CheckedBloscCodec(
            typesize=codec.typesize,
            cname=codec.cname,
            clevel=codec.clevel,
            shuffle=codec.shuffle,
            blocksize=codec.blocksize,
        )
    return codec


def _check_blosc(data: memoryview) -> None:
    """Raises ValueError unless a blosc frame is as long as its header says.

    numcodecs believes the header: of a frame that was cut it reads on beyond its end.
    """
    if len(data) < _HEADER_BYTES:
        raise ValueError(f"{len(data)} bytes are no blosc frame")
    size, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    if stored != len(data):
        raise ValueError(f"its blosc header claims {stored:,} bytes, there are {len(data):,}")
    if size > _MAX_CHUNK_BYTES:
        raise ValueError(f"its blosc header claims {size:,} bytes of content")
