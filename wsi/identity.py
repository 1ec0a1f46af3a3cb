"""Tell whether a slide is the one seen before, without reading gigabytes: a digest of size and spread content."""

import hashlib
import re
from pathlib import Path

_SPREAD_BLOCKS, _BLOCK_BYTES = 64, 4 << 10
_END_BYTES = 64 << 10  # headers and directories lie at the ends
_SERIES_UID = re.compile(rb"\x20\x00\x0e\x00UI(..)([0-9.]+)", re.DOTALL)  # DICOM (0020,000E), explicit little endian


def slide_identity(path: str | Path) -> str:
    """Hex sha256 over a slide's size, its first and last 64 KiB and 64 blocks of 4 KiB spread evenly between.

    Names and times do not count, so a moved or touched slide stays itself. For slides of several files the companions'
    names and sizes count too: the folder beside a .mrxs, the files a .vms names, the .dcm files of the same series.
    It finds replaced slides and broken copies; single flipped bits need a checksum of the whole file.
    """
    path = Path(path)
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())
    spread = [max(0, size - _BLOCK_BYTES) * block // (_SPREAD_BLOCKS - 1) for block in range(_SPREAD_BLOCKS)]
    with path.open("rb", buffering=0) as file:
        for offset, count in ((0, _END_BYTES), (max(0, size - _END_BYTES), _END_BYTES)):
            file.seek(offset)
            digest.update(file.read(count))
        for offset in spread:
            file.seek(offset)
            digest.update(file.read(_BLOCK_BYTES))
    for name, length in sorted(_companions(path)):
        digest.update(f"{name}\0{length}\n".encode())
    return digest.hexdigest()


def _companions(path: Path) -> list[tuple[str, int]]:
    """(name, bytes) of the other files of the slide."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
        return [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]
    if suffix not in (".vms", ".vmu", ".dcm"):
        return []
    siblings = [file for file in path.parent.iterdir() if file.is_file() and file.name != path.name]
    if suffix in (".vms", ".vmu"):
        text = path.read_text("latin-1")
        return [(file.name, file.stat().st_size) for file in siblings if file.name in text]
    series = _series(path)
    same = [file for file in siblings if file.suffix.lower() == ".dcm" and _series(file) == series]
    return [(file.name, file.stat().st_size) for file in same]


def _series(path: Path) -> bytes | None:
    """DICOM series UID as written in the header, None where it is not found there."""
    with path.open("rb") as file:
        found = _SERIES_UID.search(file.read(_END_BYTES))
    return found.group(2) if found else None
