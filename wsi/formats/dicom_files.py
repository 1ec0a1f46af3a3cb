"""Which files are DICOM slides, and which belong together: looked at without a DICOM library as far as that goes."""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ..errors import SlideError
from .dicom_frames import CODECS
from .file_check import COPY_AGAIN

_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_LONG_LENGTHS = (b"OB", b"OW", b"UN", b"UT", b"SQ", b"OF")
_IMAGE_TYPE, _SOP_INSTANCE_UID, _SERIES_UID = 0x00080008, 0x00080018, 0x0020000E
_EXPORT_AGAIN = "export the slide again, or convert it to a tiled pyramidal TIFF"


class Meta(NamedTuple):
    """What the group of file meta elements says; empty texts for a file that is no DICOM."""

    is_dicom: bool
    is_slide: bool
    syntax: str
    is_zeros: bool = False  # as an interrupted copy leaves, or nothing at all


def file_meta(path: Path) -> Meta:
    """SOP class and transfer syntax of a file (PS3.10, 7.1), from its first 4 KiB."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] != b"DICM":
        return Meta(False, False, "", not any(head))
    texts: dict[int, str] = {}
    at = 132
    while at + 12 <= len(head) and head[at : at + 2] == b"\x02\x00":  # always explicit VR, little endian
        if head[at + 4 : at + 6] in _LONG_LENGTHS:
            length, start = int.from_bytes(head[at + 8 : at + 12], "little"), at + 12
        else:
            length, start = int.from_bytes(head[at + 6 : at + 8], "little"), at + 8
        number = int.from_bytes(head[at + 2 : at + 4], "little")
        texts[number] = head[start : start + min(length, 64)].decode("ascii", "replace").strip(" \0")
        at = start + length
    return Meta(True, texts.get(0x0002) == _SLIDE_CLASS, texts.get(0x0010, ""))


def files_of_slide(path: Path) -> list[Path]:
    """The files of the series that a file belongs to, or that a folder holds, by name; one for each SOP instance.

    Raises SlideError if the folder holds several slides, or a file whose header cannot be read and may be this slide's.
    Beside a file that is named, what is of another kind than its name says is not: only a file of zeros may be.
    """
    by_series: dict[str, dict[str, Path]] = defaultdict(dict)
    unreadable: list[SlideError] = []
    named: str | None = None
    if not path.is_dir():
        named, instance = _series_and_instance(path)
        by_series[named][instance] = path
    for file in _candidates(path):
        try:
            series, instance = _series_and_instance(file)
            by_series[series].setdefault(instance, file)
        except SlideError as error:
            problem = f"{error.problem} (found while collecting the series of {path.name})"
            remedy = f"{error.args[2]}; if it is none of the slide's, move it to another folder"
            unreadable.append(SlideError(file, problem, remedy))
    if named is None and len(by_series) > 1:
        raise _several(path, [sorted(files.values()) for files in by_series.values()])
    if unreadable and len(by_series) <= 1:  # among the files of several slides nobody knows whose it is
        raise unreadable[0]
    return sorted(by_series[named or next(iter(by_series))].values()) if by_series else []


def _candidates(path: Path) -> list[Path]:
    """Files in a folder, or beside a file, that are DICOM slides, and those that could be one that was lost."""
    beside = not path.is_dir()
    with os.scandir(path.parent if beside else path) as entries:
        files = sorted(Path(entry) for entry in entries if Path(entry).is_file() and not entry.name.startswith("."))
    metas = {file: file_meta(file) for file in files if os.access(file, os.R_OK) and file != path}
    return [
        file
        for file, meta in metas.items()
        if meta.is_slide or (not meta.is_dicom and file.suffix.lower() == ".dcm" and (meta.is_zeros or not beside))
    ]


def _several(folder: Path, slides: list[list[Path]]) -> SlideError:
    names = sorted(f"{files[0].name} ({len(files)} file{'s' * (len(files) > 1)})" for files in slides)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    problem = f"this folder holds {len(slides)} slides (DICOM series): {shown}"
    return SlideError(folder, problem, "name one file of the slide that is meant, or give each slide its own folder")


def _series_and_instance(path: Path) -> tuple[str, str]:
    """Series and SOP instance UID. Raises SlideError where the header's beginning is damaged."""
    from pydicom.filereader import read_partial
    from pydicom.uid import UID

    from .dicom_parts import DAMAGE, damaged

    meta = file_meta(path)
    if not meta.is_dicom:
        raise SlideError(path, "its name says DICOM, but it is no DICOM file", COPY_AGAIN)
    if meta.syntax not in CODECS:  # checked before any parsing: a deflated header can unpack to any size
        problem = f"its DICOM transfer syntax is not read here, nor by OpenSlide: {UID(meta.syntax).name or 'none'}"
        raise SlideError(path, problem, _EXPORT_AGAIN)
    try:
        with path.open("rb") as file:
            header = read_partial(file, stop_when=lambda tag, vr, length: tag > _SERIES_UID)
        kind, instance, series = (
            header[tag].value if tag in header else None for tag in (_IMAGE_TYPE, _SOP_INSTANCE_UID, _SERIES_UID)
        )
    except DAMAGE as error:
        raise damaged(path, error) from None
    if not series or not instance:
        raise SlideError(path, "its DICOM header is damaged: it names no series", COPY_AGAIN)
    if not kind:
        problem = "its DICOM header has no ImageType, which tells a level of the slide from its label"
        raise SlideError(path, problem, _EXPORT_AGAIN)
    return str(series), str(instance)
