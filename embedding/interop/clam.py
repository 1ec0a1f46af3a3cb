"""Features of CLAM: h5_files/<slide>.h5, `features` float32 and `coords` int32 without any attribute, and
pt_files/<slide>.pt, the same features as a tensor (extract_features_fp.py). Bags of `features` alone are read, too."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.coords import read_coords
from wsi.errors import StoreError
from wsi.publish import appear_file

from .features import Features, Known, Report, as_float32, settle
from .hdf5 import array, corners, opened
from .trident import write_rows

_PATCHES = ("patches/{}.h5", "../patches/{}.h5", "../../patches/{}.h5", "{}.h5", "{}_patches.h5")


def read(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """CLAM's HDF5 features, or a bag without coordinates."""
    with opened(path) as file:
        values = array(path, file, "features")
        places = array(path, file, "coords") if "coords" in file else None
        others = sorted(set(file) - {"features", "coords"})
    origin = "bag" if places is None else "clam"
    report = Report(slide_name(path), origin, path)
    for name in others:
        report.dropped(name, "it is no feature and no place")
    return _found(path, values, None if places is None else corners(path, places), known, report)


def read_pt(path: Path, known: Known) -> list[tuple[Features, Report]]:
    """A tensor (n, d); its places are those of ../h5_files/<slide>.h5, whose rows are the same."""
    report = Report(slide_name(path), "clam-pt", path)
    values, xy = read_tensor(path), None
    beside = path.parent.parent / "h5_files" / f"{path.stem}.h5"
    if beside.is_file():
        with opened(beside) as file:
            xy = corners(beside, array(beside, file, "coords"))
    return _found(path, values, xy, known, report)


def _found(
    path: Path, values: NDArray, xy: NDArray[np.int64] | None, known: Known, report: Report
) -> list[tuple[Features, Report]]:
    span_px, size = None, None
    patches = _patches(path, known.coords)
    if patches is not None:
        coords = read_coords(patches, known.slide_mpp)
        if xy is None and len(coords.xy) == len(values):
            xy = coords.xy
            report.guessed("coords", str(patches), "by the order of rows: the numbers of tiles agree")
        elif xy is not None and set(map(tuple, xy.tolist())) - set(map(tuple, coords.xy.tolist())):
            raise StoreError(patches, f"its tiles are not those of {path.name}", "name the folder that belongs to it")
        if xy is not None:
            span_px, size = coords.span_px, coords.size
    origin = "bag" if report.flavour == "bag" else "clam"
    found = Features(report.slide_id, origin, values, xy=xy, span_px=span_px, size=size)
    return [(settle(found, known, report), report)]


def _patches(path: Path, folder: Path | None) -> Path | None:
    """The slide's file of coordinates: in the given folder, or where CLAM's own folders would have it."""
    if folder is not None and folder.is_file():
        return folder
    base = folder if folder is not None else path.parent
    names = _PATCHES if folder is not None else _PATCHES[:3]
    return next((file for name in names if (file := base / name.format(path.stem)).is_file()), None)


def read_tensor(path: Path) -> NDArray:
    """The tensor of a .pt file as numbers; nothing but tensors is unpickled. Raises StoreError for anything else."""
    from pickle import UnpicklingError

    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        first = str(error).partition("\n")[0]
        raise StoreError(path, f"no file of a tensor ({first})", "write it again with torch.save(tensor)") from None
    if not isinstance(value, torch.Tensor):
        raise StoreError(path, f"it holds a {type(value).__name__}, not a tensor", "name a file of one tensor (n, d)")
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.detach().numpy()


def slide_name(path: Path) -> str:
    """A slide's name by its file: without the suffix, and without the `.features` that some tools add."""
    return path.stem.removesuffix(".features")


def write(found: Features, out: Path, report: Report) -> Path:
    """`h5_files/<slide>.h5` and `pt_files/<slide>.pt`; CLAM writes nothing else, so the rest is lost."""
    import h5py
    import torch

    values = as_float32(found, report)
    path = out / "h5_files" / f"{found.slide_id}.h5"
    with appear_file(path) as draft, h5py.File(draft, "w") as file:
        write_rows(file, "features", values)
        if found.xy is not None:
            write_rows(file, "coords", found.xy.astype(np.int32))
    with appear_file(out / "pt_files" / f"{found.slide_id}.pt") as draft:
        torch.save(torch.from_numpy(values), draft)
    if found.xy is not None:
        report.kept("coords")
    for name in ("span_px", "tile_px", "mpp", "encoder"):
        report.dropped(name, "CLAM's feature files have no place for it", getattr(found, name))
    return path
