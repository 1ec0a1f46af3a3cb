"""Which tiles lie in drawn regions: exact shares against shapely, and files found by slide and class."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling import TileSpec, Tissue, plan_grid
from tiling.regions import Regions, lattice_share, load_regions, regions_digest
from tiling.spec import RegionSpec
from wsi import AnnotationError, Level, SpecError
from wsi.annotations import read_annotations


def boxes_share(geometry, columns, rows, span):
    """The same by the definition: the area of each tile's intersection."""
    tiles = shapely.box(*np.broadcast_arrays(columns[None], rows[:, None], columns + span, rows[:, None] + span))
    return shapely.area(shapely.intersection(tiles, geometry)) / span**2


def star(rng, corners: int, centre=(500, 500), outer: float = 400.0):
    angle = np.sort(rng.random(corners)) * 2 * np.pi
    radius = outer * (0.3 + 0.7 * rng.random(corners))
    return shapely.make_valid(shapely.Polygon(np.c_[centre + (radius * [np.cos(angle), np.sin(angle)]).T]))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(3, 200), st.integers(1, 300), st.integers(1, 300))
def test_the_share_of_each_tile_is_exact_with_overlap_gaps_and_holes(seed, corners, span, stride):
    rng = np.random.default_rng(seed)
    geometry = star(rng, corners).difference(star(rng, corners, outer=150.0))
    columns, rows = (np.arange(0, extent - span + 1, max(stride, 20)) for extent in (900, 700))
    expected = boxes_share(geometry, columns, rows, span)
    assert np.abs(lattice_share(geometry, columns, rows, span) - expected).max(initial=0) < 1e-9


@pytest.mark.parametrize(
    "geometry",
    [
        shapely.box(0, 0, 300, 300),  # edges on the lattice's lines
        shapely.box(-1e6, -1e6, 1e6, 1e6),  # round the whole lattice
        shapely.box(2000, 2000, 3000, 3000),  # beside it
        shapely.box(-500, 120, 250, 130),  # in from the left
        shapely.MultiPolygon([shapely.box(10, 10, 50, 50), shapely.box(60, 10, 130, 260)]),
        shapely.box(0, 0, 600, 600).difference(shapely.box(100, 100, 200, 200)),
        shapely.Polygon([(0, 0), (600, 600), (0, 600)]),  # through the lattice's corners
        shapely.Polygon(),
    ],
)
def test_shares_hold_where_edges_meet_the_lattice_or_lie_beyond_it(geometry):
    columns = rows = np.arange(0, 600, 100)
    assert np.allclose(lattice_share(geometry, columns, rows, 100), boxes_share(geometry, columns, rows, 100))


def test_real_annotations_give_the_shares_that_shapely_gives(data_dir):
    for name in ("imagescope/TCGA-EJ-5518-01Z-00-DX1.xml", "qupath/histoqc_geojson_example.json"):
        geometry = shapely.union_all([one.geometry for one in read_annotations(data_dir / "annotations" / name)])
        left, top, right, bottom = map(int, geometry.bounds)
        columns, rows = np.arange(left, right, 2048), np.arange(top, bottom, 2048)
        shares = lattice_share(geometry, columns, rows, 2048)
        assert np.abs(shares - boxes_share(geometry, columns, rows, 2048)).max() < 1e-9
        assert shares.sum() * 2048**2 == pytest.approx(geometry.area)


def planned(regions, **settings):
    tissue = Tissue(np.ones((64, 64), bool), 16, 0.0)
    return plan_grid([Level(1024, 1024, 1.0, 0.5)], TileSpec(tile_px=128, **settings), tissue, regions)


@pytest.mark.parametrize(
    ("include", "exclude", "min_share", "tiles"),
    [
        (shapely.box(0, 0, 256, 256), None, 0.5, 4),
        (shapely.box(0, 0, 320, 256), None, 0.5, 6),  # half of two more
        (shapely.box(0, 0, 319, 256), None, 0.5, 4),
        (shapely.box(0, 0, 320, 256), None, 1.0, 4),
        (shapely.box(0, 0, 256, 256), shapely.box(64, 0, 1024, 128), 0.5, 3),  # half of one is left, none of another
        (shapely.box(0, 0, 256, 256), shapely.box(63, 0, 1024, 128), 0.5, 2),
        (None, shapely.box(0, 0, 1024, 512), 0.5, 32),
        (shapely.MultiPolygon(), None, 0.5, 0),
        (None, shapely.MultiPolygon(), 0.5, 64),
    ],
)
def test_tiles_need_a_share_inside_and_not_in_what_is_excluded(include, exclude, min_share, tiles):
    grid = planned(Regions(include, exclude, min_share), min_tissue=0.0)
    assert len(grid) == tiles
    assert len(planned(None)) == 64


def drawn(path, **classes):
    """A GeoJSON file with one 100 px square for each name, side by side."""
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(shapely.box(number * 100, 0, number * 100 + 100, 100)),
            "properties": {"classification": {"name": name.replace("_", ": ")}},
        }
        for number, name in enumerate(classes)
    ]
    path.write_text(json.dumps(features))
    return path


@pytest.mark.parametrize(
    ("wanted", "area"),
    [((), 30_000), (("tumor",), 20_000), (("Stroma", "TUMOR"), 30_000), (("tumor: positive",), 10_000)],
)
def test_classes_are_chosen_by_name_whatever_the_case(wanted, area, tmp_path):
    path = drawn(tmp_path / "a.geojson", Tumor=1, Tumor_Positive=1, Stroma=1)
    regions = load_regions(RegionSpec(include=str(path), include_classes=wanted), "s1")
    assert regions is not None
    assert (regions.include.area, regions.exclude) == (area, None)


def test_a_class_that_no_object_has_is_refused_with_those_there_are(tmp_path):
    path = drawn(tmp_path / "a.geojson", Tumor=1, Stroma=1)
    with pytest.raises(SpecError, match=r"exclude_classes.*class Necrosis; the classes there are: Stroma, Tumor"):
        load_regions(RegionSpec(exclude=str(path), exclude_classes=("tumor", "Necrosis")), "s1")


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_classes_without_a_file_they_could_be_in_are_refused(name):
    with pytest.raises(SpecError, match=f"regions.{name}_classes: classes are chosen, but `{name}` names no file"):
        RegionSpec(**{f"{name}_classes": ("Tumor",)})


def test_a_folder_has_a_file_for_each_slide_and_a_class_may_be_on_another(tmp_path):
    drawn(tmp_path / "s1.geojson", Tumor=1)
    drawn(tmp_path / "s2.json", Necrosis=1)
    (tmp_path / "s3.xml").write_text("damaged")
    spec = RegionSpec(include=str(tmp_path), include_classes=("necrosis",))
    assert load_regions(spec, "s1").include.is_empty
    assert load_regions(spec, "s2").include.area == 10_000
    with pytest.raises(SpecError, match="the class fat; the classes there are: Necrosis, Tumor"):
        load_regions(RegionSpec(include=str(tmp_path), include_classes=("fat",)), "s1")


def test_a_folder_without_a_file_for_the_slide_or_with_two_is_refused(tmp_path):
    drawn(tmp_path / "s1.geojson", Tumor=1)
    drawn(tmp_path / "s1.json", Tumor=1)
    for slide_id, message in [("s1", "s1.geojson and s1.json"), ("s2", "no file for slide 's2'; add s2.geojson")]:
        with pytest.raises(SpecError, match=message):
            load_regions(RegionSpec(exclude=str(tmp_path)), slide_id)


def test_overlapping_objects_count_once_and_points_do_not(tmp_path):
    shapes = [shapely.box(0, 0, 100, 100), shapely.box(50, 0, 150, 100), shapely.Point(5, 5)]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([shapely.geometry.mapping(shape) for shape in shapes]))
    assert load_regions(RegionSpec(include=str(path)), "s").include.area == 15_000
    path.write_text(json.dumps(shapely.geometry.mapping(shapes[2])))
    with pytest.raises(SpecError, match=r"none of the 1 objects .* encloses an area"):
        load_regions(RegionSpec(include=str(path)), "s")
    path.write_text("[]")
    assert load_regions(RegionSpec(include=str(path)), "s").include.is_empty


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_regions_that_all_lie_beside_the_slide_are_refused(name, tmp_path):
    spec = RegionSpec(**{name: str(drawn(tmp_path / "a.geojson", Tumor=1, Stroma=1))})
    assert load_regions(spec, "s", (50, 60)) is not None
    far = json.loads((tmp_path / "a.geojson").read_text())
    for feature in far["features"] if isinstance(far, dict) else far:
        feature["geometry"] = shapely.geometry.mapping(shapely.box(500, 70, 600, 170))
    (tmp_path / "a.geojson").write_text(json.dumps(far))
    with pytest.raises(SpecError, match=f"regions.{name}: .*none of it lies on this slide of 50 x 60 px"):
        load_regions(spec, "s", (50, 60))


def test_the_digest_follows_the_content_and_the_role(tmp_path):
    path = drawn(tmp_path / "a.geojson", Tumor=1)
    include, exclude = RegionSpec(include=str(path)), RegionSpec(exclude=str(path))
    first = regions_digest(include, "s")
    assert first == load_regions(include, "s").digest
    assert first != regions_digest(exclude, "s")
    drawn(path, Tumor=1, Stroma=1)
    assert first != regions_digest(include, "s")
    assert regions_digest(RegionSpec(), "s") is load_regions(RegionSpec(), "s") is None
    with pytest.raises(AnnotationError, match="no such file"):
        regions_digest(RegionSpec(include=str(tmp_path / "gone.xml")), "s")
