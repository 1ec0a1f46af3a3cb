"""Whether all results of a run are still what was published, and belong together; what is not is put aside."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiling.patches import SCHEMA as PATCHES
from tiling.soundness import damage_in, rows_of
from tiling.store import open_complete
from wsi.errors import EngineError, StoreError
from wsi.identity import slide_files
from wsi.publish import appear_file, append_line, damaged_lines, read_lines
from wsi.source import is_url, open_source

from .config import SCORES, RunSpec
from .damage import read_sealed
from .folder import RunFolder, now
from .heatmap_files import HeatmapFiles, checksum_of
from .manifest import SlideRecord

Progress = Callable[[int, int], None]  # (slides done, of all)
_BLOCK_BYTES = 4 << 20
_BOOK = "inputs.json"  # of the slides' own checksums, a line each


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the run folder that is not as it was published.

    slide_id  "" where it is of no slide
    stage     tile, embed, encode, predict or heatmap, whose result it is; receipts; inputs for a slide that was changed
    path      the store or file concerned; of inputs the slide, which stays where it is
    problem   what is wrong, one clause
    with_it   further files that go with it; of inputs all results of the slide
    lines     numbers, from 1, of the lines concerned, in a file of lines
    seen      of a slide that was changed: what is to be known of it from now on
    """

    slide_id: str
    stage: str
    path: Path
    problem: str
    with_it: tuple[Path, ...] = ()
    lines: tuple[int, ...] = ()
    seen: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def verify_run(
    records: Sequence[SlideRecord],
    spec: RunSpec,
    folder: RunFolder,
    progress: Progress = lambda done, total: None,
) -> list[Fault]:
    """Read every result of these slides that the run folder has, every byte of it; what is not there is no fault.

    Found are: stores that are not complete, of another schema, or not what was published by their checksums; rows,
    types and fingerprints that do not fit what they were made from; files that cannot be unpacked; and lines of
    receipts that were changed or cut short.
    """
    faults = list(_receipts(folder))
    places = _Places.of(folder)
    with ThreadPoolExecutor(spec.jobs.thread_count(), "verify") as pool:
        checks = [pool.submit(_faults_of, record.slide_id, places) for record in records]
        for number, check in enumerate(checks, start=1):
            faults += check.result()
            progress(number, len(checks))
    return faults


def verify_inputs(
    records: Sequence[SlideRecord],
    spec: RunSpec,
    folder: RunFolder,
    progress: Progress = lambda done, total: None,
) -> list[Fault]:
    """Compare the sha256 of each slide's whole content with that of the first time it was asked for, which is kept.

    A slide that was changed makes every result of it a fault: by its fingerprint a run may not notice, as a slide's
    identity is of some of its content. Slides that cannot be read are left to the run, which says why.
    """
    book, places, faults = folder.root / _BOOK, _Places.of(folder), list[Fault]()
    known = {str(line.get("slide_id")): line for line in read_lines(book)}
    with ThreadPoolExecutor(spec.jobs.thread_count(), "verify") as pool:
        sums = [pool.submit(_sum_of, record.path) for record in records]
        for number, (record, done) in enumerate(zip(records, sums, strict=True), start=1):
            size, digest = done.result()
            line, before = {"slide_id": record.slide_id, "size": size, "sha256": digest}, known.get(record.slide_id)
            if digest and before is None:
                append_line(book, {**line, "seen": now()}, checked=True)
            elif digest and before is not None and before.get("sha256") != digest:
                problem = f"the slide was changed since {before.get('seen', 'it was first seen')}"
                results = tuple(places.results(record.slide_id))
                slide = Path(record.path)
                faults.append(Fault(record.slide_id, "inputs", slide, problem, results, seen=tuple(line.items())))
            progress(number, len(sums))
    return faults


def quarantine(
    fault: Fault, folder: RunFolder, time: str, lives: Callable[[str], bool] = lambda session: True
) -> Path | None:
    """Move what is faulty to quarantine/<time>/, with its path below the run folder; the next run makes it anew.

    time   a name for all that is moved together, such as 20260101T120000
    lives  whether a session is at work, by its id: lines of receipts are taken from the file of one only when it is
           not, and from those of older versions never
    Returns where it is now; None where it stays. What depends on it is made anew where its fingerprint changes. Nothing
    is ever deleted.
    """
    kept = folder.root / "quarantine" / time
    if fault.stage == "receipts":
        return _move_lines(fault, folder, kept, lives)
    moved = None
    for path in fault.with_it if fault.stage == "inputs" else (fault.path, *fault.with_it):
        target = kept / path.relative_to(folder.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(path, target)
        except FileNotFoundError:  # another fault of the same result, or another session, moved it
            continue
        moved = moved or target
    if fault.stage == "inputs":  # now, and not before: a run that was killed meanwhile would not find it again
        append_line(folder.root / _BOOK, {**dict(fault.seen), "seen": now()}, checked=True)
    return moved


@dataclass(frozen=True, slots=True)
class _Places:
    """The folders with results that a run folder has, listed once for all slides."""

    tiles: Path
    embeddings: tuple[Path, ...]
    vectors: tuple[Path, ...]
    predictions: tuple[Path, ...]
    heatmaps: tuple[Path, ...]

    @classmethod
    def of(cls, folder: RunFolder) -> "_Places":
        def below(name: str) -> tuple[Path, ...]:
            place = folder.root / name
            entries = sorted(place.iterdir()) if place.is_dir() else []
            return tuple(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))

        return cls(
            folder.root / "tiles",
            below("embeddings"),
            below("slide_embeddings"),
            below("predictions"),
            below("heatmaps"),
        )

    def results(self, slide_id: str) -> Iterator[Path]:
        """All results of a slide that are there."""
        stores = [place / f"{slide_id}.zarr" for place in (self.tiles, *self.embeddings, *self.vectors)]
        said = [place / f"{slide_id}.json" for place in self.predictions]
        drawn = [
            file
            for place in self.heatmaps
            for score in self.scores(place, slide_id)
            for file in HeatmapFiles(place / f"{slide_id}{score}").all_files()
        ]
        yield from (path for path in (*stores, *said, *drawn) if path.exists())

    def scores(self, place: Path, slide_id: str) -> list[str]:
        """Of the slide's heatmaps in a folder: "" for that of the prediction, else such as ".attention"."""
        scores = ["" if score == "prediction" else f".{score}" for score in SCORES]
        return [score for score in scores if HeatmapFiles(place / f"{slide_id}{score}").all_files()]


def _faults_of(slide_id: str, places: _Places) -> list[Fault]:
    return list(_of_slide(slide_id, places))


def _of_slide(slide_id: str, places: _Places) -> Iterator[Fault]:
    tiles, marks = places.tiles / f"{slide_id}.zarr", dict[str, str]()
    grid, count = None, None
    if tiles.exists():
        problems = _tried(_damage_of_tiles(tiles))
        yield from (Fault(slide_id, "tile", tiles, problem) for problem in problems)
        if not problems:
            attrs = open_complete(tiles, PATCHES, "wsi tile")
            grid, count = attrs.get("grid_fingerprint"), attrs["complete"]["tiles"]
    for place in places.embeddings:
        path = place / f"{slide_id}.zarr"
        if path.exists():
            problems = _tried(_damage_of_embeddings(path, grid, count, marks))
            yield from (Fault(slide_id, "embed", path, problem) for problem in problems)
    for place in places.vectors:
        path = place / f"{slide_id}.zarr"
        if path.exists():
            problems = _tried(_damage_of_vector(path, marks))
            yield from (Fault(slide_id, "encode", path, problem) for problem in problems)
    said = dict[str, str]()
    for place in places.predictions:
        path = place / f"{slide_id}.json"
        if path.exists():
            problems = _tried(_damage_of_prediction(path, slide_id, marks, said))
            yield from (Fault(slide_id, "predict", path, problem) for problem in problems)
    for place in places.heatmaps:
        for score in places.scores(place, slide_id):
            files = HeatmapFiles(place / f"{slide_id}{score}")
            problems, (first, *rest) = _tried(_damage_of_heatmap(files, said.get(place.name))), files.all_files()
            yield from (Fault(slide_id, "heatmap", first, problem, tuple(rest)) for problem in problems)


def _tried(problems: Iterator[str]) -> list[str]:
    """All problems that are found, one of which may be that the disk does not give what is on it."""
    found = []
    try:
        for problem in problems:
            found.append(problem)  # one by one: those before an error count, too
    except StoreError as error:
        found.append(error.problem)
    except OSError as error:
        found.append(f"it cannot be read ({error.strerror or error})")
    except (KeyError, TypeError, IndexError) as error:  # of an older store, whose record has no checksum
        found.append(f"its record is damaged ({error!r})")
    return list(dict.fromkeys(found))


def _damage_of_tiles(path: Path) -> Iterator[str]:
    yield from damage_in(path, PATCHES, "wsi tile")
    attrs = open_complete(path, PATCHES, "wsi tile")
    yield from _misfits(path, attrs, {"xy": "int64", "tissue": "float32", "ok": "bool", "patches": "uint8"})


def _damage_of_embeddings(path: Path, grid: str | None, tiles: int | None, marks: dict[str, str]) -> Iterator[str]:
    """grid and tiles are those of the slide's tiles, None where there are no sound ones; the store's own fingerprint
    is added to `marks` by the hash of its contract."""
    from embedding.store import SCHEMA

    yield from damage_in(path, SCHEMA, "wsi embed")
    attrs = open_complete(path, SCHEMA, "wsi embed")
    contract = attrs["contract"]
    dtypes = {"xy": "int64", "ok": "bool"}
    if "origin" not in contract and "dtype" in contract:
        dtypes |= {"embeddings": contract["dtype"], "views": contract["dtype"]}
    yield from _misfits(path, attrs, dtypes)
    if grid is not None and attrs.get("grid_fingerprint") != grid:
        yield "its tiles have been made anew since"
    elif grid is not None and attrs["complete"]["tiles"] != tiles:
        yield f"it has {attrs['complete']['tiles']} rows, the slide {tiles} tiles"
    else:
        marks[str(contract["hash"])] = str(attrs.get("fingerprint"))


def _damage_of_vector(path: Path, marks: dict[str, str]) -> Iterator[str]:
    from embedding.slide_store import SCHEMA

    yield from damage_in(path, SCHEMA, "wsi encode")
    attrs = open_complete(path, SCHEMA, "wsi encode")
    shape, dtype = rows_of(path, "vector")
    if dtype != "float32" or shape not in ((0, attrs["contract"]["dim"]), (1, attrs["contract"]["dim"])):
        yield f"its vector is {dtype} {shape}"
    yield from _strays(path, attrs)
    made_from = marks.get(str(attrs["contract"]["tiles"]["hash"]))
    if made_from is not None and made_from != attrs.get("embeddings"):
        yield "its slide has been embedded anew since"
    marks[str(attrs["contract"]["hash"])] = str(attrs.get("fingerprint"))


def _misfits(path: Path, attrs: dict[str, Any], dtypes: dict[str, str]) -> Iterator[str]:
    """Arrays with a row a tile that have another number of rows or another type."""
    wanted, names = attrs["complete"]["tiles"], attrs["complete"]["files"]
    for name in (*dtypes, *attrs.get("extra", ())):
        if name in names:
            shape, dtype = rows_of(path, name)
            if shape[0] != wanted or dtypes.get(name, dtype) != dtype:
                yield f"its array {name} is {dtype} {shape}, of {wanted} tiles"
    missing = sorted({"xy", *attrs.get("extra", ())} - set(names))
    if missing:
        yield f"its array {missing[0]} is gone"
    yield from _strays(path, attrs)


def _strays(path: Path, attrs: dict[str, Any]) -> Iterator[str]:
    if attrs.get("slide_id") != path.name.removesuffix(".zarr"):
        yield f"it is of another slide, {attrs.get('slide_id')}"
    if not attrs.get("fingerprint"):
        yield "it has no fingerprint"


def _damage_of_prediction(path: Path, slide_id: str, marks: dict[str, str], said: dict[str, str]) -> Iterator[str]:
    """The prediction's fingerprint is added to `said`, by its model."""
    made, problem = read_sealed(path)
    if problem:
        yield problem
        return
    if made.get("slide_id") != slide_id or not made.get("fingerprint") or not made.get("status"):
        yield "it says not whose it is, or from what it was made"
        return
    made_from = marks.get(str(made.get("contract")))
    if made_from is not None and made_from != made.get("embeddings"):
        yield "its slide has been embedded anew since"
        return
    said[path.parent.name] = str(made["fingerprint"])


def _damage_of_heatmap(files: HeatmapFiles, said: str | None) -> Iterator[str]:
    """said: fingerprint of the slide's prediction by the same model, None where there is none that is sound."""
    if not files.sidecar.is_file():
        return  # written last: a heatmap without it is to be made
    facts, problem = read_sealed(files.sidecar)
    if problem:
        yield f"{files.sidecar.name}: {problem}"
        return
    if said is not None and facts.get("prediction") not in (None, said):
        yield "its slide has been predicted anew since"
    for name, checksum in facts.get("checksums", {}).items():
        path = files.stem.parent / name
        if not path.exists():
            yield f"{name}: it is gone"
        elif checksum_of(path) != checksum:
            yield f"{name}: its checksum does not fit"


def _receipts(folder: RunFolder) -> Iterator[Fault]:
    reviews = (folder.review / "log").glob("[!.]*.jsonl")  # named only: viewers read on from where they were in them
    for path in sorted([*(folder.root / "receipts").glob("[!.]*.jsonl"), *reviews, folder.root / _BOOK]):
        if numbers := damaged_lines(path):
            many = f"lines {', '.join(map(str, numbers[:10]))} are" if len(numbers) > 1 else f"line {numbers[0]} is"
            problem = f"{many} damaged or cut short"
            yield Fault("", "receipts", path, problem, lines=tuple(numbers))


def _move_lines(fault: Fault, folder: RunFolder, kept: Path, lives: Callable[[str], bool]) -> Path | None:
    """Take the lines out of a file that nobody writes to."""
    session = fault.path.name.removesuffix(".jsonl").partition(".")[2]
    if not session or lives(session):
        return None
    lines, target = fault.path.read_bytes().split(b"\n"), kept / fault.path.relative_to(folder.root)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"\n".join(line for number, line in enumerate(lines, 1) if number in fault.lines) + b"\n")
    with appear_file(fault.path) as draft:
        draft.write_bytes(b"\n".join(line for number, line in enumerate(lines, 1) if number not in fault.lines))
    return target


def _sum_of(path: Path | str) -> tuple[int, str]:
    """(bytes, sha256) of all files of a slide; (0, "") where it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        files: Sequence[Path | str] = [path] if is_url(path) else sorted(slide_files(Path(path)))
        for file in files:
            if len(files) > 1:
                digest.update(f"{Path(file).name}\0".encode(errors="surrogateescape"))
            with closing(open_source(file)) as source:
                for at in range(0, source.size, _BLOCK_BYTES):
                    digest.update(source.read_at(at, min(_BLOCK_BYTES, source.size - at)))
                size += source.size
    except (OSError, EngineError):
        return 0, ""
    return size, digest.hexdigest()
