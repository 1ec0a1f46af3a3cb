"""What every reader promises, and that the direct reader's pixels are OpenSlide's."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.dicom_slides import DicomOptions, write_pyramid
from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from wsi import Region, Slide, SlideError, open_slide
from wsi.formats.dicom import DicomSlide
from wsi.formats.openslide import OpenSlideSlide
from wsi.formats.tiff import TiffSlide
from wsi.formats.tiff_structure import read_pyramid

WIDTH, HEIGHT = 1210, 890
IMAGE = tissue_like(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("readers") / "slide.svs", IMAGE)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = [IMAGE, IMAGE[::2, ::2].copy(), IMAGE[: HEIGHT // 4 * 4 : 4, : WIDTH // 4 * 4 : 4]]
    return write_pyramid(tmp_path_factory.mktemp("dicom"), levels, DicomOptions(tile=240))


@pytest.fixture(params=["tiff", "openslide", "dicom", "array"])
def slide(request: pytest.FixtureRequest, svs: Path, dicom: Path) -> Iterator[Slide]:
    makers: dict[str, Callable[[], Slide]] = {
        "tiff": lambda: TiffSlide(svs, "asked for"),
        "openslide": lambda: OpenSlideSlide(svs, "asked for"),
        "dicom": lambda: DicomSlide(dicom, "asked for"),
        "array": lambda: ArraySlide(
            [IMAGE, IMAGE[::2, ::2].copy(), IMAGE[: HEIGHT // 4 * 4 : 4, : WIDTH // 4 * 4 : 4]]
        ),
    }
    with makers[request.param]() as opened:
        yield opened


def test_levels_run_from_fine_to_coarse(slide):
    assert [(level.width, level.height) for level in slide.levels[:2]] == [(1210, 890), (605, 445)]
    assert slide.levels[0].downsample == 1
    assert all(a.downsample < b.downsample for a, b in zip(slide.levels, slide.levels[1:], strict=False))
    assert [level.mpp for level in slide.levels] == pytest.approx([0.5 * level.downsample for level in slide.levels])


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("x", "y", "width", "height"),
    [(0, 0, 300, 200), (238, 478, 4, 6), (1000, 800, 210, 90), (1208, 888, 2, 2)],
    ids=["corner", "tile crossing", "to the far corner", "last pixels"],
)
def test_a_region_inside_has_its_shape_and_the_slides_pixels(slide, level, x, y, width, height):
    scale = round(slide.levels[level].downsample)
    pixels = slide.read(Region(x, y, width, height), level)
    assert pixels.shape == (height // scale, width // scale, 3)
    assert pixels.dtype == np.uint8
    whole = slide.read(Region(0, 0, WIDTH, HEIGHT), level)
    cut = whole[y // scale : (y + height) // scale, x // scale : (x + width) // scale]
    assert np.array_equal(pixels, cut)


@pytest.mark.parametrize("level", [0, 1])
def test_outside_the_slide_is_white(slide, level):
    scale = round(slide.levels[level].downsample)
    pixels = slide.read(Region(-40, -20, WIDTH + 80, HEIGHT + 60), level)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[20 // scale : (20 + HEIGHT) // scale, 40 // scale : (40 + WIDTH) // scale] = True
    assert (pixels[~inside] == 255).all()
    whole = slide.read(Region(0, 0, WIDTH, HEIGHT), level)
    assert np.array_equal(pixels[inside].reshape(whole.shape), whole)
    assert (slide.read(Region(-500, -500, 64, 64), level) == 255).all()
    assert (slide.read(Region(WIDTH + 100, 0, 64, 64), level) == 255).all()


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("side", [240, 100, 1, 256])
def test_read_many_gives_what_read_gives(slide, level, side):
    scale = round(slide.levels[level].downsample)
    rng = np.random.default_rng(side)
    xy = np.concatenate(
        [
            [[0, 0], [240, 240], [0, 0], [-100, -50], [WIDTH - 40, HEIGHT - 40], [5_000, 5_000]],
            rng.integers((-60, -60), (WIDTH // 2, HEIGHT // 2), (12, 2)) * 2,
        ]
    ).astype(np.int64)
    out = np.full((len(xy), side, side, 3), 7, np.uint8)
    ok = slide.read_many(xy, level, out)
    assert ok.dtype == np.bool_
    assert ok.all()
    for (x, y), patch in zip(xy.tolist(), out, strict=True):
        assert np.array_equal(patch, slide.read(Region(x, y, side * scale, side * scale), level))


def test_read_many_of_nothing_is_nothing(slide):
    assert slide.read_many(np.empty((0, 2), np.int64), 0, np.empty((0, 64, 64, 3), np.uint8)).shape == (0,)


def test_read_many_fills_a_view_of_a_larger_batch(slide):
    batch = np.zeros((8, 240, 240, 3), np.uint8)
    slide.read_many(np.array([[0, 0], [240, 0]]), 0, batch[1:4:2])
    assert np.array_equal(batch[3], slide.read(Region(240, 0, 240, 240), 0))
    assert not batch[[0, 2, 4, 5, 6, 7]].any()
    wide = np.zeros((2, 260, 260, 3), np.uint8)
    slide.read_many(np.array([[0, 0], [240, 0]]), 0, wide[:, 10:250, 10:250])
    assert np.array_equal(wide[1, 10:250, 10:250], batch[3])
    assert not wide[:, :10].any()
    assert not wide[:, :, 250:].any()


def test_threads_see_the_same_pixels(slide):
    regions = [Region(x, y, 300, 300) for x in range(0, 900, 150) for y in range(0, 600, 150)]
    alone = [slide.read(region, 0) for region in regions]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda region: slide.read(region, 0), regions * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def test_a_slide_may_be_closed_twice_and_is_still_described(slide):
    slide.close()
    slide.close()
    assert (slide.levels[0].width, slide.levels[0].height) == (WIDTH, HEIGHT)
    slide.close()


def test_an_unknown_associated_image_is_a_key_error(slide):
    with pytest.raises(KeyError):
        slide.associated("portrait")


@pytest.mark.parametrize("reader", [TiffSlide, OpenSlideSlide])
def test_a_closed_slide_says_so(svs, reader):
    slide = reader(svs, "asked for")
    slide.close()
    with pytest.raises(ValueError, match="closed"):
        slide.read(Region(0, 0, 10, 10), 0)


@pytest.mark.parametrize("reader", [TiffSlide, OpenSlideSlide])
def test_opening_and_closing_leaves_no_file_open(svs, reader):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here to count open files in")
    before = len(list(folder.iterdir()))
    for _ in range(50):
        with reader(svs, "asked for") as slide:
            slide.read(Region(0, 0, 64, 64), 0)
            slide.associated("label")
    assert len(list(folder.iterdir())) == before


@pytest.mark.parametrize("colour", ["420", "422", "444", "rgb"])
@pytest.mark.parametrize("shared_tables", [True, False], ids=["shared tables", "whole JPEGs"])
@pytest.mark.parametrize(
    ("aperio", "bigtiff", "big_endian"), [(True, False, False), (False, True, False), (False, True, True)]
)
def test_direct_pixels_are_openslides_at_every_level(tmp_path, colour, shared_tables, aperio, bigtiff, big_endian):
    options = SvsOptions(
        colour=colour, shared_tables=shared_tables, aperio=aperio, bigtiff=bigtiff, big_endian=big_endian
    )
    path = write_svs(tmp_path / "slide.tif", IMAGE, options)
    with open_slide(path) as direct, openslide.OpenSlide(path) as peer:
        assert direct.info.reader == "tiff"
        assert direct.info.mpp == pytest.approx(0.5)
        assert [level.downsample for level in direct.levels] == list(peer.level_downsamples)
        for number, (width, height) in enumerate(peer.level_dimensions):
            expected = np.asarray(peer.read_region((0, 0), number, (width, height)))[..., :3]
            span = peer.level_downsamples[number]
            assert np.array_equal(
                direct.read(Region(0, 0, round(width * span), round(height * span)), number), expected
            )


def test_direct_pixels_are_openslides_on_a_real_slide(real_slide):
    with open_slide(real_slide) as direct, openslide.OpenSlide(real_slide) as peer:
        width, height = peer.dimensions
        assert (direct.info.reader, direct.info.mpp, direct.info.objective) == ("tiff", 0.499, 20)
        for x, y, side in [
            (0, 0, max(width, height)),
            (-13, -7, 301),
            (width - 101, height - 57, 333),
            (471, 953, 251),
        ]:
            rgba = np.asarray(peer.read_region((x, y), 0, (side, side)))
            expected = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
            assert np.array_equal(direct.read(Region(x, y, side, side), 0), expected)
        for name in ("label", "macro", "thumbnail"):
            assert np.array_equal(direct.associated(name), np.asarray(peer.associated_images[name].convert("RGB")))


def test_both_readers_describe_a_slide_alike(svs):
    with TiffSlide(svs, "asked for") as direct, OpenSlideSlide(svs, "asked for") as peer:
        for field in ("vendor", "mpp", "mpp_source", "objective", "codec", "tile_px", "associated", "icc_bytes"):
            assert getattr(direct.info, field) == getattr(peer.info, field), field
        assert direct.levels == peer.levels


@pytest.mark.parametrize("big_endian", [False, True])
def test_our_directory_reading_agrees_with_tifffile(tmp_path, big_endian):
    path = write_svs(tmp_path / "slide.svs", IMAGE, SvsOptions(big_endian=big_endian))
    pyramid = read_pyramid(path)
    assert not isinstance(pyramid, str)
    with tifffile.TiffFile(path) as file:
        tiled = [page for page in file.pages if page.is_tiled]
        assert [tuple(page.dataoffsets) for page in tiled] == [tuple(level.offsets) for level in pyramid.levels]
        assert [tuple(page.databytecounts) for page in tiled] == [tuple(level.counts) for level in pyramid.levels]
        assert pyramid.associated == {"thumbnail": 1, "label": 4, "macro": 5}


def test_every_real_file_opens_or_is_refused_in_words(data_dir):
    opened: dict[str, str] = {}
    refused: dict[Path, str] = {}
    for path in sorted(file for file in (data_dir / "slides").rglob("*") if file.is_file()):
        try:
            with open_slide(path) as slide:
                region = Region(0, 0, *(min(side, 300) for side in (slide.levels[0].width, slide.levels[0].height)))
                assert slide.read(region, 0).shape == (region.height, region.width, 3)
                for name in slide.info.associated:
                    assert slide.associated(name).ndim == 3
                opened[path.name] = slide.info.why
        except SlideError as refusal:
            refused[path] = str(refusal)
    assert all(str(path) in said for path, said in refused.items())
    assert opened["CMU-1-Small-Region.svs"] == "tiled JPEG TIFF (aperio)"
    assert opened["TCGA-CR-7395-01A-01-TS1.svs"] == "tiled JPEG 2000 TIFF (aperio)"
    assert opened["google_camelyon_jpeg.dcm"] == "DICOM whole-slide image in 1 file"
    assert opened["stritt_test3-DAPI-2-387.ndpi"] == "OpenSlide reads hamamatsu"


def test_a_system_without_reads_at_an_offset_sees_the_same_pixels_from_threads(svs, monkeypatch):
    xy = np.array([[x, y] for y in range(0, 400, 100) for x in range(0, 400, 100)], np.int64)
    with TiffSlide(svs, "test") as slide:
        expected = np.empty((len(xy), 100, 100, 3), np.uint8)
        slide.read_many(xy, 0, expected)
        monkeypatch.delattr("os.pread")

        def read(part: int) -> bool:
            out = np.empty((4, 100, 100, 3), np.uint8)
            slide.read_many(xy[part : part + 4], 0, out)
            return np.array_equal(out, expected[part : part + 4])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, [0, 4, 8, 12] * 5))
