import json

import numpy as np
import pytest
import zarr

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, iter_patches, open_patches, plan_grid, write_patches
from wsi import Region, SlideError, StoreError, open_slide
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
    lazy = store.as_dask()
    assert lazy.dtype == np.uint8
    assert np.array_equal(lazy.mean(axis=(1, 2)).compute(), by_zarr[...].mean(axis=(1, 2)))


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
    [("complete", None, "not complete"), ("schema", "patches/99", "schema is patches/99")],
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
