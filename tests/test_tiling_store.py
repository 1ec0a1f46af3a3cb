import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from tiling.arrays import ArrayWriter, read_array, read_layout, write_array
from tiling.codecs import JpegCodec
from tiling.shards import create_patches
from tiling.soundness import damage_in
from tiling.store import open_complete, write_store
from wsi import StoreError

SCHEMA = "numbers/1"
RNG = np.random.default_rng(0)
ARRAYS = [
    RNG.integers(0, 9, (10, 2)),
    RNG.normal(size=(21,)).astype(np.float32),
    RNG.normal(size=(9, 2, 3)).astype(np.float16),
    RNG.integers(0, 255, (7, 5, 3)).astype(np.uint8)[:, ::-1],
    RNG.integers(0, 2, (6, 4)).astype(bool),
    np.arange(12, dtype=">i4"),
    np.zeros((0, 5), np.float32),
    np.zeros((5, 0), np.float64),
    np.array(["blurred", "µ"]),
]


def by_zarr(path, values, rows):
    """The same array, written by zarr-python."""
    array = zarr.create_array(
        str(path),
        shape=values.shape,
        chunks=(min(rows, max(1, values.shape[0])), *(max(1, side) for side in values.shape[1:])),
        dtype=values.dtype,
        compressors=(ZstdCodec(level=1, checksum=True),),
        config={"write_empty_chunks": True},
    )
    if values.size:
        array[...] = values
    return array


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:The data type")
@pytest.mark.parametrize("rows", [4, 4096])
@pytest.mark.parametrize("values", ARRAYS, ids=lambda values: f"{values.dtype}-{values.shape}")
def test_arrays_are_those_that_zarr_writes_and_each_reads_the_others(tmp_path, values, rows):
    write_array(tmp_path / "ours", values, rows)
    by_zarr(tmp_path / "theirs", values, rows)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    stated = [json.loads((folder / "zarr.json").read_text()) for folder in (ours, theirs)]
    if values.dtype.byteorder != ">":
        assert stated[0] == stated[1]
        assert all(
            (ours / name).read_bytes() == (theirs / name).read_bytes() for name in files_in(ours) - {"zarr.json"}
        )
    assert files_in(ours) == files_in(theirs)
    opened = zarr.open_array(str(ours), mode="r")
    assert opened.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(opened[...], values)
    for folder in (ours, theirs):
        found = read_array(folder)
        assert (found.shape, found.dtype) == (values.shape, values.dtype.newbyteorder("="))
        assert np.array_equal(found, values)


@pytest.mark.parametrize("codec", [None, JpegCodec(80)])
def test_an_array_of_patches_says_what_zarr_says(tmp_path, codec):
    from zarr.codecs import Crc32cCodec

    create_patches(tmp_path / "ours", (10, 16), 4, codec)
    zarr.open_group(tmp_path / "theirs", mode="w", zarr_format=3).create_array(
        "patches",
        shape=(10, 16, 16, 3),
        chunks=(1, 16, 16, 3),
        shards=(4, 16, 16, 3),
        dtype="uint8",
        compressors=(Crc32cCodec(),),
        **({} if codec is None else {"serializer": codec}),
    )
    one, other = (json.loads((tmp_path / name / "patches" / "zarr.json").read_text()) for name in ("ours", "theirs"))
    assert one == other


def test_an_array_of_another_layout_is_read_by_zarr(tmp_path):
    values = np.arange(60.0).reshape(6, 10)
    zarr.create_array(str(tmp_path / "a"), shape=(6, 10), chunks=(4, 3), dtype=values.dtype)[...] = values
    assert not read_layout(tmp_path / "a").ours
    assert np.array_equal(read_array(tmp_path / "a"), values)


def test_many_chunks_are_read_in_their_order(tmp_path):
    values = np.arange(1000).reshape(500, 2)
    write_array(tmp_path / "a", values, rows=7)
    assert np.array_equal(read_array(tmp_path / "a"), values)


def test_a_chunk_of_too_few_or_too_many_rows_is_not_written(tmp_path):
    writer = ArrayWriter(tmp_path / "a", (10, 2), np.int64, 4)
    for number, rows in ((0, 3), (2, 4), (3, 1)):
        with pytest.raises(ValueError, match="rows"):
            writer.write(number, np.zeros((rows, 2), np.int64))


def publish(path, value, mark="f"):
    with write_store(path) as store:
        store.put("xy", np.full((10, 2), value), rows=4)
        store.put("ok", np.ones(10, bool))
        store.finish(SCHEMA, {"slide_id": "a", "fingerprint": mark}, 10, 0)


def damage(path):
    return list(damage_in(path, SCHEMA, "wsi tile"))


def test_a_store_whose_files_did_not_all_come_is_not_published(tmp_path):
    for harm in ("c/1/0", "c", "zarr.json"):
        with pytest.raises(StoreError, match="xy"), write_store(tmp_path / "s.zarr") as store:  # noqa: PT012
            store.put("xy", np.zeros((10, 2)), rows=4)
            path = store.draft / "xy" / harm
            path.unlink() if path.is_file() else path.rename(store.draft / "elsewhere")
            store.finish(SCHEMA, {}, 10, 0)
    with pytest.raises(StoreError, match="xy"), write_store(tmp_path / "s.zarr") as store:  # noqa: PT012
        store.array("xy", (10, 2), np.int64, 4).write(0, np.zeros((4, 2), np.int64))
        store.finish(SCHEMA, {}, 10, 0)
    with pytest.raises(StoreError, match="not finished"), write_store(tmp_path / "s.zarr") as store:
        store.put("xy", np.zeros((10, 2)))
    assert not list(tmp_path.iterdir())


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from tiling.store import write_store

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write that passes it is cut short, as on a full disk
try:
    with write_store(Path(sys.argv[1]) / "s.zarr") as store:
        store.put("xy", np.random.default_rng(0).integers(0, 2**62, (500, 2)))
        store.finish("numbers/1", {}, 500, 0)
except OSError as error:
    print(type(error).__name__, error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [100, 450, 7000])  # in the array's statement, in the chunk, near its end
def test_a_write_that_the_disk_cuts_short_publishes_nothing(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(limit)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "OSError 27\n"
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_lost_and_shortened_file_of_a_store_is_found(tmp_path):
    path = tmp_path / "s.zarr"
    publish(path, 3)
    assert damage(path) == []
    tried = 0
    for name in sorted(files_in(path)):
        file = path / name
        sound = file.read_bytes()
        for place in range(len(sound)):
            for flip in (1 << place % 8, 255):
                file.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
                assert damage(path), (name, place, flip)
                tried += 1
        for content in (sound[:-1], sound[: len(sound) // 2], b"", sound + b"\n"):
            file.write_bytes(content)
            assert damage(path), (name, content)
        file.unlink()
        assert damage(path), name
        file.write_bytes(sound)
    assert tried > 2000
    (path / "xy" / "c" / "9").write_text("one more")
    assert damage(path) == ["it is not complete"]


def test_a_store_without_checksums_of_its_arrays_is_read_through_those_of_its_chunks(tmp_path):
    path = tmp_path / "s.zarr"
    publish(path, 3)
    record = json.loads((path / "zarr.json").read_text())
    complete = record["attributes"]["complete"]
    del complete["crc32c"], complete["checksum"]
    (path / "zarr.json").write_text(json.dumps(record, indent=2))
    assert damage(path) == []
    chunk = path / "xy" / "c" / "1" / "0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:-3] + bytes([sound[-3] ^ 4]) + sound[-2:])
    assert "xy/c/1/0 is damaged" in damage(path)[0]
    with pytest.raises(StoreError, match="xy/c/1/0 is damaged"):
        read_array(path / "xy")


KILLED = """
import os, sys
from pathlib import Path
from tests.test_tiling_store import SCHEMA, damage, publish
from tiling.arrays import read_array
from tiling.store import open_complete
from wsi import StoreError
from wsi.publish import clear_drafts

CALLS = ("rename", "replace", "link", "fsync", "mkdir", "rmdir", "unlink")

def dying(name, left):
    real = getattr(os, name)
    def call(*given, **named):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return real(*given, **named)
    setattr(os, name, call)

root, old = Path(sys.argv[1]), sys.argv[2] == "old"
for number in range(1, 1000):
    folder = root / str(number)
    folder.mkdir()
    if old:
        publish(folder / "s.zarr", 1)
    child = os.fork()
    if child == 0:
        left = [number]
        for name in CALLS:
            dying(name, left)
        publish(folder / "s.zarr", 2)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for cleared in (False, True):
        if cleared:
            clear_drafts(folder)
        try:
            open_complete(folder / "s.zarr", SCHEMA, "wsi tile")
        except StoreError as error:
            value = 0
            assert error.problem == "there is no such store", error
        else:
            value = int(read_array(folder / "s.zarr" / "xy").max())
            assert not damage(folder / "s.zarr"), damage(folder / "s.zarr")
        assert value or not cleared or not old, "the old one is lost"
        assert value in (0, 1, 2)
    left = {path.name for path in folder.iterdir()}
    assert left <= {"s.zarr"}, left
    print(ended, value)
    if ended == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["none", "old"])
def test_a_process_killed_at_any_step_of_publishing_leaves_the_old_store_the_new_one_or_none(tmp_path, before):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), before],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split() for line in done.stdout.splitlines()]
    assert [ended for ended, _ in ends[:-1]] == ["9"] * (len(ends) - 1)
    assert ends[-1] == ["0", "2"]
    assert len(ends) > 20
    first = "0" if before == "none" else "1"
    values = [value for _, value in ends]
    assert values == sorted(values)  # the old one up to some step, and from then on the new one
    assert {first, "2"} == set(values)
    assert open_complete(tmp_path / str(len(ends)) / "s.zarr", SCHEMA, "wsi tile")["complete"]["tiles"] == 10
