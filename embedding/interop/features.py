"""What the embeddings of one slide are in every tool, and a record of what became of each field on the way."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import StoreError
from wsi.publish import fingerprint

KEPT, GUESSED, DROPPED, MISSING = "kept", "guessed", "dropped", "missing"
FATES = (KEPT, GUESSED, DROPPED, MISSING)
ROWS = 1024  # rows a chunk in the HDF5 files written here: every reader takes any, and one row a chunk is slow


@dataclass(frozen=True)
class Features:
    """The embeddings of one slide, as far as a file tells.

    slide_id    the slide's id
    origin      the tool whose file it is
    embeddings  float (n, d)
    xy          int64 (n, 2), tiles' top-left corners in level-0 pixels; None where unknown
    span_px     side of a tile in level-0 pixels
    tile_px     side of the patch that was embedded, in its own pixels; mpp: µm per pixel of it
    mpp_source  where that is from: file, magnification (10 / its nominal value) or user
    slide_mpp   µm per level-0 pixel
    size        (width, height) of the slide in level-0 pixels
    overlap_px  pixels of a patch that its neighbour shows too
    encoder     what made the embeddings, by the file's own name
    level       tile, or slide where there is one vector for all of it
    facts       what else the file says that shaped the embeddings
    """

    slide_id: str
    origin: str
    embeddings: NDArray[Any]
    xy: NDArray[np.int64] | None = None
    span_px: int | None = None
    tile_px: int | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    slide_mpp: float | None = None
    size: tuple[int, int] | None = None
    overlap_px: int | None = None
    encoder: str | None = None
    level: str = "tile"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What the user says of files that do not say it: encoder, tile_px and mpp of the patch, slide_mpp, and a folder
    with the coordinates that belong to them."""

    encoder: str | None = None
    tile_px: int | None = None
    mpp: float | None = None
    slide_mpp: float | None = None
    coords: Path | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one field: kept, guessed, dropped, or missing where the source does not say it."""

    fate: str
    field: str
    value: Any = None
    why: str = ""


class Report:
    """What became of every field of one slide's embeddings."""

    def __init__(self, slide_id: str, flavour: str, file: Path):
        self.slide_id, self.flavour, self.file = slide_id, flavour, file
        self.fates: list[Fate] = []

    def kept(self, name: str, value: Any = None, why: str = "") -> None:
        self.fates.append(Fate(KEPT, name, value, why))

    def guessed(self, name: str, value: Any, why: str) -> None:
        self.fates.append(Fate(GUESSED, name, value, why))

    def dropped(self, name: str, why: str, value: Any = None) -> None:
        self.fates.append(Fate(DROPPED, name, value, why))

    def missing(self, name: str, why: str) -> None:
        self.fates.append(Fate(MISSING, name, None, why))

    def of(self, name: str) -> str | None:
        """The last fate of a field, None where nothing is said of it."""
        return next((one.fate for one in reversed(self.fates) if one.field == name), None)

    def as_dict(self) -> dict[str, Any]:
        lines: dict[str, Any] = {"flavour": self.flavour, "file": str(self.file)}
        for fate in FATES:
            lines[fate] = [
                {key: value for key, value in (("field", one.field), ("value", one.value), ("why", one.why)) if value}
                for one in self.fates
                if one.fate == fate
            ]
        return lines

    def __iter__(self) -> Iterator[Fate]:
        return iter(self.fates)


def settle(found: Features, known: Known, report: Report) -> Features:
    """The features with what the user knows and what follows from the rest filled in; the report says which is which.

    Raises StoreError for embeddings that no store can hold.
    """
    found = replace(found, embeddings=_storable(found, report))
    for name in ("encoder", "tile_px", "mpp", "slide_mpp"):
        stated, told = getattr(found, name), getattr(known, name)
        if told is not None:
            found = replace(found, **{name: told})
            found = replace(found, mpp_source="user") if name == "mpp" else found
            report.kept(name, told, "as told" if stated in (None, told) else f"as told; the file says {stated}")
        elif stated is not None and (name, found.mpp_source) != ("mpp", "magnification"):
            report.kept(name, stated)
        elif stated is not None:
            report.guessed(name, stated, "10 / the nominal magnification; the true scale may be 10 % away")
        elif name != "slide_mpp":
            report.missing(name, "the file does not say it")
    if found.level == "slide":
        return found
    return _placed(found, report)


def _placed(found: Features, report: Report) -> Features:
    xy = found.xy
    if xy is None:
        if report.of("coords") is None:
            report.missing("coords", "the places of the tiles are unknown: -1 is stored, and no heatmap can be drawn")
        return found
    if report.of("coords") is None:
        report.kept("coords", f"{len(xy)} corners in level-0 px")
    if found.span_px is not None:
        report.kept("span_px", found.span_px)
    elif found.tile_px and found.mpp and found.slide_mpp:
        found = replace(found, span_px=max(1, round(found.tile_px * found.mpp / found.slide_mpp)))
        report.kept("span_px", found.span_px, "from tile_px, mpp and slide_mpp")
    elif (step := stride_of(xy)) is not None:
        found = replace(found, span_px=step)
        report.guessed("span_px", step, "the smallest distance between two tiles, as if they did not overlap")
    else:
        report.missing("span_px", "the file does not say it")
    if found.slide_mpp is None and found.span_px and found.mpp and found.tile_px and found.mpp_source == "file":
        found = replace(found, slide_mpp=found.mpp * found.tile_px / found.span_px)
        report.kept("slide_mpp", found.slide_mpp, "from mpp, tile_px and span_px")
    return found


def stride_of(xy: NDArray[np.int64]) -> int | None:
    """The smallest distance between two columns or rows of tiles; None for fewer than two."""
    steps = [np.diff(np.unique(axis)) for axis in xy.T]
    found = [int(step.min()) for step in steps if len(step)]
    return min(found, default=None)


def _storable(found: Features, report: Report) -> NDArray[Any]:
    """Float16 or float32 (n, d), by the file's own dtype where it is one of them."""
    values = found.embeddings
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        problem = f"its features are {values.dtype} {values.shape}, not numbers (n, d)"
        raise StoreError(report.file, problem, "name a file of tile features")
    if found.xy is not None and len(found.xy) != len(values):
        problem = f"it has {len(values)} features and {len(found.xy)} coordinates"
        raise StoreError(report.file, problem, "write it again")
    if not np.isfinite(values).all():
        raise StoreError(report.file, "its features hold NaN or infinity", "embed the slide again")
    if values.dtype in (np.float16, np.float32):
        report.kept("embeddings", f"{values.dtype} {values.shape}")
        return values
    report.kept("embeddings", f"float32 {values.shape}", f"rounded from {values.dtype}")
    return values.astype(np.float32)


def as_float16(found: Features, report: Report) -> NDArray[np.float16]:
    """Embeddings as float16. Raises StoreError where one of them is beyond its range."""
    if found.embeddings.dtype == np.float16:
        return found.embeddings
    if np.abs(found.embeddings).max(initial=0) > np.finfo(np.float16).max:
        raise StoreError(found.slide_id, "its embeddings are beyond float16", "export to a tool that keeps float32")
    report.dropped("precision", f"rounded from {found.embeddings.dtype} to float16, as the tool stores them")
    return found.embeddings.astype(np.float16)


def as_float32(found: Features, report: Report) -> NDArray[np.float32]:
    """Embeddings as float32, which holds every float16; the report is told that they are kept, and of the change."""
    dtype = found.embeddings.dtype
    report.kept("embeddings", None, "" if dtype == np.float32 else f"{dtype} as float32")
    return found.embeddings.astype(np.float32)


def foreign_contract(found: Features) -> dict[str, Any]:
    """The contract of features that another tool made: what is known of them and from where, with a hash over it.

    Unlike a contract of our own it has an `origin`, so the two are never equal. What differs from slide to slide, as
    the pixel size of level 0, is not part of it.
    """
    contract: dict[str, Any] = {
        "origin": found.origin,
        "backbone": f"{found.origin}-{plain_name(found.encoder or 'unknown')}",
        "encoder": found.encoder,
        "level": found.level,
        "dim": int(found.embeddings.shape[1]),
        "dtype": str(found.embeddings.dtype),
        "tile_px": found.tile_px,
        "mpp": found.mpp,
        "mpp_source": found.mpp_source,
        "facts": dict(found.facts),
    }
    return {**contract, "hash": fingerprint(contract)}


def keep(found: Features, report: Report, *names: str) -> None:
    """Tell the report that these fields were written; those that are unknown are missing."""
    for name in names:
        value = found.xy if name == "coords" else getattr(found, name)
        if value is None:
            report.missing(name, "it is unknown")
        else:
            report.kept(name, value if isinstance(value, int | float | str) else None)


def plain_name(text: str) -> str:
    """Text as a plain file name: letters, digits, '.', '_' and '-', at most 100."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip("._-")[:100] or "unnamed"
