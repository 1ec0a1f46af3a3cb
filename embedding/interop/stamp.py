"""Features of STAMP: `feats` float16, `coords` in µm, and attributes of the file (stamp/preprocessing/__init__.py,
read by `get_coords` in stamp/modeling/data.py). Older files, as of marugoto, have neither unit nor tile size."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi.errors import SpecError
from wsi.publish import appear_file

from .clam import slide_name
from .features import Features, Known, Report, as_float16, keep, plain_name, settle, stride_of
from .hdf5 import array, corners, number, opened, plain_attrs, text, whole
from .trident import write_rows

VERSION = "2.1.0"  # the first whose files look so; STAMP refuses files of a version newer than itself
OLD_STRIDE_PX, OLD_TILE_UM = 224, 256.0  # of the first version: STAMP itself takes such a stride for these µm
_FACTS = ("stamp_version", "code_hash", "precision")


def read(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """Tile features of STAMP 2.1 and later. Their µm become level-0 pixels where `known.slide_mpp` is given."""
    with opened(path) as file:
        attrs, values = plain_attrs(file), array(path, file, "feats")
        places = array(path, file, "coords") if "coords" in file else None
    report = Report(slide_name(path), "stamp", path)
    tile_um, tile_px = number(attrs, "tile_size_um"), whole(attrs, "tile_size_px")
    xy = span_px = None
    if places is not None and known.slide_mpp:
        xy = corners(path, places, 1 / known.slide_mpp)
        span_px = round(tile_um / known.slide_mpp) if tile_um else None
    elif places is not None:
        report.dropped(
            "coords", "they are in µm and no --slide-mpp was given: -1 is stored, and no heatmap can be drawn"
        )
    found = Features(
        slide_id=report.slide_id,
        origin="stamp",
        embeddings=values,
        xy=xy,
        span_px=span_px,
        tile_px=tile_px,
        mpp=tile_um / tile_px if tile_um and tile_px else None,
        mpp_source="file" if tile_um and tile_px else None,
        encoder=text(attrs, "extractor"),
        facts={name: attrs[name] for name in _FACTS if name in attrs},
    )
    return [(settle(found, known, report), report)]


def read_slide(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """One vector for a slide or a patient."""
    with opened(path) as file:
        attrs, values = plain_attrs(file), array(path, file, "feats", (1, 2))
    report = Report(slide_name(path), "stamp-slide", path)
    facts = {name: attrs[name] for name in (*_FACTS, "feat_type") if name in attrs}
    values = values.reshape(-1, values.shape[-1])
    encoder = text(attrs, "encoder")
    found = Features(report.slide_id, "stamp", values, encoder=encoder, level="slide", facts=facts)
    return [(settle(found, known, report), report)]


def read_old(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """Tile features of STAMP 1 or marugoto: a stride of 224 is of 256 µm and 224 px, as STAMP itself takes it; any
    other is taken for level-0 pixels."""
    with opened(path) as file:
        attrs = plain_attrs(file)
        values = array(path, file, "feats" if "feats" in file else "patch_embeddings")
        places = array(path, file, "coords") if "coords" in file else None
    report = Report(slide_name(path), "stamp-old", path)
    found = Features(report.slide_id, "stamp", values, encoder=text(attrs, "extractor"))
    if places is None:
        return [(settle(found, known, report), report)]
    xy = corners(path, places)
    if stride_of(xy) == OLD_STRIDE_PX:
        scale = OLD_TILE_UM / OLD_STRIDE_PX
        report.guessed("unit", "256 µm / 224 px", "tiles lie 224 apart, as in STAMP 1")
        if known.slide_mpp:
            xy = corners(path, places, scale / known.slide_mpp)
        else:
            report.dropped("coords", "they are in 256 µm / 224 px and no --slide-mpp was given: -1 is stored")
        span_px = round(OLD_TILE_UM / known.slide_mpp) if known.slide_mpp else None
        placed = xy if known.slide_mpp else None
        found = replace(found, xy=placed, span_px=span_px, tile_px=OLD_STRIDE_PX, mpp=scale, mpp_source="file")
    else:
        report.guessed("unit", "level-0 px", "the file names no unit")
        found = replace(found, xy=xy)
    return [(settle(found, known, report), report)]


def write(found: Features, out: Path, report: Report) -> Path:
    """`<encoder>-<hash>/<slide>.h5`, float16, places in µm."""
    import h5py

    if found.xy is None or not found.slide_mpp or not found.span_px or not found.tile_px:
        problem = "STAMP keeps µm: it needs the tiles' places, size and µm per pixel, which are unknown"
        raise SpecError(found.slide_id, problem, "export to clam")
    values = as_float16(found, report)
    mark = str(found.facts.get("hash", "unknown"))[:8]
    encoder = plain_name(found.encoder or "unknown")
    path = out / f"{encoder}-{mark}" / f"{found.slide_id}.h5"
    with appear_file(path) as draft, h5py.File(draft, "w") as file:
        write_rows(file, "feats", values)
        write_rows(file, "coords", (found.xy * found.slide_mpp).astype(np.float32))
        file.attrs.update(
            {
                "stamp_version": VERSION,
                "extractor": found.encoder or "unknown",
                "unit": "um",
                "tile_size_um": found.span_px * found.slide_mpp,
                "tile_size_px": found.tile_px,
                "code_hash": mark,
                "feat_type": "tile",
            }
        )
    keep(found, report, "embeddings", "tile_px", "encoder")
    report.kept("coords", None, "in µm, float32: to 0.01 µm on a slide of 10 cm")
    report.kept("span_px", None, "in µm")
    report.dropped("slide_mpp", "STAMP keeps µm only: needed to read the file back", found.slide_mpp)
    return path
