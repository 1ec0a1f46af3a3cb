"""DICOM slides: the pixels of OpenSlide and wsidicom, the colours that the frames have, and nothing from damage."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest
import wsidicom
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from wsidicom.options import ConcatenationByFrames

from tests.dicom_slides import PHI, SLIDE_CLASS, DicomOptions, cut, encode, write_dicom, write_pyramid
from tests.slides import tissue_like
from wsi import Region, SlideError, open_slide
from wsi.formats.dicom import DicomSlide

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


def test_naming_one_file_opens_its_series_and_no_other(tmp_path):
    write_pyramid(tmp_path, LEVELS, DicomOptions("uncompressed", "RGB"))
    write_dicom(tmp_path / "stranger.dcm", IMAGE[:200, :200].copy(), DicomOptions(series="9.9"))
    with open_slide(tmp_path / "level-2.dcm") as slide, open_slide(tmp_path / "stranger.dcm") as stranger:
        assert [level.width for level in slide.levels if level.stored] == [700, 350, 87]
        assert slide.info.why.startswith("DICOM whole-slide image in 3 files")
        assert [level.width for level in stranger.levels if level.stored] == [200]
    with pytest.raises(
        SlideError, match=r"holds 2 slides.*level-0.dcm \(3 files\), stranger.dcm \(1 file\); name one file"
    ):
        open_slide(tmp_path)


def test_a_folder_of_no_slide_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no slide")
    with pytest.raises(SlideError, match="this is a folder, not a slide file"):
        open_slide(tmp_path)


def test_instances_without_a_suffix_are_found_by_content(tmp_path):
    write_pyramid(tmp_path, LEVELS, DicomOptions("uncompressed", "RGB"))
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_suffix(""))
    with open_slide(tmp_path) as folder, open_slide(tmp_path / "level-1") as named:
        assert folder.info.reader == named.info.reader == "dicom"
        assert folder.levels == named.levels


def test_a_slide_is_described_without_patients_or_serial_numbers(tmp_path):
    options = DicomOptions(tile=128)
    write_pyramid(tmp_path, LEVELS, options)
    for number, kind in enumerate(("LABEL", "OVERVIEW", "THUMBNAIL")):
        more = DicomOptions("uncompressed", "RGB", kind=kind, tile=60, mpp=None)
        write_dicom(tmp_path / f"{kind}.dcm", LEVELS[2] - np.uint8(number), more)
    with open_slide(tmp_path) as slide:
        info = slide.info
        assert (info.mpp, info.mpp_source, info.objective, info.scanner) == (0.5, "dicom", 20, "Scanner 3000")
        assert (info.codec, info.tile_px, info.vendor) == ("jpeg", (128, 128), "dicom")
        assert info.associated == ("label", "macro", "thumbnail")
        for number, name in enumerate(info.associated):
            assert np.array_equal(slide.associated(name), LEVELS[2] - np.uint8(number))
        assert slide.icc_profile() == b"i" * info.icc_bytes
        assert info.icc_bytes == 100_000
        assert PHI not in repr(info)


def test_what_openslide_calls_a_picture_is_what_it_is_here(tmp_path):
    write_pyramid(tmp_path, LEVELS, DicomOptions(tile=128))
    for kind in ("LABEL", "OVERVIEW"):
        write_dicom(tmp_path / f"{kind}.dcm", LEVELS[2], DicomOptions("uncompressed", "RGB", kind=kind, tile=100))
    with open_slide(tmp_path) as slide, openslide.OpenSlide(tmp_path / "level-0.dcm") as peer:
        assert set(slide.info.associated) == set(peer.associated_images) == {"label", "macro"}
        stored = [level for level in slide.levels if level.stored]
        assert [(level.width, level.height) for level in stored] == list(peer.level_dimensions)
        assert [level.downsample for level in stored] == list(peer.level_downsamples)
        for number, (width, height) in enumerate(peer.level_dimensions):
            pixels = np.asarray(peer.read_region((0, 0), number, (width, height)))[..., :3]
            assert np.array_equal(whole(slide, slide.levels.index(stored[number])), pixels)


def _concatenation(folder, cuts):
    """A level whose frames lie in several files, cut at frame numbers."""
    folder.mkdir()
    frames = [encode(tile, "jpeg2000", "RGB") for tile in cut(IMAGE, 128)]
    base = dcmread(write_dicom(folder / "whole", IMAGE, DicomOptions("jpeg2000", "RGB")))
    (folder / "whole").unlink()
    source = base.SOPInstanceUID
    for number, (first, end) in enumerate(pairwise(cuts), 1):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"{source}.{number}"
        base.ConcatenationUID, base.SOPInstanceUIDOfConcatenationSource = "1.2.77", source
        base.InConcatenationNumber, base.InConcatenationTotalNumber = number, len(cuts) - 1
        base.ConcatenationFrameOffsetNumber, base.NumberOfFrames = first, end - first
        base.PixelData = encapsulate(frames[first:end])
        base.save_as(folder / f"part-{number}.dcm")
    return folder


def test_a_concatenation_is_one_level_and_never_lacks_a_part(tmp_path):
    folder = _concatenation(tmp_path / "a", [0, 10, 11, 24])
    with open_slide(folder / "part-2.dcm") as slide:
        assert np.array_equal(whole(slide), IMAGE)
    for number in (1, 2, 3):
        folder = _concatenation(tmp_path / f"without-{number}", [0, 10, 11, 24])
        (folder / f"part-{number}.dcm").unlink()
        with pytest.raises(SlideError, match=r"is missing|of them are there"):
            open_slide(folder)


def test_of_several_focal_planes_the_middle_one_is_shown(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions("uncompressed", "RGB", planes=3))
    with open_slide(path) as slide:
        assert np.array_equal(whole(slide), IMAGE - np.uint8(1))
        assert "the middle of 3 focal planes" in slide.info.why


def test_sparse_frames_may_lie_at_several_heights(tmp_path):
    """One height a frame, as autofocus leaves them, and one place with a stack of three."""
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions("uncompressed", "RGB", present=HALF))
    header = dcmread(path)
    places = [frame.PlanePositionSlideSequence[0] for frame in header.PerFrameFunctionalGroupsSequence]
    for place, z in zip(places, (1.5, 3.0, 2.0, 9.0), strict=True):
        place.ZOffsetInSlideCoordinateSystem = z
    header.save_as(path)
    with open_slide(path) as slide:
        for column, row in HALF:
            x, y = column * 128, row * 128
            assert np.array_equal(slide.read(Region(x, y, 60, 60), 0), IMAGE[y : y + 60, x : x + 60])
    for place, z in zip(places, (1.0, 2.0, 3.0, 2.0), strict=True):
        place.ColumnPositionInTotalImagePixelMatrix = place.RowPositionInTotalImagePixelMatrix = (
            1 if place is not places[3] else 129
        )
        place.ZOffsetInSlideCoordinateSystem = z
    header.save_as(path)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(Region(0, 0, 128, 128), 0), IMAGE[:128, 128:256])  # the second frame
        assert "the middle of 3 focal planes" in slide.info.why


def test_threads_share_an_open_slide(tmp_path):
    folder = _concatenation(tmp_path / "a", [0, 7, 24])
    with open_slide(folder) as slide, ThreadPoolExecutor(8) as pool:
        regions = [Region(x, y, 200, 200) for x in range(0, 500, 90) for y in range(0, 300, 70)]
        for region, pixels in zip(regions, pool.map(lambda region: slide.read(region, 0), regions), strict=True):
            assert np.array_equal(pixels[:160, :160], IMAGE[region.y : region.y + 160, region.x : region.x + 160])


def test_opening_and_closing_leaves_no_file_open(tmp_path):
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("no /proc here to count open files in")
    write_pyramid(tmp_path / "a", LEVELS)
    write_dicom(tmp_path / "a" / "label.dcm", LEVELS[2], DicomOptions(kind="LABEL", tile=87))
    broken = write_dicom(tmp_path / "b.dcm", IMAGE, DicomOptions(more={"TotalPixelMatrixColumns": 9_000}))
    open_slide(tmp_path / "a").close()
    before = len(list(fds.iterdir()))
    for _ in range(10):
        with open_slide(tmp_path / "a") as slide:
            slide.associated("label")
        with pytest.raises(SlideError):
            open_slide(broken)
    assert len(list(fds.iterdir())) == before
    with pytest.raises(ValueError, match="closed"):
        slide.read(Region(0, 0, 10, 10), 0)


def test_other_slides_are_opened_without_a_dicom_library(real_slide):
    code = (
        "import sys, wsi; wsi.open_slide(sys.argv[1]).close()\n"
        "from wsi.formats.dicom import DicomSlide; from pathlib import Path\n"
        "assert not DicomSlide.matches(Path(sys.argv[1])).takes\n"
        "assert not {'pydicom', 'wsidicom'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(real_slide)], check=True, timeout=120)


def test_dicom_that_is_no_slide_or_says_too_little_is_refused_in_words(data_dir, tmp_path):
    with pytest.raises(SlideError, match=r"pathml_small_dicom.dcm: its DICOM header has no ImageType"):
        open_slide(data_dir / "slides" / "pathml_small_dicom.dcm")
    path = write_dicom(tmp_path / "ct.dcm", IMAGE)
    path.write_bytes(
        path.read_bytes().replace(SLIDE_CLASS.encode(), b"1.2.840.10008.5.1.4.1.1.2".ljust(len(SLIDE_CLASS), b"\0"), 1)
    )
    with pytest.raises(SlideError, match=r"this is a DICOM file, not a slide.*not of a whole-slide image"):
        open_slide(path)
    grey = write_dicom(tmp_path / "grey.dcm", IMAGE, DicomOptions(more={"PhotometricInterpretation": "MONOCHROME2"}))
    assert "not 8-bit colour" in DicomSlide.matches(grey).why


def test_sparse_frames_off_the_grid_or_on_one_another_are_not_guessed(tmp_path):
    for places, said in (([(1, 1), (130, 1)], "on a grid"), ([(1, 1), (1, 1)], "at one place")):
        path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions("uncompressed", "RGB", present=[(0, 0), (1, 0)]))
        header = dcmread(path)
        for frame, (x, y) in zip(header.PerFrameFunctionalGroupsSequence, places, strict=True):
            position = frame.PlanePositionSlideSequence[0]
            position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x, y
        header.save_as(path)
        match = DicomSlide.matches(path)
        assert not match.takes
        assert said in match.why


def test_a_pyramid_of_concatenations_that_wsidicom_wrote_is_read_as_it_reads_it(data_dir, tmp_path):
    source, folder = data_dir / "slides" / "google_wsi2dcm_jpeg2000.dcm", tmp_path / "written"
    with wsidicom.WsiDicom.open(source) as written:
        written.save(folder, add_missing_levels=True, concatenation=ConcatenationByFrames(5))
    with open_slide(folder) as slide, wsidicom.WsiDicom.open(folder) as peer, open_slide(source) as before:
        assert "in 5 files" in slide.info.why
        assert np.array_equal(whole(slide), whole(before))
        stored = [number for number, level in enumerate(slide.levels) if level.stored]
        for number, level in zip(stored, peer.pyramid, strict=True):
            pixels = peer.read_region((0, 0), level.level, level.size.to_tuple()).convert("RGB")
            assert np.array_equal(whole(slide, number), np.asarray(pixels))
