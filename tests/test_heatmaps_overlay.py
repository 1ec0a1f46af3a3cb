"""The overlay: colours in the right place, glass untouched, numbers and names that can be read."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heatmaps import Heatmap, OverlayStyle, draw_overlay, thumbnail_jpeg
from heatmaps.colour import colour_table, colours_of, oklab_to_rgb, rgb_to_oklab
from heatmaps.overlay import lay_tiles, nice_length, paint_tiles
from wsi.errors import SpecError


def make_heatmap(xy: list[list[int]], scores: list[float], span_px: int, **changes: Any) -> Heatmap:
    return Heatmap(
        "slide-1", "tumor softmax", "tumor", np.array(scores, np.float32),
        np.array(xy, np.int64).reshape(-1, 2), span_px, **changes,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 5000), y=st.integers(0, 5000), span=st.integers(1, 900),
    scale_x=st.floats(9, 70), scale_y=st.floats(9, 70),
)  # fmt: skip
def test_a_tile_lies_within_half_a_pixel_of_its_place_at_any_scale(x, y, span, scale_x, scale_y):
    shape = int(6000 / scale_y) + 2, int(6000 / scale_x) + 2
    raster = lay_tiles(make_heatmap([[x, y]], [0.25], span), shape, (scale_x, scale_y))
    rows, cols = np.nonzero(raster.scored)
    assert len(rows) == (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)  # one full rectangle
    assert (raster.mean[raster.scored] == 0.25).all()
    for first, last, start, scale in (
        (cols.min(), cols.max() + 1, x, scale_x),
        (rows.min(), rows.max() + 1, y, scale_y),
    ):
        assert abs(first - start / scale) <= 0.5 + 1e-9
        assert abs(last - (start + span) / scale) <= max(0.5, 1 - span / scale + 0.5) + 1e-9


@pytest.mark.parametrize("scale", [1.0, 3.7, 16.3, 112.0, 300.0])
def test_neighbours_abut_without_gap_or_overlap(scale):
    xy = [[x, y] for y in range(0, 2240, 224) for x in range(0, 2240, 224)]
    side = round(2240 / scale)
    raster = lay_tiles(make_heatmap(xy, [0.5] * 100, 224), (side, side), (scale, scale))
    assert raster.scored.all()
    np.testing.assert_allclose(raster.mean, 0.5)


def test_overlapping_tiles_are_averaged():
    raster = lay_tiles(make_heatmap([[0, 0], [10, 0]], [0.2, 0.8], 20), (20, 30), (1.0, 1.0))
    np.testing.assert_allclose(raster.mean[5, [0, 9, 10, 19, 20, 29]], [0.2, 0.2, 0.5, 0.5, 0.8, 0.8], rtol=1e-6)


def test_a_score_wins_over_a_failed_tile_below_it():
    heatmap = make_heatmap([[0, 0]], [0.9], 20, failed_xy=np.array([[10, 0]]))
    raster = lay_tiles(heatmap, (20, 30), (1.0, 1.0))
    assert raster.scored[5].tolist() == [True] * 20 + [False] * 10
    assert raster.failed[5].tolist() == [False] * 20 + [True] * 10


def test_tiles_at_and_beyond_the_edge_are_cut_not_wrapped():
    raster = lay_tiles(make_heatmap([[90, 90], [500, 0]], [0.9, 0.1], 20), (100, 100), (1.0, 1.0))
    assert raster.scored.sum() == 100
    assert raster.scored[90:, 90:].all()


def test_tiles_are_coloured_and_every_other_pixel_is_untouched(tmp_path):
    thumbnail = np.random.default_rng(0).integers(0, 256, (1200, 1000, 3), np.uint8)
    heatmap = make_heatmap([[0, 0], [4000, 6000]], [1.0, 0.0], 1000, failed_xy=np.array([[8000, 0]]))
    draw_overlay(thumbnail, 10.0, heatmap, tmp_path / "a.png")
    page = np.asarray(Image.open(tmp_path / "a.png"))
    top, left = find(page, thumbnail[700:1100, 600:])  # untouched, and found where it belongs
    picture = page[top - 700 :, left - 600 :][:1200, :1000]

    touched = np.zeros((1200, 1000), bool)
    touched[0:100, 0:100] = touched[600:700, 400:500] = touched[0:100, 800:900] = True
    np.testing.assert_array_equal(picture[~touched], thumbnail[~touched])
    high, low, lost = (
        picture[box].mean((0, 1)) for box in (np.s_[:100, :100], np.s_[600:700, 400:500], np.s_[:100, 800:900])
    )
    assert high[0] > high[2] + 40  # red
    assert low[2] > low[0] + 40  # blue
    assert np.ptp(lost) < 2  # grey


def find(page: np.ndarray, patch: np.ndarray) -> tuple[int, int]:
    """Row and column of `patch` in `page`, whose content is random and so is there once or not at all."""
    first = (page == patch[0, 0]).all(2)
    for row, col in np.argwhere(first):
        window = page[row : row + patch.shape[0], col : col + patch.shape[1]]
        if window.shape == patch.shape and (window == patch).all():
            return int(row), int(col)
    raise AssertionError("the picture is not on the page")


def test_the_colour_is_the_mean_score_over_grey_tissue():
    base = np.full((4, 4, 3), (200, 100, 150), np.uint8)
    raster = lay_tiles(make_heatmap([[0, 0]], [0.75], 2), (4, 4), (1.0, 1.0))
    painted = paint_tiles(base, raster, (0.0, 1.0), alpha=1.0)
    assert (painted[:2, :2] == colour_table()[191]).all()
    assert (painted[2:] == base[2:]).all()
    assert np.ptp(paint_tiles(base, raster, (0.0, 1.0), alpha=0.0)[0, 0]) == 0  # no pink below the colours


@pytest.mark.parametrize(("rows", "cols"), [(3, 2), (40, 700), (700, 40), (300, 300), (900, 5000)])
@pytest.mark.parametrize("mpp", [None, 0.25])
def test_any_thumbnail_makes_a_readable_page(tmp_path, rows, cols, mpp):
    heatmap = make_heatmap([[0, 0]], [0.5], 64, failed_xy=np.array([[64, 0]]))
    heatmap = Heatmap(
        "s" * 300 + "\u202eé中", "attention", "tumor", heatmap.scores, heatmap.xy, 64, failed_xy=heatmap.failed_xy
    )
    draw_overlay(np.full((rows, cols, 3), 240, np.uint8), 64.0, heatmap, tmp_path / "a.png", mpp)
    with Image.open(tmp_path / "a.png") as page:
        assert page.mode == "RGB"
        assert 600 <= page.width <= 4300
        assert 500 <= max(page.size) <= 4600
        assert (np.asarray(page)[:, -3:] > 200).all()  # nothing, long ids included, runs off the page


def test_the_picture_is_equal_for_equal_input(tmp_path):
    heatmap = make_heatmap([[0, 0]], [0.5], 64)
    for name in ("a.png", "b.png"):
        draw_overlay(np.full((100, 80, 3), 240, np.uint8), 7.3, heatmap, tmp_path / name, 0.5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_missing_data_has_a_swatch_in_the_legend_only_when_there_is_some(tmp_path):
    thumbnail = np.full((1000, 1000, 3), 255, np.uint8)
    draw_overlay(thumbnail, 10.0, make_heatmap([[0, 0]], [0.5], 64), tmp_path / "whole.png")
    lossy = make_heatmap([[0, 0]], [0.5], 64, failed_xy=np.array([[640, 640]]))
    draw_overlay(thumbnail, 10.0, lossy, tmp_path / "lossy.png")
    whole, lossy_page = (np.asarray(Image.open(tmp_path / name)) for name in ("whole.png", "lossy.png"))
    legend = np.s_[-80:, whole.shape[1] // 2 :]
    assert (whole[legend] == 255).all()
    assert (lossy_page[legend] < 255).any()


@pytest.mark.parametrize(
    ("wanted", "expected"), [(1, 1), (1.9, 1), (2, 2), (499, 200), (500, 500), (0.7, 0.5), (12_345, 10_000)]
)
def test_scale_bars_have_round_lengths(wanted, expected):
    assert nice_length(wanted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("thumbnail", "scale", "problem"),
    [
        (np.zeros((5, 5), np.uint8), 1.0, "uint8 RGB"),
        (np.zeros((5, 5, 3)), 1.0, "uint8 RGB"),
        (np.zeros((0, 5, 3), np.uint8), 1.0, "uint8 RGB"),
        (np.zeros((5, 5, 3), np.uint8), 0.0, "level-0 pixels per thumbnail"),
        (np.zeros((5, 5, 3), np.uint8), float("nan"), "level-0 pixels per thumbnail"),
    ],
)
def test_a_thumbnail_that_does_not_fit_is_refused(tmp_path, thumbnail, scale, problem):
    with pytest.raises(SpecError, match=problem):
        draw_overlay(thumbnail, scale, make_heatmap([[0, 0]], [0.5], 64), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_the_overlay_lies_on_the_tissue_of_a_real_slide(tmp_path, real_slide):
    import openslide

    with openslide.OpenSlide(real_slide) as slide:
        thumbnail = np.asarray(slide.get_thumbnail((1100, 1100)).convert("RGB"))
        scale = slide.dimensions[0] / thumbnail.shape[1]
    style = OverlayStyle(alpha=1.0)
    draw_overlay(thumbnail, scale, make_heatmap([[1110, 1480]], [1.0], 222), tmp_path / "a.png", 0.499, style)
    page = np.asarray(Image.open(tmp_path / "a.png"))
    rows, cols = np.nonzero((page[:1100] == colour_table()[-1]).all(2))  # above the legend
    side = 222 / scale
    assert (np.ptp(rows) + 1, np.ptp(cols) + 1) == pytest.approx((side, side), abs=1)
    around = page[rows.min() - 5, cols.min() - 5].astype(int)  # the pixel above left of the tile is the slide's own
    row, col = round(1480 / scale) - 5, round(1110 / scale) - 5
    assert around.tolist() == thumbnail[row, col].tolist()


def test_a_page_becomes_a_small_jpeg(tmp_path):
    Image.new("RGB", (1000, 600), "white").save(tmp_path / "a.png")
    data = thumbnail_jpeg(tmp_path / "a.png", 250)
    (tmp_path / "a.jpg").write_bytes(data)
    with Image.open(tmp_path / "a.jpg") as small:
        assert (small.format, small.size) == ("JPEG", (250, 150))
    assert thumbnail_jpeg(tmp_path / "a.png", 5000)[:3] == b"\xff\xd8\xff"


# --- colours -------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
DEFICIENT = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen_by(rgb: np.ndarray, kind: str) -> np.ndarray:
    if kind == "common":
        return rgb
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ np.array(DEFICIENT[kind]).T
    linear = linear.clip(0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["common", *DEFICIENT])
def test_every_step_of_the_colour_map_can_be_told_from_every_other(kind):
    lab = rgb_to_oklab(seen_by(colour_table(21)[1::2], kind))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + np.eye(10)
    assert apart.min() > 0.045  # some four just noticeable differences (0.01) in OKLab
    assert np.linalg.norm(lab[0] - lab[-1]) > 0.15  # for and against are never alike


def test_the_colour_map_is_ordered_about_its_pale_middle():
    lightness = rgb_to_oklab(colour_table(101))[:, 0]
    assert (np.diff(lightness[:51]) > 0).all()
    assert (np.diff(lightness[50:]) < 0).all()


def test_scores_outside_the_limits_get_the_colour_of_the_nearer_end():
    table = colour_table()
    colours = colours_of(np.array([-5.0, -1.0, 1.0, 9.0]), (-1.0, 1.0), table)
    np.testing.assert_array_equal(colours, table[[0, 0, -1, -1]])


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_oklab_there_and_back_is_the_same_colour(rgb):
    colour = np.array([rgb], np.uint8)
    assert abs(oklab_to_rgb(rgb_to_oklab(colour)).astype(int) - colour).max() <= 1
