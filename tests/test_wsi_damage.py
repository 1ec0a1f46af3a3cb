"""A damaged slide is refused, or the damaged tiles are marked: its pixels are never wrong in silence."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile

from tests.slides import SvsOptions, tissue_like, write_svs
from tests.tiff_slides import philips_xml, write_philips
from wsi import Region, Slide, SlideError, TileError, open_slide
from wsi.formats.openslide import OpenSlideSlide
from wsi.formats.tiff import TiffSlide
from wsi.formats.tiff_structure import Pyramid, read_pyramid

TILE = 240


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("damage") / "slide.svs", tissue_like(1000, 800), SvsOptions(TILE))


@pytest.fixture
def copy(svs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(svs, tmp_path / "copy.svs"))


def _pyramid(path: Path) -> Pyramid:
    pyramid = read_pyramid(path)
    assert isinstance(pyramid, Pyramid)
    return pyramid


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _tag_entry(path: Path, page: int, tag: int) -> tuple[int, int]:
    """(offset of the tag's values, bytes per value)."""
    with tifffile.TiffFile(path) as file:
        entry = file.pages[page].tags[tag]
        return entry.valueoffset, {3: 2, 4: 4, 16: 8}[int(entry.dtype)]


def _silently_wrong(path: Path, good: Slide) -> list[str]:
    """Patches said to be ok whose pixels are not the good slide's; a refused file has none."""
    try:
        slide = open_slide(path)
    except SlideError:
        return []
    wrong = [] if len(slide.levels) == len(good.levels) else [f"{len(slide.levels)} levels"]
    with slide:
        for number, level in enumerate(slide.levels):
            step = round(128 * level.downsample)
            x, y = np.meshgrid(np.arange(0, good.levels[0].width, step), np.arange(0, good.levels[0].height, step))
            xy = np.stack([x.ravel(), y.ravel()], axis=1)
            pixels, truth = (np.empty((len(xy), 128, 128, 3), np.uint8) for _ in range(2))
            ok = slide.read_many(xy, number, pixels)
            good.read_many(xy, number, truth)
            bad = ok & (pixels != truth).any(axis=(1, 2, 3))
            wrong += [f"level {number} at {corner}" for corner in xy[bad].tolist()]
    return wrong


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 0.5, 0.65, 0.8, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("real", [True, False], ids=["real slide", "pyramid"])
def test_a_truncated_slide_is_refused_with_figures(svs, real_slide, tmp_path, share, real):
    data = (real_slide if real else svs).read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    with pytest.raises(SlideError, match=r"\d") as refusal:
        open_slide(path)
    assert "copy the file again" in refusal.value.args[2]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.65, 0.9, 0.99])
@pytest.mark.parametrize("real", [True, False], ids=["real slide", "pyramid"])
def test_a_tail_of_zeros_is_never_read_as_pixels(svs, real_slide, tmp_path, share, real):
    source = real_slide if real else svs
    data = source.read_bytes()
    path = tmp_path / "tail.svs"
    path.write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))
    with open_slide(source) as good:
        assert _silently_wrong(path, good) == []


def test_a_zero_tail_in_the_last_tile_is_refused_as_an_unfinished_copy(copy):
    levels = _pyramid(copy).levels
    last = max(levels, key=lambda level: int(level.offsets.max()))
    at = int(last.offsets.argmax())
    _overwrite(copy, int(last.offsets[at]), bytes(int(last.counts[at])))
    with pytest.raises(SlideError, match="never written to its end"):
        open_slide(copy)


def _zeroed(path: Path, offset: int, count: int) -> None:
    _overwrite(path, offset, bytes(count))


def _cut_short(path: Path, offset: int, count: int) -> None:
    _overwrite(path, offset + count // 2, bytes(count - count // 2))


def _garbage(path: Path, offset: int, count: int) -> None:
    _overwrite(path, offset, bytes(np.random.default_rng(0).integers(0, 256, count, np.uint8)))


def _other_size(path: Path, offset: int, count: int) -> None:
    data = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8), 50)
    _overwrite(path, offset, data.ljust(count, b"\0"))


def _giant(path: Path, offset: int, count: int) -> None:
    raw = path.read_bytes()[offset : offset + count]
    frame = raw.index(b"\xff\xc0")
    _overwrite(path, offset + frame + 5, struct.pack(">HH", 65_500, 65_500))


def _grey(path: Path, offset: int, count: int) -> None:
    data = simplejpeg.encode_jpeg(np.zeros((TILE, TILE, 1), np.uint8), 10, "GRAY")
    _overwrite(path, offset, data.ljust(count, b"\0"))


@pytest.mark.parametrize("damage", [_zeroed, _cut_short, _garbage, _other_size, _giant, _grey])
def test_a_bad_tile_spoils_only_the_patches_that_touch_it(svs, copy, damage):
    level = _pyramid(copy).levels[0]
    tile = level.columns + 2  # second row, third column
    damage(copy, int(level.offsets[tile]), int(level.counts[tile]))
    xy = np.array([[480, 240], [479, 239], [241, 1], [240, 240], [719, 479], [720, 480], [0, 0]])
    touched = np.array([True, True, True, False, True, False, False])
    with open_slide(copy) as slide, open_slide(svs) as good:
        assert slide.info.reader == "tiff"
        pixels, truth = (np.empty((len(xy), TILE, TILE, 3), np.uint8) for _ in range(2))
        ok = slide.read_many(xy, 0, pixels)
        assert ok.tolist() == (~touched).tolist()
        good.read_many(xy, 0, truth)
        assert np.array_equal(pixels[ok], truth[ok])
        with pytest.raises(TileError, match="row 1, column 2 of level 0"):
            slide.read(Region(500, 300, 10, 10), 0)
        assert _silently_wrong(copy, good) == []


@pytest.mark.parametrize("stated", [0, 2**31 - 1], ids=["no bytes", "more bytes than a tile can have"])
def test_a_tile_without_bytes_is_marked(copy, stated):
    offset, width = _tag_entry(copy, 0, 325)
    if stated:  # lies inside the file, so only its size is absurd
        with copy.open("r+b") as file:
            file.truncate(2**31 + 2**30)
    _overwrite(copy, offset + 7 * width, stated.to_bytes(width, "little"))
    with open_slide(copy) as slide:
        out = np.empty((2, 64, 64, 3), np.uint8)
        assert slide.read_many(np.array([[2 * TILE, TILE], [0, 0]]), 0, out).tolist() == [False, True]
        with pytest.raises(TileError, match="no bytes"):
            slide.read(Region(2 * TILE, TILE, 64, 64), 0)


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        (256, 2**31 - 1, "implausible size"),
        (257, 1_000_000, "implausible size"),
        (322, 40_000, "implausible size"),
        (323, 0, "implausible size"),
    ],
    ids=["width", "height", "tile width", "tile height"],
)
def test_an_absurd_size_is_refused_before_any_decoding(copy, tag, value, problem):
    offset, width = _tag_entry(copy, 0, tag)
    _overwrite(copy, offset, min(value, 256**width - 1).to_bytes(width, "little"))
    with pytest.raises(SlideError, match=problem):
        open_slide(copy)


def test_a_tile_beyond_the_file_is_refused_with_counts(copy):
    offset, width = _tag_entry(copy, 0, 324)
    _overwrite(copy, offset, (2**31).to_bytes(width, "little"))
    with pytest.raises(SlideError, match=r"only 19 of 20 tiles of image 0 lie inside the file"):
        open_slide(copy)


def test_directories_that_lead_in_a_circle_are_refused(copy):
    data = copy.read_bytes()
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    _overwrite(copy, first + 2 + 12 * entries, struct.pack("<I", first))
    with pytest.raises(SlideError, match="leads back"):
        open_slide(copy)


def test_a_level_of_other_proportions_is_refused(tmp_path):
    path = tmp_path / "odd.tif"
    with tifffile.TiffWriter(path) as file:
        for number, shape in enumerate([(800, 1000, 3), (200, 500, 3)]):
            pixels = np.zeros(shape, np.uint8)
            file.write(pixels, tile=(256, 256), compression="jpeg", photometric="ycbcr", subfiletype=min(number, 1))
    with pytest.raises(SlideError, match="proportions"):
        open_slide(path)


def test_openslide_goes_on_after_a_bad_tile(svs, copy):
    level = _pyramid(copy).levels[0]
    _zeroed(copy, int(level.offsets[0]), int(level.counts[0]))
    with OpenSlideSlide(copy, "asked for") as slide, TiffSlide(svs, "asked for") as good:
        xy = np.array([[300, 300], [0, 0], [480, 240], [100, 100], [720, 480]])
        out, truth = (np.empty((5, 200, 200, 3), np.uint8) for _ in range(2))
        ok = slide.read_many(xy, 0, out)
        assert ok.tolist() == [True, False, True, False, True]
        good.read_many(xy, 0, truth)
        assert np.array_equal(out[ok], truth[ok])
        for _ in range(2):
            with pytest.raises(TileError):
                slide.read(Region(0, 0, 50, 50), 0)
            assert np.array_equal(slide.read(Region(300, 300, 200, 200), 0), truth[0])


def test_a_tile_without_bytes_is_an_error_through_openslide_too(tmp_path):
    path = write_svs(tmp_path / "generic.tif", tissue_like(700, 500), SvsOptions(TILE, (1,), aperio=False))
    offset, width = _tag_entry(path, 0, 325)
    _overwrite(path, offset, bytes(width))
    with OpenSlideSlide(path, "asked for") as slide:
        with pytest.raises(TileError, match="no bytes"):
            slide.read(Region(0, 0, 100, 100), 0)
        assert (slide.read(Region(650, 450, 100, 100), 0)[60:, 60:] == 255).all()  # beyond the slide is no damage
        out = np.empty((3, 100, 100, 3), np.uint8)
        ok = slide.read_many(np.array([[0, 0], [300, 100], [650, 450]]), 0, out)
        assert ok.tolist() == [False, True, True]


def _sparse_ndpi(source: Path, target: Path) -> Path:
    """A file of 5 GiB, as far as its size goes: Hamamatsu's are classic TIFF also then."""
    shutil.copy(source, target)
    with target.open("r+b") as file:
        file.truncate(5 << 30)
    return target


@pytest.mark.parametrize("long", [False, True])
def test_a_slide_of_another_tiff_flavour_is_read_when_sound_and_refused_when_cut(data_dir, tmp_path, long):
    source = data_dir / "slides" / "stritt_test3-DAPI-2-387.ndpi"
    path = _sparse_ndpi(source, tmp_path / "a.ndpi") if long else source
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("openslide", "hamamatsu")
        assert slide.read(Region(0, 0, 64, 64), 0).shape == (64, 64, 3)
    cut = tmp_path / "cut.ndpi"
    cut.write_bytes(source.read_bytes()[:-100_000])
    with pytest.raises(SlideError):
        open_slide(cut)
    data = bytearray(source.read_bytes())
    at = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[at : at + 2], "little")
    count = next(at + 2 + 12 * n for n in range(entries) if data[at + 2 + 12 * n : at + 4 + 12 * n] == b"\x17\x01")
    data[count + 8 : count + 12] = (1 << 30).to_bytes(4, "little")
    cut.write_bytes(data)
    with pytest.raises(SlideError, match="only 0 of 1 strips of image 0 lie inside the file"):
        open_slide(cut)


def test_glass_that_a_format_leaves_out_by_design_is_background_through_openslide(tmp_path):
    xml = philips_xml((1, 2), 0.00025).replace("&quot; <", "&quot;<")  # OpenSlide bears no blank there
    path = write_philips(tmp_path / "p.tiff", tissue_like(512, 384), (1, 2), xml)
    for tag in (324, 325):
        at, width = _tag_entry(path, 0, tag)
        _overwrite(path, at, bytes(width))  # the first tile's offset and size
    with OpenSlideSlide(path, "asked for") as slide:
        out = np.zeros((2, 128, 128, 3), np.uint8)
        assert slide.read_many(np.array([[0, 0], [128, 0]]), 0, out).all()
        assert (out[0] == 255).all()
        assert out[1].std() > 10
        assert (slide.read(Region(0, 0, 128, 128), 0) == 255).all()
