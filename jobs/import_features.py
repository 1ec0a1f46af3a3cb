"""Features that other tools made, as the embeddings of a run."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from embedding.contract import contract_name
from embedding.interop import COORDS, SUFFIXES, Features, Known, Report, foreign_contract, read_features, recognise
from embedding.interop.features import plain_name
from embedding.interop.ours import to_store
from tiling.patches import open_patches
from wsi.errors import EngineError, StoreError
from wsi.publish import appear_file

from .folder import RunFolder
from .manifest import REQUIRED

MANIFEST = "slides.csv"


@dataclass
class Imported:
    """What came of an import.

    flavours   kind of file → slides
    contracts  names of the folders of embeddings that were written
    reports    one for each slide and contract
    failed     file → problem
    coords     files that hold tiles' places only, and were left
    """

    flavours: Counter[str] = field(default_factory=Counter)
    contracts: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    coords: list[Path] = field(default_factory=list)


def feature_files(source: Path) -> list[Path]:
    """Files below a folder, or the one, that may hold features; where CLAM wrote a slide twice, the HDF5 file."""
    if not source.is_dir() or source.suffix == ".zarr":
        return [source] if source.suffix in SUFFIXES else []
    found = sorted(_below(source))
    twice = {
        path
        for path in found
        if path.parent.name == "pt_files" and path.parent.parent / f"h5_files/{path.stem}.h5" in found
    }
    return [path for path in found if path not in twice]


def _below(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.suffix in SUFFIXES and (entry.is_file() or entry.suffix == ".zarr"):
            yield entry
        elif entry.is_dir() and entry.suffix != ".zarr":
            yield from _below(entry)


def import_features(source: Path, folder: RunFolder, known: Known) -> Imported:
    """Features in a file or folder → embeddings/<contract>/<slide_id>.zarr and, where there is none, slides.csv.

    A file that cannot be taken fails alone. Raises StoreError where there is nothing to take.
    """
    done, written = Imported(), dict[tuple[str, str], Path]()
    for path in feature_files(source):
        try:
            if recognise(path) == COORDS:
                done.coords.append(path)
                continue
            for features, report in read_features(path, known):
                _keep(features, report, folder, done, written)
        except EngineError as error:
            done.failed[str(path)] = error.problem
    if not written:
        why = "; ".join(f"{name}: {problem}" for name, problem in list(done.failed.items())[:3])
        why = why or (
            f"{len(done.coords)} files of coordinates only" if done.coords else f"none of {', '.join(SUFFIXES)}"
        )
        raise StoreError(source, f"it holds no features that can be read ({why})", "see docs/interop.md")
    add_to_manifest(folder, {slide_id: path for (_, slide_id), path in written.items()})
    return done


def _keep(
    features: Features, report: Report, folder: RunFolder, done: Imported, written: dict[tuple[str, str], Path]
) -> None:
    contract, slide_id = foreign_contract(features), plain_name(features.slide_id)
    name = contract_name(contract)
    if (name, slide_id) in written:
        problem = f"{written[name, slide_id]} holds features of {slide_id} of the same contract, too"
        raise StoreError(report.file, problem, "name the folder of one of them")
    place = folder.tiles(slide_id)
    tiles = open_patches(place) if place.exists() else None
    to_store(features, contract, report.file, folder.embeddings(name, slide_id), tiles)
    written[name, slide_id] = report.file
    report.slide_id = slide_id
    done.flavours[report.flavour] += 1
    done.reports.append(report)
    if name not in done.contracts:
        done.contracts.append(name)


def add_to_manifest(folder: RunFolder, slides: dict[str, Path]) -> Path:
    """slides.csv of the run folder with these slides, after those that it lists already; returns it."""
    path, rows, columns = folder.root / MANIFEST, list[dict[str, str]](), list(REQUIRED)
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or REQUIRED)
    there = {row.get("slide_id") for row in rows}
    new = {slide_id: place for slide_id, place in slides.items() if slide_id not in there}
    if not new:
        return path
    rows += [{"slide_id": slide_id, "path": str(place.resolve())} for slide_id, place in sorted(new.items())]
    with appear_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path
