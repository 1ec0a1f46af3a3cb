"""Files of slide2vec and hs2p: tile_embeddings/<id>.npz or .pt with <id>.meta.json, and tiles/<id>.coordinates.npz with
its own meta.json. A sidecar is written last: where it is, the file is whole."""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tiling.coords import MAX_TILES
from wsi.errors import StoreError
from wsi.publish import appear_file, write_json

from .clam import read_tensor
from .features import Features, Known, Report, keep, settle
from .hdf5 import corners, number, text, whole

_DTYPES = {"float16": "fp16", "float32": "fp32"}


def read(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """Tile features with what their sidecar says; their places are looked for where it says, then in ../tiles."""
    meta = _json(path.with_suffix(".meta.json"))
    values = read_tensor(path) if path.suffix == ".pt" else _npz(path, "features")["features"]
    slide_id = text(meta, "sample_id") or path.stem
    report = Report(slide_id, "slide2vec", path)
    level = "slide" if values.ndim == 1 or meta.get("encoder_level") in ("slide", "patient") else "tile"
    values = values.reshape(-1, values.shape[-1]) if values.ndim == 1 else values
    xy, coords = _places(path, meta, slide_id) if level == "tile" else (None, {})
    tiling, slide = coords.get("tiling", {}), coords.get("slide", {})
    dimensions = slide.get("dimensions")
    mpp = number(meta, "requested_spacing_um")
    found = Features(
        slide_id=slide_id,
        origin="slide2vec",
        embeddings=values,
        xy=xy,
        span_px=whole(meta, "tile_size_lv0") or whole(tiling, "tile_size_lv0"),
        tile_px=whole(meta, "requested_tile_size_px"),
        mpp=mpp,
        mpp_source="file" if mpp else None,
        slide_mpp=number(slide, "base_spacing_um"),
        size=(int(dimensions[0]), int(dimensions[1])) if _is_pair(dimensions) else None,
        encoder=text(meta, "encoder_name"),
        level=level,
        facts={"encoder_input_size_px": meta.get("encoder_input_size_px")},
    )
    for name in ("image_path", "mask_path", "backend"):
        if meta.get(name):
            report.dropped(name, "it says where the slide was, not what was embedded")
    return [(settle(found, known, report), report)]


def _places(path: Path, meta: dict[str, Any], slide_id: str) -> tuple[NDArray[np.int64] | None, dict[str, Any]]:
    named, beside = text(meta, "coordinates_npz_path"), path.parent.parent / "tiles" / f"{slide_id}.coordinates.npz"
    places = [Path(named)] if named else []
    file = next((place for place in [beside, *places] if place.is_file()), None)
    if file is None:
        return None, {}
    table = _npz(file, "x", "y")
    sidecar = file.with_name(file.name.removesuffix(".npz") + ".meta.json")
    coords = _json(sidecar) if sidecar.is_file() else {}
    sections = {name: value for name, value in coords.items() if isinstance(value, dict)}
    return corners(file, np.column_stack([table["x"], table["y"]])), sections


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(path, f"it is no JSON ({error})", "write it again") from None
    if not isinstance(content, dict):
        raise StoreError(path, "it is no record", "write it again")
    return content


def _npz(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StoreError(path, f"it has no arrays {', '.join(names)} ({error})", "write it again") from None
    if any(len(np.atleast_1d(values)) > MAX_TILES for values in found.values()):
        raise StoreError(path, f"more than {MAX_TILES} tiles", "write it again")
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int | float) for side in value)


def write(found: Features, out: Path, report: Report) -> Path:
    """`tile_embeddings/<id>.npz` and `tiles/<id>.coordinates.npz`, each with its sidecar, written after it."""
    place = out / "tiles" / f"{found.slide_id}.coordinates.npz"
    sidecar = place.with_name(f"{found.slide_id}.coordinates.meta.json")
    if found.xy is not None:
        x, y = found.xy.T
        share = np.ones(len(x), np.float32)
        with appear_file(place) as draft:
            index = np.arange(len(x), dtype=np.int32)
            np.savez_compressed(draft, tile_index=index, x=x, y=y, tissue_fractions=share)
        write_json(sidecar, _tiling(found))
        report.guessed("tissue_fractions", 1, "all tiles count as full of tissue")
    path = out / "tile_embeddings" / f"{found.slide_id}.npz"
    with appear_file(path) as draft:
        np.savez(draft, features=found.embeddings)
    meta = {
        "sample_id": found.slide_id,
        "artifact_type": "tile_embeddings",
        "backend": None,
        "coordinates_meta_path": str(sidecar) if found.xy is not None else "",
        "coordinates_npz_path": str(place) if found.xy is not None else "",
        "encoder_level": found.level,
        "encoder_name": found.encoder,
        "feature_dim": int(found.embeddings.shape[1]),
        "feature_dtype": _DTYPES[str(found.embeddings.dtype)],
        "format": "npz",
        "image_path": None,
        "mask_path": None,
        "num_tiles": len(found.embeddings),
        "read_tile_size_px": found.span_px,
        "requested_tile_size_px": found.tile_px,
        "encoder_input_size_px": found.facts.get("input_px"),
        "requested_spacing_um": found.mpp,
        "tile_size_lv0": found.span_px,
    }
    write_json(path.with_suffix(".meta.json"), meta)
    keep(found, report, "embeddings", "coords", "span_px", "tile_px", "mpp", "slide_mpp", "encoder")
    return path


def _tiling(found: Features) -> dict[str, Any]:
    overlap = (found.overlap_px or 0) / found.tile_px if found.tile_px else 0.0
    step = round(found.span_px * (1 - overlap)) if found.span_px else None
    return {
        "provenance": {"sample_id": found.slide_id, "spacing_at_level_0": found.slide_mpp},
        "slide": {"dimensions": list(found.size) if found.size else None, "base_spacing_um": found.slide_mpp},
        "tiling": {
            "requested_tile_size_px": found.tile_px,
            "requested_spacing_um": found.mpp,
            "read_level": 0,
            "read_tile_size_px": found.span_px,
            "read_spacing_um": found.slide_mpp,
            "tile_size_lv0": found.span_px,
            "n_tiles": 0 if found.xy is None else len(found.xy),
            "overlap": overlap,
            "step_px_lv0": step,
        },
    }
