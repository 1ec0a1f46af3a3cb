"""Outlines of heatmaps: exact at the tiles' edges, within the stated error elsewhere."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from heatmaps import Heatmap, check_qupath
from heatmaps.contours import KINDS, OutlineSpec, outlines, write_outlines
from heatmaps.geojson_read import stream_json
from wsi.annotations import read_annotations
from wsi.errors import SpecError

MPP, SPAN = 0.5, 100


def of_lattice(scores, failed=None, origin=(300, 700)):
    """A heatmap of tiles on a lattice; NaN is no tile."""
    scores = np.asarray(scores, np.float32)
    rows, cols = np.nonzero(np.isfinite(scores))
    xy = np.c_[cols, rows] * SPAN + origin
    lost = np.zeros(len(xy), bool) if failed is None else np.asarray(failed, bool)[rows, cols]
    return Heatmap("s", "tumor softmax", "tumor", scores[rows, cols][~lost], xy[~lost], SPAN, failed_xy=xy[lost])


def disc(n=41, radius=14.0):
    """Score that falls off from the middle, one half at `radius` tiles from it."""
    at = np.arange(n) - n // 2
    return np.clip(1 - np.hypot(at[:, None], at[None]) / (2 * radius), 0, 1)


@settings(max_examples=60)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_regions_are_the_tiles_to_the_pixel(mask):
    found = outlines(of_lattice(mask.astype(float)), MPP, OutlineSpec(levels=(0.5,)))
    assert all(one.shape.is_valid and one.shape.geom_type == "Polygon" for one in found)
    drawn = shapely.union_all([one.shape for one in found])
    rows, cols = np.nonzero(mask)
    corners = np.c_[cols, rows] * SPAN + (300, 700)
    wanted = shapely.union_all([shapely.box(x, y, x + SPAN, y + SPAN) for x, y in corners.tolist()])
    assert drawn.symmetric_difference(wanted).area == 0
    assert sum(one.area_um2 for one in found) == pytest.approx(mask.sum() * (SPAN * MPP) ** 2)
    assert sum(one.tiles for one in found) == mask.sum()


def test_a_ring_keeps_its_hole_and_a_hole_its_island():
    mask = np.zeros((9, 9))
    mask[1:8, 1:8] = 1
    mask[2:7, 2:7] = 0
    mask[4, 4] = 1
    found = sorted(outlines(of_lattice(mask), MPP, OutlineSpec(levels=(0.5,))), key=lambda one: one.area_um2)
    assert [len(one.shape.interiors) for one in found] == [0, 1]
    assert [one.tiles for one in found] == [1, 24]


@pytest.mark.parametrize("radius", [6.0, 14.0])
def test_a_contour_runs_where_the_score_is(radius):
    (found,) = outlines(of_lattice(disc(radius=radius)), MPP, OutlineSpec("contours", (0.5,), tolerance_um=0))
    middle = np.array([300, 700]) + 20.5 * SPAN
    far = np.hypot(*(np.asarray(found.shape.exterior.coords) - middle).T) / SPAN
    # linear interpolation of a cone, and whole pixels: within a twentieth of a tile
    assert np.abs(far - radius).max() < 0.05
    assert found.area_um2 == pytest.approx(np.pi * (radius * SPAN * MPP) ** 2, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance_um", [5.0, 25.0, 60.0])
def test_simplifying_moves_no_outline_further_than_it_says(kind, tolerance_um):
    rng = np.random.default_rng(3)
    shown = of_lattice(np.clip(disc() + rng.normal(0, 0.03, (41, 41)), 0, 1))
    exact = outlines(shown, MPP, OutlineSpec(kind, (0.5,), tolerance_um=0))
    drawn = outlines(shown, MPP, OutlineSpec(kind, (0.5,), tolerance_um=tolerance_um))
    before, after = (sum(map(_corners, found)) for found in (exact, drawn))
    assert after < before or (kind == "regions" and tolerance_um < SPAN * MPP and after == before)
    lines = shapely.union_all([one.shape.boundary for one in drawn])
    for one in exact:
        if one.area_um2 < 4 * (SPAN * MPP) ** 2:
            continue  # so small that it may be simplified away
        assert lines.hausdorff_distance(lines.union(one.shape.boundary)) * MPP <= tolerance_um + 0.71 * MPP


def _corners(one):
    return len(shapely.get_coordinates(one.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_outlines_end_with_the_tiles_and_leave_out_what_has_no_data(kind):
    scores, failed = np.full((12, 20), np.nan), np.zeros((12, 20), bool)
    scores[2:10, 3:17] = 0.9
    failed[5:7, 8:11] = True
    shown = of_lattice(scores, failed)
    *found, lost = outlines(shown, MPP, OutlineSpec(kind, (0.5,)))
    tiles = shapely.union_all([shapely.box(x, y, x + SPAN, y + SPAN) for x, y in shown.xy.tolist()])
    whole = shapely.union_all([one.shape for one in found])
    assert whole.symmetric_difference(tiles).area == 0
    assert (lost.level, lost.area_um2) == (None, 6 * (SPAN * MPP) ** 2)
    assert whole.intersection(lost.shape).area == 0


def test_small_outlines_are_left_out_by_their_area():
    mask = np.zeros((10, 10))
    mask[0, 0] = mask[4:7, 4:7] = 1
    spec = OutlineSpec(levels=(0.5,), min_area_um2=2 * (SPAN * MPP) ** 2)
    assert [one.tiles for one in outlines(of_lattice(mask), MPP, spec)] == [9]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_qupaths_and_reads_back_by_count_and_area(tmp_path, kind):
    failed = np.zeros((41, 41), bool)
    failed[0, :3] = failed[9, 9] = True
    shown, path = of_lattice(disc(), failed), tmp_path / "s.geojson.gz"
    count = write_outlines(shown, path, MPP, OutlineSpec(kind, (0.25, 0.5)), (0.1, 0.9))
    assert check_qupath(path) == count
    read, wanted = read_annotations(path), outlines(shown, MPP, OutlineSpec(kind, (0.25, 0.5)), (0.1, 0.9))
    assert [one.geometry.area * MPP**2 for one in read] == pytest.approx([one.area_um2 for one in wanted])
    assert {one.classes[0] for one in read} == {"tumor at least 0.25", "tumor at least 0.5", "no data"}
    assert {one.kind for one in read} == {"annotation"}
    write_outlines(shown, tmp_path / "again.geojson.gz", MPP, OutlineSpec(kind, (0.25, 0.5)), (0.1, 0.9))
    assert path.read_bytes() == (tmp_path / "again.geojson.gz").read_bytes()
    features = [value for key, value in stream_json(path) if key == "features"]
    half = next(one for one in features if one["properties"]["classification"]["name"] == "tumor at least 0.5")
    inside = shown.scores[shown.scores >= 0.5]
    assert half["properties"]["measurements"]["highest tumor softmax"] == pytest.approx(float(inside.max()))
    if kind == "regions":
        assert half["properties"]["measurements"]["tiles"] == len(inside)
        assert half["properties"]["measurements"]["mean tumor softmax"] == pytest.approx(inside.mean(), rel=1e-5)
    json.dumps(features, allow_nan=False)


def test_a_slide_without_a_high_tile_has_no_outline(tmp_path):
    shown = of_lattice(np.full((3, 3), 0.1))
    for kind in KINDS:
        assert outlines(shown, MPP, OutlineSpec(kind, (0.5,))) == []
        assert write_outlines(shown, tmp_path / "a.geojson", MPP, OutlineSpec(kind, (0.5,))) == 0
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []


@pytest.mark.parametrize(
    "wrong", [{"kind": "lines"}, {"levels": (0.5, 0.2)}, {"min_area_um2": -1}, {"tolerance_um": -1}]
)
def test_a_spec_that_cannot_be_is_refused(wrong):
    with pytest.raises(SpecError):
        OutlineSpec(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plateau_at_the_level_is_inside(kind):
    (found,) = outlines(of_lattice(np.full((4, 5), 0.7)), MPP, OutlineSpec(kind, (0.7,)))
    assert found.area_um2 == pytest.approx(20 * (SPAN * MPP) ** 2)


@pytest.mark.parametrize("tolerance_um", [None, 60.0, 120.0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_simplified_outline_covers_what_has_no_data(kind, tolerance_um):
    rng = np.random.default_rng(5)
    shown = of_lattice(rng.random((20, 20)), rng.random((20, 20)) < 0.1)
    *found, lost = outlines(shown, MPP, OutlineSpec(kind, (0.5,), tolerance_um=tolerance_um))
    assert lost.area_um2 > 0
    assert sum(one.shape.intersection(lost.shape).area for one in found) == 0
    assert all(one.shape.is_valid for one in found)
