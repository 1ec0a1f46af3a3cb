"""Files of AtlasPatch: `coords` int32 (n, 5) = x, y, read width, read height, level; `passports`, a line of text a
tile; and a group `features` with float32 (n, d) for each model (atlas_patch/services/storage.py, utils/h5.py)."""

from pathlib import Path
from typing import Any

import numpy as np

from tiling.coords import trident_attrs
from wsi.errors import SpecError, StoreError
from wsi.publish import appear_file

from .features import Features, Known, Report, as_float32, keep, settle
from .hdf5 import array, corners, number, opened, plain_attrs, size_of, whole
from .trident import write_rows

PASSPORT = "{stem}__x{X}_y{Y}_rw{RW}_rh{RH}_lv{LV}_mag{MAG}_tmag{TMAG}_total{TOTAL}"
PASSPORT_BYTES, PASSPORT_VERSION, CHUNK_ROWS = 160, 2, 8192


def read(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """The features of every model in the file."""
    import h5py

    with opened(path) as file:
        attrs, xy = plain_attrs(file), corners(path, array(path, file, "coords"))
        models = {name: file["features"][name] for name in file["features"]}
        for name, item in models.items():
            if not isinstance(item, h5py.Dataset):
                raise StoreError(path, f"features/{name} is no table of numbers", "write it again")
        values = {name: array(path, file, f"features/{name}") for name in models}
    slide_mpp, span_px = number(attrs, "mpp"), whole(attrs, "patch_size_level0")
    tile_px, target = whole(attrs, "patch_size"), number(attrs, "target_magnification")
    exact = slide_mpp and span_px and tile_px
    mpp = slide_mpp * span_px / tile_px if exact else 10 / target if target else None  # type: ignore[operator]
    found = []
    for name, rows in values.items():
        report = Report(path.stem, "atlaspatch", path)
        features = Features(
            slide_id=path.stem,
            origin="atlaspatch",
            embeddings=rows,
            xy=xy,
            span_px=span_px,
            tile_px=tile_px,
            mpp=None if mpp is None else float(f"{mpp:.2g}") if exact else mpp,
            mpp_source="file" if exact else "magnification" if target else None,
            slide_mpp=slide_mpp,
            size=size_of(attrs, "level0_width", "level0_height"),
            overlap_px=int(attrs["overlap"]) if isinstance(attrs.get("overlap"), int) else None,
            encoder=name,
        )
        report.dropped("passports", "they say what the attributes and coords say")
        found.append((settle(features, known, report), report))
    return found


def write(found: Features, out: Path, report: Report) -> Path:
    """`patches/<slide>.h5`; tiles are said to be read at level 0, as large as they are there."""
    import h5py

    if found.xy is None or not found.span_px or not found.tile_px or not found.slide_mpp:
        problem = "AtlasPatch needs the tiles' places, size and µm per pixel, which are unknown"
        raise SpecError(found.slide_id, problem, "export to clam")
    size = trident_attrs(found.tile_px, found.span_px, found.slide_mpp)
    count, span = len(found.xy), found.span_px
    boxes = np.column_stack([found.xy, np.full(count, span), np.full(count, span), np.zeros(count)]).astype(np.int32)
    attrs: dict[str, Any] = {
        **size,
        "overlap": found.overlap_px or 0,
        "wsi_path": found.slide_id,
        "passport_format": PASSPORT,
        "passport_version": PASSPORT_VERSION,
        "num_patches": count,
        "mpp": found.slide_mpp,
        "magnification": size["level0_magnification"],
    }
    if found.size is not None:
        attrs |= {"level0_width": found.size[0], "level0_height": found.size[1]}
    path = out / "patches" / f"{found.slide_id}.h5"
    with appear_file(path) as draft, h5py.File(draft, "w") as file:
        write_rows(file, "coords", boxes, CHUNK_ROWS)
        write_rows(file, "passports", _passports(found, boxes, size), CHUNK_ROWS)
        write_rows(file, f"features/{_model(found)}", as_float32(found, report))
        file.attrs.update(attrs)
    keep(found, report, "coords", "span_px", "tile_px", "slide_mpp", "encoder")
    if found.size is None:
        report.missing("size", "level0_width and level0_height are not written")
    return path


def _model(found: Features) -> str:
    return (found.encoder or "unknown").replace("/", "_")


def _passports(found: Features, boxes: Any, size: dict[str, Any]) -> Any:
    lines = [
        PASSPORT.format(
            stem=found.slide_id, X=x, Y=y, RW=width, RH=height, LV=level, MAG=size["level0_magnification"],
            TMAG=f"{size['target_magnification']:g}", TOTAL=len(boxes),
        ).encode()
        for x, y, width, height, level in boxes.tolist()
    ]  # fmt: skip
    if any(len(line) > PASSPORT_BYTES for line in lines):
        raise SpecError(found.slide_id, f"its passports are longer than {PASSPORT_BYTES} bytes", "shorten its slide_id")
    return np.array(lines, f"S{PASSPORT_BYTES}")
