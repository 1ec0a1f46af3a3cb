from pathlib import Path

import pytest

from jobs.manifest import left_in, read_manifest, read_source
from wsi import ManifestError


def manifest(tmp_path, text, name="slides.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_becomes_a_record_with_paths_relative_to_the_manifest(tmp_path):
    text = "\ufeffslide_id, path,patient_id,label,mpp,stage\na.1,sub/a.svs,p1,tumor,0.25,II\nb,/abs/b.svs,,,,\n"
    first, second = read_manifest(manifest(tmp_path, text))
    assert (first.slide_id, first.path, first.patient_id) == ("a.1", tmp_path / "sub/a.svs", "p1")
    assert (first.label, first.mpp, first.extra) == ("tumor", 0.25, {"stage": "II"})
    assert (str(second.path), second.label, second.mpp) == ("/abs/b.svs", None, None)
    assert second.patient_id == second.case_id == "b"  # without a patient, a slide is its own


def test_what_is_not_known_is_neither_a_class_nor_a_patient(tmp_path):
    words = ("NA", "n/a", "NaN", "<NA>", "null", " na ")
    lines = [
        f"{slide},{slide}.svs,{word},{word},{word},{word},{word}" for slide, word in zip("abcdef", words, strict=True)
    ]
    text = "\n".join(["slide_id,path,case_id,patient_id,label,mpp,age", *lines, "NA,NA,p1,p1,None,0.5,60"])
    *unknown, known = read_manifest(manifest(tmp_path, text))
    assert [record.patient_id for record in unknown] == list("abcdef")
    assert {(record.label, record.mpp, record.extra["age"]) for record in unknown} == {(None, None, "")}
    assert (known.slide_id, known.path.name, known.label) == ("NA", "NA", "None")  # names and words that are one


def test_columns_without_a_name_that_a_spreadsheet_adds_are_ignored(tmp_path):
    (record,) = read_manifest(manifest(tmp_path, "slide_id,path,,\na,a.svs,,\n"))
    assert record.extra == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slide_id,file\na,a.svs\n", "column 'path' is missing"),
        ("slideid,path\na,a.svs\n", "column 'slide_id' is missing .is 'slideid' meant"),
        ("", "column 'slide_id' is missing .it has no header line"),
        ("slide_id,path\n", "lists no slides"),
        ("slide_id;path\na;a.svs\n", "columns are divided by ';'; save it as CSV with commas"),
        ("slide_id\tpath\na\ta.svs\n", "divided by"),
        ("slide_id,path\na/b,a.svs\n", "line 2.*'a/b' is no plain file name"),
        ("slide_id,path\n..,a.svs\n", "'..' is no plain file name"),
        ("slide_id,path\nok,a.svs\n.hidden,b.svs\n", "line 3"),
        ("slide_id,path\n" + "x" * 101 + ",a.svs\n", "no plain file name"),
        ("slide_id,path\na,\n", "path is empty"),
        ("slide_id,path,mpp\na,a.svs,20x\n", "mpp '20x' is no pixel size"),
        ("slide_id,path,mpp\na,a.svs,250\n", "mpp '250' is no pixel size"),
        ("slide_id,path\na,a.svs,extra\n", "more fields than the header"),
        ("slide_id,path\na,a.svs\na,b.svs\n", r"share one slide_id: a \(a.svs\) and a \(b.svs\)"),
        ("slide_id,path\nA1,a.svs\na1,b.svs\n", "share one slide_id: A1"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_line(tmp_path, text, problem):
    with pytest.raises(ManifestError, match=problem):
        read_manifest(manifest(tmp_path, text))


def test_a_folder_gives_its_slides_and_ids_that_are_plain_names(tmp_path):
    for name in ("case 1 (HE).svs", "b.NDPI", "notes.txt", ".hidden.svs", "._b.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "series").mkdir()
    for name in ("2.dcm", "1.dcm"):
        (tmp_path / "series" / name).write_bytes(b"x")
    records = read_source(tmp_path)
    assert [(record.slide_id, record.path.name) for record in records] == [
        ("b", "b.NDPI"), ("case_1__HE_", "case 1 (HE).svs"), ("series", "1.dcm"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "problem"),
    [([], "no slides are in this folder"), (["a.txt"], "no slides"), (["a.svs", "a.tif"], "share one slide_id")],
)
def test_a_folder_without_clear_slides_is_refused(tmp_path, names, problem):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ManifestError, match=problem):
        read_source(tmp_path)


def test_a_source_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_source(tmp_path / "none.svs")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_source(tmp_path / "none.csv")


def test_a_folder_offers_ome_zarr_and_every_suffix_of_tiff_but_no_plain_images(tmp_path):
    for name in ("a.ome.tif", "a.png", "thumbnail.jpg", "b.qptiff", "c.btf", "d.ome.tiff"):
        (tmp_path / name).write_bytes(b"x")
    for name, attributes in (("e.ome.zarr", '{"multiscales": []}'), ("store.zarr", '{"schema": "patches/1"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".zattrs").write_text(attributes)
    records = read_source(tmp_path)
    assert [(record.slide_id, Path(record.path).name) for record in records] == [
        ("a", "a.ome.tif"), ("b", "b.qptiff"), ("c", "c.btf"), ("d", "d.ome.tiff"), ("e", "e.ome.zarr"),
    ]  # fmt: skip
    assert left_in(tmp_path, records) == 1  # a.png is the companion of a.ome.tif
    for name in ("a.png", "e.ome.zarr"):  # named, each is a slide
        assert [record.slide_id for record in read_source(tmp_path / name)] == [name[0]]


def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    with pytest.raises(ManifestError, match="it is empty"):
        read_source("")


def test_a_table_without_paths_names_slides_that_a_run_knows(tmp_path):
    whole, table = tmp_path / "whole.csv", tmp_path / "labels.csv"
    whole.write_text("slide_id,path,patient_id,label,ward\na,a.svs,p1,normal,7\nb,b.svs,p2,normal,8\n")
    known = {record.slide_id: record for record in read_manifest(whole)}
    table.write_text("slide_id,label,reviewed_by\nb,tumor,Dr. Gray\n")
    (read,) = read_manifest(table, known)
    assert (read.path, read.patient_id, read.label) == (tmp_path / "b.svs", "p2", "tumor")
    assert read.extra == {"ward": "8", "reviewed_by": "Dr. Gray"}
    table.write_text("slide_id,label\nb,tumor\nc,tumor\n")
    with pytest.raises(ManifestError, match=r"line 3: the run folder knows no slide 'c'"):
        read_manifest(table, known)
    with pytest.raises(ManifestError, match="'path' is missing"):
        read_manifest(table)
