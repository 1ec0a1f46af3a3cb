"""Features of TRIDENT: <scale>/features_<encoder>/<slide>.h5, `features` and `coords` with the attributes of both.

The layout is what trident/IO.py (`save_h5`) and trident/wsi_objects/WSI.py (`extract_features`) write. Of Mussel, whose
files differ in their attributes, too.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tiling.coords import trident_attrs, trident_folder
from wsi.errors import SpecError
from wsi.publish import appear_file

from .features import ROWS, Features, Known, Report, keep, plain_name, settle
from .hdf5 import array, attrs_of, corners, number, opened, size_of, text, whole

NOMINAL = (80, 60, 40, 20, 10, 5, 2.5, 1.25)


def read(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """Tile features of TRIDENT or Mussel."""
    with opened(path) as file:
        attrs, about = attrs_of(file, "coords"), attrs_of(file, "features")
        values = array(path, file, "features", (1, 2))
        places = array(path, file, "coords") if "coords" in file else None
    mussel = "patch_size_to_resize_to_for_desired_mpp" in attrs
    if values.ndim == 1:  # an empty slide of an encoder that does not know its dimension
        values = values.reshape(0, 1)
    magnification = _nominal(number(attrs, "target_magnification"))
    found = Features(
        slide_id=path.stem,
        origin="mussel" if mussel else "trident",
        embeddings=values,
        xy=None if places is None else corners(path, places),
        span_px=whole(attrs, "patch_size") if mussel else whole(attrs, "patch_size_level0"),
        tile_px=whole(attrs, "patch_size_to_resize_to_for_desired_mpp" if mussel else "patch_size"),
        mpp=10 / magnification if magnification else None,
        mpp_source="magnification" if magnification else None,
        size=size_of(attrs, "level0_width", "level0_height"),
        overlap_px=int(attrs["overlap"]) if isinstance(attrs.get("overlap"), int) else None,
        encoder=text(about, "encoder"),
    )
    report = Report(found.slide_id, found.origin, path)
    for name in ("name", "savetodir"):
        if name in attrs or name in about:
            report.dropped(name, "it says where the file was written, not what is in it")
    if number(attrs, "level0_magnification"):
        report.dropped("level0_magnification", "a rounded name of the pixel size", attrs["level0_magnification"])
    return [(settle(found, known, report), report)]


def read_slide(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """One vector for the whole slide."""
    with opened(path) as file:
        values, about = array(path, file, "features", (1,)), attrs_of(file, "features")
        placed = "coords" in file
    found = Features(path.stem, "trident", values[None], encoder=text(about, "encoder"), level="slide")
    report = Report(found.slide_id, "trident-slide", path)
    if placed:
        report.dropped("coords", "there is one vector for all of these tiles")
    return [(settle(found, known, report), report)]


def _nominal(magnification: float | None) -> float | None:
    """The usual magnification within 10 % of this one: TRIDENT's are relative to a rounded one of the slide."""
    if magnification is None:
        return None
    return next((usual for usual in NOMINAL if abs(magnification / usual - 1) < 0.1), magnification)


def write(found: Features, out: Path, report: Report) -> Path:
    """`<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`; `coords` are those of the features' rows."""
    import h5py

    if found.xy is None or not found.span_px or not found.tile_px or not found.slide_mpp or not found.mpp:
        lacking = [name for name in ("xy", "span_px", "tile_px", "slide_mpp", "mpp") if not _has(found, name)]
        raise SpecError(found.slide_id, f"TRIDENT needs {', '.join(lacking)}, which are unknown", "export to clam")
    overlap = found.overlap_px or 0
    encoder = plain_name(found.encoder or "unknown")
    folder = out / trident_folder(found.mpp, found.tile_px, overlap) / f"features_{encoder}"
    path = folder / f"{found.slide_id}.h5"
    attrs: dict[str, Any] = trident_attrs(found.tile_px, found.span_px, found.slide_mpp)
    attrs |= {"overlap": overlap, "name": found.slide_id, "savetodir": folder.name}
    if found.size is not None:
        attrs |= {"level0_width": found.size[0], "level0_height": found.size[1]}
    else:
        report.missing("size", "level0_width and level0_height are not written")
    with appear_file(path) as draft, h5py.File(draft, "w") as file:
        write_rows(file, "features", found.embeddings).attrs.update(
            {"name": found.slide_id, "savetodir": folder.name, "encoder": found.encoder or "None"}
        )
        write_rows(file, "coords", found.xy.astype(np.int64)).attrs.update(attrs)
    keep(found, report, "embeddings", "coords", "span_px", "tile_px", "encoder")
    report.dropped("mpp", "TRIDENT keeps magnifications, relative to a rounded one of the slide", found.mpp)
    return path


def write_rows(file: Any, name: str, values: Any, rows: int = ROWS) -> Any:
    """A dataset that can grow, as these tools write, in chunks of many rows."""
    chunks = (max(1, min(rows, len(values))), *values.shape[1:])
    return file.create_dataset(name, data=values, chunks=chunks, maxshape=(None, *values.shape[1:]))


def _has(found: Features, name: str) -> bool:
    value = getattr(found, name)
    return value is not None and (name == "xy" or bool(value))
