import csv
import json
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, open_patches, plan_grid, write_patches
from tiling.export import export_patches
from wsi import SpecError, StoreError, open_slide


class Scratched(ArraySlide):
    """The tiles of its first 64 columns cannot be read."""

    def read_many(self, xy, level, out):
        return super().read_many(xy, level, out) & (xy[:, 0] >= 64)


def store_of(path, slide, pixels, slide_id="s.1", tile_px=64):
    spec = TileSpec(tile_px=tile_px, mpp=0.5, max_failed_tiles=0.5, tissue=TissueSpec(method="none"))
    tissue = find_tissue(slide, spec.tissue)
    grid = plan_grid(slide.levels, spec, tissue)
    write_patches(path, slide, grid, tissue, PatchRequest(slide_id, "mark", pixels=pixels))
    return open_patches(path)


def names(store):
    """Place and number of each readable patch, by the name of its file."""
    span = store.grid.span_px
    places = enumerate(zip(store.grid.xy.tolist(), store.array("ok").tolist(), strict=True))
    return {f"s.1_x{x}_y{y}_s{span}": number for number, ((x, y), ok) in places if ok}


def test_png_files_hold_the_patches_and_the_table_their_places(tmp_path):
    store = store_of(tmp_path / "s.zarr", Scratched([tissue_like(320, 200)]), "raw")
    done = export_patches(store, tmp_path / "out", "png")
    assert (done.path, done.written, done.skipped) == (tmp_path / "out" / "s.1", 12, 3)
    patches = store.read_patches(0, 15)
    for name, number in names(store).items():
        pixels = cv2.imread(str(done.path / f"{name}.png"))
        assert np.array_equal(pixels[..., ::-1], patches[number])
    with (done.path / "coords.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["file"][:-4] for row in rows} == set(names(store))
    assert len(list(done.path.iterdir())) == 13
    assert rows[0] == {
        "file": "s.1_x64_y0_s64.png",
        "slide_id": "s.1",
        "x": "64",
        "y": "0",
        "span_px": "64",
        "mpp": "0.5",
        "tissue": "1.0",
    }


@pytest.mark.parametrize("pixels", ["jpeg", "native"])
def test_stored_jpegs_are_copied_without_another_loss(tmp_path, pixels):
    path = write_svs(tmp_path / "a.svs", tissue_like(320, 200), SvsOptions(tile=64, downsamples=(1,)))
    with open_slide(path) as slide:
        store = store_of(tmp_path / "s.zarr", slide, pixels)
    done = export_patches(store, tmp_path / "out", "jpg")
    patches = store.read_patches(0, done.written)
    for name, number in names(store).items():
        data = (done.path / f"{name}.jpg").read_bytes()
        assert data == store.shards.chunk(number)
        assert np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), patches[number])


def test_raw_pixels_are_encoded_where_jpeg_is_wanted(tmp_path):
    store = store_of(tmp_path / "s.zarr", Scratched([tissue_like(320, 200)]), "raw")
    done = export_patches(store, tmp_path / "out", "jpg")
    name, number = next(iter(names(store).items()))
    pixels = simplejpeg.decode_jpeg((done.path / f"{name}.jpg").read_bytes(), "RGB")
    assert np.abs(pixels.astype(int) - store.read_at([number])[0]).mean() < 6


@pytest.mark.parametrize(("pixels", "suffix"), [("raw", "png"), ("jpeg", "jpg")])
def test_a_tar_holds_samples_with_one_key_each(tmp_path, pixels, suffix):
    store = store_of(tmp_path / "s.zarr", Scratched([tissue_like(320, 200)]), pixels)
    done = export_patches(store, tmp_path / "out", "tar")
    assert done.path == tmp_path / "out" / "s.1.tar"
    samples = {}
    with tarfile.open(done.path) as tar:
        for entry in tar:
            key, _, kind = entry.name.partition(".")  # as WebDataset groups files
            samples.setdefault(key, {})[kind] = tar.extractfile(entry).read()
    assert len(samples) == done.written == 12
    for name, number in names(store).items():
        sample = samples[name.replace(".", "_")]
        assert set(sample) == {suffix, "json"}
        place = json.loads(sample["json"])
        assert [place["x"], place["y"]] == store.grid.xy[number].tolist()
        assert place["slide_id"] == "s.1"
        pixels = cv2.imdecode(np.frombuffer(sample[suffix], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(pixels, store.read_at([number])[0])


def test_an_export_that_fails_leaves_the_older_one(tmp_path):
    store = store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(320, 200)]), "raw")
    export_patches(store, tmp_path / "out", "tar")
    before = (tmp_path / "out" / "s.1.tar").read_bytes()
    shard = next(path for path in (tmp_path / "s.zarr" / "patches" / "c").rglob("*") if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    for kind in ("png", "tar"):
        with pytest.raises(StoreError, match="patch 0 is damaged"):
            export_patches(open_patches(tmp_path / "s.zarr"), tmp_path / "out", kind)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.1.tar"]
    assert (tmp_path / "out" / "s.1.tar").read_bytes() == before


def test_what_cannot_be_exported_is_refused(tmp_path):
    slide = ArraySlide([tissue_like(320, 200)])
    with pytest.raises(SpecError, match="choose one of png, jpg, tar"):
        export_patches(store_of(tmp_path / "s.zarr", slide, "raw"), tmp_path / "out", "bmp")
    with pytest.raises(StoreError, match="holds no pixels"):
        export_patches(store_of(tmp_path / "t.zarr", slide, "none"), tmp_path / "out", "png")


def test_an_empty_store_makes_an_empty_export(tmp_path):
    store = store_of(tmp_path / "s.zarr", ArraySlide([tissue_like(40, 40)]), "raw")
    assert export_patches(store, tmp_path / "out", "png").written == 0
    assert (tmp_path / "out" / "s.1" / "coords.csv").read_text().startswith("file,slide_id,x,y")
    with tarfile.open(export_patches(store, tmp_path / "out", "tar").path) as tar:
        assert tar.getnames() == []
