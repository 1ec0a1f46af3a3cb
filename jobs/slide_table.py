"""The rows of the manifests that a run worked for, kept in its folder: where the slides lie, whose they are, labels.

One file for each set of rows, lists/<mark>.csv, itself a manifest: sessions of many machines write there at once, and
none may lose what another wrote.
"""

import csv
import logging
from collections.abc import Iterable
from pathlib import Path

from wsi.errors import ManifestError
from wsi.publish import appear_file, fingerprint
from wsi.source import is_url, shown

from .folder import RunFolder
from .manifest import SlideRecord, read_manifest

_COLUMNS = ("slide_id", "path", "case_id", "patient_id", "label", "mpp", "site")
_log = logging.getLogger(__name__)


def keep_records(folder: RunFolder, records: Iterable[SlideRecord]) -> None:
    """Write the rows into the run folder, unless they are there. Raises OSError where nothing can be written.

    URLs are kept without user, password and query, which hold secrets.
    """
    rows = [_row(record) for record in sorted(records, key=lambda record: record.slide_id)]
    rows = [row for row in rows if _can_be_kept(row)]
    path = folder.root / "lists" / f"{fingerprint(rows)}.csv"
    if path.exists() or not rows:
        return
    columns = [*_COLUMNS, *sorted({name for row in rows for name in row} - set(_COLUMNS))]
    with appear_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_records(folder: RunFolder) -> dict[str, SlideRecord]:
    """slide_id → the newest row that the run was given of it; {} in run folders of earlier versions."""
    found: dict[str, SlideRecord] = {}
    files = list((folder.root / "lists").glob("*.csv"))
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        try:
            found |= {record.slide_id: record for record in read_manifest(path)}
        except ManifestError as error:
            _log.warning("%s", error)
    return found


def _row(record: SlideRecord) -> dict[str, str]:
    path = shown(record.path) if is_url(record.path) else str(Path(record.path).absolute())
    row = {name: value for name, value in record.extra.items() if name not in _COLUMNS}
    row |= {"slide_id": record.slide_id, "path": path, "case_id": record.case_id, "patient_id": record.patient_id}
    row |= {"label": record.label or "", "site": record.site or ""}
    return row | {"mpp": "" if record.mpp is None else repr(record.mpp)}


def _can_be_kept(row: dict[str, str]) -> bool:
    """A manifest takes no control characters, and a file's name may have some, or be no text at all."""
    return all(value.isprintable() for value in row.values())
