"""What the OME-XML of an OME-TIFF says about its images.

Source: OME Data Model 2016-06, and the OME-TIFF specification (TiffData, sub-resolutions in SubIFDs).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .scale import Number

_BIG_PX = 10_000_000
_UM = {
    "µm": 1.0, "um": 1.0, "μm": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0,
}  # fmt: skip
_ASSOCIATED = (("label", "label"), ("macro", "macro"), ("overview", "macro"), ("thumb", "thumbnail"))


@dataclass(frozen=True)
class OmeImage:
    """One image series.

    width, height  px; planes: of other focus and time
    directory      that of its first plane, in the TIFF's chain
    mpp            across and down in µm, None where it is not stated or not as a length
    """

    name: str
    width: int
    height: int
    channels: int
    planes: int
    directory: int
    mpp: tuple[Number, Number]
    objective: str | None
    scanner: str | None


def is_ome(description: str) -> bool:
    return "<OME" in description[:100_000]


def parse_xml(text: str) -> Element | str:
    """The root of an XML text, or why it is none. Documents that define entities are refused."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root: Element = fromstring(text.strip(), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        return f"its XML cannot be read ({error})"
    return root


def read_images(description: str) -> list[OmeImage] | str:
    """The image series of an OME-XML text, or why it cannot be used."""
    root = parse_xml(description)
    if isinstance(root, str):
        return root
    if root.find("{*}BinaryOnly") is not None:
        return "one file of an OME-TIFF of several"
    files = {entry.get("FileName") for entry in root.iterfind(".//{*}TiffData/{*}UUID") if entry.get("FileName")}
    if len(files) > 1:
        return f"one file of an OME-TIFF of {len(files)}"
    try:
        images = list(_images(root))
    except (ValueError, AttributeError) as error:
        return f"its OME-XML is incomplete ({error})"
    return images or "its OME-XML has no image"


def choose(images: list[OmeImage]) -> tuple[OmeImage, dict[str, int]] | str:
    """The slide among the images, and directories of the associated ones by name; or why there is no telling."""
    main = max(images, key=lambda image: image.width * image.height)
    associated: dict[str, int] = {}
    for image in images:
        area = image.width * image.height
        name = next((name for word, name in _ASSOCIATED if word in image.name.lower()), None)
        if image is main:
            continue
        if name is not None:
            associated.setdefault(name, image.directory)
        elif area > _BIG_PX or area * 4 >= main.width * main.height:
            return f"an OME-TIFF of {len(images)} image series"
    if main.planes > 1:
        return f"an OME-TIFF with {main.planes} focal planes or times"
    return main, associated


def _images(root: Element) -> Iterator[OmeImage]:
    following = 0
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            raise ValueError("an image without pixels")
        width, height, depth, channels, times = (int(pixels.get(f"Size{axis}", "")) for axis in "XYZCT")
        samples = max([1, *(int(c.get("SamplesPerPixel", "1")) for c in pixels.iterfind("{*}Channel"))])
        data = [int(entry.get("IFD", following)) for entry in pixels.iterfind("{*}TiffData")]
        start = min(data, default=following)
        yield OmeImage(
            image.get("Name", ""),
            width,
            height,
            channels,
            depth * times,
            start,
            (_um(pixels, "X"), _um(pixels, "Y")),
            *_instrument(root, image),
        )
        following = start + depth * times * max(1, channels // samples)


def _um(pixels: Element, axis: str) -> Number:
    """µm per pixel along an axis; None where the unit is no length (pixel, reference frame)."""
    stated = pixels.get(f"PhysicalSize{axis}")
    factor = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    if stated is None or factor is None:
        return None
    try:
        return float(stated) * factor
    except ValueError:
        return stated


def _instrument(root: Element, image: Element) -> tuple[str | None, str | None]:
    """(nominal magnification, microscope's model) of an image."""
    settings, of = image.find("{*}ObjectiveSettings"), image.find("{*}InstrumentRef")
    objective = scanner = None
    for entry in root.iterfind("{*}Instrument/{*}Objective"):
        if settings is not None and entry.get("ID") == settings.get("ID"):
            objective = entry.get("NominalMagnification")
    for entry in root.iterfind("{*}Instrument"):
        microscope = entry.find("{*}Microscope")
        if of is not None and entry.get("ID") == of.get("ID") and microscope is not None:
            scanner = re.sub(r"\s+", " ", microscope.get("Model", "")).strip() or None
    return objective, scanner
