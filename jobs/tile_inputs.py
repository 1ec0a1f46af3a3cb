"""The files beside a slide that say where its tissue or its tiles are."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from tiling.coords import known_empty
from tiling.patches import open_patches
from tiling.regions import region_file
from tiling.spec import TileSpec
from wsi.errors import SpecError

from .folder import RunFolder
from .manifest import SlideRecord

# of CLAM, and of TRIDENT whose job folder holds a folder for each scale and size
COORDS_NAMES = ("{}.h5", "{}_patches.h5", "patches/{}.h5", "patches/{}_patches.h5", "*/patches/{}_patches.h5")


def mask_file(record: SlideRecord, tile: TileSpec) -> Path | None:
    if tile.tissue.method != "mask":
        return None
    place = Path(str(tile.tissue.mask))
    if not place.is_dir():
        return place
    images = [
        file for suffix in (".png", ".npy", ".tif", ".tiff") if (file := place / f"{record.slide_id}{suffix}").is_file()
    ]
    return images[0] if images else region_file(place, record.slide_id, "tissue.mask")


def coords_file(record: SlideRecord, place: str) -> Path | None:
    """The one file of this slide at `place`: a run folder, a folder of CLAM or TRIDENT, or the file itself; None where
    the place says that the slide has no tiles."""
    if Path(place).is_file():
        return Path(place)  # there is but one slide then: see check_run
    store = RunFolder(Path(place)).tiles(record.slide_id)
    if store.exists():
        return store
    names = [name.format(record.slide_id) for name in COORDS_NAMES]
    found = sorted({path for name in names for path in Path(place).glob(name)})
    if not found and known_empty(Path(place), record.slide_id):
        return None
    if not found:
        raise SpecError("coords", f"{place} has no tiles of {record.slide_id}", f"it needs {' or '.join(names)}")
    if len(found) > 1:
        raise SpecError("coords", f"{found[0]} and {found[1]} are both of {record.slide_id}", "name the folder of one")
    return found[0]


def coords_digest(record: SlideRecord, place: str | None) -> str | None:
    if place is None:
        return None
    file = coords_file(record, place)
    if file is None:
        return "empty"
    return str(open_patches(file).attrs["grid_fingerprint"]) if file.suffix == ".zarr" else file_digest(file)


def file_digest(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise SpecError(path, "there is no such file", "check the path")
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
