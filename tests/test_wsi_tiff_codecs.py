"""Every codec and layout of TIFF: the pixels are those that were stored, or OpenSlide's, or tifffile's."""

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.slides import tissue_like
from tests.tiff_slides import (
    TiffOptions,
    cut,
    encode_j2k,
    join_components,
    smaller,
    to_ycbcr,
    write_j2k_svs,
    write_tiff,
)
from wsi import Region, Slide, open_slide
from wsi.formats.jpeg2000 import ycbcr_to_rgb
from wsi.formats.tiff import TiffSlide

IMAGE = tissue_like(700, 530)
LEVELS = [IMAGE, smaller(IMAGE, 2), smaller(IMAGE, 4)]
CORNERS = [(0, 0), (-13, -7), (255, 255), (301, 217), (600, 450), (699, 529), (5_000, 0)]


def whole(slide: Slide, level: int) -> NDArray[np.uint8]:
    """All pixels of a level, each exactly once."""
    size, scale = slide.levels[level], slide.levels[level].downsample
    pixels = slide.read(Region(0, 0, round(size.width * scale), round(size.height * scale)), level)
    return pixels[: size.height, : size.width]


def stored(slide: Slide) -> list[int]:
    return [number for number, level in enumerate(slide.levels) if level.stored]


def patches_match(slide: Slide, number: int, truth: NDArray[np.uint8]) -> bool:
    """Patches at borders and odd offsets are cut from `truth`, with white around it."""
    xy = np.rint(np.array(CORNERS) * slide.levels[number].downsample).astype(np.int64)
    out = np.empty((len(xy), 97, 97, 3), np.uint8)
    assert slide.read_many(xy, number, out).all()
    framed = np.full((truth.shape[0] + 400, truth.shape[1] + 400, 3), 255, np.uint8)
    framed[200 : 200 + truth.shape[0], 200 : 200 + truth.shape[1]] = truth
    expected = [
        framed[200 + y : 297 + y, 200 + x : 297 + x] if x < 1_000 else np.full((97, 97, 3), 255, np.uint8)
        for x, y in CORNERS
    ]
    inside = [y < truth.shape[0] + 103 and x < truth.shape[1] + 103 for x, y in CORNERS]
    return all(np.array_equal(out[at], expected[at]) for at in range(len(xy)) if inside[at] or CORNERS[at][0] > 1_000)


@pytest.mark.parametrize("tile", [256, None], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, False),
        ("lzw", False),
        ("lzw", True),
        ("zlib", False),
        ("adobe_deflate", True),
        ("packbits", False),
        ("zstd", False),
        ("zstd", True),
        ("webp", False),
        ("jpeg2000", False),
    ],
)
def test_lossless_codecs_give_the_stored_pixels_at_every_level(tmp_path, compression, predictor, tile):
    path = write_tiff(tmp_path / "slide.tif", LEVELS, TiffOptions(compression, tile, predictor=predictor))
    with open_slide(path, mpp=0.5) as slide:
        assert slide.info.reader == "tiff"
        named = {None: "uncompressed", "zlib": "deflate", "adobe_deflate": "deflate"}
        assert slide.info.codec == named.get(compression, compression)
        assert slide.info.tile_px == (None if tile is None else (256, 256))
        assert len(stored(slide)) == 3
        for number, truth in zip(stored(slide), LEVELS, strict=True):
            assert np.array_equal(whole(slide, number), truth)
            assert patches_match(slide, number, truth)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", None])
@pytest.mark.parametrize("big", [False, True])
def test_tiles_that_openslide_reads_are_the_same_to_it(tmp_path, compression, big):
    options = TiffOptions(compression, bigtiff=big, big_endian=big)
    path = write_tiff(tmp_path / "slide.tif", LEVELS, options)
    with TiffSlide(path, "asked for") as slide, openslide.OpenSlide(path) as peer:
        assert [slide.levels[number].downsample for number in stored(slide)] == list(peer.level_downsamples)
        for at, number in enumerate(stored(slide)):
            expected = np.asarray(peer.read_region((0, 0), at, peer.level_dimensions[at]).convert("RGB"))
            assert np.array_equal(whole(slide, number), expected)


@pytest.mark.parametrize("tile", [128, None], ids=["tiles", "strips"])
@pytest.mark.parametrize("predictor", [False, True])
def test_planes_that_lie_apart_come_together(tmp_path, tile, predictor):
    planes = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))
    options = TiffOptions("lzw", tile, predictor=predictor, planar=True)
    with open_slide(write_tiff(tmp_path / "slide.tif", [planes], options), mpp=0.5) as slide:
        assert np.array_equal(whole(slide, 0), IMAGE)


@pytest.mark.parametrize("tile", [128, None], ids=["tiles", "strips"])
@pytest.mark.parametrize("compression", ["zlib", None, "jpeg"])
def test_grey_is_shown_as_equal_parts(tmp_path, tile, compression):
    grey = np.ascontiguousarray(IMAGE[..., 1])
    path = write_tiff(tmp_path / "slide.tif", [grey], TiffOptions(compression, tile))
    truth = tifffile.imread(path)
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(whole(slide, 0), np.repeat(truth[..., None], 3, axis=2))


def test_grey_where_white_is_zero_is_turned(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, IMAGE[..., 0], tile=(128, 128), photometric="miniswhite", compression="zlib")
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(whole(slide, 0)[..., 1], 255 - IMAGE[..., 0])


@pytest.mark.parametrize("compression", ["lzw", None, "webp"])
def test_what_alpha_makes_transparent_is_white_and_the_rest_untouched(tmp_path, compression):
    alpha = np.full(IMAGE.shape[:2], 255, np.uint8)
    alpha[:200, :300] = 0
    alpha[300:, 300:] = 128
    path = write_tiff(tmp_path / "slide.tif", [np.dstack([IMAGE, alpha])], TiffOptions(compression))
    truth = tifffile.imread(path)[..., :3]
    with open_slide(path, mpp=0.5) as slide:
        pixels = whole(slide, 0)
        assert (pixels[:200, :300] == 255).all()
        assert np.array_equal(pixels[:200, 300:], truth[:200, 300:])
        half = np.rint(truth[300:, 300:] * (128 / 255) + 255 * (127 / 255))
        assert np.abs(pixels[300:, 300:] - half).max() <= 1


def test_a_fourth_sample_that_is_not_alpha_is_ignored(tmp_path):
    path = tmp_path / "slide.tif"
    pixels = np.dstack([IMAGE, np.zeros(IMAGE.shape[:2], np.uint8)])
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", extrasamples=["unspecified"], metadata=None)
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(whole(slide, 0), IMAGE)


@pytest.mark.parametrize("rows", [1, 64, 530, None])
@pytest.mark.parametrize("compression", ["jpeg", "zlib", None])
def test_strips_of_any_height_are_read(tmp_path, rows, compression):
    path = write_tiff(tmp_path / "slide.tif", [IMAGE], TiffOptions(compression, None, rows))
    truth = tifffile.imread(path)
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(whole(slide, 0), truth)
        assert patches_match(slide, 0, truth)


@pytest.mark.parametrize("compression", ["zlib", None, "jpeg"])
def test_a_last_strip_that_is_filled_up_is_read(tmp_path, compression):
    padded = np.concatenate([IMAGE, IMAGE[:110]])  # 4 strips of 160 rows, of which the image has 530
    path = write_tiff(tmp_path / "slide.tif", [padded], TiffOptions(compression, None, 160))
    truth = tifffile.imread(path)[:530]
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[257].overwrite(530)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.levels[0].height == 530
        assert np.array_equal(whole(slide, 0), truth)


def test_an_uncompressed_image_in_one_strip_is_read_in_bands(tmp_path):
    image = np.tile(tissue_like(1_000, 300), (9, 3, 1))
    path = write_tiff(tmp_path / "slide.tif", [image], TiffOptions(None, None, None))
    with tifffile.TiffFile(path) as file:
        assert len(file.pages[0].dataoffsets) == 1
    with TiffSlide(path, "asked for") as slide:
        assert slide._views[0].grid.tile_height < 400
        assert np.array_equal(whole(slide, 0), image)


def test_a_real_plain_tiff_needs_a_pixel_size_and_is_tifffiles(data_dir):
    path = data_dir / "slides" / "histolab_kidney-48-5.tif"
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        assert slide.info.mpp_problem == "its file states no pixel size"
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.mpp) == ("tiff", "generic-tiff", 0.25)
        assert np.array_equal(whole(slide, 0), tifffile.imread(path))


def test_jpeg_2000_is_openslides_on_a_real_slide_at_every_level(data_dir):
    path = data_dir / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as peer:
        assert (slide.info.reader, slide.info.codec, slide.info.vendor) == ("tiff", "jpeg2000", "aperio")
        assert len(stored(slide)) == peer.level_count
        for at, number in enumerate(stored(slide)):
            assert slide.levels[number].downsample == peer.level_downsamples[at]
            truth = np.asarray(peer.read_region((0, 0), at, peer.level_dimensions[at]))[..., :3]
            assert np.array_equal(whole(slide, number), truth)
            assert patches_match(slide, number, truth)
        assert np.array_equal(slide.associated("thumbnail"), np.asarray(peer.associated_images["thumbnail"])[..., :3])


@pytest.mark.parametrize("quality", [0, 45], ids=["reversible", "irreversible"])
@pytest.mark.parametrize("compression", [33003, 33005], ids=["YCbCr", "RGB"])
def test_aperio_jpeg_2000_has_openslides_colours(tmp_path, compression, quality):
    is_ycbcr = compression == 33003
    streams = [
        [encode_j2k(to_ycbcr(tile) if is_ycbcr else tile, quality, mct=not is_ycbcr) for tile in cut(level, 256)]
        for level in LEVELS[:2]
    ]
    path = write_j2k_svs(tmp_path / "slide.svs", IMAGE, compression, streams)
    with open_slide(path) as slide, openslide.OpenSlide(path) as peer:
        assert slide.info.reader == "tiff"
        for at, number in enumerate(stored(slide)):
            expected = np.asarray(peer.read_region((0, 0), at, peer.level_dimensions[at]))[..., :3]
            assert np.array_equal(whole(slide, number), expected)
        assert np.abs(whole(slide, 0).astype(int) - IMAGE).mean() < 4


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_ycbcr_is_what_the_standard_says_to_one_level(luma, cb, cr):
    red = luma + 1.402 * (cr - 128)
    green = luma - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    blue = luma + 1.772 * (cb - 128)
    exact = np.clip([red, green, blue], 0, 255)
    assert np.abs(ycbcr_to_rgb(np.array([[[luma, cb, cr]]], np.uint8))[0, 0] - exact).max() <= 0.51


def _smooth(width: int, height: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(x / 90), 128 + 100 * np.cos(y / 70), 90 + (x + y) / 20], -1).astype(np.uint8)


@pytest.mark.parametrize("mct", [True, False], ids=["RGB", "YCbCr"])
def test_jpeg_2000_is_made_smaller_by_leaving_resolutions_out(tmp_path, mct):
    image = _smooth(1_300, 1_100)
    tiles = [encode_j2k(tile if mct else to_ycbcr(tile), mct=mct) for tile in cut(image, 256)]
    path = write_j2k_svs(tmp_path / "slide.svs", image, 33005 if mct else 33003, [tiles])
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        for number, factor in ((1, 2), (2, 4)):
            difference = np.abs(whole(slide, number).astype(int) - smaller(image, factor))
            assert difference.max() <= 7  # a smooth picture: half a pixel's shift, no detail lost


def test_jpeg_2000_whose_packets_lie_otherwise_is_averaged(tmp_path):
    image = _smooth(600, 600)
    tiles = [join_components([tile[..., channel] for channel in range(3)], halved=False) for tile in cut(image, 256)]
    path = write_j2k_svs(tmp_path / "slide.svs", image, 33005, [tiles])
    with open_slide(path) as slide:
        assert np.array_equal(whole(slide, 0), image)
        assert np.abs(whole(slide, 1).astype(int) - smaller(image, 2)).max() <= 1


@pytest.mark.parametrize("mct", [True, False], ids=["transformed", "plain"])
def test_a_jpeg_2000_code_of_aperio_means_only_the_codec_in_other_files(tmp_path, mct):
    path = tmp_path / "slide.tif"
    layout = {"shape": IMAGE.shape, "dtype": np.uint8, "tile": (256, 256), "compression": 33003}
    tiles = [encode_j2k(tile, mct=mct) for tile in cut(IMAGE, 256)]
    tifffile.imwrite(path, iter(tiles), **layout, photometric="rgb", metadata=None)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.info.codec == "jpeg2000"
        assert np.array_equal(whole(slide, 0), IMAGE)


def test_jpeg_2000_with_half_the_colour_columns_is_left_to_openslide(tmp_path):
    def stream(tile: NDArray[np.uint8]) -> bytes:
        luma, cb, cr = to_ycbcr(tile).transpose(2, 0, 1)
        return join_components([luma, cb[:, ::2], cr[:, ::2]], halved=True)

    image = _smooth(600, 600)
    path = write_j2k_svs(tmp_path / "slide.svs", image, 33003, [[stream(tile) for tile in cut(image, 256)]])
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"
        assert "tiff declined: JPEG 2000 tiles with half the colour columns" in slide.info.why
        assert np.abs(whole(slide, 0).astype(int) - _smooth(600, 600)).max() <= 6


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "before",
    [
        b"\xff",  # fill bytes before a marker, ITU-T T.81, B.1.1.2
        b"\xff" * 9,
        _segment(0xFE, bytes(100)),
        _segment(0xFE, b"\xff\xd9\xff\xd8"),
        _segment(0xE1, b"Exif\0\0" + b"\xff\xd8\xff\xd9\xff\xd8\xff\xd9" + bytes(100)),
        b"\xff\xff" + _segment(0xE0, bytes(80)) + b"\xff\xff",
    ],
    ids=["fill byte", "fill bytes", "comment of zeros", "comment of markers", "thumbnail", "fill and zeros"],
)
def test_what_the_standard_allows_before_a_scan_is_no_damage(tmp_path, before):
    tiles = [simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 90, "RGB", "444") for tile in cut(IMAGE, 256)]
    shape = {"shape": IMAGE.shape, "dtype": np.uint8, "tile": (256, 256), "compression": "jpeg", "subsampling": (1, 1)}
    padded = [tile[:2] + before + tile[2:] + bytes(2) for tile in tiles]
    for name, content in (("plain", tiles), ("padded", padded)):
        tifffile.imwrite(tmp_path / f"{name}.tif", iter(content), **shape, photometric="ycbcr", metadata=None)
    with open_slide(tmp_path / "plain.tif") as plain, open_slide(tmp_path / "padded.tif") as slide:
        assert slide.info.reader == "tiff"
        assert np.array_equal(whole(slide, 0), whole(plain, 0))
