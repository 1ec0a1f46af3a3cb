"""Whether a finished store is still what was published: every byte of it is read."""

from collections.abc import Iterator
from pathlib import Path

from wsi.errors import StoreError
from wsi.publish import seal_fits

from .arrays import digest, read_array, read_layout
from .shards import damage_of
from .store import open_complete


def damage_in(path: Path, schema: str, maker: str) -> Iterator[str]:
    """What is wrong with the store at `path`, a clause each; nothing where it is sound.

    schema, maker  as for `open_complete`
    A store of before there were checksums of whole arrays is read through the checksums of its chunks.
    """
    try:
        complete = open_complete(path, schema, maker)["complete"]
        text = (path / "zarr.json").read_bytes()
    except StoreError as error:
        yield error.problem
        return
    sums = complete.get("crc32c", {})
    fits = seal_fits(text)
    if fits is False or (fits is None and sums):
        yield "its record is damaged"
        return
    for name in complete["files"]:
        try:
            yield from _damage_of_array(path / name, sums.get(name))
        except StoreError as error:
            yield error.problem


def _damage_of_array(folder: Path, stated: str | None) -> Iterator[str]:
    layout = read_layout(folder)
    if stated is not None and int(stated, 16) != digest(folder, layout):
        yield f"its array {folder.name} is not what was published: its checksum does not fit"
        return
    if folder.name == "patches":
        yield from damage_of(folder)
    elif stated is None:
        read_array(folder)


def rows_of(path: Path, name: str) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) that an array of the store states. Raises StoreError where it is gone or damaged."""
    layout = read_layout(path / name)
    return layout.shape, layout.dtype
