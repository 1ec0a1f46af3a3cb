"""A file that is no slide is refused with what it is and what to do; nothing hangs."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slides import tissue_like
from wsi import SlideError, SpecError, TileError, open_slide


def _png(path: Path) -> None:
    Image.fromarray(tissue_like(64, 64)).save(path, "PNG")


def _jpeg(path: Path) -> None:
    Image.fromarray(tissue_like(64, 64)).save(path, "JPEG")


def _sixteen_bits(path: Path) -> None:
    tifffile.imwrite(path, tissue_like(64, 64).astype(np.uint16), photometric="rgb")


@pytest.mark.parametrize(
    ("make", "problem", "remedy"),
    [
        (lambda path: None, "there is no such file", "check the path"),
        (lambda path: path.mkdir(), "folder", "name a file"),
        (lambda path: path.symlink_to("nowhere.svs"), "points to 'nowhere.svs'", "repair the link"),
        (lambda path: path.symlink_to(path.name), "circle", "repair the link"),
        (lambda path: os.mkfifo(path), "not a regular file", "name a slide"),
        (lambda path: path.write_bytes(b""), "empty", "copy the file again"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
        (lambda path: path.write_bytes(b"\0\5\x16\7" + bytes(100)), "AppleDouble", "without `._`"),
        (_png, "a PNG image", "scanner's own file"),
        (_jpeg, "a plain JPEG image", "scanner's own file"),
        (_sixteen_bits, "no RGB image but has 3 channels of uint16", "--channels red=FF0000:0-65535"),
        (lambda path: path.write_text("slide_id,path\n1,a.svs\nµ,b\n", "utf-8"), "a text file", "scanner's own file"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>log in"), "a web page", "scanner's own file"),
        (lambda path: path.write_bytes(bytes(100_000)), "zero bytes", "scanner's own file"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(500)), "a ZIP archive", "scanner's own file"),
        (lambda path: path.write_bytes(b"II*\0"), "ends within a TIFF directory", "copy the file again"),
        (lambda path: path.write_bytes(b"II*\0\0\0\0\0"), "without a directory", "copy the file again"),
        (lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 9), "not a slide in a known format", "scanner's own"),
    ],
)
@pytest.mark.parametrize("suffix", [".svs", ".ndpi"])
def test_each_bad_file_has_its_own_problem_and_remedy(tmp_path, make, problem, remedy, suffix):
    path = tmp_path / f"slide{suffix}"
    make(path)
    with pytest.raises(SlideError) as refusal:
        open_slide(path)
    where, said, advice = refusal.value.args
    assert where == str(path)
    assert problem in said
    assert remedy in advice


def test_a_file_that_may_not_be_read_is_said_to_be_that():
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = folder / "slide.svs"
        path.write_bytes(b"II*\0 secret")
        path.chmod(0)
        assert "this user may not read the file; ask its owner" in _refusal_as_another_user(path)
    finally:
        shutil.rmtree(folder)


def _refusal_as_another_user(path: Path) -> str:
    """What open_slide says in a child that gave up root's right to read everything."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it opened"
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            open_slide(path)
        except SlideError as refusal:
            said = str(refusal)
        finally:
            os.write(send, said.encode())
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_mirax_file_without_its_folder_names_the_folder(tmp_path):
    path = tmp_path / "slide.mrxs"
    _jpeg(path)
    with pytest.raises(SlideError, match="folder of the same name"):
        open_slide(path)


def test_the_suffix_only_orders_the_attempts(real_slide, tmp_path):
    for name in ("slide.dcm", "slide", "slide.PNG"):
        copy = tmp_path / name
        shutil.copy(real_slide, copy)
        with open_slide(copy) as slide:
            assert slide.info.reader in ("tiff", "openslide")
            assert slide.info.mpp == 0.499


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf")])
def test_an_absurd_override_is_a_wrong_setting(real_slide, mpp):
    with pytest.raises(SpecError, match="no pixel size"):
        open_slide(real_slide, mpp=mpp)


def test_errors_survive_the_trip_between_processes(tmp_path):
    for error in (SlideError(tmp_path / "a.svs", "problem", "remedy"), TileError("a.svs", "problem", "remedy")):
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, made a line above
        assert type(back) is type(error)
        assert str(back) == str(error)
    with pytest.raises(SlideError) as refusal:
        open_slide(tmp_path / "missing.svs")
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)  # noqa: S301


def test_a_generic_tiff_with_deflate_tiles_is_read_directly(tmp_path):
    path = tmp_path / "slide.tif"
    image = tissue_like(600, 500)
    tifffile.imwrite(path, image, tile=(256, 256), compression="deflate", photometric="rgb", metadata=None)
    with open_slide(path, mpp=0.25, mpp_source="manifest") as slide:
        assert slide.info.reader == "tiff"
        assert slide.info.why == "tiled deflate TIFF (generic-tiff)"
        assert (slide.info.mpp, slide.info.mpp_source, slide.info.codec) == (0.25, "manifest", "deflate")
        out = np.empty((1, 256, 256, 3), np.uint8)
        assert slide.read_many(np.array([[100, 100]]), 0, out).all()
        assert np.array_equal(out[0], image[100:356, 100:356])


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(SlideError, match="no file is named"):
        open_slide("")
