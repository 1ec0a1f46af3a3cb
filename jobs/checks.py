"""What can be wrong with a run as a whole, found before any work."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from embedding.contract import explain_mismatch, off_native
from embedding.spec import EmbedSpec
from embedding.store import open_embeddings
from tiling.patches import PatchStore, open_patches
from tiling.spec import TileSpec
from wsi.errors import BackboneError, SpecError

from .config import RunSpec
from .features import names_of
from .folder import RunFolder
from .manifest import SlideRecord

if TYPE_CHECKING:
    from mil.model import TrainedModel


def check_run(spec: RunSpec, records: Sequence[SlideRecord], folder: RunFolder) -> None:
    """Raise SpecError for files that the settings name and that are not there, or are of one slide where there are
    several, and for settings that no slide can meet; BackboneError for weights that are none of the segmenter."""
    _check_places(spec, records)
    if spec.coords is not None and Path(spec.coords).resolve() == folder.root.resolve():
        raise SpecError("coords", "it is the run folder itself", "name the run whose tiles to take, or another --out")
    if spec.tile.seed < 0:
        raise SpecError("tile.seed", f"{spec.tile.seed} is out of range", "give 0 or more")
    if spec.patches == "native":
        _check_native(spec)
    if spec.tile.tissue.method == "learned":
        _check_segmenter(Path(str(spec.tile.tissue.weights)))


def check_native(embed: EmbedSpec, tile: TileSpec) -> list[str]:
    """In words, how the tiles differ from those the backbone's authors cut, to warn of. Raises SpecError instead where
    the settings are strict."""
    entry = embed.entry()
    said = off_native(entry, tile)
    if said and embed.strict:
        px, mpp = entry.tile_px, f"{entry.mpp[0]:g}"
        remedy = f"leave out --tile-px and --tile-mpp for its own ({px} px, {mpp} µm/px), or leave out --strict"
        raise SpecError(f"{entry.name} (--strict)", "; ".join(said), remedy)
    return [f"{entry.name}: {text}; its embeddings may mean less than its authors report" for text in said]


def check_contract(model: "TrainedModel", folder: RunFolder) -> None:
    """Raise BackboneError, with both contracts side by side, where the run has embeddings but none of the model's."""
    if all(folder.features(name, "any").parent.is_dir() for name in names_of(model.contract)):
        return
    other = next(folder.root.glob("embeddings/*/[!.]*.zarr"), None)
    if other is None:
        return
    problem, remedy = explain_mismatch(open_embeddings(other).contract, model.contract, ("its embeddings", "the model"))
    raise BackboneError(folder.root, problem, remedy)


def tiled_first(records: Sequence[SlideRecord], folder: RunFolder) -> PatchStore | None:
    """The tiles of the first slide that has any; None where none is tiled yet."""
    paths = (folder.tiles(record.slide_id) for record in records)
    there = next((path for path in paths if (path / "zarr.json").is_file()), None)
    return None if there is None else open_patches(there)


def _check_places(spec: RunSpec, records: Sequence[SlideRecord]) -> None:
    tissue, regions = spec.tile.tissue, spec.tile.regions
    # a slide whose row of the manifest names its tissue does not use the run's mask
    masked = sum(record.tissue is None for record in records) if tissue.method == "mask" else 0
    named = {
        "coords": (spec.coords, len(records)),
        "tissue.mask": (tissue.mask, masked),
        "tissue.weights": (tissue.weights, 1),
        "regions.include": (regions.include, len(records)),
        "regions.exclude": (regions.exclude, len(records)),
    }
    for key, (place, slides) in named.items():
        if place is None:
            continue
        if not Path(place).exists():
            raise SpecError(key, f"there is no file or folder {place}", "check the path")
        if slides > 1 and not Path(place).is_dir():
            column = ", or use the manifest's column `tissue`" if key == "tissue.mask" else ""
            problem = f"{place} is of one slide, and there are {slides}"
            raise SpecError(key, problem, f"name a folder with one file a slide, named by its slide_id{column}")


def _check_native(spec: RunSpec) -> None:
    """Stored JPEG tiles are copied as they are, in their colours."""
    tile = spec.tile
    if tile.icc != "none":
        raise SpecError(
            "patches", "native tiles are copied, not colour-corrected", "leave out icc, or keep raw or jpeg"
        )
    if tile.channels is not None:
        raise SpecError("patches", "native tiles are copied, not coloured", "leave out channels, or keep raw or jpeg")


def _check_segmenter(weights: Path) -> None:
    from safetensors import SafetensorError

    from embedding.segmenter import load_segmenter

    try:
        load_segmenter(weights)
    except (UnpicklingError, SafetensorError, RuntimeError, OSError, ValueError, EOFError, AttributeError) as error:
        problem = f"it is no file of weights ({(str(error).splitlines() or [type(error).__name__])[0]})"
        raise BackboneError(weights, problem, "give HEST's deeplabv3_seg_v4.ckpt, or one like it") from error
