"""Write annotations for other tools. Equal input gives equal bytes."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import AnnotationError
from ..publish import appear_file
from .annotation import Annotation
from .write_json import dsa_text, qupath_text
from .write_xml import asap_text, imagescope_text

FORMATS: dict[str, Callable[[Sequence[Annotation]], str]] = {
    "qupath": qupath_text,
    "asap": asap_text,
    "imagescope": imagescope_text,
    "dsa": dsa_text,
}


def write_annotations(annotations: Sequence[Annotation], path: Path | str, format: str | None = None) -> None:
    """Write for "qupath" (GeoJSON), "asap", "imagescope" or "dsa"; by default qupath, for a name with .xml asap.

    The file is gzipped where its name ends in .gz. Only QuPath keeps all: the others have no kinds and measurements,
    and one object for each part of a MultiPolygon. Holes are kept by all.
    Raises AnnotationError for a format that is not written.
    """
    path = Path(path)
    format = format or ("asap" if ".xml" in path.suffixes else "qupath")
    if format not in FORMATS:
        raise AnnotationError(path, f"the format {format!r} is not written", f"choose of {', '.join(FORMATS)}")
    content = FORMATS[format](annotations).encode()
    with appear_file(path) as draft:
        draft.write_bytes(gzip.compress(content, 6, mtime=0) if path.name.endswith(".gz") else content)
