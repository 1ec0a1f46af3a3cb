"""What an OME-Zarr folder says about itself: its images, their axes, levels, scale and channels. JSON only, no pixels.

Source: OME-NGFF specification 0.4 (Zarr v2: .zattrs) and 0.5 (Zarr v3: zarr.json, key `ome`); layout of bioformats2raw.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import SlideError
from .file_check import COPY_AGAIN
from .scale import Scale, stated_scale

_AXES = ("t", "c", "z", "y", "x")
_LEGACY_AXES = list(_AXES)  # versions before 0.3 name none
_MAX_JSON_BYTES = 64 << 20
_FORMAT = "give an OME-Zarr image (NGFF 0.4 or 0.5) with its metadata as written"

# UDUNITS-2 names as NGFF lists them, and what people write, in µm
_UNITS_UM = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "decimeter": 1e5,
    "meter": 1e6, "inch": 25_400.0, "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4,
}  # fmt: skip


@dataclass(frozen=True)
class NgffImage:
    """One multiscale image.

    group    folder of the image; levels: folders of its arrays, finest first
    axes     names in the order of the arrays' dimensions: c, y, x and possibly t, z
    scale    µm per level-0 pixel as stated
    names    of the channels, "" where one has none; () where the file lists no channels
    colours  of the channels as RRGGBB, "" where one has none
    note     what was chosen among several images, for SlideInfo.why
    """

    group: Path
    levels: tuple[Path, ...]
    axes: tuple[str, ...]
    scale: Scale
    names: tuple[str, ...]
    colours: tuple[str, ...]
    note: str = ""

    def says_rgb(self) -> bool:
        """Whether its channels are red, green and blue by their colours, or state none."""
        return self.colours in ((), ("FF0000", "00FF00", "0000FF")) or not any(self.colours)


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder holds an OME-Zarr image, sound or not."""
    try:
        return _image_group(path) is not None
    except SlideError:
        return False


def read_image(path: Path) -> NgffImage | None:
    """The image of an OME-Zarr folder, the largest of several; None for what is no Zarr folder.

    Raises SlideError for other Zarr folders (a store of a run, a plate, a label image), and for damaged metadata.
    """
    found = _image_group(path)
    if found is None:
        return None
    group, note = found
    stated = _attributes(group) or {}
    if "image-label" in stated:
        raise SlideError(path, "this is an OME-Zarr label image, not a slide", "name the image that it belongs to")
    try:
        return _parse(group, stated["multiscales"][0], stated.get("omero") or {}, note)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        problem = f"its OME-Zarr metadata is incomplete or damaged ({type(error).__name__}: {error})"
        raise SlideError(path, problem, _FORMAT) from None


def array_shape(folder: Path) -> tuple[int, ...] | None:
    """The shape that an array's metadata states, None where there is no array."""
    for name in ("zarr.json", ".zarray"):
        stated = _json(folder / name)
        if stated is not None and isinstance(stated.get("shape"), list):
            return tuple(int(extent) for extent in stated["shape"])
    return None


def _parse(group: Path, multiscale: dict[str, Any], omero: dict[str, Any], note: str) -> NgffImage:
    stated = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes") or _LEGACY_AXES]
    axes = tuple(str(axis["name"]).lower() for axis in stated)
    if len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) <= set(_AXES):
        raise ValueError(f"axes {', '.join(axes)}")
    datasets = multiscale["datasets"]
    if not datasets:
        raise ValueError("no datasets")
    steps = [_scale_of(dataset, multiscale, len(axes)) for dataset in datasets]
    channels = omero.get("channels") or []
    return NgffImage(
        group,
        tuple(_inside(group, dataset["path"]) for dataset in datasets),
        axes,
        _mpp(stated, axes, steps[0]),
        tuple(str(channel.get("label") or "").strip() for channel in channels),
        tuple(str(channel.get("color") or "").strip().lstrip("#").upper()[:6] for channel in channels),
        note,
    )


def _scale_of(dataset: dict[str, Any], multiscale: dict[str, Any], axes: int) -> list[float] | None:
    """Length of a pixel along each axis; None where neither level nor image states one."""
    both = (*(dataset.get("coordinateTransformations") or ()), *(multiscale.get("coordinateTransformations") or ()))
    factors = [step["scale"] for step in both if step.get("type") == "scale"]
    if not factors:
        return None
    if any(len(factor) != axes for factor in factors):
        raise ValueError("a scale that does not fit the axes")
    return [math.prod(map(float, along)) for along in zip(*factors, strict=True)]


def _mpp(stated: list[dict[str, Any]], axes: tuple[str, ...], scale: list[float] | None) -> Scale:
    lengths = []
    for axis in ("x", "y"):
        number = axes.index(axis)
        unit = stated[number].get("unit")
        if scale is None or unit is None:
            return Scale(None, None, "its file states no pixel size" if scale is None else "its axes state no unit")
        um = _UNITS_UM.get(str(unit).lower().replace("metre", "meter"))
        if um is None:
            return Scale(None, None, f"its file states the pixel size in {unit!r}, which is no length")
        lengths.append(scale[number] * um)
    return stated_scale(lengths[0], lengths[1], "ome", None)


def _image_group(path: Path) -> tuple[Path, str] | None:
    """The folder with the image, and a note on the choice; None for no Zarr. Raises SlideError for other Zarr."""
    stated = _attributes(path) if path.is_dir() else None
    if stated is None:
        return None
    if "multiscales" in stated:
        return path, ""
    if "plate" in stated or "well" in stated:
        raise SlideError(path, "this is an OME-Zarr plate, not a slide", "name one image of it, such as PLATE/A/1/0")
    if "bioformats2raw.layout" in stated:
        return _largest(path)
    kind = f" but a {stated['schema']} store" if isinstance(stated.get("schema"), str) else ""
    raise SlideError(path, f"this Zarr folder is not OME-Zarr{kind}: it has no multiscales", "name the slide itself")


def _largest(path: Path) -> tuple[Path, str]:
    """The largest image of a bioformats2raw folder: the others are its label, macro and the like."""
    series = (_attributes(path / "OME") or {}).get("series")
    names = list(map(str, series)) if isinstance(series, list) else [folder.name for folder in sorted(path.iterdir())]
    sizes = {}
    for name in names:
        group = _inside(path, name)
        stated = (_attributes(group) if group.is_dir() else None) or {}
        multiscales = stated.get("multiscales")
        if multiscales:
            shape = array_shape(_inside(group, str(multiscales[0]["datasets"][0]["path"])))
            sizes[name] = math.prod(shape[-2:]) if shape else 0
    if not sizes:
        raise SlideError(path, "this OME-Zarr folder holds no image", COPY_AGAIN)
    chosen = max(sizes, key=lambda name: sizes[name])
    return path / chosen, f"image {chosen}, the largest of {len(sizes)}" if len(sizes) > 1 else ""


def _inside(group: Path, name: str) -> Path:
    """A folder that the metadata names; it must lie in the image."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not name:
        raise SlideError(group, f"its metadata names {name!r}, outside of it", _FORMAT)
    return group / parts


def _attributes(folder: Path) -> dict[str, Any] | None:
    """Attributes of a Zarr group, OME's own where they have a key of their own; None where there is no Zarr."""
    v3 = _json(folder / "zarr.json")
    stated = _json(folder / ".zattrs") if v3 is None else v3.get("attributes", {})
    if stated is None:
        return {} if (folder / ".zgroup").is_file() or (folder / ".zarray").is_file() else None
    if not isinstance(stated, dict):
        raise SlideError(folder, "its Zarr attributes are damaged", COPY_AGAIN)
    return stated["ome"] if isinstance(stated.get("ome"), dict) else stated


def _json(file: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no such file."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise SlideError(file, f"its metadata is larger than {_MAX_JSON_BYTES >> 20} MiB", COPY_AGAIN)
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SlideError(file, f"its metadata cannot be read ({error})", COPY_AGAIN) from None
    if not isinstance(found, dict):
        raise SlideError(file, "its metadata is no JSON object", COPY_AGAIN)
    return found
