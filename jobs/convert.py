"""A run's results as the files of other tools."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.coords import SlideTiles, export_clam, export_trident
from tiling.export import export_patches
from tiling.patches import PatchStore, open_patches
from wsi.errors import SpecError, StoreError
from wsi.geometry import Level
from wsi.publish import write_json

from .features import choices, contracts_in, several_fit
from .folder import RunFolder
from .receipts import FAILED, latest, read_receipts
from .stored import made_since

if TYPE_CHECKING:
    from embedding.interop import Report

REPORT = "convert_report.json"
KINDS = ("trident", "clam", "stamp", "atlaspatch", "slide2vec", "anndata", "spatialdata")
EXPORTS: dict[str, Callable[[list[SlideTiles], Path], list[Path] | Path]] = {
    "trident": export_trident,
    "clam": export_clam,
}


def export_slide(store: PatchStore, folder: RunFolder, kind: str, threads: int) -> None:
    """The stored patches as files, patches/<slide_id>/ or .tar, where they are not there since the store is."""
    out = folder.root / "patches"
    place = out / (f"{store.slide_id}.tar" if kind == "tar" else store.slide_id)
    table = place / "coords.csv"
    there = made_since(place, store) if kind == "tar" else made_since(table, store) and _is_of(table, kind)
    if not there:
        export_patches(store, out, kind, threads)


def remove_stale_exports(store: PatchStore, folder: RunFolder) -> None:
    """Remove exported patches, of any kind, that are older than the store: they show tiles that are no more."""
    place = folder.root / "patches" / store.slide_id
    archive = folder.root / "patches" / f"{store.slide_id}.tar"
    if (place / "coords.csv").is_file() and not made_since(place / "coords.csv", store):
        shutil.rmtree(place)
    if archive.is_file() and not made_since(archive, store):
        archive.unlink()


def _is_of(table: Path, kind: str) -> bool:
    """Whether the files that coords.csv lists are of this kind; an empty table is of any."""
    with table.open(encoding="utf-8") as stream:
        first = list(islice(stream, 2))[1:]
    return not first or first[0].partition(",")[0].endswith(f".{kind}")


@dataclass
class Exported:
    """What came of an export.

    tiled     slides whose coordinates were written, into the folders `places`
    embedded  slides whose features were written
    contract  of these, by its folder's name; None without features
    without   tiled slides that have no embeddings of it
    failed    ids of slides that failed when they were tiled last: what is there of them is of an earlier command
    """

    tiled: int = 0
    embedded: int = 0
    contract: str | None = None
    places: list[Path] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    reports: "list[Report]" = field(default_factory=list)


def export_run(folder: RunFolder, flavour: str, out: Path, contract: str | None = None) -> Exported:
    """Write a run's tiles and embeddings in the layout of `flavour`.

    contract  name of the folder of embeddings; needed where the run has several
    Raises SpecError for an unknown flavour, or tiles of several kinds for CLAM, which keeps one kind in a folder;
    StoreError where the folder holds nothing to write.
    """
    if flavour not in KINDS:
        raise SpecError("--to", f"{flavour!r} is unknown", f"choose {', '.join(KINDS)}, or run")
    receipts = latest(read_receipts(folder.receipts("tile")))
    failed = {slide_id for slide_id, receipt in receipts.items() if receipt.status == FAILED}
    paths = {path.name.removesuffix(".zarr"): path for path in sorted((folder.root / "tiles").glob("*.zarr"))}
    tiles = {slide_id: open_patches(path) for slide_id, path in paths.items() if slide_id not in failed}
    done = Exported(contract=_contract(folder, contract), failed=[name for name in paths if name in failed])
    if not tiles and done.contract is None:
        raise StoreError(folder.root, "it holds no tiled slides", "run `wsi tile` first")
    if done.contract is None and flavour not in EXPORTS:
        raise StoreError(folder.root, f"it holds no embeddings, and {flavour} is for these", "run `wsi embed` first")
    if tiles and flavour in EXPORTS:
        if flavour == "clam":
            _check_one_kind(list(tiles.values()))
        places = EXPORTS[flavour](
            [SlideTiles(one.slide_id, one.grid, slide_levels(one)) for one in tiles.values()], out
        )
        done.tiled, done.places = len(tiles), [places] if isinstance(places, Path) else places
    if done.contract is not None:
        _export_features(folder, flavour, out, tiles, done)
    return done


def _contract(folder: RunFolder, name: str | None) -> str | None:
    there = sorted(entry.name for entry in folder.root.glob("embeddings/*") if any(entry.glob("*.zarr")))
    if name is not None and name not in there:
        hint = f"choose {choices(there, folder) if there else 'another run'}"
        raise StoreError(folder.root, f"it has no embeddings {name}", hint)
    if name is None and len(there) > 1:
        raise several_fit(contracts_in(folder), folder, "--contract")
    return name or next(iter(there), None)


def _export_features(folder: RunFolder, flavour: str, out: Path, tiles: dict[str, PatchStore], done: Exported) -> None:
    from embedding.interop import Report, write_features
    from embedding.interop.ours import from_store

    from .stages import open_fitting

    assert done.contract is not None
    paths = sorted((folder.root / "embeddings" / done.contract).glob("*.zarr"))
    wanted = [path for path in paths if path.name.removesuffix(".zarr") not in done.failed]
    for path in wanted:
        slide_id = path.name.removesuffix(".zarr")
        report = Report(slide_id, flavour, path)
        store = open_fitting(path, folder, slide_id)
        report.file = write_features(from_store(store, tiles.get(slide_id), report), flavour, out, report)
        done.reports.append(report)
    done.embedded = len(wanted)
    done.without = sorted(tiles.keys() - {report.slide_id for report in done.reports})


def summary(reports: "Iterable[Report]") -> list[tuple[str, str, int, str]]:
    """(fate, field, slides, why) of all reports, for a table; what differs between slides only in its value is one."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for report in reports:
        rows.update({(one.fate, one.field, one.why) for one in report})
    order = {"kept": 0, "guessed": 1, "dropped": 2, "missing": 3}
    return sorted(((*key[:2], count, key[2]) for key, count in rows.items()), key=lambda row: (order[row[0]], row[1]))


def write_report(out: Path, source: Path, kind: str, reports: "Iterable[Report]", facts: dict[str, Any]) -> Path:
    """convert_report.json in `out`: what became of every field of every slide."""
    slides = [{"slide_id": report.slide_id, **report.as_dict()} for report in reports]
    write_json(out / REPORT, {"source": str(source), "to": kind, **facts, "slides": slides})
    return out / REPORT


def _check_one_kind(stores: list[PatchStore]) -> None:
    first = stores[0]
    for other in stores[1:]:
        kinds = [(store.grid.spec.tile_px, store.grid.spec.mpp) for store in (first, other)]
        if kinds[0] != kinds[1]:
            said = [
                f"{store.slide_id} has {px} px at {mpp:g}"
                for store, (px, mpp) in zip((first, other), kinds, strict=True)
            ]
            problem = f"tiles are of several kinds: {said[0]} µm/px, {said[1]} µm/px"
            raise SpecError("--to clam", problem, "tile all slides alike, or export to trident")


def slide_levels(store: PatchStore) -> list[Level]:
    """The levels of the slide as they were when it was tiled."""
    return [Level(**level) for level in store.attrs["slide"]["levels"]]
