"""Patches come as a stream in bounded memory, and no stored tile is decoded twice for them."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import TileGrid, TileSpec, Tissue, TissueSpec, iter_patches, plan_grid
from tiling import stream as stream_module
from tiling.stream import BATCH_BYTES, _Buffers, batch_tiles
from wsi import Region, open_slide
from wsi.errors import SlideError
from wsi.formats.tiled import TiledSlide
from wsi.formats.tilewise import DecodeOnce
from wsi.resample import pick_level


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """1,500 x 1,300 px at 0.25 µm/px in 240-px tiles, with a stored level at a quarter."""
    options = SvsOptions(240, (1, 4), "422", mpp="0.25", objective="40")
    return write_svs(tmp_path_factory.mktemp("stream") / "slide.svs", tissue_like(1500, 1300, 3), options)


def grid_of(slide, **changes) -> TileGrid:
    spec = TileSpec(64, 0.25, tissue=TissueSpec("none"), quality=replace(TileSpec().quality, measure=False))
    spec = replace(spec, **changes)
    rows, cols = -(-slide.levels[0].height // 16), -(-slide.levels[0].width // 16)
    return plan_grid(slide.levels, spec, Tissue(np.ones((rows, cols), bool), 16, 1.0))


def counted(slide: TiledSlide, grid: TileGrid) -> Counter:
    """Decode calls of each stored tile, counted from now on."""
    level, calls = slide._views[grid.level].stored, Counter()
    decode = level.decode

    def count(tile, *rest):
        calls[tile] += 1
        decode(tile, *rest)

    level.decode = count
    return calls


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 1),
        ({"stride_px": 32}, 1),  # overlapping
        ({"stride_px": 32}, 3),
        ({"mpp": 0.5}, 2),  # from a level that the decoder makes
        ({"mpp": 0.35}, 2),  # averaged
        ({"mpp": 0.5, "cheap_levels": False}, 2),
    ],
)
def test_each_stored_tile_is_decoded_once_in_a_whole_grid(slide_file, monkeypatch, changes, threads):
    monkeypatch.setattr(stream_module, "BATCH_BYTES", 20 * 64 * 64 * 3)  # many batches, so many shared tiles
    with open_slide(slide_file) as slide:
        grid = grid_of(slide, **changes)
        calls = counted(slide, grid)
        batches = list(iter_patches(slide, grid, threads))
    assert len(batches) > 5
    assert set(calls.values()) == {1}
    assert np.concatenate([batch.ok for batch in batches]).all()


def test_a_tile_that_does_not_fit_into_the_limit_is_decoded_again(slide_file, monkeypatch):
    monkeypatch.setattr(stream_module, "BATCH_BYTES", 20 * 64 * 64 * 3)
    with open_slide(slide_file) as slide:
        grid = grid_of(slide)
        expected = np.concatenate([batch.patches for batch in iter_patches(slide, grid, 1)])
        calls = counted(slide, grid)
        seen = np.concatenate([batch.patches for batch in iter_patches(slide, grid, 1, memory=4 << 10)])
    assert max(calls.values()) > 1
    assert np.array_equal(seen, expected)


def test_the_stream_gives_what_reading_each_tile_alone_gives(slide_file):
    with open_slide(slide_file) as slide:
        grid = grid_of(slide, stride_px=48)
        patches = np.concatenate([batch.patches for batch in iter_patches(slide, grid, 2)])
        for index in range(0, len(grid), 97):
            x, y = grid.xy[index].tolist()
            assert np.array_equal(patches[index], slide.read(Region(x, y, 64, 64), 0))


def test_a_bad_tile_costs_the_patches_over_it_in_every_batch(slide_file, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "BATCH_BYTES", 20 * 64 * 64 * 3)
    with open_slide(slide_file) as slide:
        grid = grid_of(slide)
        offset = int(slide._views[0].stored._tiles.offsets[8])
    torn = tmp_path / "torn.svs"
    data = bytearray(slide_file.read_bytes())
    data[offset : offset + 300] = bytes(300)
    torn.write_bytes(data)
    with open_slide(torn) as slide:
        ok = np.concatenate([batch.ok for batch in iter_patches(slide, grid, 2)])
    row, column = divmod(8, 7)
    x, y = grid.xy.T
    over = (x + 64 > column * 240) & (x < column * 240 + 240) & (y + 64 > row * 240) & (y < row * 240 + 240)
    assert np.array_equal(ok, ~over)


def test_cheap_levels_fill_the_gap_between_stored_ones_and_lie_on_the_same_place(slide_file):
    with open_slide(slide_file) as slide:
        kinds = [(round(level.downsample), level.stored) for level in slide.levels]
        assert kinds[:3] == [(1, True), (2, False), (4, True)]
        region = Region(240, 480, 960, 720)
        full, half = slide.read(region, 0), slide.read(region, 1)
        averaged = cv2.resize(full, half.shape[1::-1], interpolation=cv2.INTER_AREA).astype(float)
        # shifted by a pixel the pictures differ by the grain (more than 5 grey levels): they lie on each other
        assert np.abs(half - averaged).mean() < 2.5
        assert slide.levels[1].mpp == 0.5
        assert pick_level(slide.levels, 0.5) == 1
        assert pick_level(slide.levels, 0.5, cheap=False) == 0


def test_a_cheap_level_reads_the_same_in_any_piece(slide_file):
    with open_slide(slide_file) as slide:
        whole = slide.read(Region(0, 0, 1500, 1300), 1)
        assert whole.shape == (650, 750, 3)
        for x, y, side in [(0, 0, 64), (238, 242, 100), (1300, 1100, 200), (480, 0, 2)]:
            part = slide.read(Region(x, y, side, side), 1)
            half = round(x / 2), round(y / 2)
            assert np.array_equal(part, whole[half[1] : half[1] + side // 2, half[0] : half[0] + side // 2])


def test_a_buffer_is_used_again_only_when_nobody_refers_to_it():
    buffers = _Buffers(100)
    first = buffers.take(40)
    view = first[:6].reshape(2, 3)
    address = first.ctypes.data
    del first
    assert buffers.take(40).ctypes.data != address
    del view
    taken = {buffers.take(40).ctypes.data for _ in range(3)}
    assert len(taken) == 1


def test_batches_that_are_kept_keep_their_pixels(slide_file, monkeypatch):
    monkeypatch.setattr(stream_module, "BATCH_BYTES", 20 * 64 * 64 * 3)
    with open_slide(slide_file) as slide:
        grid = grid_of(slide)
        kept = list(iter_patches(slide, grid, 2))
        sums = [int(batch.patches.sum(dtype=np.int64)) for batch in iter_patches(slide, grid, 2)]
    assert [int(batch.patches.sum(dtype=np.int64)) for batch in kept] == sums


def test_a_little_memory_reads_on_fewer_threads_and_the_same(slide_file):
    with open_slide(slide_file) as slide:
        grid = grid_of(slide)
        plenty, little = (
            np.concatenate([batch.patches for batch in iter_patches(slide, grid, 4, memory)])
            for memory in (1 << 30, BATCH_BYTES)
        )
    assert np.array_equal(plenty, little)
    assert batch_tiles(256) == 256


def test_readers_without_plans_stream_too():
    slide = ArraySlide([tissue_like(700, 500)], 0.25)
    grid = grid_of(slide, mpp=0.4)
    patches = np.concatenate([batch.patches for batch in iter_patches(slide, grid, 2)])
    assert patches.shape == (len(grid), 64, 64, 3)


def test_an_error_in_a_reading_thread_reaches_the_user(slide_file):
    slide = open_slide(slide_file)
    grid = grid_of(slide)
    slide.close()
    with pytest.raises((SlideError, ValueError), match="closed"):
        list(iter_patches(slide, grid, 2))


def test_any_error_of_a_shared_tile_reaches_every_thread_that_waits_for_it():
    def broken(tile, into):
        raise ConnectionError("the store does not answer")

    once = DecodeOnce(broken, np.array([3]), 1 << 20)
    into = np.empty((4, 4, 3), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        for found in [pool.submit(once, 0, into) for _ in range(3)]:
            with pytest.raises(ConnectionError):
                found.result(timeout=10)


@pytest.mark.parametrize("size", [(1500, 1300), (1441, 1302), (1447, 1207), (1446, 1206)])
def test_a_patch_at_the_edge_of_a_cheap_level_has_no_white_and_no_padding(tmp_path, size):
    # tiles reach beyond the picture in garish green (tests.slides), the picture itself is all but one pink
    pink = np.full((size[1], size[0], 3), (200, 120, 160), np.uint8)
    path = write_svs(tmp_path / "edge.svs", pink, SvsOptions(240, (1,), "444", mpp="0.25"))
    with open_slide(path) as slide:
        for number, level in enumerate(slide.levels):
            side = 64
            span = round(side * level.downsample)
            out = np.empty((1, side, side, 3), np.uint8)
            assert slide.read_many(np.array([[size[0] - span, size[1] - span]]), number, out).all()
            if level.stored:
                continue  # there, the last block of a tile is shared with its padding, as in every JPEG
            assert np.abs(out[0, :-1, :-1].astype(int) - (200, 120, 160)).max() < 40
            assert np.abs(out[0].astype(int) - (200, 120, 160)).max() < 90


def test_tiles_read_much_larger_than_they_come_out_are_read_few_at_a_time(tmp_path):
    path = write_svs(tmp_path / "wide.svs", tissue_like(2400, 1200, 4), SvsOptions(240, (1,), "444", mpp="0.25"))
    with open_slide(path) as slide:
        grid = grid_of(slide, mpp=1.75, cheap_levels=False)
        assert stream_module._at_once(slide, grid, 2 << 20, 250) == 3
        calls = counted(slide, grid)
        little, plenty = (
            np.concatenate([batch.patches for batch in iter_patches(slide, grid, 1, memory)])
            for memory in (16 << 20, 1 << 30)
        )
    assert np.array_equal(little, plenty)
    assert set(calls.values()) == {2}  # once in each of the two readings
