"""wsi tile, embed and run: colours, channels, stored and exported patches, and sources of every kind."""

import csv
import json

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
import zarr

from embedding.store import open_embeddings
from tests.commands import GLASS, corners, section, slides, statuses, store, wsi
from tests.dicom_slides import DicomOptions, write_dicom
from tests.slides import SvsOptions, tissue_like
from tests.test_wsi_colour import matrix_profile
from tests.test_wsi_ome_zarr import write_ngff
from tiling import TileSpec
from wsi import Region, open_slide

PX = ("--tile-px", 120, "--tile-mpp", 0.5)


def write_profiled(path, profile):
    """A section as a tiled JPEG TIFF with an ICC profile."""
    tifffile.imwrite(
        path,
        section(),
        tile=(240, 240),
        compression="jpeg",
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        iccprofile=profile,
    )
    return path


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A slide whose profile exchanges red and blue, tiled as it is (plain) and in sRGB, both embedded."""
    folder = tmp_path_factory.mktemp("coloured")
    slide = write_profiled(folder / "a.tif", matrix_profile("b", "g", "r"))
    for name, icc in (("plain", "none"), ("srgb", "srgb")):
        wsi("tile", slide, "-o", folder / name, "--tissue", "none", "--icc", icc, "--patches", "raw")
        wsi("embed", slide, "-o", folder / name)
    return folder


def embedded(run):
    return open_embeddings(next(run.glob("embeddings/*/a.zarr")))


def test_srgb_changes_the_pixels_is_recorded_and_makes_another_contract(coloured):
    plain, srgb = (store(coloured / name, "a") for name in ("plain", "srgb"))
    assert (plain.attrs["slide"]["colour"], srgb.attrs["slide"]["colour"]) == ("as stored", "srgb")
    assert plain.attrs["grid_fingerprint"] != srgb.attrs["grid_fingerprint"]
    before, after = (one.read_patches(0, len(one.grid)).astype(int) for one in (plain, srgb))
    tissue = before.min(axis=3) < 200
    assert np.abs(before - after)[tissue].mean() > 10
    assert np.abs(before[..., ::-1] - after)[tissue].mean() < 6  # red and blue are exchanged
    contracts = [embedded(coloured / name).contract for name in ("plain", "srgb")]
    assert [contract["icc"] for contract in contracts] == ["none", "srgb"]
    assert contracts[0]["hash"] != contracts[1]["hash"]


def test_embedding_from_the_slide_sees_the_colours_that_were_tiled(coloured, tmp_path):
    """`wsi embed` is not told of --icc: the store of tiles says how its pixels look."""
    wsi("tile", coloured / "a.tif", "-o", tmp_path / "run", "--tissue", "none", "--icc", "srgb")
    wsi("embed", coloured / "a.tif", "-o", tmp_path / "run")
    from_slide, from_store, plain = (
        embedded(run).embeddings for run in (tmp_path / "run", coloured / "srgb", coloured / "plain")
    )
    assert np.allclose(from_slide, from_store, atol=0.01)
    assert not np.allclose(from_slide, plain, atol=0.1)


def test_a_model_refuses_colours_it_was_not_trained_on(trained, coloured):
    run = coloured / "srgb"
    text = wsi("run", coloured / "a.tif", "-o", run, "-m", trained.model, "--icc", "srgb", code=2)
    assert "icc: srgb was asked for, the model was trained on none" in text
    text = wsi("predict", coloured / "a.tif", "-o", run, "-m", trained.model, code=2)
    assert ["≠", "icc", "srgb", "none"] in [line.split() for line in text.splitlines()]


def write_fluorescence(path):
    """DAPI and CD3, 16 bit, dark but for a block of tissue, as OME-TIFF at 0.5 µm per pixel."""
    tissue = tissue_like(720, 480).astype(np.uint16)
    planes = np.random.default_rng(0).integers(90, 110, (2, 960, 1200), dtype=np.uint16)
    for number in range(2):
        planes[number, 240:720, 240:960] += tissue[..., number] * 12
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["DAPI", "CD3"]},
    }
    tifffile.imwrite(path, planes, ome=True, photometric="minisblack", tile=(256, 256), metadata=metadata)
    return path


def test_channels_of_a_fluorescence_slide_are_tiled_and_embedded_as_chosen(tmp_path):
    slide, run = write_fluorescence(tmp_path / "a.ome.tif"), tmp_path / "run"
    text = wsi("tile", slide, "-o", run, code=1)
    assert "--channels" in text
    assert "DAPI" in text
    chosen = "dapi=0000ff:100-4000,CD3=FF0000:100-4000"
    wsi("tile", slide, "-o", run, "--channels", chosen, "--tissue", "fluorescence")
    tiles = store(run, "a")
    assert len(tiles.grid) >= 6
    assert not any(tiles.array(f"flag_{flag}").any() for flag in ("pen", "dark", "bubble", "fold"))
    assert (tiles.grid.xy[:, 0] < 960).all()
    assert "1 done" in wsi("embed", slide, "-o", run)
    assert embedded(run).contract["channels"] == "dapi=0000FF:100-4000,CD3=FF0000:100-4000"
    wsi("tile", slide, "-o", run, "--channels", chosen.replace("0000ff", "00ff00"), "--tissue", "fluorescence")
    assert statuses(run) == {"a": "done"}
    assert '"channels"' in wsi("info", slide, "--channels", chosen, "--json")


def test_channels_for_an_rgb_slide_are_refused(tmp_path):
    source = slides(tmp_path / "slides", "a")
    text = wsi("tile", source, "-o", tmp_path / "run", "--channels", "0=FF0000", code=1)
    assert "a.svs has none to choose" in text


@pytest.mark.parametrize(
    ("pixels", "kind", "px"),
    [
        ("raw", "png", 120),
        ("raw", "tar", 120),
        ("jpeg", "jpg", 120),
        ("jpeg", "tar", 120),
        ("native", "jpg", 240),
        ("native", "tar", 240),
    ],
)
def test_patches_are_stored_as_asked_for_and_exported(tmp_path, pixels, kind, px):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    options = ("tile", source, "-o", run, "--tile-px", px, "--tile-mpp", 0.5, "--patches", pixels, "--export", kind)
    assert "1 done" in wsi(*options)
    tiles = store(run, "a")
    assert (tiles.pixels, tiles.shards.codec) == (pixels, "jpeg" if pixels != "raw" else "raw")
    with open_slide(source / "a.svs") as slide:
        for number in (0, len(tiles.grid) - 1):
            x, y = tiles.grid.xy[number].tolist()
            expected = slide.read(Region(x, y, px, px), 0)
            got = tiles.read_at([number])[0]
            if pixels != "jpeg":
                assert np.array_equal(got, expected)
            assert np.abs(got.astype(int) - expected).mean() < 5
    place = run / "patches" / ("a.tar" if kind == "tar" else "a")
    made = place.stat().st_mtime_ns
    if kind != "tar":
        with (place / "coords.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [(int(row["x"]), int(row["y"])) for row in rows] == corners(run, "a")
        assert all((place / row["file"]).suffix == f".{kind}" for row in rows)
        image = cv2.imread(str(place / rows[0]["file"]))[..., ::-1]
        if pixels == "native":
            data = (place / rows[0]["file"]).read_bytes()
            assert np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), tiles.read_at([0])[0])
        else:
            assert np.abs(image.astype(int) - tiles.read_at([0])[0]).mean() < 3
    assert "1 already there" in wsi(*options)
    assert place.stat().st_mtime_ns == made  # what is there is not written again


def test_an_export_follows_the_tiles_and_the_kind(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    options = ("tile", source, "-o", run, "--tile-px", 120, "--patches", "raw")
    wsi(*options, "--export", "png")
    assert {path.suffix for path in (run / "patches" / "a").iterdir()} == {".csv", ".png"}
    wsi(*options, "--export", "jpg")
    assert statuses(run) == {"a": "skipped"}
    assert {path.suffix for path in (run / "patches" / "a").iterdir()} == {".csv", ".jpg"}
    wsi(*options, "--export", "jpg", "--max-tiles", 4)
    assert len(list((run / "patches" / "a").glob("*.jpg"))) == 4


def test_native_patches_need_the_slides_own_grid_and_the_remedy_names_it(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    options = ("tile", source, "-o", run, "--patches", "native")
    remedy = "take --tile-px 240 --tile-mpp 0.5 without overlap"
    text = wsi(*options, "--tile-px", 224, code=1)
    assert remedy in text
    assert not (run / "tiles").exists()
    assert "tiles of 224 px" in wsi(*options, "--tile-px", 224, "--dry-run", code=1)
    assert remedy in wsi(*options, "--tile-px", 240, "--stride-px", 120, code=1)
    assert "1 done" in wsi(*options, "--tile-px", 240, "--tile-mpp", 0.5)


def test_cheap_levels_are_other_pixels_of_the_same_tiles(tmp_path):
    source = slides(tmp_path / "slides", "a", options=SvsOptions(downsamples=(1,)))
    options = ("tile", source, "--tile-px", 120, "--tile-mpp", 1, "--patches", "raw")
    run = tmp_path / "run"
    wsi(*options, "-o", run)
    cheap, mark, level = store(run, "a").read_patches(0, 4), store(run, "a").fingerprint, store(run, "a").grid.level
    places = corners(run, "a")
    wsi(*options, "-o", run, "--no-cheap-levels")
    assert statuses(run) == {"a": "done"}
    whole = store(run, "a")
    assert corners(run, "a") == places
    assert (level, whole.grid.level) == (1, 0)
    assert whole.fingerprint != mark
    difference = np.abs(whole.read_patches(0, 4).astype(int) - cheap)
    assert 0 < difference.mean() < 4
    assert "1 done" in wsi(*options, "-o", run, "--cheap-levels")


def assert_is_one_slide(source, run, slide_id, *options):
    """`source` is one slide, which is tiled on its tissue; a dry run says so, too."""
    text = wsi("tile", source, "-o", run, *PX, *options, "--dry-run")
    assert "1 slides with " in text
    assert "1 done" in wsi("tile", source, "-o", run, *PX, *options)
    found = corners(run, slide_id)
    assert f"1 slides with {len(found)} tiles" in text
    assert 24 <= len(found) <= 48
    assert all(120 <= x < 1080 and 120 <= y < 840 for x, y in found)


def test_a_plain_picture_is_a_slide_once_its_scale_is_given(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), section()[..., ::-1])
    text = wsi("tile", tmp_path / "a.png", "-o", tmp_path / "run", *PX, code=1)
    assert "--slide-mpp" in text
    assert_is_one_slide(tmp_path / "a.png", tmp_path / "run", "a", "--slide-mpp", 0.5)
    assert store(tmp_path / "run", "a").attrs["slide"]["mpp_source"] == "user"
    assert "1 done" in wsi("embed", tmp_path / "a.png", "-o", tmp_path / "run")


def test_an_ome_zarr_folder_is_one_slide(tmp_path):
    pixels = section()
    levels = [np.ascontiguousarray(np.moveaxis(pixels[::step, ::step], 2, 0)) for step in (1, 2)]
    write_ngff(tmp_path / "a.ome.zarr", levels)
    assert_is_one_slide(tmp_path / "a.ome.zarr", tmp_path / "run", "a")


def write_dicom_folder(folder, series="1.2.3"):
    """A slide of two levels and a label, in three files."""
    folder.mkdir(exist_ok=True)
    pixels = section()
    small = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    write_dicom(folder / f"{series}-0.dcm", pixels, DicomOptions(series=series))
    write_dicom(folder / f"{series}-1.dcm", small, DicomOptions(series=series, mpp=2.0))
    label = np.full((128, 128, 3), GLASS, np.uint8)
    write_dicom(folder / f"{series}-2.dcm", label, DicomOptions(series=series, kind="LABEL", mpp=None))
    return folder


def test_a_dicom_folder_given_as_the_source_is_one_slide_of_its_name(tmp_path):
    folder = write_dicom_folder(tmp_path / "case7")
    assert_is_one_slide(folder, tmp_path / "run", "case7")
    assert "other files" not in wsi("tile", folder, "-o", tmp_path / "run", *PX)
    assert statuses(tmp_path / "run") == {"case7": "skipped"}


def test_a_folder_of_several_dicom_slides_has_one_slide_a_series(tmp_path):
    folder = write_dicom_folder(tmp_path / "mixed", "1.2.3")
    write_dicom_folder(folder, "1.2.4")
    write_dicom(folder / "alone.dcm", section(), DicomOptions(series="1.2.5"))
    assert "3 done" in wsi("tile", folder, "-o", tmp_path / "run", *PX)
    assert set(statuses(tmp_path / "run")) == {"1.2.3-0", "1.2.4-0", "alone"}
    assert corners(tmp_path / "run", "1.2.3-0") == corners(tmp_path / "run", "1.2.4-0")


def test_the_record_of_a_run_and_of_a_store_says_all_that_was_asked(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    wsi("tile", source, "-o", run, *PX, "--max-tiles", 5, "--seed", 3, "--no-qc", "--patches", "jpeg")
    settings = json.loads((run / "run.json").read_text())["settings"]
    stored = zarr.open_group(run / "tiles" / "a.zarr", mode="r").attrs.asdict()["spec"]
    assert TileSpec.from_plain(stored) == TileSpec.from_plain(settings["tile"])
    assert (stored["max_tiles"], stored["seed"], stored["quality"]["measure"]) == (5, 3, False)
    assert settings["patches"] == "jpeg"
