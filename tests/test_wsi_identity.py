"""A slide is itself wherever it lies, and another one as soon as its content differs."""

import os
import shutil

import numpy as np
import pytest

from tests.range_server import range_server
from wsi import SlideError, slide_identity


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big.svs"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 4_000_000, np.uint8).tobytes())
    return path


def test_a_moved_and_touched_slide_stays_itself(big, tmp_path):
    before = slide_identity(big)
    moved = shutil.move(big, tmp_path / "renamed.tif")
    os.utime(moved, (1, 1))
    assert slide_identity(moved) == before
    assert len(before) == 64


@pytest.mark.parametrize("at", [0, 60_000, 4_000_000 - 1, 4_000_000 - 60_000])
def test_a_change_at_the_ends_is_seen(big, at):
    before = slide_identity(big)
    with big.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert slide_identity(big) != before


def test_other_content_of_the_same_size_is_seen(big):
    before = slide_identity(big)
    data = bytearray(big.read_bytes())
    data[1_000_000:1_200_000] = bytes(200_000)  # longer than the gaps between the blocks that are read
    big.write_bytes(data)
    assert slide_identity(big) != before


def test_a_longer_or_shorter_file_is_another(big):
    before = slide_identity(big)
    with big.open("ab") as file:
        file.write(b"\0")
    assert slide_identity(big) != before


@pytest.mark.parametrize("size", [0, 1, 4_096, 70_000])
def test_small_files_have_an_identity_too(tmp_path, size):
    path = tmp_path / "small"
    path.write_bytes(b"x" * size)
    assert len(slide_identity(path)) == 64


def test_a_mirax_slide_is_its_folder_too(tmp_path):
    path, folder = tmp_path / "a.mrxs", tmp_path / "a"
    path.write_bytes(b"index")
    folder.mkdir()
    (folder / "Data0000.dat").write_bytes(b"12345")
    before = slide_identity(path)
    (folder / "Data0000.dat").write_bytes(b"123")
    assert slide_identity(path) != before


def test_a_vms_slide_is_the_files_it_names(tmp_path):
    path = tmp_path / "a.vms"
    path.write_text("[Virtual Microscope Specimen]\nImageFile=a-0.jpg\n")
    (tmp_path / "a-0.jpg").write_bytes(b"1")
    before = slide_identity(path)
    (tmp_path / "stranger.jpg").write_bytes(b"1")
    assert slide_identity(path) == before
    (tmp_path / "a-0.jpg").write_bytes(b"12")
    assert slide_identity(path) != before


def test_a_dicom_slide_is_its_series(data_dir, tmp_path):
    for file in (data_dir / "slides" / "dicom_cmu_small").glob("level-[345]*.dcm"):
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / "level-3-frames-0-1.dcm"
    before = slide_identity(path)
    shutil.copyfile(data_dir / "slides" / "google_camelyon_jpeg.dcm", tmp_path / "other.dcm")
    assert slide_identity(path) == before  # another slide in the same folder
    (tmp_path / "level-5-frames-0-1.dcm").unlink()
    assert slide_identity(path) != before


def test_a_dicom_folder_is_the_slide_in_it(data_dir, tmp_path):
    for file in (data_dir / "slides" / "dicom_cmu_small").glob("level-[345]*.dcm"):
        shutil.copyfile(file, tmp_path / file.stem)  # as an archive exports them, without a suffix
    before = slide_identity(tmp_path)
    assert before == slide_identity(tmp_path / "level-3-frames-0-1")
    (tmp_path / "README").write_text("exported today")
    assert slide_identity(tmp_path) == before
    (tmp_path / "level-5-frames-0-1").unlink()
    assert slide_identity(tmp_path) != before


@pytest.mark.parametrize("changed", ["zarr.json", "0/c/0/1/1", "0/c/0/9/9"])
def test_an_ome_zarr_folder_is_its_metadata_and_chunks(tmp_path, changed):
    folder = tmp_path / "a.ome.zarr"
    for row, column in np.ndindex(9, 9):
        (folder / f"0/c/0/{row}").mkdir(parents=True, exist_ok=True)
        (folder / f"0/c/0/{row}/{column}").write_bytes(b"chunk")
    (folder / "zarr.json").write_text('{"zarr_format": 3}')
    before = slide_identity(folder)
    assert slide_identity(shutil.copytree(folder, tmp_path / "copy")) == before
    (folder / changed).parent.mkdir(exist_ok=True)
    (folder / changed).write_bytes(b'{"zarr_format":  3' if changed == "zarr.json" else b"longer")
    assert slide_identity(folder) != before


def test_an_empty_folder_is_no_slide(tmp_path):
    with pytest.raises(SlideError, match="empty"):
        slide_identity(tmp_path)


def test_a_slide_behind_a_url_is_the_one_here(big):
    with range_server(big.parent) as server:
        assert slide_identity(server.url(big.name)) == slide_identity(big)
        assert len(server.asked) <= 70
        server.forget()
        assert slide_identity(server.url(big.name)) == slide_identity(big)
        assert len(server.asked) == 1  # the same version by its ETag
        server.etag = '"2"'
        big.write_bytes(big.read_bytes()[::-1])
        assert slide_identity(server.url(big.name)) == slide_identity(big)
