"""What the XML of a Philips TIFF says about its levels and images.

The TIFF tags of its levels give sizes padded to whole tiles; the true ones follow from the pixel spacings in the XML.
Source: OpenSlide's philips-tiff driver and its description of the format, which are followed here.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .ome import parse_xml
from .scale import Number, as_number

_SPACING = "DICOM_PIXEL_SPACING"
_LARGEST_OBJECTIVE = 200


@dataclass(frozen=True)
class PhilipsSlide:
    """downsamples: whole numbers, one a level, from the spacings; mpp across and down; label and macro as JPEG."""

    downsamples: tuple[int, ...]
    mpp: tuple[Number, Number]
    objective: Number
    scanner: str | None
    images: dict[str, bytes]


def is_philips(software: str, description: str) -> bool:
    return software.startswith("Philips") and "DPUfsImport" in description[:100_000]


def read_slide(description: str) -> PhilipsSlide | str:
    """The facts, or why they cannot be used."""
    root = parse_xml(description)
    if isinstance(root, str):
        return root
    if root.tag != "DataObject" or root.get("ObjectType") != "DPUfsImport":
        return "its XML is not that of a Philips slide"
    scanned = list(_objects(root, "PIM_DP_SCANNED_IMAGES"))
    slides = [entry for entry in scanned if _value(entry, "PIM_DP_IMAGE_TYPE") == "WSI"]
    if len(slides) != 1:
        return f"its XML lists {len(slides)} slides instead of one"
    levels = [
        _spacing(_value(entry, _SPACING))
        for entry in _objects(slides[0], "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE")
        if entry.get("ObjectType") == "PixelDataRepresentation"
    ]
    spacings = [level for level in levels if level is not None]
    if not levels or len(spacings) != len(levels):
        return "its XML does not give the pixel spacing of each level"
    base = spacings[0]
    stated = _spacing(_value(slides[0], _SPACING)) or base
    return PhilipsSlide(
        tuple(round((level[0] / base[0] + level[1] / base[1]) / 2) for level in spacings),
        (1e3 * stated[0], 1e3 * stated[1]),
        _objective(_value(slides[0], "DICOM_DERIVATION_DESCRIPTION") or ""),
        _value(root, "DICOM_MANUFACTURERS_MODEL_NAME") or _value(slides[0], "DICOM_MANUFACTURERS_MODEL_NAME"),
        dict(_jpegs(scanned)),
    )


def _objects(parent: Element, name: str) -> Iterator[Element]:
    for attribute in parent.iterfind("Attribute"):
        if attribute.get("Name") == name:
            yield from attribute.iterfind("Array/DataObject")


def _value(parent: Element, name: str) -> str | None:
    found = (attribute.text for attribute in parent.iterfind("Attribute") if attribute.get("Name") == name)
    return next((text.strip() for text in found if text is not None), None)


def _spacing(text: str | None) -> tuple[float, float] | None:
    """(across, down) in mm; the text gives rows first, in quotes."""
    parts = [as_number(part) for part in (text or "").replace('"', " ").split()]
    if len(parts) != 2:
        return None
    down, across = parts
    if not isinstance(down, float) or not isinstance(across, float) or not (0 < down < 1 and 0 < across < 1):
        return None
    return across, down


def _objective(derivation: str) -> Number:
    """The first of `levels=…`, which is the magnification or, in some files, a number above 10,000."""
    for item in derivation.split("-"):
        key, _, value = item.partition("=")
        if key == "sourceFilename":  # its value is quoted and may hold anything
            break
        if key == "levels":
            first = value.split(",")[0]
            return first if first.isdecimal() and 0 < int(first) <= _LARGEST_OBJECTIVE else None
    return None


def _jpegs(scanned: list[Element]) -> Iterator[tuple[str, bytes]]:
    for entry in reversed(scanned):  # the first of a kind counts
        name = {"LABELIMAGE": "label", "MACROIMAGE": "macro"}.get(_value(entry, "PIM_DP_IMAGE_TYPE") or "")
        data = _value(entry, "PIM_DP_IMAGE_DATA")
        if name is not None and data:
            try:
                yield name, base64.b64decode(data)
            except binascii.Error:
                yield name, b""  # named, and damaged: a label that cannot be read is not a label that is absent
