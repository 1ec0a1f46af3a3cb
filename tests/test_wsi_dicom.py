"""DICOM slides: the pixels of OpenSlide and wsidicom, the colours that the frames have, and nothing from damage."""

import io

import numpy as np
import openslide
import pytest
import wsidicom
from PIL import Image
from pydicom import dcmread

from tests.dicom_slides import DicomOptions, cut, encode, write_dicom, write_pyramid
from tests.slides import tissue_like
from wsi import Region, open_slide

IMAGE = tissue_like(700, 460)
LEVELS = [IMAGE, IMAGE[::2, ::2].copy(), IMAGE[::8, ::8][:57, :87].copy()]
HALF = [(0, 0), (1, 0), (3, 1), (5, 3)]  # the frames that a sparse slide has
GOOGLE = ("google_camelyon_jpeg", "google_camelyon_jpeg2000", "google_wsi2dcm_raw", "google_wsi2dcm_jpeg",
          "google_wsi2dcm_jpeg2000")  # fmt: skip


def whole(slide, level=0):
    """All pixels of a level."""
    size = slide.levels[level]
    out = np.empty((1, size.height, size.width, 3), np.uint8)
    assert slide.read_many(np.zeros((1, 2), np.int64), level, out).all()
    return out[0]


@pytest.mark.parametrize("name", GOOGLE)
def test_pixels_are_openslides_and_wsidicoms(data_dir, name):
    path = data_dir / "slides" / f"{name}.dcm"
    with open_slide(path) as slide, openslide.OpenSlide(path) as peer, wsidicom.WsiDicom.open(path) as other:
        width, height = peer.dimensions
        assert (slide.levels[0].width, slide.levels[0].height) == (width, height)
        assert slide.info.reader == "dicom"
        for x, y, side in [
            (0, 0, max(width, height)),
            (-13, -7, 301),
            (width - 101, height - 57, 333),
            (171, 253, 251),
        ]:
            rgba = np.asarray(peer.read_region((x, y), 0, (side, side)))
            pixels = slide.read(Region(x, y, side, side), 0)
            assert np.array_equal(pixels, np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]))
        inside = other.read_region((171, 253), 0, (251, 251)).convert("RGB")
        assert np.array_equal(slide.read(Region(171, 253, 251, 251), 0), np.asarray(inside))


def test_transfer_syntaxes_of_one_image_give_one_image(data_dir):
    raw, jpeg, jpeg2000 = (
        whole(open_slide(data_dir / "slides" / f"google_wsi2dcm_{name}.dcm")) for name in ("raw", "jpeg", "jpeg2000")
    )
    assert np.array_equal(raw, jpeg2000)  # lossless
    assert np.abs(raw.astype(int) - jpeg).mean() < 3


def test_frames_that_are_ycbcr_are_shown_so_whatever_the_header_says(data_dir, real_slide):
    folder = data_dir / "slides" / "dicom_cmu_small"
    with open_slide(folder) as slide, open_slide(real_slide) as truth:
        assert "its frames are YCbCr (their chroma is subsampled) though its header says RGB" in slide.info.why
        assert [(level.width, level.height) for level in slide.levels[:2]] == [(2220, 2967), (1110, 1483)]
        assert len(slide.levels) == 6
        assert (slide.info.mpp, slide.info.mpp_source) == (0.499, "dicom")
        pixels = whole(slide)
        assert np.abs(pixels.astype(int) - whole(truth)).mean() < 4  # encoded again, 3.4; with false colours it is 66
        assert pixels[-1, -1].tolist() == slide.read(Region(2219, 2966, 1, 1), 0)[0, 0].tolist()
        data = dcmread(folder / "level-0-frames-0-30.dcm").PixelData
        first = np.asarray(Image.open(io.BytesIO(data[data.index(b"\xff\xd8") :])))
        assert np.array_equal(pixels[:500, :500], first)


@pytest.mark.parametrize(
    ("codec", "photometric"),
    [("uncompressed", "RGB"), ("implicit", "RGB"), ("jpeg2000", "RGB"), ("jpeg2000", "YBR_RCT"), ("htj2k", "RGB"),
     ("jpeg-ls", "RGB"), ("rle", "RGB")],
)  # fmt: skip
def test_lossless_frames_are_the_image(tmp_path, codec, photometric):
    write_pyramid(tmp_path, LEVELS, DicomOptions(codec, photometric))
    with open_slide(tmp_path) as slide:
        stored = [number for number, level in enumerate(slide.levels) if level.stored]
        assert len(stored) == 3
        for number, level in zip(stored, LEVELS, strict=True):
            assert np.array_equal(whole(slide, number), level)


@pytest.mark.parametrize(
    ("stored", "tagged", "note"),
    [("YBR_FULL_422", "YBR_FULL_422", ""), ("YBR_FULL", "YBR_FULL_422", ""), ("RGB", "RGB", ""),
     ("YBR_FULL_422", "RGB", "YCbCr (their chroma is subsampled)"), ("YBR_FULL", "RGB", "YCbCr (they are JFIF)"),
     ("RGB", "YBR_FULL_422", "RGB (their Adobe marker says so)")],
)  # fmt: skip
def test_jpeg_frames_have_the_colours_they_say_themselves(tmp_path, stored, tagged, note):
    path = write_dicom(
        tmp_path / "a.dcm", IMAGE, DicomOptions(photometric=stored, more={"PhotometricInterpretation": tagged})
    )
    tiles = [np.asarray(Image.open(io.BytesIO(encode(tile, "jpeg", stored)))) for tile in cut(IMAGE, 128)]
    with open_slide(path) as slide:
        for number, tile in enumerate(tiles[:5]):
            assert np.array_equal(slide.read(Region(number * 128, 0, 128, 128), 0), tile)
        assert note in slide.info.why
        assert ("though" in slide.info.why) == bool(note)


def test_colours_are_found_though_the_first_frame_is_lost(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions(more={"PhotometricInterpretation": "RGB"}))
    with open_slide(path) as slide:
        before = slide.read(Region(256, 0, 128, 128), 0)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8\xff\xe0")
    data[at : at + 900] = bytes(900)
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(Region(256, 0, 128, 128), 0), before)
        out = np.empty((2, 128, 128, 3), np.uint8)
        assert slide.read_many(np.array([[0, 0], [128, 0]]), 0, out).tolist() == [False, True]


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_are_found_by_any_table_or_none(tmp_path, table):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions("jpeg2000", "RGB", table=table))
    with open_slide(path) as slide:
        assert np.array_equal(whole(slide), IMAGE)


def test_frames_in_several_fragments_are_joined_or_lost_never_wrong(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions("jpeg2000", "RGB", fragments=3))
    with open_slide(path) as slide:
        xy = np.array([[x, y] for y in range(0, 460, 128) for x in range(0, 700, 128)])
        out = np.empty((len(xy), 128, 128, 3), np.uint8)
        ok = slide.read_many(xy, 0, out)
        assert ok[:-1].all()
        assert np.array_equal(out[0], IMAGE[:128, :128])


@pytest.mark.parametrize("codec", ["jpeg", "uncompressed"])
def test_frames_that_a_sparse_slide_leaves_out_are_white_glass(tmp_path, codec):
    photometric = "RGB" if codec == "uncompressed" else "YBR_FULL_422"
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions(codec, photometric, present=HALF))
    (tmp_path / "full").mkdir()
    full = write_dicom(tmp_path / "full" / "b.dcm", IMAGE, DicomOptions(codec, photometric))
    with open_slide(path) as slide, open_slide(full) as other, wsidicom.WsiDicom.open(path) as peer:
        expected = np.full_like(IMAGE, 255)
        for column, row in HALF:
            place = slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128)
            expected[place] = whole(other)[place]
        assert np.array_equal(whole(slide), expected)
        assert np.array_equal(np.asarray(peer.read_region((0, 0), 0, (700, 460)).convert("RGB")), expected)
        assert (slide.read(Region(256, 0, 128, 128), len(slide.levels) - 1) == 255).all()
