"""Files of other tools, real ones where they are on this machine; expected numbers come from the raw text."""

import gzip
import json
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
import shapely

from wsi import AnnotationError
from wsi.annotations import read_annotations

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]


def shoelace(points) -> float:
    """Area that a ring encloses, net of its turns: independent of any geometry library."""
    x, y = np.asarray(points, float)[:, :2].T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def feature(geometry=None, **properties):
    return {
        "type": "Feature",
        "geometry": geometry or {"type": "Polygon", "coordinates": [SQUARE]},
        "properties": properties,
    }


def written(tmp_path, content, name="a.geojson"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rings_of(tree):
    """(outer area less holes) of every polygon in parsed GeoJSON, by the shoelace formula."""
    if isinstance(tree, list):
        return [area for entry in tree for area in rings_of(entry)]
    if tree["type"] == "FeatureCollection":
        return rings_of(tree["features"])
    if tree["type"] == "Feature":
        return rings_of(tree["geometry"])
    polygons = {"Polygon": [tree["coordinates"]], "MultiPolygon": tree["coordinates"]}.get(tree["type"], [])
    return [shoelace(rings[0]) - sum(map(shoelace, rings[1:])) for rings in polygons]


@pytest.mark.parametrize(
    ("name", "objects", "classes"),
    [
        ("qupath/dlup_qupath05.geojson", 3, {(): 3}),
        ("qupath/histoqc_geojson_example.json", 2, {("Tumor",): 1, ("Invborder",): 1}),
        ("qupath/histoqc_holed.geojson", 1, {(): 1}),
        ("qupath/qupath_polygon.geojson", 1, {(): 1}),
        ("qupath/wsidicom_qupath-brush.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-ellipse.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-multipoint.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-polygon-cell-classified.json", 4, {("Cell",): 2, ("Nucleus",): 2}),
        ("qupath/wsidicom_qupath-polygon.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-polyline.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-rectangle.json", 1, {(): 1}),
        ("qupath/wsidicom_qupath-wand.json", 1, {(): 1}),
        ("other/large_image_sample.geojson", 10, {(): 10}),
    ],
)
def test_a_real_geojson_file_is_read_with_its_area_and_classes(name, objects, classes, data_dir):
    path = data_dir / "annotations" / name
    found = read_annotations(path)
    assert len(found) == objects
    assert Counter(annotation.classes for annotation in found) == classes
    assert sum(one.geometry.area for one in found) == pytest.approx(sum(rings_of(json.loads(path.read_text()))))
    assert all(annotation.geometry.is_valid for annotation in found)


@pytest.mark.parametrize(
    ("name", "objects", "classes"),
    [
        ("CMU-1-JP2K-33005.xml", 4, {(): 2, ("Necrosis",): 1, ("Fold",): 1}),  # classed by the text of the regions
        ("TCGA-EJ-5518-01Z-00-DX1.xml", 4, {("CaP",): 2, (): 2}),  # by the attribute of the layer
        ("monuseg_TCGA-AO-A0J2-01A-01-BSA.xml", 356, {(): 356}),
        ("monuseg_TCGA-HC-7209-01A-01-TS1.xml", 325, {(): 325}),
        ("monuseg_TCGA-HT-8564-01Z-00-DX1.xml", 249, {(): 249}),
    ],
)
def test_a_real_imagescope_file_is_read_and_crossing_rings_keep_their_area(name, objects, classes, data_dir):
    path = data_dir / "annotations" / "imagescope" / name
    found = read_annotations(path)
    assert len(found) == objects
    assert Counter(annotation.classes for annotation in found) == classes
    regions = re.findall(r'<Region [^>]*Type="(\d)".*?</Region>', path.read_text(), re.DOTALL)
    texts = re.split(r"<Region ", path.read_text())[1:]
    for annotation, kind, text in zip(found, regions, texts, strict=True):
        points = [(float(x), float(y)) for x, y in re.findall(r'<Vertex X="([^"]+)" Y="([^"]+)"', text)]
        if kind == "2":  # an ellipse, given by the corners of its box
            assert annotation.geometry.area == pytest.approx(np.prod(np.ptp(points, axis=0)) * np.pi / 4, rel=1e-3)
        elif annotation.repaired:
            assert annotation.geometry.area == pytest.approx(shoelace(points), rel=0.005)
        else:
            assert annotation.geometry.area == pytest.approx(shoelace(points), rel=1e-9)
        assert annotation.geometry.is_valid


@pytest.mark.parametrize(
    ("name", "kinds", "classes"),
    [
        ("asap-dot.xml", ["Point"], [()]),
        ("asap-pointset.xml", ["MultiPoint"], [()]),
        ("asap-polygon.xml", ["Polygon"], [()]),
        ("derived_camelyon16_Tumor_093.xml", ["Polygon"], [("_0",)]),
        ("derived_camelyon16_Tumor_100.xml", ["Polygon", "Polygon"], [("_0",), ("_0",)]),
    ],
)
def test_a_real_asap_file_is_read_with_its_area_and_groups(name, kinds, classes, data_dir):
    path = data_dir / "annotations" / "asap" / name
    found = read_annotations(path)
    assert [annotation.geometry.geom_type for annotation in found] == kinds
    assert [annotation.classes for annotation in found] == classes
    for annotation, text in zip(found, path.read_text().split("<Annotation ")[1:], strict=True):
        points = [(float(x), float(y)) for x, y in re.findall(r'X="([^"]+)" Y="([^"]+)"', text)]
        expected = shoelace(points) if annotation.geometry.geom_type == "Polygon" else 0
        assert annotation.geometry.area == pytest.approx(expected)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(name="x")]},
        [feature(name="x")],
        feature(name="x"),
        feature()["geometry"],
        {"type": "GeometryCollection", "geometries": [feature()["geometry"]]},
    ],
    ids=["collection", "list", "feature", "geometry", "geometries"],
)
@pytest.mark.parametrize("packing", ["plain", "gzip", "zip"])
def test_geojson_is_read_in_every_form_and_packing_whatever_its_name(content, packing, tmp_path):
    text, path = json.dumps(content).encode(), tmp_path / "no.suffix"
    if packing == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("objects.geojson", text)
            archive.writestr("__MACOSX/._objects.geojson", b"x")
    else:
        path.write_bytes(gzip.compress(text) if packing == "gzip" else b"\xef\xbb\xbf \n" + text)
    (annotation,) = read_annotations(path)
    assert annotation.geometry.area == 10_000


@pytest.mark.parametrize(
    ("properties", "classes"),
    [
        ({"classification": "Tumor"}, ("Tumor",)),
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}}, ("Tumor",)),
        ({"classification": {"name": "Tumor: Positive", "color": [1, 2, 3]}}, ("Tumor", "Positive")),
        ({"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}, ("Tumor", "Positive")),
        ({"classification": None}, ()),
        ({}, ()),
    ],
)
def test_a_classification_is_text_or_an_object_with_one_name_or_several(properties, classes, tmp_path):
    (annotation,) = read_annotations(written(tmp_path, feature(**properties)))
    assert annotation.classes == classes


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({"properties": {"objectType": "detection"}}, "detection"),
        ({"properties": {"object_type": "tma_core"}}, "tmaCore"),
        ({"properties": {"objectType": "cell"}, "nucleusGeometry": feature()["geometry"]}, "cell"),
        ({"id": "PathTileObject"}, "tile"),  # QuPath 0.2
        ({"objectType": "detection"}, "detection"),  # TIAToolbox
        ({"properties": {"objectType": "unheard of"}, "id": "8c1e"}, "annotation"),
        ({"properties": None}, "annotation"),
    ],
)
def test_the_kind_of_object_is_known_in_all_dialects(extra, kind, tmp_path):
    (annotation,) = read_annotations(written(tmp_path, {**feature(), **extra}))
    assert annotation.kind == kind


def test_children_are_read_after_their_parent_and_an_object_without_a_place_is_left_out(tmp_path):
    child, nowhere = feature(name="child"), {"type": "Feature", "geometry": None, "properties": {}}
    found = read_annotations(written(tmp_path, [nowhere, feature(name="parent", childObjects=[child]), nowhere]))
    assert [annotation.name for annotation in found] == ["parent", "child"]


@pytest.mark.parametrize(
    ("rings", "area", "repaired"),
    [
        ([SQUARE[:-1]], 10_000, False),  # open
        ([SQUARE, HOLE], 9_600, False),
        ([[[x, y, 0] for x, y in SQUARE]], 10_000, False),  # with a height
        ([[[0, 0], [10, 10], [10, 0], [0, 10]]], 50, True),  # a bow-tie keeps both halves
        ([SQUARE[:-1] + SQUARE], 10_000, True),  # drawn round twice
        ([[[0, 0], [10, 0], [20, 0]]], 0, True),  # a line after all
    ],
)
def test_rings_are_closed_and_mended_without_loss_of_area(rings, area, repaired, tmp_path):
    (annotation,) = read_annotations(written(tmp_path, {"type": "Polygon", "coordinates": rings}))
    assert annotation.geometry.is_valid
    assert not annotation.geometry.is_empty
    assert (annotation.geometry.area, annotation.repaired) == (area, repaired)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}, "object 1: .*3 points, this one has 2"),
        ([feature(), feature({"type": "Polygon", "coordinates": []})], "object 2: .*no coordinates"),
        ({"type": "Polygon", "coordinates": [[["0", "0"], ["1", "1"], ["2", "0"]]]}, "pairs of numbers"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 0]]]}, "pairs of numbers"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1e12]]]}, "finite number of pixels"),
        ('{"type": "Point", "coordinates": [1e999, 0]}', "finite number of pixels"),
        ('{"type": "Point", "coordinates": [NaN, 0]}', "NaN is not JSON"),
        ('{"type": "Point", "coordinates": [-Infinity, 0]}', "-Infinity is not JSON"),
        (feature({"type": "Circle", "coordinates": [0, 0]}), "'Circle'"),
        (feature(classification={"name": 7}), "classification is no text"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"type": "Feature", ', "damaged JSON"),
        ('{"a": 1}', "not a known annotation format"),
        ("x,y\n1,2\n", "not a known annotation format"),
        ("", "not a known annotation format"),
        ("<a><b></a>", "damaged XML"),
        ("<html/>", "root 'html'"),
        ("<a>" * 100 + "</a>" * 100, "nested deeper than 64"),
        ('<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>', "DTD"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "tree",
)  # fmt: skip
def test_a_bad_file_is_refused_with_file_and_reason(content, message, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


def test_brackets_in_a_name_are_no_nesting(tmp_path):
    (annotation,) = read_annotations(written(tmp_path, feature(name="[" * 100 + '\\"{')))
    assert annotation.name.startswith("[[[")


def test_a_file_that_is_missing_broken_or_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi.annotations.read.MAX_BYTES", 1 << 20)
    whole = gzip.compress(json.dumps(feature()).encode())
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"[" + b" " * (8 << 20) + b"]"))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.geojson", "[]")
        archive.writestr("b.geojson", "[]")
    for name, message in [
        ("gone", "no such file"),
        ("cut.gz", "decompressed"),
        ("bomb.gz", "larger than 1 MiB"),
        ("two.zip", "several"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            read_annotations(tmp_path / name)
    with pytest.raises(AnnotationError, match="not a file"):
        read_annotations(tmp_path)


def asap(*annotations, groups=()):
    body = "".join(
        f'<Annotation Name="n" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, x, y in points)
        + "</Coordinates></Annotation>"
        for kind, group, points in annotations
    )
    names = "".join(f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in groups)
    return (
        f"<ASAP_Annotations><Annotations>{body}</Annotations>"
        f"<AnnotationGroups>{names}</AnnotationGroups></ASAP_Annotations>"
    )


def test_asap_shapes_points_in_order_and_nested_groups(tmp_path):
    shuffled = [(2, 100, 50), (0, 0, 0), (3, 0, 50), (1, 100, 0)]
    content = asap(
        ("Rectangle", "inner", shuffled), ("Spline", "None", shuffled), ("Measurement", "loop", shuffled[:2]),
        groups=[("inner", "outer"), ("outer", "None"), ("loop", "loop")],
    )  # fmt: skip
    box, spline, measurement = read_annotations(written(tmp_path, content, "a.xml"))
    assert (box.geometry.area, box.classes, spline.geometry.area) == (5000, ("inner", "outer"), 5000)
    assert (measurement.geometry.geom_type, measurement.classes) == ("LineString", ("loop",))


@pytest.mark.parametrize(
    ("kind", "points", "message"),
    [
        ("Polygon", [(0, 1, 1), (1, 2, 2)], "3 points"),
        ("Polygon", [], "no coordinates"),
        ("Dot", [(0, "1,5", 2)], "not a number"),
        ("Star", [(0, 1, 1)], "'Star' is unknown"),
    ],
)
def test_a_bad_asap_object_is_refused(kind, points, message, tmp_path):
    with pytest.raises(AnnotationError, match=f"object 1: .*{message}"):
        read_annotations(written(tmp_path, asap((kind, "None", points)), "a.xml"))


def imagescope(*layers):
    def region(kind, negative, points, text=""):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
        return f'<Region Type="{kind}" NegativeROA="{negative}" Text="{text}"><Vertices>{vertices}</Vertices></Region>'

    body = "".join(
        f'<Annotation Name="{name}"><Regions>{"".join(region(*one) for one in regions)}</Regions></Annotation>'
        for name, regions in layers
    )
    return f'<Annotations MicronsPerPixel="0.25">{body}</Annotations>'


def test_a_negative_imagescope_region_is_a_hole_in_its_own_layer_only(tmp_path):
    content = imagescope(
        ("Tumor", [(0, 0, SQUARE), (0, 1, HOLE), (0, 0, [[x + 500, y] for x, y in SQUARE])]), ("All", [(0, 0, SQUARE)])
    )
    found = read_annotations(written(tmp_path, content, "a.xml"))
    assert [(one.classes, one.geometry.area) for one in found] == [
        (("Tumor",), 9_600), (("Tumor",), 10_000), (("All",), 10_000),
    ]  # fmt: skip
    assert not shapely.contains_xy(found[0].geometry, 30, 30)


def test_imagescope_types_give_box_ellipse_and_line(tmp_path):
    corners = [(0, 0), (100, 40)]
    regions = [(1, 0, corners), (2, 0, corners), (3, 0, corners), (1, 0, SQUARE[:-1])]
    box, oval, arrow, drawn = read_annotations(written(tmp_path, imagescope(("x", regions)), "a.xml"))
    assert (box.geometry.area, drawn.geometry.area) == (4000, 10_000)
    assert oval.geometry.area == pytest.approx(np.pi * 50 * 20, rel=2e-4)
    assert arrow.geometry.geom_type == "LineString"


def test_halos_regions_are_not_mistaken_for_imagescopes(tmp_path):
    content = '<Annotations><Annotation Name="Tumor"><Regions><Region><Vertices><V X="1" Y="2"/></Vertices></Region>'
    with pytest.raises(AnnotationError, match="not a known annotation format"):
        read_annotations(written(tmp_path, content + "</Regions></Annotation></Annotations>", "a.annotations"))
