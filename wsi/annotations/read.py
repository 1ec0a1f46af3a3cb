"""Read a file of annotations: its content tells the format, and nothing in it can make reading expensive."""

import gzip
import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from ..errors import AnnotationError
from . import asap, darwin, dsa, imagescope, ncrf, qupath, sectra
from .annotation import Annotation, repair

MAX_BYTES = 1 << 29  # of a file after decompression; a million nuclei of 50 points take about that
MAX_DEPTH = 64
KNOWN = "use QuPath GeoJSON, ASAP or Aperio ImageScope XML, or JSON of DSA, Darwin V7, NCRF or Sectra"

log = logging.getLogger(__name__)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_annotations(path: Path | str, width_px: int | None = None) -> list[Annotation]:
    """All objects of a file of QuPath, ASAP, ImageScope, DSA, Darwin, NCRF or Sectra, in level-0 pixels, in file order.

    width_px is the slide's width at level 0; Sectra's files alone need it.

    GeoJSON may be a FeatureCollection, a list of features, one feature or a bare geometry. Any of the formats may be
    compressed (gzip, or zip with one file). The content tells the format, not the suffix.
    Raises AnnotationError where the file is missing, damaged, too large, or of another format.
    """
    path = Path(path)
    content = _content(path)
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<" or content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        drafts = _from_xml(path, content)
    elif start in (b"{", b"["):
        drafts = _from_json(path, content, width_px)
    else:
        raise AnnotationError(path, "not a known annotation format", KNOWN)
    shapes, repaired = repair([draft.geometry for draft in drafts])
    if repaired.any():
        log.info("%s: %d of %d shapes crossed themselves and were repaired", path.name, repaired.sum(), len(shapes))
    return [
        Annotation(shape, draft.classes, draft.name, draft.kind, bool(mended))
        for shape, draft, mended in zip(shapes, drafts, repaired, strict=True)
        if not shape.is_empty
    ]


def _from_xml(path: Path, content: bytes) -> list[Annotation]:
    root = _parse_xml(path, content)
    for format in (asap, imagescope):
        if format.matches(root):
            return format.parse(root, path)
    raise AnnotationError(path, f"not a known annotation format: XML with root {root.tag[:40]!r}", KNOWN)


def _from_json(path: Path, content: bytes, width_px: int | None) -> list[Annotation]:
    def refuse(word: str) -> NoReturn:
        raise AnnotationError(path, f"{word} is not JSON", "export it again with numbers only")

    if _depth(content) > MAX_DEPTH:
        raise AnnotationError(path, f"nested deeper than {MAX_DEPTH}", "this is no annotation file")
    try:
        tree: Any = json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise AnnotationError(path, f"damaged JSON ({error})", "export it again") from None
    for format in (qupath, dsa, darwin, ncrf):
        if format.matches(tree):
            return format.parse(tree, path)
    if sectra.matches(tree):
        return sectra.parse(tree, path, width_px)
    raise AnnotationError(path, "not a known annotation format: JSON of none of these tools", KNOWN)


def _parse_xml(path: Path, content: bytes) -> Element:
    """The tree of an XML file; entities and DTDs are refused by defusedxml, deep nesting here."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    root: Element | None = None
    depth = 0
    try:
        for event, element in iterparse(io.BytesIO(content), events=("start", "end"), forbid_dtd=True):
            depth += 1 if event == "start" else -1
            root = element if root is None else root
            if depth > MAX_DEPTH:
                raise AnnotationError(path, f"nested deeper than {MAX_DEPTH}", "this is no annotation file")
    except ParseError as error:
        raise AnnotationError(path, f"damaged XML ({error})", "export it again") from None
    except DefusedXmlException as error:
        raise AnnotationError(path, f"XML with a {type(error).__name__}", "remove the DTD and entities") from None
    assert root is not None  # a document without an element is a ParseError
    return root


def _depth(content: bytes) -> int:
    """Deepest nesting of brackets in JSON text; strings are looked at only where it matters."""
    weight = np.zeros(256, np.int8)
    weight[list(b"[{")], weight[list(b"]}")] = 1, -1

    def deepest(text: bytes) -> int:
        level = most = 0
        for start in range(0, len(text), 1 << 24):
            levels = weight[np.frombuffer(text, np.uint8, min(1 << 24, len(text) - start), start)].cumsum(
                dtype=np.int64
            )
            most, level = max(most, level + int(levels.max())), level + int(levels[-1])
        return most

    found = deepest(content)
    return found if found <= MAX_DEPTH else deepest(re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content, flags=re.DOTALL))


def _content(path: Path) -> bytes:
    """The file's bytes, decompressed if need be."""
    if not path.is_file():
        raise AnnotationError(path, "no such file" if not path.exists() else "not a file", "check the path")
    with path.open("rb") as stream:
        magic = stream.read(4)
        stream.seek(0)
        try:
            if magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    return _bounded(path, unpacked)
            if magic == b"PK\x03\x04":
                with zipfile.ZipFile(stream) as archive, archive.open(_only_member(path, archive)) as unpacked:
                    return _bounded(path, unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise AnnotationError(path, f"cannot be decompressed ({error})", "export it again") from None
        return _bounded(path, stream)


def _only_member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    def members() -> Iterator[zipfile.ZipInfo]:
        for entry in archive.infolist():
            name = entry.filename.rpartition("/")[2]
            if name.lower().endswith((".json", ".geojson", ".xml")) and not name.startswith("."):
                yield entry

    found = list(islice(members(), 2))
    if len(found) != 1:
        problem = "no annotation file in it" if not found else "several annotation files in it"
        raise AnnotationError(path, problem, "make a zip of one .geojson or .xml, or unpack it")
    return found[0]


def _bounded(path: Path, stream: _Readable) -> bytes:
    content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise AnnotationError(path, f"larger than {MAX_BYTES >> 20} MiB", "split it by class or by tile")
    return content
