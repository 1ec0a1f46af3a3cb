"""Tell whether a slide is the one seen before, without reading gigabytes: a digest of size and spread content."""

import hashlib
import os
import re
from contextlib import closing
from pathlib import Path

from .errors import SlideError
from .source import ByteSource, open_source, place_of

_SPREAD_BLOCKS, _BLOCK_BYTES = 64, 4 << 10
_END_BYTES = 64 << 10  # headers and directories lie at the ends
_SERIES_UID = re.compile(rb"\x20\x00\x0e\x00UI(..)([0-9.]+)", re.DOTALL)  # DICOM (0020,000E), explicit little endian
_ZARR_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata", "METADATA.ome.xml")

_seen: dict[tuple[str, int, str], str] = {}  # digests of remote files by URL, size and strong ETag


def slide_identity(path: str | Path) -> str:
    """Hex sha256 over a slide's size, its first and last 64 KiB and 64 blocks of 4 KiB spread evenly between.

    Names and times do not count, so a moved or touched slide stays itself, and so does one that is read by its URL.
    For slides of several files the companions' names and sizes count too: the folder beside a .mrxs, the files a .vms
    names, the DICOM files of the same series. A DICOM folder is its first file with these; an OME-Zarr folder is the
    names and sizes of its files, its metadata and blocks of 64 chunks.
    It finds replaced slides and broken copies; single flipped bits need a checksum of the whole file.
    """
    place = place_of(path)
    if isinstance(place, Path) and place.is_dir():
        first = next((file for file in _files_in(place) if _is_dicom(file)), None)
        return _of_folder(place) if first is None else slide_identity(first)
    with closing(open_source(place)) as source:
        if not isinstance(place, Path):
            return _of_remote(source)
        digest = _of_file(source)
    base = place.with_suffix("") if place.suffix.lower() == ".mrxs" else place.parent
    lengths = [(file.relative_to(base).as_posix(), file.stat().st_size) for file in _companions(place)]
    for name, length in sorted(lengths):
        digest.update(f"{name}\0{length}\n".encode())
    return digest.hexdigest()


def slide_files(path: Path) -> list[Path]:
    """All files that a slide on this machine consists of, the one it is named by first; of a folder, what is in it.

    Raises OSError where they cannot be looked at.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path, *_companions(path)]


def _of_remote(source: ByteSource) -> str:
    """The same, found once: a strong ETag is another as soon as a byte is."""
    version = str(getattr(source, "version", ""))
    key = str(source.name), source.size, version
    digest = _seen.get(key) or _of_file(source).hexdigest()
    if version.startswith('"'):
        _seen[key] = digest
    return digest


def _of_file(source: ByteSource) -> "hashlib._Hash":
    last = max(0, source.size - _BLOCK_BYTES)
    spread = [(last * block // (_SPREAD_BLOCKS - 1), _BLOCK_BYTES) for block in range(_SPREAD_BLOCKS)]
    ranges = [(0, _END_BYTES), (max(0, source.size - _END_BYTES), _END_BYTES), *spread]
    source.prefetch(ranges)
    digest = hashlib.sha256(f"{source.size}\n".encode())
    for offset, count in ranges:
        digest.update(source.read_at(offset, count))
    return digest


def _of_folder(folder: Path) -> str:
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    if not sizes:
        raise SlideError(folder, "the folder is empty", "name the folder of a slide")
    digest = hashlib.sha256()
    for name, size in sorted(sizes.items()):
        digest.update(f"{name}\0{size}\n".encode())
    names = sorted(sizes)
    metadata = [name for name in names if name.rpartition("/")[2] in _ZARR_METADATA]
    chunks = sorted(set(names).difference(metadata))
    spread = [chunks[len(chunks) * block // _SPREAD_BLOCKS] for block in range(_SPREAD_BLOCKS) if chunks]
    for name in (*metadata, *dict.fromkeys(spread)):
        with (folder / name).open("rb") as file:
            digest.update(file.read() if name in metadata else file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _companions(path: Path) -> list[Path]:
    """The other files of the slide."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    if suffix in (".vms", ".vmu"):
        text = path.read_text("latin-1")
        return [file for file in _siblings(path) if file.name in text]
    if not _is_dicom(path):
        return []  # without a look at its folder, which may hold ten thousand slides
    series = _series(path)
    return [file for file in _siblings(path) if _is_dicom(file) and _series(file) == series]


def _siblings(path: Path) -> list[Path]:
    return [file for file in _files_in(path.parent) if file.name != path.name]


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _is_dicom(path: Path) -> bool:
    if not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_series(path: Path) -> str | None:
    """The series UID of a DICOM file, by which the files of one slide are known; None for what is none."""
    uid = _series(path) if _is_dicom(path) else None
    return None if uid is None else uid.decode("ascii")


def _series(path: Path) -> bytes | None:
    """DICOM series UID as written in the header, None where it is not found there."""
    with path.open("rb") as file:
        found = _SERIES_UID.search(file.read(_END_BYTES))
    return found.group(2) if found else None
