"""A partition as a file: `splits.csv`, a row per bag, and `splits.json` beside it, which knows the table's digest.

Tables of others are taken too: `split` with train, val and test (CLAM, TRIDENT), `fold` or `fold_0, fold_1, …` with the
number of the fold that tests a bag, one column for each repeat.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi.errors import ManifestError, StoreError
from wsi.publish import appear_file, write_json

from .bag import Bag
from .splits import Partition, find_leak

SCHEMA = "splits/1"
PARTS = {"train": 2, "val": 1, "test": 0}
_OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "tune": "val", "testing": "test"}
_KEYS = ("bag", "slide_id", "case_id", "patient_id")


def write_partition(
    folder: Path, partition: Partition, bags: Sequence[Bag], truths: Sequence[str], strata: Sequence[str] = ()
) -> str:
    """Write splits.csv and splits.json into `folder`; returns the SHA-256 of the table, the partition's mark.

    truths  what is true of each bag, as text; strata names the columns that folds were balanced by
    """
    content = partition_table(partition, bags, truths)
    mark = hashlib.sha256(content).hexdigest()
    with appear_file(folder / "splits.csv") as draft:
        draft.write_bytes(content)
    facts: dict[str, Any] = {"schema": SCHEMA, "sha256": mark, "seed": partition.seed, "strata": list(strata)}
    facts |= {"folds": partition.folds, "repeats": partition.repeats, "notes": list(partition.notes)}
    write_json(folder / "splits.json", {**facts, "made_with": "slidestream"})
    return mark


def partition_table(partition: Partition, bags: Sequence[Bag], truths: Sequence[str]) -> bytes:
    """The table of a partition: bag, patient_id, truth, and split, fold or fold_0, fold_1, …"""
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    fixed = partition.validation is not None
    table.writerow(["bag", "patient_id", "truth", *(["split"] if fixed else _columns(partition.repeats))])
    for i, (bag, truth) in enumerate(zip(bags, truths, strict=True)):
        own = [_part_name(partition, i)] if fixed else partition.folds_of[:, i].tolist()
        table.writerow([bag.name, bag.patient_id or "", truth, *own])
    return stream.getvalue().encode()


def read_partition(path: str | Path, bags: Sequence[Bag]) -> Partition:
    """The partition in `path`, a table or the folder that holds `splits.csv`, for these bags.

    A table with its companion is compared with the digest there; one without is taken as someone else's, and a note
    says so. A row names a bag, or a slide, case or patient of one. Raises StoreError for a missing, edited or damaged
    file; ManifestError for a row that names no bag, a bag with tiles that has no row, a bag whose rows differ, parts
    other than train, val and test or a fold's number, and for bags of one patient, case or slide in different parts,
    naming both.
    """
    path = Path(path) / "splits.csv" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise StoreError(path, "is missing", "give a table of splits, or the folder that holds splits.csv")
    content = path.read_bytes()
    mark = hashlib.sha256(content).hexdigest()
    seed, notes = _companion(path, mark)
    rows, header = _rows(path, content)
    key = next((name for name in _KEYS if name in header), None)
    columns = _fold_columns(header)
    if key is None or not columns:
        problem = f"has the columns {', '.join(header) or 'none'}"
        raise ManifestError(path, problem, f"give one of {', '.join(_KEYS)}, and split, fold or fold_0, fold_1, …")
    texts = _texts_of(path, rows, key, columns, bags)
    with_tiles = [i for i, bag in enumerate(bags) if bag.tiles]
    without = [bags[i].name for i in with_tiles if texts[i] is None]
    if without:
        problem = f"has no row for {without[0]}" + (f" and {len(without) - 1} more" if len(without) > 1 else "")
        raise ManifestError(path, problem, "add it, or leave the bag out of the manifest")
    partition = _partition(path, [texts[i] or () for i in with_tiles], seed, notes, mark)
    _refuse_leaks(path, partition, [bags[i] for i in with_tiles])
    return partition


def _partition(
    path: Path, texts: Sequence[tuple[str, ...]], seed: int | None, notes: tuple[str, ...], mark: str
) -> Partition:
    """Of the texts of each bag with tiles, one for each column of folds."""
    if all(text.isdigit() for row in texts for text in row):
        folds_of = np.array(texts, np.int64).reshape(len(texts), -1).T
        for column in folds_of:
            if len(np.unique(column)) != folds_of.max() + 1 or column.max() == 0:
                found = ", ".join(map(str, np.unique(column)))
                raise ManifestError(path, f"a column's folds are {found}", "number at least two folds 0, 1, 2, …")
        return Partition(folds_of, seed, notes, mark=mark)
    named = [[_OTHER_NAMES.get(text.lower(), text.lower()) for text in row] for row in texts]
    wrong = sorted({text for row in named for text in row} - set(PARTS))
    if wrong or len(named[0]) > 1:
        problem = f"says {wrong[0]!r}" if wrong else "has several columns of train, val and test"
        raise ManifestError(path, problem, "give train, val and test in one column, or the number of a fold")
    part = np.array([PARTS[row[0]] for row in named])
    for name in ("train", "test"):
        if not (part == PARTS[name]).any():
            raise ManifestError(path, f"has no bag for {name}", "both training and test need bags with tiles")
    folds_of = np.where(part == PARTS["test"], 0, -1).astype(np.int64)[None]
    return Partition(folds_of, seed, notes, part == PARTS["val"], mark)


def _refuse_leaks(path: Path, partition: Partition, bags: Sequence[Bag]) -> None:
    """Raises ManifestError, naming both bags, where what belongs to one patient lies in two parts."""
    for repeat in partition.folds_of:
        parts = repeat if partition.validation is None else np.where(partition.validation, -2, repeat)
        found = find_leak(bags, parts)
        if found is not None:
            first, second, shared, folds = found
            said = [{-1: "train", -2: "val", 0: "test"}[fold] for fold in folds] if parts.min() < 0 else folds
            raise ManifestError(
                path,
                f"{first.name} shares its {shared} with {second.name}, but lies in {said[0]}, the other in {said[1]}",
                "put both into one part, or correct the manifest's patient_id",
            )


def _companion(path: Path, mark: str) -> tuple[int | None, tuple[str, ...]]:
    """Seed and notes of the JSON file beside the table. Raises StoreError where it belongs to another table."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None, (f"{path.name} has no {beside.name} beside it: who drew these splits, and how, is not known",)
    try:
        facts: Mapping[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        kind, wanted, seed = facts["schema"], facts["sha256"], facts["seed"]
        notes = tuple(str(note) for note in facts.get("notes", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(beside, f"is damaged ({error!r})", "remove it to use the table as it is") from error
    if kind != SCHEMA:
        raise StoreError(beside, f"is of schema {kind!r}, not {SCHEMA}", "update slidestream")
    if wanted != mark:
        problem = f"was changed since it was written: its SHA-256 is not the one in {beside.name}"
        raise StoreError(path, problem, f"restore it, or remove {beside.name} to use it as it is")
    return seed, notes


def _rows(path: Path, content: bytes) -> tuple[list[dict[str, str]], list[str]]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [{str(name).strip(): (text or "").strip() for name, text in row.items()} for row in reader]
        return rows, [name.strip() for name in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error, AttributeError) as error:  # AttributeError: a row longer than the header
        raise ManifestError(path, f"is no table of commas in UTF-8 ({error})", "export it as CSV again") from error


def _texts_of(
    path: Path, rows: Sequence[Mapping[str, str]], key: str, columns: Sequence[str], bags: Sequence[Bag]
) -> list[tuple[str, ...] | None]:
    """What the table says of each bag, None where nothing."""
    places: dict[str, list[int]] = {}
    for i, bag in enumerate(bags):
        for name in _names(bag, key):
            places.setdefault(name, []).append(i)
    texts: list[tuple[str, ...] | None] = [None] * len(bags)
    for line, row in enumerate(rows, start=2):
        own = tuple(row[column] for column in columns)
        if row[key] not in places:
            problem = f"line {line} names {row[key]!r}, which is no {key.removesuffix('_id')} to train on"
            raise ManifestError(path, problem, "remove the row, or add the slide to the manifest")
        for i in places[row[key]]:
            if texts[i] not in (None, own):
                problem = f"line {line}: {bags[i].name} already lies in {', '.join(texts[i] or ())}"
                raise ManifestError(path, problem, "give every slide of a bag the same part, and each only once")
            texts[i] = own
    return texts


def _names(bag: Bag, key: str) -> tuple[str, ...]:
    """By which texts of that column a bag is known."""
    if key == "bag":
        return (bag.name,)
    if key == "slide_id":
        return bag.slide_ids
    name = bag.value(key)
    return () if name is None else (name,)


def _columns(repeats: int) -> list[str]:
    return ["fold"] if repeats == 1 else [f"fold_{repeat}" for repeat in range(repeats)]


def _fold_columns(header: Sequence[str]) -> list[str]:
    numbered = [name for name in header if name.startswith("fold_") and name[5:].isdigit()]
    single = next((name for name in ("split", "fold") if name in header), None)
    return sorted(numbered, key=lambda name: int(name[5:])) if single is None else [single]


def _part_name(partition: Partition, bag: int) -> str:
    if partition.folds_of[0, bag] == 0:
        return "test"
    return "val" if partition.validation is not None and partition.validation[bag] else "train"
