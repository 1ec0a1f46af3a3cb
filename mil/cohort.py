"""The bags of a cohort in flat files: written once, then mapped into memory, so that a training step reads only pages.

A cohort is a folder, derived from embeddings and the manifest and made again when either changes:

    features.bin   the tiles of all bags end to end, float16 or float32 as embedded, row by row
    views.bin      their other views, where there are any
    xy.bin         int64 (tiles, 2), level-0 pixels
    slide_of.bin   int32 (tiles,), which of its bag's slides a tile is of
    offsets.bin    int64 (bags + 1,): bag i is rows offsets[i] to offsets[i + 1]
    cohort.json    schema, mark, contract, what is known of each bag, CRC32C of each bag's part of each file

Numbers are little-endian. Anything that maps files can read them.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError, StoreError
from wsi.publish import appear, fingerprint

from .bag import Bag, require_contract

SCHEMA = "cohort/1"
_BLOCK_BYTES = 4 << 20  # checked and written at a time
_FILES = ("features", "views", "xy", "slide_of")
_FACTS = ("label", "patient_id", "case_id", "identity", "span_px")
_REMEDY = "delete the folder; it is made again from the embeddings"

_log = logging.getLogger(__name__)


def cohort_mark(stores: Sequence[object], *facts: object) -> str:
    """Twelve hex digits over all that shapes a cohort's files.

    stores  fingerprint of each bag's embeddings, in the order of the bags: EmbeddingStore.fingerprint, or several
    facts   what else went into the bags: the manifest's rows, the level they are merged at; plain values or dataclasses
    """
    return fingerprint(SCHEMA, list(stores), *facts)


def mapped_cohort(folder: Path, mark: str, make: Callable[[], Iterable[Bag]]) -> list[Bag]:
    """The bags of the cohort at `folder`, written from `make()` unless it is there, sound and of this mark."""
    try:
        return open_cohort(folder, mark)
    except StoreError as error:
        if folder.exists():
            _log.info("the cohort is written again: %s", error.problem)
    write_cohort(folder, make(), mark)
    return open_cohort(folder, mark)


def write_cohort(folder: Path, bags: Iterable[Bag], mark: str = "") -> None:
    """Write bags to a folder that appears whole, in the place of an older one; bags without tiles keep their place.

    bags  may be a generator: one bag is held at a time
    mark  see `cohort_mark`
    Raises StoreError for NaN and infinity, naming the bag, and for vectors of another type than the first bag's;
    BackboneError for embeddings of another contract; SpecError without bags.
    """
    _require_little_endian()
    with appear(folder) as draft, ExitStack() as stack:
        files = {name: stack.enter_context((draft / f"{name}.bin").open("wb")) for name in _FILES}
        common: dict[str, Any] = {}
        rows, offsets = [], [0]
        for bag in bags:
            common = common or _common(bag)
            _require_same(bag, common)
            rows.append(_write_bag(bag, files))
            offsets.append(offsets[-1] + bag.tiles)
            del bag  # or it would be held while the next one is made
        if not rows:
            raise SpecError("cohort", "it has no bags", "check that slides are embedded and named by the manifest")
        np.asarray(offsets, "<i8").tofile(draft / "offsets.bin")
        content = {"schema": SCHEMA, "mark": mark, **common, "bags": rows}
        (draft / "cohort.json").write_text(json.dumps(content), encoding="ascii")


def open_cohort(folder: Path, mark: str | None = None, verify: bool = False) -> list[Bag]:
    """The bags that were written, in that order, their arrays parts of read-only maps of the files.

    mark    that the cohort must have been written with; None for any
    verify  read all files and compare their checksums; without it, sizes alone are compared
    Raises StoreError where the folder is missing, of another schema or mark, cut short or damaged.
    """
    _require_little_endian()
    content = _read_content(folder)
    if mark is not None and content["mark"] != mark:
        problem = f"it was made from other embeddings or another manifest (mark {content['mark']!r}, not {mark!r})"
        raise StoreError(folder, problem, _REMEDY)
    rows, dim = content["bags"], content["dim"]
    offsets = np.asarray(_map(folder, "offsets", "<i8", (len(rows) + 1,)))
    counts = np.diff(offsets)
    if offsets[0] != 0 or (counts < 0).any():
        raise StoreError(folder, "its offsets do not ascend from 0", _REMEDY)
    tiles, dtype = int(offsets[-1]), content["dtype"]
    views = np.concatenate([[0], np.cumsum([row["views"] * count for row, count in zip(rows, counts, strict=True)])])
    maps = {
        "features": _map(folder, "features", dtype, (tiles, dim)),
        "views": _map(folder, "views", dtype, (int(views[-1]), dim)),
        "xy": _map(folder, "xy", "<i8", (tiles, 2)),
        "slide_of": _map(folder, "slide_of", "<i4", (tiles,)),
    }
    bags = []
    for i, row in enumerate(rows):
        part = slice(offsets[i], offsets[i + 1])
        arrays = {name: maps[name][part] for name in _FILES}
        arrays["views"] = maps["views"][views[i] : views[i + 1]]
        if verify:
            _verify(folder, row, arrays)
        bags.append(_bag(row, arrays, content))
    return bags


def _common(bag: Bag) -> dict[str, Any]:
    contract = {"contract": dict(bag.contract), "contract_hash": bag.contract_hash}
    return {"dtype": bag.features.dtype.name, "dim": bag.dim, **contract, "blocks": list(bag.blocks)}


def _require_same(bag: Bag, common: Mapping[str, Any]) -> None:
    require_contract(bag, common["contract"], common["contract_hash"], common["dim"])
    dtypes = {array.dtype.name for array in (bag.features, bag.views) if array is not None}
    if dtypes != {common["dtype"]} or list(bag.blocks) != common["blocks"]:
        mine = f"{' and '.join(sorted(dtypes))} in parts of {list(bag.blocks)}"
        problem = f"its embeddings are {mine}, those of the cohort {common['dtype']} in parts of {common['blocks']}"
        raise StoreError(bag.name, problem, "embed all slides with the same settings")


def _write_bag(bag: Bag, files: Mapping[str, BinaryIO]) -> dict[str, Any]:
    """Append the bag's arrays to the files; what cohort.json holds of it."""
    slide_of = np.zeros(bag.tiles, np.int32) if bag.slide_of is None else bag.slide_of
    arrays = {
        "features": bag.features,
        "views": bag.features[:0] if bag.views is None else bag.views,
        "xy": bag.xy.astype(np.int64, casting="safe", copy=False),
        "slide_of": slide_of.astype(np.int32, casting="same_kind", copy=False),
    }
    row: dict[str, Any] = {"slide_ids": list(bag.slide_ids), **{name: getattr(bag, name) for name in _FACTS}}
    row |= {"columns": dict(bag.columns), "views": 0 if bag.views is None else bag.views.shape[1]}
    row["crc32c"] = {name: _append(bag.name, array, files[name]) for name, array in arrays.items()}
    return row


def _append(name: str, array: NDArray[Any], file: BinaryIO) -> int:
    """Write the array, block by block; CRC32C of its bytes."""
    crc = 0
    for block in _blocks(array):
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise StoreError(name, "its embeddings hold NaN or infinity", "embed the slide again")
        data = _bytes(block)
        crc = google_crc32c.extend(crc, data)
        file.write(data.data)
    return crc


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def _bytes(block: NDArray[Any]) -> NDArray[np.uint8]:
    return block.reshape(-1).view(np.uint8)


def _read_content(folder: Path) -> dict[str, Any]:
    path = folder / "cohort.json"
    if not path.is_file():
        raise StoreError(folder, "there is no cohort", "it is made from the embeddings by training")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(path, f"it is not sound JSON ({error})", _REMEDY) from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise StoreError(folder, f"its schema is {found}, this version reads {SCHEMA}", _REMEDY)
    return dict(content)


def _map(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only map of a file that must have exactly this size."""
    path = folder / f"{name}.bin"
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != wanted:
        problem = "it is missing" if found is None else f"it has {found} bytes instead of {wanted}"
        raise StoreError(path, problem, _REMEDY)
    if not wanted:
        return np.empty(shape, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, "r", shape=shape)


def _verify(folder: Path, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        crc = 0
        for block in _blocks(array):
            crc = google_crc32c.extend(crc, _bytes(block))
        if crc != row["crc32c"][name]:
            problem = f"the {name} of {'+'.join(row['slide_ids'])} are damaged: their checksum does not fit"
            raise StoreError(folder, problem, _REMEDY)


def _bag(row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], content: Mapping[str, Any]) -> Bag:
    features, views = arrays["features"], row["views"]
    return Bag(
        features=features,
        xy=arrays["xy"],
        slide_ids=tuple(row["slide_ids"]),
        columns=row["columns"],
        contract=content["contract"],
        contract_hash=content["contract_hash"],
        slide_of=arrays["slide_of"] if len(row["slide_ids"]) > 1 else None,
        views=arrays["views"].reshape(len(features), views, content["dim"]) if views else None,
        blocks=tuple(content["blocks"]),
        **{name: row[name] for name in _FACTS},
    )


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise StoreError("cohort", "this machine is big-endian, cohort files are not", "train on another machine")
