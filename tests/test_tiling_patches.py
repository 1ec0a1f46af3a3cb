import json
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import zarr

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, iter_patches, open_patches, plan_grid, write_patches
from tiling.codecs import encode_patch
from tiling.pixels import _run, check_native
from wsi import Region, SlideError, SpecError, StoreError, open_slide
from wsi.resample import read_at

SPEC = TileSpec(tile_px=64, tissue=TissueSpec(method="none"))


def store_of(path, slide, spec=SPEC, pixels="raw"):
    tissue = find_tissue(slide, spec.tissue)
    grid = plan_grid(slide.levels, spec, tissue)
    failed = write_patches(path, slide, grid, tissue, PatchRequest("s", "mark", "grid", "identity", pixels))
    return grid, failed


class Scratched(ArraySlide):
    """Every tile whose corner lies in its first `broken` columns cannot be read."""

    broken = 0

    def read_many(self, xy, level, out):
        ok = super().read_many(xy, level, out)
        return ok & (xy[:, 0] >= self.broken)


@pytest.mark.parametrize(("tile", "mpp"), [(64, 0.5), (100, 0.5), (48, 0.73), (64, 1.0)])
def test_the_stream_gives_every_tile_of_the_grid_in_order(tmp_path, tile, mpp):
    path = write_svs(tmp_path / "a.svs", tissue_like(900, 700), SvsOptions(downsamples=(1, 2)))
    spec = TileSpec(tile_px=tile, mpp=mpp, tissue=TissueSpec(method="none"))
    with open_slide(path) as slide:
        grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
        batches = list(iter_patches(slide, grid, threads=2))
        assert [batch.start for batch in batches] == np.cumsum([0, *map(len, (b.ok for b in batches))])[:-1].tolist()
        patches = np.concatenate([batch.patches for batch in batches])
        assert len(patches) == len(grid)
        for number in (0, len(grid) // 2, len(grid) - 1):
            x, y = grid.xy[number].tolist()
            expected = read_at(slide, Region(x, y, grid.span_px, grid.span_px), grid.mpp)
            assert np.abs(patches[number].astype(int) - expected).max() <= 1


@pytest.fixture
def small_batches(monkeypatch):
    """Batches, hence shards, of 7 patches of 64 px."""
    monkeypatch.setattr("tiling.stream.BATCH_BYTES", 7 * 64 * 64 * 3)


@pytest.mark.usefixtures("small_batches")
def test_a_store_reads_back_as_it_was_written_by_zarr_and_as_dask(tmp_path):
    slide = ArraySlide([tissue_like(600, 400)])
    grid, failed = store_of(tmp_path / "s.zarr", slide)
    store = open_patches(str(tmp_path / "s.zarr"))  # a notebook gives a string
    assert failed == 0
    assert np.array_equal(store.grid.xy, grid.xy)
    assert store.grid.spec == SPEC
    by_zarr = zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"]
    assert by_zarr.shape == (len(grid), 64, 64, 3)
    assert by_zarr.shards is not None
    x, y = grid.xy[7]
    assert np.array_equal(by_zarr[7], slide._arrays[0][y : y + 64, x : x + 64])
    assert np.array_equal(store.read_patches(5, 16), by_zarr[5:16])
    assert np.array_equal(store.read_at([40, 3, 3, 17]), by_zarr.oindex[[40, 3, 3, 17]])
    lazy = pickle.loads(pickle.dumps(store.as_dask()))  # noqa: S301  as a worker gets it
    assert lazy.dtype == np.uint8
    assert lazy.numblocks == (8, 1, 1, 1)  # 54 patches by 7
    assert np.array_equal(lazy.compute(), by_zarr[...])
    assert np.array_equal(lazy[9:13, :, 5].mean(axis=1).compute(), by_zarr[9:13, :, 5].mean(axis=1))


@pytest.mark.usefixtures("small_batches")
def test_jpeg_pixels_are_close_and_few_and_better_with_more_quality(tmp_path):
    slide, sizes, errors = ArraySlide([tissue_like(600, 400)]), [], []
    store_of(tmp_path / "raw.zarr", slide)
    raw = open_patches(tmp_path / "raw.zarr").read_patches(0, 54)
    for quality in (70, 90):
        tissue = find_tissue(slide, SPEC.tissue)
        grid = plan_grid(slide.levels, SPEC, tissue)
        write_patches(tmp_path / "s.zarr", slide, grid, tissue, PatchRequest("s", "f", pixels="jpeg", quality=quality))
        store = open_patches(tmp_path / "s.zarr")
        assert store.pixels == "jpeg"
        assert store.shards.chunk(11) == encode_patch(raw[11], quality)
        sizes.append(sum(len(store.shards.chunk(number)) for number in range(54)))
        errors.append(np.abs(store.read_patches(0, 54).astype(int) - raw).mean())
    assert sizes[0] < sizes[1] < raw.nbytes / 2
    assert errors[1] < errors[0] < 8


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("options", [SvsOptions(64), SvsOptions(64, colour="rgb"), SvsOptions(64, colour="422")])
def test_native_pixels_are_the_slides_own_tiles(tmp_path, options):
    path = write_svs(tmp_path / "a.svs", tissue_like(600, 400), options)
    with open_slide(path) as slide:
        grid, failed = store_of(tmp_path / "s.zarr", slide, pixels="native")
        store = open_patches(tmp_path / "s.zarr")
        assert (failed, len(grid), store.pixels) == (0, 54, "native")
        stored = list(slide.native_jpegs(grid.xy, 64, 0))
        for number, (x, y) in enumerate(grid.xy.tolist()):
            assert store.shards.chunk(number) == stored[number]
            assert np.array_equal(store.read_at([number])[0], slide.read(Region(x, y, 64, 64), 0))
    by_zarr = zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"]
    assert np.array_equal(by_zarr[:], store.read_patches(0, 54))
    with pytest.raises(ValueError, match="cannot be encoded"):
        zarr.open_group(tmp_path / "s.zarr", mode="r+")["patches"][0] = 7


def test_native_pixels_of_a_real_slide(tmp_path, real_slide):
    with open_slide(real_slide) as slide:  # its JPEG tiles are RGB, and nothing in them says so
        spec = TileSpec(tile_px=240, mpp=0.499)
        grid, failed = store_of(tmp_path / "s.zarr", slide, spec, pixels="native")
        patches = open_patches(tmp_path / "s.zarr").read_patches(0, len(grid))
        assert failed == 0
        assert len(grid) > 40
        for patch, (x, y) in zip(patches, grid.xy.tolist(), strict=True):
            assert np.array_equal(patch, slide.read(Region(x, y, 240, 240), 0))


def test_native_pixels_of_a_lower_level(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue_like(800, 640), SvsOptions(64, (1, 2)))
    with open_slide(path) as slide:
        grid, _ = store_of(tmp_path / "s.zarr", slide, replace(SPEC, mpp=1.0), pixels="native")
        x, y = grid.xy[9].tolist()
        expected = slide.read(Region(x, y, 128, 128), 1)
    assert len(grid) == 30
    assert np.array_equal(open_patches(tmp_path / "s.zarr").read_at([9])[0], expected)


def test_a_damaged_tile_is_not_copied(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue_like(640, 640), SvsOptions(64))
    lenient = replace(SPEC, max_failed_tiles=0.2)
    with open_slide(path) as slide:
        sound = slide.native_jpegs(np.array([[128, 0], [64, 64]], np.int64), 64, 0)
        content = bytearray(path.read_bytes())
        for whole in sound:
            scan = whole[whole.index(b"\xff\xda") + 60 :]
            at = content.index(scan)
            content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    with open_slide(path) as slide:
        grid, failed = store_of(tmp_path / "s.zarr", slide, lenient, pixels="native")
        raw = store_of(tmp_path / "raw.zarr", slide, lenient)[1]
    store = open_patches(tmp_path / "s.zarr")
    assert failed == raw == 2
    lost = np.flatnonzero(~store.array("ok"))
    assert sorted(grid.xy[lost].tolist()) == [[64, 64], [128, 0]]
    assert [store.shards.chunk(number) for number in lost] == [None, None]
    assert not store.read_at(lost).any()


@pytest.mark.parametrize(
    ("options", "spec", "problem"),
    [
        (SvsOptions(80), SPEC, "--tile-px 80 --tile-mpp 0.5 without overlap: the slide's own tiles"),
        (SvsOptions(64), replace(SPEC, stride_px=48), "every 48 px are not the slide's"),
        (SvsOptions(64), replace(SPEC, mpp=0.6), "--tile-px 64 --tile-mpp 0.5 "),
        (SvsOptions(64), replace(SPEC, mpp=0.9), "--tile-px 64 --tile-mpp 1 "),
        (SvsOptions(64), replace(SPEC, icc="srgb"), "cannot be colour-corrected"),
        (None, SPEC, "not stored as JPEG"),
    ],
)
def test_a_grid_that_is_not_the_slides_is_told_which_would_be(tmp_path, options, spec, problem):
    image = tissue_like(640, 640)
    slide = ArraySlide([image])
    if options is not None:
        slide = open_slide(write_svs(tmp_path / "a.svs", image, options))
    with slide, pytest.raises(SpecError, match=problem):
        store_of(tmp_path / "s.zarr", slide, spec, pixels="native")
    assert not (tmp_path / "s.zarr").exists()


def test_tiles_of_the_slides_size_beside_its_own_are_not_told_to_take_that_size(tmp_path):
    with open_slide(write_svs(tmp_path / "a.svs", tissue_like(640, 640), SvsOptions(64))) as slide:
        grid = plan_grid(slide.levels, SPEC, find_tissue(slide, SPEC.tissue))
        check_native(slide, grid)
        with pytest.raises(SpecError, match=r"begin or end elsewhere than its own; keep the pixels as raw or jpeg$"):
            check_native(slide, replace(grid, xy=grid.xy[:9] + 5))


def test_what_is_known_of_each_tile_is_kept_and_pen_too(tmp_path):
    slide = ArraySlide([tissue_like(300, 300)])
    tissue = find_tissue(slide, SPEC.tissue)
    tissue = replace(tissue, pen=np.eye(*tissue.mask.shape, dtype=bool))
    grid = plan_grid(slide.levels, SPEC, tissue)
    extra = {"blur": np.arange(len(grid), dtype=np.float32), "shares": np.ones((len(grid), 3), np.uint8)}
    write_patches(tmp_path / "s.zarr", slide, grid, tissue, PatchRequest("s", "f"), extra)
    store = open_patches(tmp_path / "s.zarr")
    assert set(store.extra) == {"blur", "shares"}
    assert np.array_equal(store.extra["blur"], extra["blur"])
    assert np.array_equal(store.array("pen"), tissue.pen)
    for wrong in ({"xy": np.zeros(len(grid))}, {"blur": np.zeros(3)}):
        with pytest.raises(ValueError, match="its name is taken, or it is not of 16 rows"):
            write_patches(tmp_path / "s.zarr", slide, grid, tissue, PatchRequest("s", "f"), wrong)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("pixels", ["raw", "jpeg"])
def test_progress_is_told_as_pixels_are_written(tmp_path, pixels):
    slide, told = ArraySlide([tissue_like(600, 400)]), []
    tissue = find_tissue(slide, SPEC.tissue)
    grid = plan_grid(slide.levels, SPEC, tissue)
    request = PatchRequest("s", "f", pixels=pixels, progress=lambda done, total: told.append((done, total)))
    write_patches(tmp_path / "s.zarr", slide, grid, tissue, request)
    assert told == [(min(7 * step, 54), 54) for step in range(1, 9)]


def test_few_batches_wait_to_be_written_however_slow_the_disk_is():
    lock, taken, finished, most = threading.Lock(), 0, 0, 0

    def job():
        nonlocal finished
        time.sleep(0.002)
        with lock:
            finished += 1
        return 1

    def jobs():
        nonlocal taken, most
        for _ in range(30):
            with lock:
                taken += 1
                most = max(most, taken - finished)
            yield job

    assert sum(_run(jobs(), 2, 2)) == 30
    assert most <= 2


def test_a_store_without_pixels_says_how_to_get_them(tmp_path):
    store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(600, 400)]), pixels="none")
    with pytest.raises(StoreError, match="--patches"):
        open_patches(tmp_path / "s.zarr").as_dask()


def test_unreadable_tiles_are_marked_and_too_many_fail_the_slide(tmp_path):
    slide = Scratched([tissue_like(640, 640)])
    slide.broken = 64
    lenient = TileSpec(tile_px=64, max_failed_tiles=0.2, tissue=TissueSpec(method="none"))
    grid, failed = store_of(tmp_path / "s.zarr", slide, lenient)
    store = open_patches(tmp_path / "s.zarr")
    assert failed == 10
    assert np.array_equal(store.array("ok"), grid.xy[:, 0] >= 64)
    with pytest.raises(SlideError, match=r"10 of 100 tiles \(10%\) cannot be read, limit 1%"):
        store_of(tmp_path / "t.zarr", slide)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.zarr"]  # nothing half is left


def test_a_failed_rewrite_leaves_the_older_store_whole(tmp_path):
    slide = Scratched([tissue_like(640, 640)])
    store_of(tmp_path / "s.zarr", slide)
    before = open_patches(tmp_path / "s.zarr").read_patches(0, 100)
    slide.broken = 320
    with pytest.raises(SlideError, match="damaged"):
        store_of(tmp_path / "s.zarr", slide)
    assert np.array_equal(open_patches(tmp_path / "s.zarr").read_patches(0, 100), before)


@pytest.mark.parametrize(
    ("attribute", "value", "problem"),
    [
        ("complete", None, "not complete"),
        ("schema", "patches/99", "schema is patches/99, this version reads patches/2"),
        ("schema", "patches/1", "schema is patches/1, this version reads patches/2; run `wsi tile` again"),
    ],
)
def test_an_unfinished_or_foreign_store_is_refused(tmp_path, attribute, value, problem):
    store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(300, 300)]))
    record = tmp_path / "s.zarr" / "zarr.json"
    content = json.loads(record.read_text())
    content["attributes"][attribute] = value
    record.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=problem):
        open_patches(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="no such store"):
        open_patches(tmp_path / "none.zarr")


def test_a_flipped_bit_in_a_stored_patch_is_noticed(tmp_path):
    store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(300, 300)]))
    shard = next(path for path in (tmp_path / "s.zarr" / "patches").rglob("*") if path.name == "0" and path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 4
    shard.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"patch 0 is damaged: its checksum does not fit"):
        open_patches(tmp_path / "s.zarr").read_patches(0, 1)


def test_an_empty_grid_makes_a_valid_empty_store(tmp_path):
    store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(40, 40)]))
    store = open_patches(tmp_path / "s.zarr")
    assert len(store.grid) == 0
    assert store.as_dask().shape == (0, 64, 64, 3)
