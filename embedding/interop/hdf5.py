"""HDF5 files of others, read so that a damaged one is an error and never a hang."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.coords import DEFLATE, MAX_PX
from wsi.errors import StoreError

MOST_VALUES, MOST_BYTES = 4096, 1 << 16  # of an attribute, and of one value
_HEAP = b"GCOL\x01"
_SMALLEST_HEAP, _OBJECT_HEADER = 4096, 16  # bytes, by the HDF5 file format, III.E


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An h5py.File for reading. What h5py raises in the block for damaged content leaves it as a StoreError."""
    import h5py

    if not path.is_file():
        raise StoreError(path, "no such file", "check the path")
    check_heaps(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StoreError(path, f"not a sound HDF5 file ({error})", "write it again") from None


def check_heaps(path: Path) -> None:
    """Raise StoreError where a heap of texts is damaged: libhdf5 (1.14) loops for ever on a free object of no size.

    A heap is a signature, a version, its size, and objects back to back: number, references, size, content.
    """
    if path.stat().st_size < _SMALLEST_HEAP:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_HEAP)
        while at >= 0:
            size = int.from_bytes(data[at + 8 : at + 16], "little")
            if _SMALLEST_HEAP <= size <= len(data) - at and not _is_sound(data, at + 16, at + size):
                raise StoreError(path, "not a sound HDF5 file (its texts are damaged)", "write it again")
            at = data.find(_HEAP, at + 1)


def _is_sound(data: mmap.mmap, at: int, end: int) -> bool:
    while end - at >= _OBJECT_HEADER:
        number = int.from_bytes(data[at : at + 2], "little")
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        step = _OBJECT_HEADER + -(-size // 8) * 8 if number else size
        if not 0 < step <= end - at:
            return False
        at += step
    return True


def plain_attrs(item: Any) -> dict[str, Any]:
    """Attributes as Python values: numbers, texts and short lists of them; others are left out."""
    found = {}
    for name in item.attrs:
        if _is_plain(item.attrs.get_id(name)):
            value = item.attrs[name]
            value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return found


def _is_plain(attribute: Any) -> bool:
    """Whether libhdf5 can be trusted with an attribute of a file that may be damaged: no nested type, and short."""
    import h5py

    kinds = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID, h5py.h5t.TypeEnumID)
    kind = attribute.get_type()  # of a dataset, too
    count = int(np.prod(attribute.shape, dtype=np.float64)) if attribute.shape is not None else 0
    return isinstance(kind, kinds) and 0 < count <= MOST_VALUES and kind.get_size() <= MOST_BYTES


def text_of(file: Any, name: str) -> str | None:
    """A dataset that is one text, None where there is none."""
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.shape != () or not _is_plain(found.id):
        return None
    value = found[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


def attrs_of(file: Any, name: str) -> dict[str, Any]:
    """Attributes of a dataset, none where there is no such dataset."""
    return plain_attrs(file[name]) if name in file else {}


def array(path: Path, file: Any, name: str, dims: tuple[int, ...] = (2,)) -> NDArray[Any]:
    """A dataset of numbers, whole. Raises StoreError where it is none, or claims more than the file can hold."""
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim not in dims or found.dtype.kind not in "fiu":
        raise StoreError(path, f"its `{name}` is no table of numbers", "write it again")
    if found.nbytes > DEFLATE * path.stat().st_size:
        raise StoreError(path, f"`{name}` of {found.shape} in so small a file cannot be", "write it again")
    return np.asarray(found[()])


def corners(path: Path, values: NDArray[Any], scale: float = 1.0) -> NDArray[np.int64]:
    """Tile corners (n, 2 or more) times `scale` as whole level-0 pixels. Raises StoreError for what is none."""
    values = values[:, :2].astype(np.float64) * scale
    if values.shape[1] != 2 or not (np.abs(values) <= MAX_PX).all():  # NaN is not <= either
        raise StoreError(path, "its coordinates are no numbers of pixels", "write it again")
    return np.rint(values).astype(np.int64)


def number(attrs: dict[str, Any], name: str) -> float | None:
    """A positive number among attributes, None where there is none."""
    value = attrs.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_PX
    return float(value) if good else None  # type: ignore[arg-type]


def whole(attrs: dict[str, Any], name: str) -> int | None:
    """The same, rounded."""
    value = number(attrs, name)
    return None if value is None else round(value)


def text(attrs: dict[str, Any], name: str) -> str | None:
    """A text among attributes, None where there is none ("None" is how TRIDENT writes nothing)."""
    value = attrs.get(name)
    return value if isinstance(value, str) and value not in ("", "None") else None


def size_of(attrs: dict[str, Any], width: str, height: str) -> tuple[int, int] | None:
    """(width, height) among attributes, None where one is missing."""
    found = whole(attrs, width), whole(attrs, height)
    return (found[0], found[1]) if found[0] and found[1] else None
