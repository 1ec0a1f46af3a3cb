"""Heatmaps as rasters: exact means, and files that lie on the slide."""

import math

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from heatmaps import Heatmap
from heatmaps.colour import colour_table, colours_of
from heatmaps.ome_tiff import write_ome_tiff
from heatmaps.ome_zarr import write_ome_zarr
from heatmaps.raster import BACKGROUND, FAILED, FINEST, SCORED, tile_raster
from wsi.errors import SpecError

SIZE, MPP = (5000, 3700), 0.25


def heatmap(places, scores, span=256, failed=()):
    return Heatmap(
        "a",
        "tumor softmax",
        "tumor",
        np.asarray(scores, np.float32),
        np.asarray(places, np.int64).reshape(-1, 2),
        span,
        failed_xy=np.asarray(failed, np.int64).reshape(-1, 2),
    )


def grid(stride=256, span=256, n=12, bad=7):
    """A block of tiles, one in `bad` of them without data."""
    steps = np.arange(n) * stride + 300
    xy = np.stack(np.meshgrid(steps, steps[: n - 3]), -1).reshape(-1, 2)
    lost = np.arange(len(xy)) % bad == 0
    return heatmap(xy[~lost], np.linspace(0, 1, (~lost).sum()), span, xy[lost])


def by_pixels(shown: Heatmap, raster):
    """The means over each cell, counted level-0 pixel by level-0 pixel."""
    rows, cols = (side * raster.cell_px for side in raster.mean.shape)
    total, count = np.zeros((rows, cols)), np.zeros((rows, cols))
    for (x, y), score in zip((shown.xy - raster.origin).tolist(), shown.scores.tolist(), strict=True):
        total[y : y + shown.span_px, x : x + shown.span_px] += score
        count[y : y + shown.span_px, x : x + shown.span_px] += 1
    cells = (raster.mean.shape[0], raster.cell_px, raster.mean.shape[1], raster.cell_px)
    return total.reshape(cells).sum((1, 3)), count.reshape(cells).sum((1, 3))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12, unique=True),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 5, 8]),
)
def test_overlapping_tiles_are_averaged_by_their_overlap(places, span, step):
    shown = heatmap(np.array(places) * step, np.linspace(0, 1, len(places)), span)
    raster = tile_raster(shown)
    total, count = by_pixels(shown, raster)
    scored = raster.state == SCORED
    np.testing.assert_allclose(raster.mean[scored], (total / np.maximum(count, 1))[scored], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(scored, count >= raster.cell_px**2 / 2 * (1 - 1e-9))
    assert np.isnan(raster.mean[~scored]).all()
    assert raster.cell_px >= math.ceil(span / FINEST)


def test_cells_are_the_coarsest_that_are_exact():
    assert tile_raster(grid(256, 256)).cell_px == 256
    assert tile_raster(grid(224, 448)).cell_px == 224
    assert tile_raster(grid(255, 256)).cell_px == 16  # by the pixel it would be 256 a side
    nothing = tile_raster(heatmap([], []))
    assert nothing.state.tolist() == [[BACKGROUND]]


def test_a_tile_without_data_is_no_score_and_no_background():
    raster = tile_raster(heatmap([[0, 0]], [0.0], 100, [[100, 0], [50, 50]]))
    assert raster.cell_px == 50
    assert raster.state.tolist() == [[SCORED, SCORED, FAILED, FAILED], [SCORED, SCORED, FAILED, FAILED],
                                     [BACKGROUND, FAILED, FAILED, BACKGROUND]]  # fmt: skip


@pytest.mark.parametrize("stride", [256, 128, 200])
def test_the_ome_tiff_lies_on_the_slide_and_shows_every_tile_in_its_colour(tmp_path, stride):
    shown, path = grid(stride), tmp_path / "a.ome.tif"
    write_ome_tiff(shown, path, SIZE, MPP, display=(0.1, 0.9))
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        base, facts = levels[0].asarray(), tifffile.xml2dict(file.ome_metadata)["OME"]
        assert (len(levels) > 1) == (max(base.shape) > 512)
        assert levels[0].pages[0].tile == (512, 512)
    pixels = facts["Image"]["Pixels"]
    assert pixels["PhysicalSizeX"] * pixels["SizeX"] == pytest.approx(SIZE[0] * MPP)
    assert pixels["PhysicalSizeY"] * pixels["SizeY"] == pytest.approx(SIZE[1] * MPP)
    raster = tile_raster(shown)
    scale = np.array(SIZE) / (base.shape[1], base.shape[0])
    for x, y in (shown.xy + shown.span_px // 2).tolist():
        at = (np.array([x, y]) / scale).astype(int)
        mean = raster.at(np.array([(at[0] + 0.5) * scale[0]]), np.array([(at[1] + 0.5) * scale[1]]))[0]
        np.testing.assert_array_equal(base[at[1], at[0]], colours_of(mean, (0.1, 0.9), colour_table())[0, 0])
    for x, y in (shown.failed_xy + shown.span_px // 2).tolist() if stride == 256 else []:
        red, green, blue = base[int(y / scale[1]), int(x / scale[0])].tolist()
        assert red == green == blue < 255
    assert (base[0, 0] == 255).all()
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (base.shape[1], base.shape[0])
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP * scale[0], rel=1e-3)
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3], base)


def test_equal_heatmaps_are_equal_files_that_say_nothing_of_time_and_machine(tmp_path):
    for name in ("a", "b"):
        write_ome_tiff(grid(), tmp_path / f"{name}.ome.tif", SIZE, MPP)
        write_ome_zarr(grid(), tmp_path / f"{name}.ome.zarr", MPP)
    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.ome.tif").read_bytes()
    for file in (tmp_path / "a.ome.zarr").rglob("*"):
        assert (
            file.is_dir()
            or file.read_bytes() == (tmp_path / "b.ome.zarr" / file.relative_to(tmp_path / "a.ome.zarr")).read_bytes()
        )


def test_scores_are_kept_as_numbers_and_no_data_is_none(tmp_path):
    shown, path = grid(), tmp_path / "a.ome.tif"
    write_ome_tiff(shown, path, SIZE, MPP, kind="scores")
    scores = tifffile.imread(path)
    assert scores.dtype == np.float32
    middle = ((shown.xy + shown.span_px / 2) * scores.shape[1] / SIZE[0]).astype(int)
    np.testing.assert_array_equal(scores[middle[:, 1], middle[:, 0]], shown.scores)
    lost = ((shown.failed_xy + shown.span_px / 2) * scores.shape[1] / SIZE[0]).astype(int)
    assert np.isnan(scores[lost[:, 1], lost[:, 0]]).all()


@pytest.mark.parametrize(("size", "mpp", "kind"), [((0, 5), 0.5, "rgb"), ((5, 5), math.nan, "rgb"), ((5, 5), 1, "x")])
def test_what_cannot_be_is_refused(tmp_path, size, mpp, kind):
    with pytest.raises(SpecError):
        write_ome_tiff(grid(), tmp_path / "a.ome.tif", size, mpp, kind=kind)
    assert not list(tmp_path.iterdir())


def test_the_ome_zarr_lies_on_the_slide(tmp_path):
    shown = grid(128, 256, n=300, bad=11)
    write_ome_zarr(shown, tmp_path / "a.ome.zarr", MPP, display=(0.2, 0.7))
    group, raster = zarr.open_group(tmp_path / "a.ome.zarr", mode="r"), tile_raster(shown)
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert [axis["unit"] for axis in ome["multiscales"][0]["axes"]] == ["micrometer"] * 2
    np.testing.assert_array_equal(group["0"][:], raster.mean)
    np.testing.assert_array_equal(group["labels/state/0"][:], raster.state)
    for number, entry in enumerate(ome["multiscales"][0]["datasets"]):
        scale, move = (step[step["type"]] for step in entry["coordinateTransformations"])
        assert scale == [raster.cell_px * MPP * 2**number] * 2
        # the corner of the first pixel is that of the first tile, at every level
        np.testing.assert_allclose(np.array(move) - np.array(scale) / 2, np.array(raster.origin[::-1]) * MPP)
        values, state = group[entry["path"]][:], group[f"labels/state/{entry['path']}"][:]
        assert (np.isfinite(values) == (state == SCORED)).all()
        assert abs(np.nanmean(values) - np.nanmean(raster.mean)) < 0.02
    assert max(values.shape) <= 256
    window = ome["omero"]["channels"][0]["window"]
    assert (window["start"], window["end"], window["min"], window["max"]) == (0.2, 0.7, 0, 1)


def test_files_say_what_their_pixels_mean(tmp_path):
    for kind, words in (("rgb", "colours over 0.1 to 0.9"), ("scores", "NaN: no tile")):
        write_ome_tiff(grid(), tmp_path / "a.ome.tif", SIZE, MPP, kind=kind, display=(0.1, 0.9))
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        assert words in image["Description"]
        assert f"{len(grid().failed_xy)} tiles without data" in image["Description"]
    write_ome_zarr(grid(), tmp_path / "a.ome.zarr", MPP)
    label = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["labels/state"].attrs["ome"]["image-label"]
    assert [len(colour["rgba"]) for colour in label["colors"]] == [4, 4, 4]  # validators ask for it


def test_a_tile_is_at_least_16_pixels_and_a_cell_8(tmp_path):
    for stride, wanted in ((256, 16), (128, 16), (64, 8)):
        write_ome_tiff(grid(stride), tmp_path / "a.ome.tif", (20_480, 20_480), MPP)
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            assert file.series[0].shape[0] == 20_480 // wanted
