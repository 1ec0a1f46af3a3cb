"""The slides of a run: from one slide, a folder, or a CSV table."""

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tiling.spec import TISSUE_METHODS
from wsi.errors import EngineError, ManifestError
from wsi.missing import said
from wsi.source import is_url, name_of, open_source, place_of

REQUIRED = ("slide_id", "path")
KNOWN = (*REQUIRED, "case_id", "patient_id", "label", "mpp", "site", "tissue")
ID_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class SlideRecord:
    """One slide of a run. slide ⊂ case ⊂ patient; where the table names no patient, the slide is its own.

    path          on this machine, or a URL as text
    mpp           µm per level-0 pixel that overrides the file's, or None
    fallback_mpp  the same for a file that does not say it
    tissue        how tissue is found on this slide instead of the run's way: a method, or mask by `tissue_mask`
    extra         further columns: targets, covariates, subgroups
    others        the other slides of its case or patient, where bags are of such
    """

    slide_id: str
    path: Path | str
    case_id: str
    patient_id: str
    label: str | None = None
    mpp: float | None = None
    site: str | None = None
    fallback_mpp: float | None = None
    tissue: str | None = None
    tissue_mask: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)
    others: tuple["SlideRecord", ...] = ()


def read_source(source: Path | str, known: Mapping[str, SlideRecord] | None = None) -> list[SlideRecord]:
    """The slides that `source` names: a slide, a folder of slides, or a manifest; each a path or a URL.

    known  slides that a table without paths may name: see `read_manifest`
    Raises ManifestError, before any work, for whatever is wrong with the source as a whole. A slide of a manifest
    whose file is missing is no such thing: it fails alone, later, with a receipt.
    """
    from wsi.formats.ngff import is_ome_zarr

    if isinstance(source, str) and not source.strip():
        raise ManifestError("SOURCE", "it is empty", "give a slide, a folder of slides or a manifest CSV")
    source = place_of(source)
    if name_of(source).lower().endswith(".csv"):
        return read_manifest(source, known)
    if isinstance(source, str):
        places = _slides_behind(source) if source.endswith("/") else [source]
        return _unique(source, [_record(place, _without_suffix(name_of(place))) for place in places])
    if source.is_dir() and not is_ome_zarr(source):
        return _unique(source, [_record(path, name) for path, name in _slides_in(source)])
    if not source.exists():
        raise ManifestError(
            source, "there is no such file or folder", "give a slide, a folder of slides or a manifest CSV"
        )
    return [_record(source, _without_suffix(source.name))]


def read_manifest(path: Path | str, known: Mapping[str, SlideRecord] | None = None) -> list[SlideRecord]:
    """Slides of a CSV with the columns slide_id, path and optionally case_id, patient_id, label, mpp, site, others.

    Paths are relative to the manifest, or URLs. Empty, NA, N/A, NaN, <NA> and null mean: not known. Raises
    ManifestError naming the line.

    known  slide_id → row, such as those that a run folder keeps: a table may then do without the column path, and what
           it has no column for is as known
    """
    try:
        text = _content(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EngineError) as error:
        raise ManifestError(path, f"it cannot be read ({error})", "give a CSV file in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [_known(name.strip()) for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = list(reader)
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}", f"it is no CSV ({error})", "check its quotes") from error
    if len(columns) == 1 and (mark := next((mark for mark in ";\t" if mark in columns[0]), None)):
        raise ManifestError(path, f"its columns are divided by {mark!r}", "save it as CSV with commas")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ManifestError(path, f"the column {twice[0]!r} stands there twice", "keep one of them")
    for name in REQUIRED if not known else REQUIRED[:1]:
        if name not in columns:
            near = get_close_matches(name, columns, n=1, cutoff=0.5)
            hint = f"is {near[0]!r} meant?" if near else f"it has {', '.join(columns) or 'no header line'}"
            raise ManifestError(path, f"the column {name!r} is missing ({hint})", f"it needs {' and '.join(REQUIRED)}")
    for name in columns:
        if meant := _misspelt(name, columns):
            raise ManifestError(path, f"the column {name!r} is unknown: is {meant!r} meant?", "rename it")
    whole = "path" in columns
    records = [
        _row(path, number, row if whole else _completed(path, number, row, known or {}))
        for number, row in enumerate(rows, start=2)
        if any(row.values())
    ]
    if not records:
        raise ManifestError(path, "it lists no slides", "add a line a slide")
    return _unique(path, records)


def _completed(
    manifest: Path | str, number: int, row: dict[str | None, Any], known: Mapping[str, SlideRecord]
) -> dict[str | None, Any]:
    """A row without a path, with what is known of its slide in the columns that the table does not have."""
    slide_id = str(row.get("slide_id") or "").strip()
    if slide_id not in known:
        raise ManifestError(
            f"{manifest}, line {number}", f"the run folder knows no slide {slide_id!r}", "add a column `path`"
        )
    record = known[slide_id]
    told: dict[str, Any] = {"path": str(record.path), "case_id": record.case_id, "patient_id": record.patient_id}
    told |= {"label": record.label or "", "mpp": record.mpp or "", "site": record.site or "", **record.extra}
    merged: dict[str | None, Any] = dict(row)
    return merged | {name: value for name, value in told.items() if name not in row}


def _known(column: str) -> str:
    """A column that is one of ours but for its case, by our name."""
    return column.casefold() if column.casefold() in KNOWN else column


def _misspelt(column: str, columns: Sequence[str]) -> str | None:
    """The optional column that this one is nearly, if the table has no such column: read as one more, it would be
    ignored in silence."""
    absent = [name for name in KNOWN if name not in columns]
    near = get_close_matches(column.casefold(), absent, n=1, cutoff=0.8)
    return near[0] if near else None


def _content(path: Path | str) -> bytes:
    if isinstance(path, Path):
        return path.read_bytes()
    with closing(open_source(path)) as file:
        return file.read_at(0, file.size)


def _row(manifest: Path | str, number: int, row: dict[str | None, str | list[str] | None]) -> SlideRecord:
    where = f"{manifest}, line {number}"
    if None in row:
        raise ManifestError(where, "it has more fields than the header", "put quotes around values that hold a comma")
    cells = {str(name): _cell(str(name), str(value or "")) for name, value in row.items()}
    slide_id, file = cells["slide_id"], cells["path"]
    if any(character < " " for value in cells.values() for character in value):
        raise ManifestError(where, "a value holds a line break or control character", "is a quote not closed?")
    if not ID_RULE.fullmatch(slide_id):
        raise ManifestError(
            where,
            f"slide_id {slide_id!r} is no plain file name",
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 100",
        )
    if not file:
        raise ManifestError(where, "the path is empty", "name the slide's file")
    patient = cells.get("patient_id") or cells.get("case_id") or slide_id
    extra = {name: value for name, value in cells.items() if name and name not in KNOWN}
    tissue, mask = _tissue(where, manifest, cells.get("tissue", ""))
    return SlideRecord(
        slide_id,
        _beside(manifest, file),
        cells.get("case_id") or patient,
        patient,
        cells.get("label") or None,
        _mpp(where, cells.get("mpp", "")),
        cells.get("site") or None,
        tissue=tissue,
        tissue_mask=mask,
        extra=extra,
    )


def _cell(column: str, text: str) -> str:
    """What stands in a cell; nothing where it says NA or the like, which is neither a class nor one patient of many
    slides."""
    return text.strip() if column in REQUIRED else said(text)


def _tissue(where: str, manifest: Path | str, text: str) -> tuple[str | None, Path | None]:
    """A method, or method mask and the file of one; (None, None) for an empty cell."""
    if not text:
        return None, None
    if text in TISSUE_METHODS and text not in ("mask", "learned"):
        return text, None
    file = _beside(manifest, text)
    if isinstance(file, Path) and file.is_file():
        return "mask", file
    methods = ", ".join(method for method in TISSUE_METHODS if method not in ("mask", "learned"))
    problem = f"tissue {text!r} is neither a method nor a file on this machine"
    raise ManifestError(where, problem, f"give one of {methods}, or a mask image or regions to use instead")


def _beside(manifest: Path | str, file: str) -> Path | str:
    """The place that `file` names in a manifest: a URL, or a path relative to the manifest."""
    if is_url(file) or Path(file).is_absolute():
        return place_of(file)
    return manifest.parent / file if isinstance(manifest, Path) else f"{manifest.rpartition('/')[0]}/{file}"


def _mpp(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.05 <= value <= 20:
        raise ManifestError(where, f"mpp {text!r} is no pixel size", "give µm per pixel from 0.05 to 20, such as 0.25")
    return value


def _slides_in(folder: Path) -> list[tuple[Path, str]]:
    """Slides of a folder with the names they go by.

    A subfolder of DICOM instances or OME-Zarr is one slide, and so are the files of one DICOM series.
    """
    from wsi.formats import FORMATS
    from wsi.formats.ngff import is_ome_zarr

    suffixes = {suffix for form in FORMATS for suffix in form.suffixes if form.in_folder}
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            instances = sorted(entry.glob("*.dcm"))
            if instances:
                found.append((instances[0], entry.name))
            elif is_ome_zarr(entry):
                found.append((entry, _without_suffix(entry.name)))
        elif entry.suffix.lower() in suffixes:
            found.append((entry, _without_suffix(entry.name)))
    found = _one_a_series(folder, found)
    if not found:
        known = " ".join(sorted(suffixes))
        raise ManifestError(
            folder, "no slides are in this folder", f"slides end in {known}; others go into a manifest CSV"
        )
    return found


def _one_a_series(folder: Path, found: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """The first file of every DICOM series for all of them; a folder with nothing but one goes by its own name."""
    from wsi.identity import dicom_series

    series = {path: dicom_series(path) for path, _ in found if path.parent == folder and path.suffix.lower() == ".dcm"}
    counts = Counter(uid for uid in series.values() if uid)
    firsts = {uid: path for path, uid in reversed(series.items())}
    kept = [(path, name) for path, name in found if not series.get(path) or firsts[series[path]] == path]
    if len(kept) == 1 and counts and counts.most_common(1)[0][1] > 1:
        return [(kept[0][0], _without_suffix(folder.name))]
    return kept


def _slides_behind(url: str) -> list[str]:
    """Slide files of a remote folder."""
    from wsi.formats import FORMATS
    from wsi.remote_store import list_folder

    suffixes = {suffix for form in FORMATS for suffix in form.suffixes if "url" in form.places}
    found = [place for place in list_folder(url) if Path(name_of(place)).suffix.lower() in suffixes]
    if not found:
        known = " ".join(sorted(suffixes))
        raise ManifestError(url, "no slides are in this folder", f"slides end in {known}; others go into a manifest")
    return found


def left_in(source: Path | str, records: Sequence[SlideRecord]) -> int:
    """Files in a folder given as source that are none of its slides, hidden ones and slides' companions aside."""
    from wsi.formats.ngff import is_ome_zarr

    source = place_of(source)
    if isinstance(source, str) or not source.is_dir() or is_ome_zarr(source):
        return 0
    taken = {Path(record.path) for record in records}
    files = [entry for entry in source.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    files = [entry for entry in files if entry.suffix.lower() != ".dcm"]  # each is of some slide
    stems = {_without_suffix(path.name) for path in taken}
    return sum(entry not in taken and entry.name.partition(".")[0] not in stems for entry in files)


def _without_suffix(name: str) -> str:
    """A file's name without its suffix, of which `.ome.tif` and `.ome.zarr` are one."""
    stem = Path(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") and len(stem) > 4 else stem


def _record(path: Path | str, name: str) -> SlideRecord:
    slide_id = re.sub(r"[^A-Za-z0-9._-]", "_", unicodedata.normalize("NFC", name)).lstrip("._-")[:100] or "slide"
    return SlideRecord(slide_id, path, slide_id, slide_id)


def _unique(source: Path | str, records: list[SlideRecord]) -> list[SlideRecord]:
    """Two slides with one id would overwrite each other; so would ids that differ in case only, on some disks."""
    by_id = defaultdict(list)
    for record in records:
        by_id[record.slide_id.casefold()].append(record)
    for same in by_id.values():
        if len(same) > 1:
            names = " and ".join(f"{record.slide_id} ({name_of(record.path)})" for record in same)
            raise ManifestError(source, f"slides share one slide_id: {names}", "give each its own id in a manifest CSV")
    return records
