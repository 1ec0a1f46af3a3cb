import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.slides import tissue_like
from tiling.codecs import JpegCodec, decode_patch, encode_patch, is_sound
from tiling.shards import OPEN_FILES, PatchShards, create_patches, write_shard
from wsi import StoreError

SIDE = 24


def patches_of(count, side=SIDE):
    """uint8 (count, side, side, 3), each different."""
    image = tissue_like(side * 8, side * -(-count // 8))
    cut = image.reshape(-1, side, 8, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return np.ascontiguousarray(cut[:count])


def write(path, patches, per_shard, quality=None, absent=()):
    """A store of the given patches, each shard written by our writer; returns the array's folder."""
    zarr.open_group(path, mode="w", zarr_format=3)
    codec = None if quality is None else JpegCodec(quality)
    folder = create_patches(path, patches.shape[:2], per_shard, codec)
    chunks = list(patches) if quality is None else [encode_patch(pixels, quality) for pixels in patches]
    for number in absent:
        chunks[number] = None
    for number in range(-(-len(patches) // per_shard)):
        write_shard(folder, number, per_shard, chunks[number * per_shard : (number + 1) * per_shard])
    return folder


def shard_file(folder, number=0):
    return folder / "c" / str(number) / "0" / "0" / "0"


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize(("count", "per_shard"), [(12, 4), (13, 4), (3, 4), (1, 1), (5, 5)])
def test_zarr_and_we_read_what_our_writer_wrote(tmp_path, count, per_shard, quality):
    patches = patches_of(count)
    folder = write(tmp_path / "s.zarr", patches, per_shard, quality)
    by_zarr = zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"]
    ours = PatchShards(folder)
    if quality is None:
        assert np.array_equal(by_zarr[:], patches)
    else:
        assert np.abs(by_zarr[:].astype(int) - patches).mean() < 6
    assert np.array_equal(ours.read_at(np.arange(count)), by_zarr[:])
    some = np.random.default_rng(0).integers(0, count, 20)  # any order, some twice
    assert np.array_equal(ours.read_at(some), by_zarr.oindex[some])
    assert (ours.shape, ours.per_shard) == (by_zarr.shape, by_zarr.shards[0])


@pytest.mark.parametrize("codec", [None, JpegCodec(80)])
def test_we_read_what_zarr_wrote(tmp_path, codec):
    patches = patches_of(11)
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    folder = create_patches(tmp_path / "s.zarr", patches.shape[:2], 4, codec)
    group["patches"][:] = patches
    assert np.array_equal(PatchShards(folder).read_at(np.arange(11)), group["patches"][:])


@pytest.mark.parametrize("quality", [None, 90])
def test_an_absent_patch_takes_no_bytes_and_reads_as_zeros(tmp_path, quality):
    patches = patches_of(8)
    folder = write(tmp_path / "s.zarr", patches, 4, quality, absent=(1, 4, 5, 6, 7))  # and a shard without any
    by_zarr, ours = zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"], PatchShards(folder)
    assert shard_file(folder, 1).stat().st_size == 4 * 16 + 4
    assert np.array_equal(ours.read_at(np.arange(8)), by_zarr[:])
    assert [number for number in range(8) if not by_zarr[number].any()] == [1, 4, 5, 6, 7]
    assert ours.chunk(1) is None


def test_a_process_that_knows_only_zarr_reads_jpeg_patches(tmp_path):
    folder = write(tmp_path / "s.zarr", patches_of(5), 4, quality=90)
    code = "import zarr; print(zarr.open_group('s.zarr', mode='r')['patches'][:].sum())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    # if this alone fails, the environment was installed before the codec was announced: pip install -e .
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == PatchShards(folder).read_at(range(5)).sum()


@pytest.mark.parametrize("quality", [None, 90])
def test_every_flipped_bit_of_a_shard_is_noticed(tmp_path, quality):
    folder = write(tmp_path / "s.zarr", patches_of(6), 8, quality)  # the index has empty places, too
    path = shard_file(folder)
    sound = path.read_bytes()
    rng = np.random.default_rng(1)
    places = [*rng.integers(0, len(sound), 60).tolist(), *range(len(sound) - 132, len(sound), 3)]  # much of the index
    noticed, by_zarr = 0, zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"]
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged"):
            PatchShards(folder).read_at(np.arange(6))
        with pytest.raises(ValueError, match=r"[Cc]hecksum"):
            by_zarr[:]
        noticed += 1
    assert noticed == len(places) >= 100


def test_damage_is_named_and_other_patches_are_still_read(tmp_path):
    patches = patches_of(8)
    folder = write(tmp_path / "s.zarr", patches, 4)
    path = shard_file(folder, 1)
    damaged = bytearray(path.read_bytes())
    damaged[2 * (SIDE * SIDE * 3 + 4) + 10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"s\.zarr: patch 6 is damaged: its checksum does not fit; delete the store"):
        PatchShards(folder).read_at([6])
    assert np.array_equal(PatchShards(folder).read_at([7, 5, 0]), patches[[7, 5, 0]])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its index's checksum does not fit"),
        (lambda path: path.write_bytes(path.read_bytes()[-60:]), "it is too short"),
        (lambda path: path.write_bytes(path.read_bytes()[100:]), "its index reaches beyond the file"),
        (lambda path: path.unlink(), "is gone"),
    ],
)
def test_a_shard_that_is_cut_or_gone_is_named(tmp_path, spoil, problem):
    folder = write(tmp_path / "s.zarr", patches_of(8), 4)
    spoil(shard_file(folder, 1))
    with pytest.raises(StoreError, match=rf"its file patches/c/1/0/0/0 .*{problem}"):
        PatchShards(folder).read_at([5])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted where /proc tells")
def test_many_shards_are_read_by_many_threads_with_few_open_files(tmp_path):
    patches = patches_of(3 * OPEN_FILES, side=16)
    shards = PatchShards(write(tmp_path / "s.zarr", patches, 1))
    numbers = [np.random.default_rng(seed).integers(0, len(patches), 200) for seed in range(8)]
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with ThreadPoolExecutor(8) as pool:
        for wanted, found in zip(numbers, pool.map(shards.read_at, numbers), strict=True):
            assert np.array_equal(found, patches[wanted])
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) - before <= OPEN_FILES
    del shards
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) - before <= 0


def test_a_reader_travels_between_processes(tmp_path, monkeypatch):
    patches = patches_of(6)
    write(tmp_path / "s.zarr", patches, 4)
    monkeypatch.chdir(tmp_path)
    reader = PatchShards(Path("s.zarr/patches"))
    reader.read_at([0])  # with a file open
    monkeypatch.chdir("/")
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).read_at([5]), patches[[5]])  # noqa: S301


@pytest.mark.parametrize("numbers", [[6], [-1], [0.5], [[0, 1]], [True, False]])
def test_numbers_that_no_patch_has_are_refused(tmp_path, numbers):
    shards = PatchShards(write(tmp_path / "s.zarr", patches_of(6), 4))
    with pytest.raises(IndexError):
        shards.read_at(numbers)
    assert shards.read_at([]).shape == (0, SIDE, SIDE, 3)


def test_an_array_that_is_laid_out_otherwise_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    group.create_array("patches", shape=(8, 4, 4, 3), chunks=(1, 4, 4, 3), shards=(4, 4, 4, 3), dtype="uint8")
    with pytest.raises(StoreError, match=r"stored as bytes \+ zstd, which this version cannot read"):
        PatchShards(tmp_path / "s.zarr" / "patches")


def test_a_jpeg_is_judged_at_an_eighth_as_when_it_is_decoded_whole():
    rng = np.random.default_rng(0)
    tiles = [encode_patch(pixels, 80) for pixels in patches_of(8, side=64)]
    into, verdicts = np.empty((64, 64, 3), np.uint8), []
    for turn in range(300):
        data = bytearray(tiles[turn % 8])
        place = int(rng.integers(2, len(data) - 20))
        if turn % 3 == 0:
            data[place] ^= 1 << rng.integers(8)
        elif turn % 3 == 1:
            data[place : place + 16] = bytes(16)
        else:
            del data[place:]
        try:
            decode_patch(bytes(data), into)
            whole = True
        except ValueError:
            whole = False
        verdicts.append(whole)
        assert is_sound(bytes(data), 64) == whole
    assert 30 < sum(verdicts) < 270
    assert not is_sound(tiles[0], 32)
