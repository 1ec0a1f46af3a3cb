"""Files of DSA, Darwin, NCRF and Sectra: every shape where it was drawn, and bad files refused."""

import json

import numpy as np
import pytest

from wsi.annotations import read_annotations
from wsi.errors import AnnotationError

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40]]


def xy(points):
    return [{"x": x, "y": y} for x, y in points]


def dsa(**element):
    return {"annotation": {"name": "a", "elements": [element]}}


def darwin(**shape):
    return {"version": "2.0", "item": {"name": "s"}, "annotations": [{"name": "tumour", **shape}]}


def sectra(points=SQUARE, kind="Area"):
    return {"type": kind, "slideId": "1", "content": xy(np.array(points, float) / 1000), "name": None}


def read(tree, tmp_path, **options):
    (tmp_path / "a.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return read_annotations(tmp_path / "a.json", **options)


@pytest.mark.parametrize(
    ("tree", "kind", "size", "centre"),
    [
        (dsa(type="polyline", closed=True, points=[[*p, 0] for p in SQUARE], holes=[HOLE]), "Polygon", 9600, None),
        (dsa(type="polyline", closed=False, points=SQUARE), "LineString", 300, None),
        (dsa(type="rectangle", center=[50, 60, 0], width=40, height=10, rotation=1), "Polygon", 400, (50, 60)),
        (dsa(type="ellipse", center=[50, 60], width=40, height=10), "Polygon", np.pi * 100, (50, 60)),
        (dsa(type="circle", center=[50, 60], radius=10), "Polygon", np.pi * 100, (50, 60)),
        (dsa(type="point", center=[5, 6, 0]), "Point", 0, (5, 6)),
        (darwin(polygon={"paths": [xy(SQUARE), xy(HOLE)]}), "Polygon", 9600, None),
        (darwin(bounding_box={"x": 10, "y": 20, "w": 4, "h": 6}), "Polygon", 24, (12, 23)),
        (darwin(ellipse={"center": xy([[5, 6]])[0], "radius": xy([[2, 1]])[0], "angle": 0.5}),
         "Polygon", 2 * np.pi, (5, 6)),
        (darwin(line={"path": xy(SQUARE)}), "LineString", 300, None),
        (darwin(keypoint={"x": 5, "y": 6}), "Point", 0, (5, 6)),
        (sectra(), "Polygon", 10_000, (50, 50)),
        ([sectra(kind="Polyline")], "LineString", 300, None),
    ],
)  # fmt: skip
def test_a_shape_is_where_it_was_drawn(tree, kind, size, centre, tmp_path):
    (found,) = read(tree, tmp_path, width_px=1000)
    shape = found.geometry
    assert (shape.geom_type, shape.is_valid) == (kind, True)
    assert (shape.length if kind == "LineString" else shape.area) == pytest.approx(size, rel=1e-3)
    if centre:
        assert (shape.centroid.x, shape.centroid.y) == pytest.approx(centre)


def test_a_rectangle_is_turned_by_its_angle(tmp_path):
    (found,) = read(dsa(type="rectangle", center=[0, 0], width=40, height=10, rotation=np.pi / 2), tmp_path)
    assert found.geometry.bounds == pytest.approx((-5, -20, 5, 20))


def test_classes_and_names(tmp_path):
    both = dsa(type="point", center=[1, 1], group="tumour", label={"value": "mine"})
    assert [(one.classes, one.name) for one in read([both, dsa(type="point", center=[1, 1])], tmp_path)] == [
        (("tumour",), "mine"), ((), ""),
    ]  # fmt: skip
    assert read(darwin(tag={}), tmp_path) == []
    lesions = read({"positive": [{"name": "L", "vertices": SQUARE}], "negative": [{"vertices": HOLE}]}, tmp_path)
    assert [(one.classes, one.name, one.geometry.area) for one in lesions] == [
        (("positive",), "L", 10_000), (("negative",), "", 400),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (sectra(), "width_px"),
        (dsa(type="heatmap"), "object 1: .*'heatmap' is unknown"),
        (dsa(type="circle", center=[1, 1], radius=-1), "not above 0"),
        (dsa(type="circle", center=[1, 1]), "pairs of numbers"),
        (dsa(type="polyline", closed=True, points=[]), "no coordinates"),
        (dsa(type="polyline", closed=True, points=SQUARE, holes=[[[1, 1]]]), "3 points"),
        ('{"elements": [{"type": "point", "center": [1e400, 0]}]}', "finite"),
        ('{"elements": [{"type": "point", "center": [NaN, 0]}]}', "NaN is not JSON"),
        ('{"elements": [7]}', "no element"),
        (darwin(skeleton={}), "none of polygon"),
        (darwin(polygon={"paths": [[7]]}), "pairs of numbers"),
        (darwin(bounding_box=None), "pairs of numbers"),
        (darwin(keypoint={"x": "1", "y": 2}), "pairs of numbers"),
        ({"positive": [7], "negative": []}, "no object with vertices"),
        ({"positive": [{"vertices": [[0, 0], [1, 1]]}], "negative": []}, "3 points"),
        ('{"elements": ' + "[" * 100_000, "nested deeper than 64"),
        ('{"positive": [', "damaged JSON"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "tree",
)  # fmt: skip
def test_a_bad_file_is_refused(tree, message, tmp_path):
    with pytest.raises(AnnotationError, match=message):
        read(tree, tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dlup_darwin_v7_103S.json", 17), ("dsa_TCGA-A2-A0YE_annotations.json", 98), ("large_image_sample.geojson", 10),
        ("ncrf_Tumor_081.json", 1), ("ncrf_Tumor_093.json", 1), ("ncrf_Tumor_098.json", 5), ("ncrf_Tumor_100.json", 2),
    ],
)  # fmt: skip
def test_real_files_are_read_whole(name, count, data_dir):
    found = read_annotations(data_dir / "annotations/other" / name)
    assert len(found) == count
    assert all(one.geometry.is_valid and not one.geometry.is_empty for one in found)


def test_sectra_states_the_area_and_length_that_we_measure(data_dir):
    """Width of the slide in mm from one file's area; the other's length must follow from it."""
    folder = data_dir / "annotations/other"
    (area,) = read_annotations(folder / "sectra_pathologycore-area.json", width_px=1_000_000)
    (length,) = read_annotations(folder / "sectra_pathologycore-polyline.json", width_px=1_000_000)
    mm_per_px = np.sqrt(5.33 / area.geometry.area)
    assert length.geometry.length * mm_per_px == pytest.approx(5.93, abs=0.005)
