"""Embeddings in the files of other tools: told apart, read, and written, each with a report of what became of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from wsi.errors import StoreError

from .features import Features, Known, Report, foreign_contract

__all__ = ["READERS", "WRITERS", "Features", "Known", "Report", "foreign_contract", "read_features", "recognise"]

Found = tuple[Features, Report]
COORDS = "coords"  # files that hold tiles' places and no features


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of file: how it is told from others, and "module:function" that reads it, in this package."""

    told_by: str
    reader: str

    def load(self) -> Callable[[Path, Known], list[Found]]:
        return _function(self.reader)


READERS = {
    "trident": Flavour("`features` (n, d) with `encoder`, or `coords` with `level0_magnification`", "trident:read"),
    "trident-slide": Flavour("`features` (d,)", "trident:read_slide"),
    "mussel": Flavour("`coords` with `patch_size_to_resize_to_for_desired_mpp`", "trident:read"),
    "clam": Flavour("`features` and `coords` without attributes", "clam:read"),
    "bag": Flavour("`features` without `coords`", "clam:read"),
    "clam-pt": Flavour(".pt with a tensor (n, d)", "clam:read_pt"),
    "stamp": Flavour("`feats`, and `unit` um with `tile_size_um`", "stamp:read"),
    "stamp-slide": Flavour("`feats`, and `feat_type` slide or patient", "stamp:read_slide"),
    "stamp-old": Flavour("`feats` or `patch_embeddings` without `unit`", "stamp:read_old"),
    "atlaspatch": Flavour("`passport_version`, or a group `features`", "atlaspatch:read"),
    "slide2vec": Flavour(".pt or .npz with <name>.meta.json beside it", "slide2vec:read"),
    "anndata": Flavour(".h5ad", "tables:read_anndata"),
    "spatialdata": Flavour("a Zarr folder with `spatialdata_attrs`", "tables:read_spatialdata"),
}
WRITERS = {
    "trident": "trident:write",
    "clam": "clam:write",
    "stamp": "stamp:write",
    "atlaspatch": "atlaspatch:write",
    "slide2vec": "slide2vec:write",
    "anndata": "tables:write_anndata",
    "spatialdata": "tables:write_spatialdata",
}
SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".npz", ".zarr")


def recognise(path: Path) -> str:
    """The kind of a file: a key of READERS, or `coords` for tiles' places without features.

    Raises StoreError for one that is missing, damaged or of no kind known, and says what was looked for.
    """
    if not path.exists():
        raise StoreError(path, "no such file", "check the path")
    found: str | None = None
    if path.is_dir():
        found = "spatialdata" if _is_spatialdata(path) else None
    elif path.suffix == ".h5ad":
        found = "anndata"
    elif path.suffix in (".pt", ".npz"):
        beside = path.with_suffix(".meta.json").is_file()
        coords = path.name.endswith(".coordinates.npz")
        found = COORDS if coords else "slide2vec" if beside else "clam-pt" if path.suffix == ".pt" else None
    else:
        found = _of_hdf5(path)
    if found is None:
        looked = "; ".join(f"{name}: {flavour.told_by}" for name, flavour in READERS.items())
        raise StoreError(path, f"it is of no kind that is read ({looked})", "name a file of one of these tools")
    return found


def read_features(path: Path, known: Known | None = None) -> list[Found]:
    """The features in a file, each with its report; several where the file holds those of several encoders.

    Raises StoreError as `recognise`, and for a file that holds coordinates only.
    """
    flavour = recognise(path)
    if flavour == COORDS:
        raise StoreError(path, "it holds tiles' places and no features", "give it to `wsi tile --coords`")
    return READERS[flavour].load()(path, known or Known())


def write_features(features: Features, flavour: str, out: Path, report: Report) -> Path:
    """Write one slide's features for another tool into its tree at `out`; returns the file.

    The report is told what is lost. Raises SpecError for what the tool cannot do without and is unknown.
    """
    return _function(WRITERS[flavour])(features, out, report)


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __name__), name)


def _of_hdf5(path: Path) -> str | None:
    import h5py

    from .hdf5 import attrs_of, opened, plain_attrs

    with opened(path) as file:
        root, coords = plain_attrs(file), attrs_of(file, "coords")
        features = file.get("features")
        if "passport_version" in root or isinstance(features, h5py.Group):
            return "atlaspatch" if isinstance(features, h5py.Group) and len(features) else COORDS
        if root.get("encoding-type") == "anndata":
            return "anndata"
        if "feats" in file or "patch_embeddings" in file:
            return _of_stamp(root)
        if isinstance(features, h5py.Dataset):
            if features.ndim == 1 and features.shape[0]:
                return "trident-slide"
            if "encoder" in plain_attrs(features) or "level0_magnification" in coords:
                return "trident"
            mussel = "patch_size_to_resize_to_for_desired_mpp" in coords
            return "mussel" if mussel else "clam" if "coords" in file else "bag"
        return COORDS if "coords" in file else None


def _of_stamp(root: dict[str, Any]) -> str:
    if root.get("feat_type") in ("slide", "patient"):
        return "stamp-slide"
    return "stamp" if root.get("unit") == "um" and "tile_size_um" in root else "stamp-old"


def _is_spatialdata(path: Path) -> bool:
    for name in ("zarr.json", ".zattrs"):
        if (path / name).is_file():
            try:
                content = json.loads((path / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise StoreError(path / name, f"it is no JSON ({error})", "write it again") from None
            attrs = content.get("attributes", content) if isinstance(content, dict) else {}
            return "spatialdata_attrs" in attrs
    return False
