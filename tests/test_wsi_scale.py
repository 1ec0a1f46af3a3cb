"""Pixel size: believed only where it can be true; and pixels at exactly the µm asked for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from wsi import Level, Region, SlideError, SpecError, open_slide, pick_level, read_at, read_tiles
from wsi.formats.openslide import OpenSlideSlide
from wsi.formats.scale import as_objective, resolution_to_mpp, stated_scale


@pytest.mark.parametrize(
    ("x", "y", "objective", "mpp", "problem"),
    [
        ("0.2520", "0.2520", 40, 0.252, None),
        (0.499, None, 20, 0.499, None),
        (None, 0.5, None, 0.5, None),
        ("0,499", None, 20, 0.499, None),
        (0.05, 0.05, None, 0.05, None),
        (20.0, 20.0, None, 20.0, None),
        (0.25, 0.26, 40, 0.255, None),
        (0.5, 0.5, 40, 0.5, None),  # exactly twice what 40x suggests is still believed
        (None, None, 20, None, "states no pixel size"),
        ("", None, None, None, "'', which is no number"),
        ("unkn", None, None, None, "'unkn', which is no number"),
        ("nan", "nan", None, None, "no number"),
        ("inf", "inf", None, None, "no number"),
        ("0", None, None, None, "0 µm per pixel, outside 0.05 to 20"),
        ("-0.499", None, None, None, "-0.499 µm per pixel, outside"),
        ("499000", None, None, None, "499000 µm per pixel, outside"),
        ("4.9e-09", None, None, None, "4.9e-09 µm per pixel, outside"),
        (0.25, 0.5, 40, None, "0.25 µm per pixel across and 0.5 down: not square"),
        (0.25, "nan", 40, None, "no number"),
        (1.1, 1.1, 20, None, "1.1 µm per pixel and a 20x objective, where about 0.5 is expected"),
        (0.1, 0.1, 20, None, "0.1 µm per pixel and a 20x objective"),
    ],
)
def test_a_stated_pixel_size_is_believed_or_its_fault_is_named(x, y, objective, mpp, problem):
    scale = stated_scale(x, y, "vendor", objective)
    assert scale.mpp == (None if mpp is None else pytest.approx(mpp))
    silent = problem is not None and ("no pixel size" in problem or "no number" in problem)
    assert scale.source == (None if silent else "vendor")  # also of a number that cannot be true
    assert (scale.problem is None) if problem is None else (problem in scale.problem)


@given(st.one_of(st.none(), st.floats(), st.text(max_size=12)), st.one_of(st.none(), st.floats(), st.text(max_size=12)))
def test_whatever_a_file_states_the_scale_is_sane_or_absent(x, y):
    scale = stated_scale(x, y, "tiff", None)
    assert (scale.mpp is None) == (scale.problem is not None)
    assert scale.mpp is None or (math.isfinite(scale.mpp) and 0.05 <= scale.mpp <= 20)


@pytest.mark.parametrize(
    ("per_unit", "unit", "mpp"),
    [
        (40_000, 3, 0.25), (50_800, 2, 0.5), (50_800, None, 0.5), (1, 1, None), (0, 3, None), (None, 3, None),
        (float("inf"), 3, None),
    ],
)  # fmt: skip
def test_tiff_resolution_becomes_a_pixel_size(per_unit, unit, mpp):
    assert resolution_to_mpp(per_unit, unit) == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(
    ("text", "value"), [("20", 20), ("40.0", 40), ("", None), ("x", None), ("0", None), ("inf", None)]
)
def test_an_objective_is_a_possible_magnification_or_nothing(text, value):
    assert as_objective(text) == value


@pytest.mark.parametrize("direct", [True, False], ids=["tiff", "openslide"])
@pytest.mark.parametrize(
    ("mpp", "objective", "expected"),
    [("0.25", "40", 0.25), ("0", "40", None), ("499000", "20", None), ("0.25", "5", None), (None, "20", None)],
)
def test_both_readers_judge_a_files_pixel_size_alike(tmp_path, direct, mpp, objective, expected):
    path = write_svs(
        tmp_path / "a.svs", tissue_like(300, 300), SvsOptions(mpp=mpp, objective=objective, downsamples=(1,))
    )
    with open_slide(path) if direct else OpenSlideSlide(path, "asked for") as slide:
        assert slide.info.mpp == expected
        assert (slide.info.mpp_problem is None) == (expected is not None)
    with open_slide(path, mpp=0.3, mpp_source="manifest") as slide:
        assert (slide.info.mpp, slide.info.mpp_source, slide.info.mpp_problem) == (0.3, "manifest", None)
        assert slide.levels[0].mpp == 0.3


LEVELS = tuple(Level(4096 // d, 4096 // d, float(d), 0.25 * d) for d in (1, 4, 16))


@pytest.mark.parametrize(
    ("mpp", "level"),
    [(0.25, 0), (0.2495, 0), (0.5, 0), (0.991, 1), (0.98, 0), (1.0, 1), (2.0, 1), (4.0, 2), (100.0, 2)],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(mpp, level):
    assert pick_level(LEVELS, mpp) == level


def test_finer_than_the_slide_is_refused_not_invented():
    with pytest.raises(SpecError, match=r"0\.1 µm per pixel is asked for, the slide's finest level has 0\.25"):
        pick_level(LEVELS, 0.1)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan")])
def test_a_target_that_is_no_pixel_size_is_refused(mpp):
    with pytest.raises(SpecError, match="no pixel size"):
        pick_level(LEVELS, mpp)


def test_without_a_pixel_size_nothing_is_read_at_one():
    slide = ArraySlide([tissue_like(200, 200)], mpp=None)
    with pytest.raises(SlideError, match="manifest's `mpp` column"):
        pick_level(slide.levels, 0.5)
    with pytest.raises(SlideError, match="made without a pixel size"):
        read_at(slide, Region(0, 0, 100, 100), 0.5)


@pytest.mark.parametrize(
    ("mpp", "shape"),
    [(0.5, (400, 600)), (0.504, (400, 600)), (0.75, (267, 400)), (1.0, (200, 300)), (1.7, (118, 176)), (4.0, (50, 75))],
)
def test_read_at_meets_the_scale_exactly(mpp, shape):
    image = tissue_like(1200, 800)
    slide = ArraySlide([image, image.reshape(400, 2, 600, 2, 3).mean((1, 3)).round().astype(np.uint8)], mpp=0.5)
    assert read_at(slide, Region(100, 60, 600, 400), mpp).shape == (*shape, 3)


def test_resampling_is_area_averaging():
    image = tissue_like(640, 480)
    slide = ArraySlide([image], mpp=0.25)
    averaged = image[:480, :639].reshape(160, 3, 213, 3, 3).mean((1, 3))
    assert np.abs(read_at(slide, Region(0, 0, 639, 480), 0.75).astype(float) - averaged).max() <= 0.51


def test_a_landmark_keeps_its_place_at_every_scale():
    image = np.full((1024, 1024, 3), 255, np.uint8)
    image[512:576, 256:320] = 0
    slide = ArraySlide([image], mpp=0.25)
    for mpp in (0.25, 0.4, 0.5, 0.7, 1.0, 1.3):
        rows, cols = np.nonzero(read_at(slide, Region(0, 0, 1024, 1024), mpp)[..., 0] < 128)
        centre = np.array([cols.mean() + 0.5, rows.mean() + 0.5]) * mpp / 0.25
        assert centre == pytest.approx([288, 544], abs=mpp / 0.25)


@pytest.mark.parametrize("span", [128, 256, 300, 77])
def test_tiles_are_read_and_averaged_to_the_asked_size(span):
    slide = ArraySlide([tissue_like(1000, 900)], mpp=0.25)
    xy = np.array([[0, 0], [333, 217], [950, 880], [-20, -20]])
    out = np.zeros((4, 64, 64, 3), np.uint8)
    assert read_tiles(slide, xy, span, 0, out).all()
    for (x, y), patch in zip(xy.tolist(), out, strict=True):
        expected = read_at(slide, Region(x, y, span, span), 0.25 * span / 64)
        assert np.array_equal(patch, expected)


@pytest.mark.parametrize("span", [128, 300, 512])
def test_a_streaming_reader_gives_the_tiles_of_the_others(tmp_path, span):
    path = write_svs(tmp_path / "a.svs", tissue_like(1100, 900), SvsOptions(downsamples=(1,)))
    xy = np.array([[0, 0], [333, 217], [1000, 800], [-20, -20], [5000, 0]])
    ours, theirs = (np.zeros((5, 64, 64, 3), np.uint8) for _ in range(2))
    with open_slide(path) as slide, OpenSlideSlide(path, "asked for") as peer:
        assert slide.info.reader == "tiff"
        assert read_tiles(slide, xy, span, 0, ours).all()
        assert read_tiles(peer, xy, span, 0, theirs).all()
    assert np.array_equal(ours, theirs)


def test_tiles_of_the_levels_own_size_are_not_resampled():
    image = tissue_like(500, 500)
    out = np.zeros((1, 100, 100, 3), np.uint8)
    assert read_tiles(ArraySlide([image], mpp=0.25), np.array([[50, 60]]), 100, 0, out).all()
    assert np.array_equal(out[0], image[60:160, 50:150])


def test_tiles_are_never_enlarged():
    with pytest.raises(SpecError, match="fewer than the 200"):
        read_tiles(
            ArraySlide([tissue_like(500, 500)]), np.array([[0, 0]]), 100, 0, np.zeros((1, 200, 200, 3), np.uint8)
        )
