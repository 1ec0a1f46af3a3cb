"""Look at a file before any library does: libraries call everything from a missing file to a web page unsupported."""

import errno
import os
import stat
from contextlib import closing
from pathlib import Path

from ..errors import SlideError
from ..source import name_of, open_source

COPY_AGAIN = "copy the file again from its source and compare the sizes"

_HEAD_BYTES = 4096
_GIT_LFS = b"version https://git-lfs"
_APPLE_DOUBLE = b"\x00\x05\x16\x07"

_DICOM = b"DICM"  # at byte 128
_LOOKED_AT = 1000  # files of a folder that are looked into until one is DICOM
_ZARR = ("zarr.json", ".zattrs", ".zgroup", ".zarray")  # one of them marks a Zarr folder

# first bytes, what the file is
_KINDS = (
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a plain JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"RIFF", "a RIFF file (WebP or video)"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x80\x04", "a Python pickle"),
    (b"ZISRAWFILE", "a Zeiss CZI file"),
    (b"II*\x00", "a TIFF file"),
    (b"MM\x00*", "a TIFF file"),
    (b"II+\x00", "a BigTIFF file"),
    (b"MM\x00+", "a BigTIFF file"),
)


def check_file(path: Path | str) -> bytes:
    """The first 4 KiB of a regular, readable file that has content; nothing of a Zarr folder or one of DICOM files.

    Raises SlideError, one problem each; of a URL RemoteError, too.
    """
    if isinstance(path, str):
        if name_of(path).lower().endswith(".zarr"):
            raise SlideError(path, "an OME-Zarr folder behind a URL is not read", "copy the folder to this machine")
        with closing(open_source(path)) as source:
            return _checked(path, source.size, source.read_at(0, _HEAD_BYTES))
    try:
        status = path.stat()
    except OSError as error:
        raise SlideError(path, *_why_no_stat(path, error)) from None
    if stat.S_ISDIR(status.st_mode):
        if _is_slide_folder(path):
            return b""
        remedy = "name a file; of a MIRAX slide that is the .mrxs file beside the folder"
        raise SlideError(path, "this is a folder, not a slide file", remedy)
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise SlideError(path, "this is a device, pipe or socket, not a regular file", "name a slide file")
    try:
        with path.open("rb") as file:
            return _checked(path, status.st_size, file.read(_HEAD_BYTES))
    except PermissionError:
        raise SlideError(path, "this user may not read the file", "ask its owner for read permission") from None


def _checked(path: Path | str, size: int, head: bytes) -> bytes:
    if size == 0:
        raise SlideError(path, "the file is empty (0 bytes)", COPY_AGAIN)
    if head.startswith(_GIT_LFS):
        raise SlideError(path, "this is a Git LFS pointer, not the slide itself", "run `git lfs pull` in its folder")
    if head.startswith(_APPLE_DOUBLE):
        raise SlideError(path, "this is a macOS side file (AppleDouble), not the slide", "use the file without `._`")
    return head


def _is_slide_folder(path: Path) -> bool:
    if any((path / name).is_file() for name in _ZARR):
        return True
    try:
        with os.scandir(path) as entries:
            files = [entry.path for entry in entries if Path(entry).is_file()]  # False for links in a circle
    except PermissionError:
        raise SlideError(path, "this user may not look into the folder", "ask its owner for permission") from None
    files.sort(key=lambda name: (not name.lower().endswith(".dcm"), name))
    return any(_is_dicom(name) for name in files[:_LOOKED_AT])


def _is_dicom(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return file.read(132)[128:] == _DICOM
    except PermissionError:
        return False


def what_it_is(head: bytes) -> str | None:
    """What the first bytes of a file say it is, None if they say nothing."""
    if head[128:132] == _DICOM:
        return "a DICOM file"
    if not any(head):
        return f"{len(head)} or more zero bytes, as an interrupted copy leaves"
    lowered = head.lstrip()[:512].lower()
    if lowered.startswith((b"<!doctype html", b"<html")) or b"<html" in lowered:
        return "a web page (HTML), as a download behind a log-in leaves"
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    if lowered.startswith(b"<?xml"):
        return "an XML text"
    return "a text file" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else only the last character is cut by the end of the sample
            return False
        text = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)


def _why_no_stat(path: Path, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ELOOP:
        return "its symbolic links lead in a circle", "repair the link"
    if isinstance(error, PermissionError):
        return "this user may not look into its folder", "ask the folder's owner for permission"
    if path.is_symlink():
        return f"this link points to {os.readlink(path)!r}, which is not there", "repair the link, or mount its disk"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "there is no such file", "check the path, and that its disk is mounted"
    return f"it cannot be looked at ({error.strerror})", "check the path, and that its disk is mounted"
