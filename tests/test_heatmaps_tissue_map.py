"""The picture of a slide's tissue, pen and tiles, and its outlines for QuPath."""

import json

import numpy as np
import pytest
import shapely
from PIL import Image

from heatmaps import check_qupath
from heatmaps.tissue_map import FLAGGED, OUTLINE, PEN, TILE, TissueMap, draw_tissue, write_outlines
from tests.slides import ArraySlide, tissue_like
from tiling import TissueSpec, find_tissue
from tiling.tissue import tissue_outline
from wsi.annotations import read_annotations

SCALE = 8.0  # level-0 pixels per pixel of the picture
NOWHERE = {"type": "MultiPolygon", "coordinates": []}


def outline(*geometries):
    """As `tissue_outline` gives it: whole numbers."""
    text = json.dumps(shapely.geometry.mapping(shapely.MultiPolygon(geometries)))
    return json.loads(text.replace(".0", ""))


def drawn(tmp_path, tissue=NOWHERE, pen=None, xy=(), flagged=None):
    """The picture over white: int (100, 150, 3)."""
    corners = np.array(xy, np.int64).reshape(-1, 2)
    found = TissueMap("s1", tissue, pen, corners, 160, flagged or {})
    draw_tissue(np.full((100, 150, 3), 255, np.uint8), SCALE, found, tmp_path / "s1.jpg")
    with Image.open(tmp_path / "s1.jpg") as picture:
        assert picture.size == (150, 100)
        return np.asarray(picture.convert("RGB")).astype(int)


def tint(colour, alpha):
    return (np.array(colour) * alpha + 255 * (255 - alpha)) / 255


def test_tiles_are_tinted_and_flagged_ones_stand_out_where_they_lie(tmp_path):
    flagged = {"blur": np.array([(480, 240)]), "fold": np.array([(480, 240), (800, 240)])}  # the last is no tile
    pixels = drawn(tmp_path, xy=[(160, 240), (480, 240)], flagged=flagged)
    for left, colour, alpha in ((160, TILE, 26), (480, FLAGGED, 70), (800, FLAGGED, 70)):
        x, y = round(left / SCALE) + 10, round(240 / SCALE) + 10
        assert pixels[y - 4 : y + 4, x - 4 : x + 4].mean(axis=(0, 1)) == pytest.approx(tint(colour, alpha), abs=4)
    assert pixels[5:22].min() > 245  # glass stays as it is


def test_tissue_is_outlined_with_its_holes_and_keeps_its_colours(tmp_path):
    ring = shapely.box(160, 160, 1000, 640).difference(shapely.box(400, 320, 640, 480))
    pixels = drawn(tmp_path, outline(ring))
    edge = pixels.sum(axis=2) < sum(OUTLINE) + 200
    rows, cols = np.nonzero(edge)
    assert (cols.min(), cols.max(), rows.min(), rows.max()) == pytest.approx((20, 125, 20, 80), abs=2)
    assert edge[50, 48:53].any()  # the hole's left edge
    assert pixels[30:35, 60:90].min() > 235  # inside
    assert pixels[45:55, 60:70].min() > 235  # in the hole


def test_pen_is_filled_but_not_what_a_closed_stroke_surrounds(tmp_path):
    ring = shapely.box(160, 160, 1000, 640).difference(shapely.box(320, 280, 840, 520))
    island = shapely.box(520, 360, 640, 440)
    pixels = drawn(tmp_path, pen=outline(island, ring))
    assert pixels[25:30, 40:100].mean(axis=(0, 1)) == pytest.approx(tint(PEN, 120), abs=8)
    assert pixels[48:52, 68:76].mean(axis=(0, 1)) == pytest.approx(tint(PEN, 120), abs=8)
    assert pixels[48:52, 46:58].min() > 240


def test_small_tiles_are_tinted_without_lines(tmp_path):
    corners = np.stack(np.meshgrid(np.arange(0, 640, 32), np.arange(0, 640, 32)), axis=-1).reshape(-1, 2)
    found = TissueMap("s1", NOWHERE, None, corners, 32)
    draw_tissue(np.full((100, 150, 3), 255, np.uint8), SCALE, found, tmp_path / "s1.jpg")
    with Image.open(tmp_path / "s1.jpg") as picture:
        inside = np.asarray(picture.convert("RGB")).astype(int)[10:70, 10:70]
    assert np.abs(inside - tint(TILE, 26)).max() < 8


@pytest.mark.parametrize("holes", [False, True])
def test_outlines_are_annotations_that_qupath_takes_and_keep_the_area(tmp_path, holes):
    pixels = np.full((1600, 2400, 3), 243, np.uint8)
    pixels[200:1400, 300:2000] = tissue_like(1700, 1200)
    if holes:
        pixels[500:900, 800:1300] = 243
    tissue = find_tissue(ArraySlide([pixels]), TissueSpec(pen=False))
    path = tmp_path / "tissue" / "s1.geojson"
    found = TissueMap("s1", tissue_outline(tissue), outline(shapely.box(0, 0, 100, 100)), np.zeros((0, 2), int), 256)
    write_outlines(found, path)
    assert check_qupath(path) == 2
    read = {annotation.classes: annotation for annotation in read_annotations(path)}
    assert set(read) == {("Tissue",), ("Pen",)}
    assert not any(annotation.repaired for annotation in read.values())
    assert read["Tissue",].geometry.area * 0.5**2 == pytest.approx(tissue.area_um2, rel=0.02)
    expected = 1700 * 1200 - (400 * 500 if holes else 0)
    assert read["Tissue",].geometry.area == pytest.approx(expected, rel=0.06)
    before = path.read_text()
    write_outlines(found, path)
    assert path.read_text() == before  # also the ids


def test_a_slide_without_tissue_or_pen_has_no_annotations(tmp_path):
    write_outlines(TissueMap("s1", NOWHERE, None, np.zeros((0, 2), int), 256), tmp_path / "s1.geojson")
    assert json.loads((tmp_path / "s1.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_two_slides_outlines_have_different_ids(tmp_path):
    ids = set()
    for slide_id in ("a", "b"):
        found = TissueMap(slide_id, outline(shapely.box(0, 0, 9, 9)), None, np.zeros((0, 2), int), 256)
        write_outlines(found, tmp_path / "x.geojson")
        ids.add(json.loads((tmp_path / "x.geojson").read_text())["features"][0]["id"])
    assert len(ids) == 2
