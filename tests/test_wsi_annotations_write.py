"""What is written for another tool reads back with the same objects and areas, real files and our own."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
import shapely

from wsi import AnnotationError
from wsi.annotations import Annotation, read, read_annotations, write_annotations
from wsi.annotations.annotation import parts_of

NAMES = {"qupath": "a.geojson.gz", "asap": "a.xml", "imagescope": "a.xml.gz", "dsa": "a.json"}
REAL = (
    "asap/asap-dot.xml",
    "asap/asap-pointset.xml",
    "asap/asap-polygon.xml",
    "asap/derived_camelyon16_Tumor_093.xml",
    "asap/derived_camelyon16_Tumor_100.xml",
    "imagescope/CMU-1-JP2K-33005.xml",
    "imagescope/TCGA-EJ-5518-01Z-00-DX1.xml",
    "imagescope/monuseg_TCGA-AO-A0J2-01A-01-BSA.xml",
    "imagescope/monuseg_TCGA-HC-7209-01A-01-TS1.xml",
    "imagescope/monuseg_TCGA-HT-8564-01Z-00-DX1.xml",
    "other/dlup_darwin_v7_103S.json",
    "other/dsa_TCGA-A2-A0YE_annotations.json",
    "other/large_image_sample.geojson",
    "other/ncrf_Tumor_081.json",
    "other/ncrf_Tumor_093.json",
    "other/ncrf_Tumor_098.json",
    "other/ncrf_Tumor_100.json",
    "other/sectra_pathologycore-area.json",
    "other/sectra_pathologycore-polyline.json",
    "qupath/dlup_qupath05.geojson",
    "qupath/histoqc_geojson_example.json",
    "qupath/histoqc_holed.geojson",
    "qupath/qupath_polygon.geojson",
    "qupath/wsidicom_qupath-brush.json",
    "qupath/wsidicom_qupath-ellipse.json",
    "qupath/wsidicom_qupath-multipoint.json",
    "qupath/wsidicom_qupath-polygon-cell-classified.json",
    "qupath/wsidicom_qupath-polygon.json",
    "qupath/wsidicom_qupath-polyline.json",
    "qupath/wsidicom_qupath-rectangle.json",
    "qupath/wsidicom_qupath-wand.json",
)

RING = shapely.box(0, 0, 100, 100).difference(
    shapely.union_all([shapely.box(20, 20, 60, 60), shapely.box(70, 5, 90, 9)])
)
ISLAND = shapely.box(30, 30, 40, 40)
OWN = [
    Annotation(RING, ("Tumor", "Positive"), 'a <b> & "c"', color=(1, 2, 3), measurements={"p": 0.5, "n": float("inf")}),
    Annotation(shapely.MultiPolygon([RING, ISLAND]), ("Stroma",)),
    Annotation(ISLAND, ("Tumor", "Positive"), kind="detection"),
    Annotation(shapely.LineString([(0, 0), (3, 4), (9, 9.123456789)])),
    Annotation(shapely.MultiPoint([(1, 2), (3, 4)]), ("Cell",)),
    Annotation(shapely.Point(5, 6), id="01234567-89ab-4def-8123-456789abcdef"),
]


def written(annotations, tmp_path: Path, format: str):
    write_annotations(annotations, tmp_path / NAMES[format], format)
    return read_annotations(tmp_path / NAMES[format])


def areas(annotations):
    found: dict[str, float] = defaultdict(float)
    for one in annotations:
        found[": ".join(one.classes)] += one.geometry.area
    return dict(found)


def counts(annotations):
    return Counter(part.geom_type for one in annotations for part in parts_of(one.geometry))


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("name", REAL)
def test_a_real_file_written_for_another_tool_keeps_count_and_area(name, format, data_dir, tmp_path):
    before = read_annotations(data_dir / "annotations" / name, width_px=100_000)
    after = written(before, tmp_path, format)
    assert counts(after) == counts(before)
    assert sum(areas(after).values()) == pytest.approx(sum(areas(before).values()), rel=1e-9)
    if format == "qupath":
        assert [(one.classes, one.name, one.kind) for one in after] == [
            (one.classes, one.name, one.kind) for one in before
        ]
        assert all(shapely.equals_exact(a.geometry, b.geometry) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("format", NAMES)
def test_holes_islands_lines_and_points_survive(format, tmp_path):
    after = written(OWN, tmp_path, format)
    assert counts(after) == counts(OWN)
    assert areas(after) == pytest.approx(areas(OWN))
    drawn = shapely.union_all([one.geometry for one in after if one.geometry.area])
    assert shapely.equals(drawn, shapely.union_all([one.geometry for one in OWN if one.geometry.area]))
    content = (tmp_path / NAMES[format]).read_bytes()
    write_annotations(OWN, tmp_path / NAMES[format], format)
    assert (tmp_path / NAMES[format]).read_bytes() == content


def test_qupath_keeps_all_that_an_annotation_has(tmp_path):
    after = written([*OWN, *OWN], tmp_path, "qupath")
    assert after[0].measurements == OWN[0].measurements
    assert (after[0].color, after[0].classes, after[0].name) == (OWN[0].color, OWN[0].classes, OWN[0].name)
    assert (after[2].kind, after[5].id) == ("detection", OWN[5].id)
    assert len({one.id for one in after}) == len(after)


@pytest.mark.parametrize("format", NAMES)
def test_nothing_drawn_is_a_file_too(format, tmp_path):
    assert written([], tmp_path, format) == []


def test_text_that_xml_cannot_hold_and_unknown_formats(tmp_path):
    (after,) = written([Annotation(ISLAND, ("a\x00b",), "\ud800")], tmp_path, "asap")
    assert (after.classes, after.name) == (("a\ufffdb",), "\ufffd")
    with pytest.raises(AnnotationError, match="not written"):
        write_annotations([], tmp_path / "a.x", "halo")


@pytest.mark.parametrize("format", NAMES)
def test_too_many_vertices_are_refused(format, tmp_path, monkeypatch):
    write_annotations(OWN, tmp_path / NAMES[format], format)
    monkeypatch.setattr(read, "MAX_VERTICES", 20)
    with pytest.raises(AnnotationError, match="more than 20 vertices"):
        read_annotations(tmp_path / NAMES[format])
