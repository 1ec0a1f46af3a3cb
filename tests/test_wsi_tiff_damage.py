"""Damage to a TIFF of any codec is refused or marked tile by tile; what a codec cannot know is all that may pass."""

import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.slides import SvsOptions, tissue_like, write_svs
from tests.tiff_slides import (
    TiffOptions,
    cut,
    encode_j2k,
    join_components,
    smaller,
    to_ycbcr,
    write_j2k_svs,
    write_ome,
    write_tiff,
)
from wsi import Region, SlideError, TileError, open_slide
from wsi.formats.match import Match
from wsi.formats.tiff import TiffSlide

IMAGE = tissue_like(500, 400)
CODECS = {"lzw": 5, "zlib": 8, "packbits": 32773, "zstd": 50000, "webp": 50001, "jpeg2000": 34712, "jpeg": 7}
MIDDLE = np.array([[150, 150], [0, 0], [400, 300]])  # corners in tiles (or strips) 4, 0, and the last


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiled slide of each codec, 128-px tiles."""
    folder = tmp_path_factory.mktemp("sound")
    return {
        name: write_tiff(folder / f"{name}.tif", [IMAGE], TiffOptions(name, 128)) for name in (*CODECS, "none")[:-1]
    } | {"none": write_tiff(folder / "none.tif", [IMAGE], TiffOptions(None, 128))}


def _place(path: Path, part: int) -> tuple[int, int]:
    """(offset, bytes) of a tile of the first image."""
    with tifffile.TiffFile(path) as file:
        return file.pages[0].dataoffsets[part], file.pages[0].databytecounts[part]


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _set_tag(path: Path, tag: int, value: int | list[int]) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


def _read(path: Path) -> tuple[list[bool], np.ndarray]:
    with TiffSlide(path, "asked for") as slide:
        out = np.empty((len(MIDDLE), 90, 90, 3), np.uint8)
        return slide.read_many(MIDDLE, 0, out).tolist(), out


def _zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def _half_zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2].ljust(len(data), b"\0")


def _garbage(data: bytes) -> bytes:
    return bytes(np.random.default_rng(1).integers(0, 256, len(data), np.uint8))


def _hole(data: bytes) -> bytes:
    """Zeros in a third of it, the end intact."""
    start = len(data) // 3
    return data[:start] + bytes(start) + data[2 * start :]


@pytest.mark.parametrize("damage", [_zeroed, _half_zeroed, _garbage])
@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_tile_is_marked_and_spoils_no_other(sound, tmp_path, codec, damage):
    path = Path(shutil.copy(sound[codec], tmp_path / "copy.tif"))
    offset, count = _place(path, 5)  # second row, second column: holds (150, 150)
    _overwrite(path, offset, damage(path.read_bytes()[offset : offset + count]))
    ok, out = _read(path)
    assert ok == [False, True, True]
    assert np.array_equal(out[1], _read(sound[codec])[1][1])
    with TiffSlide(path, "asked for") as slide, pytest.raises(TileError, match="row 1, column 1 of level 0"):
        slide.read(Region(128, 128, 10, 10), 0)


@pytest.mark.parametrize("codec", ["zlib", "zstd", "lzw", "webp", "jpeg2000", "jpeg"])
def test_a_hole_in_a_tile_is_marked(sound, tmp_path, codec):
    path = Path(shutil.copy(sound[codec], tmp_path / "copy.tif"))
    offset, count = _place(path, 5)
    _overwrite(path, offset, _hole(path.read_bytes()[offset : offset + count]))
    assert _read(path)[0] == [False, True, True]


def test_a_flat_jpeg_may_be_full_of_zeros(tmp_path):
    flat = np.full((512, 512, 3), 255, np.uint8)
    flat[:8, :8] = 0
    stream = BytesIO()
    Image.fromarray(flat).save(stream, "JPEG", optimize=True, subsampling=0)
    data = stream.getvalue()
    assert bytes(64) in data
    path = tmp_path / "slide.tif"
    shape = {"shape": flat.shape, "dtype": np.uint8, "tile": (512, 512), "subsampling": (1, 1)}
    tifffile.imwrite(path, iter([data]), **shape, compression="jpeg", photometric="ycbcr", metadata=None)
    with TiffSlide(path, "asked for") as slide:
        assert (slide.read(Region(100, 100, 400, 400), 0) == 255).all()


WRONG = [(codec, claimed) for codec in (*CODECS, "none") for claimed in (*CODECS.values(), 1)]


@pytest.mark.parametrize(("codec", "claimed"), [(a, b) for a, b in WRONG if CODECS.get(a, 1) != b])
def test_a_wrong_compression_tag_never_gives_pixels(sound, tmp_path, codec, claimed):
    path = Path(shutil.copy(sound[codec], tmp_path / "copy.tif"))
    _set_tag(path, 259, claimed)
    try:
        match = TiffSlide.matches(path)
    except SlideError as refusal:  # uncompressed tiles would have other sizes
        match = Match(False, refusal.problem)
    if match.takes:
        assert _read(path)[0] == [False, False, False]
    else:  # the rest of the tags rules the codec out
        assert "not 8-bit RGB" in match.why or "claims uncompressed tiles" in match.why


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**6))
def test_one_flipped_bit_in_a_deflate_tile_is_always_seen(sound, tmp_path, bit):
    path = Path(shutil.copy(sound["zlib"], tmp_path / "copy.tif"))
    offset, count = _place(path, 5)
    data = bytearray(path.read_bytes()[offset : offset + count])
    data[bit // 8 % count] ^= 1 << bit % 8
    _overwrite(path, offset, bytes(data))
    ok, out = _read(path)
    assert not ok[0] or np.array_equal(out[0], IMAGE[150:240, 150:240])


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: zlib.compress(bytes(200_000_000), 1),
        lambda: zlib.compress(bytes(128 * 128 * 3 + 1)),
        lambda: zlib.compress(bytes(128 * 128 * 3 - 1)),
    ],
    ids=["bomb", "one byte more", "one byte less"],
)
def test_a_tile_that_unpacks_to_another_size_is_marked(tmp_path, bomb):
    tiles = [zlib.compress(tile.tobytes()) for tile in cut(IMAGE, 128)]
    tiles[5] = bomb()
    path = tmp_path / "slide.tif"
    shape = {"shape": IMAGE.shape, "dtype": np.uint8, "tile": (128, 128)}
    tifffile.imwrite(path, iter(tiles), **shape, compression="zlib", photometric="rgb", metadata=None)
    assert _read(path)[0] == [False, True, True]


@pytest.mark.parametrize("codec", ["webp", "jpeg2000", "jpeg"])
@pytest.mark.parametrize("side", [64, 256, 2_000])
def test_a_tile_of_another_size_is_marked(sound, tmp_path, codec, side):
    path = Path(shutil.copy(sound[codec], tmp_path / "copy.tif"))
    flat = np.full((side, side, 3), 200, np.uint8)
    data = {
        "webp": lambda: imagecodecs.webp_encode(flat, lossless=True),
        "jpeg2000": lambda: encode_j2k(flat),
        "jpeg": lambda: imagecodecs.jpeg8_encode(flat, level=30),
    }[codec]()
    with path.open("ab") as file:
        at = file.tell()
        file.write(data)
    with tifffile.TiffFile(path) as file:
        offsets, counts = list(file.pages[0].dataoffsets), list(file.pages[0].databytecounts)
    offsets[5], counts[5] = at, len(data)
    _set_tag(path, 324, offsets)
    _set_tag(path, 325, counts)
    assert _read(path)[0] == [False, True, True]


def test_a_lost_strip_spoils_only_its_rows(tmp_path):
    path = write_tiff(tmp_path / "slide.tif", [IMAGE], TiffOptions("lzw", None, 50))
    offset, count = _place(path, 3)  # rows 150 to 199
    _overwrite(path, offset, bytes(count))
    with TiffSlide(path, "asked for") as slide:
        out = np.empty((3, 50, 60, 3), np.uint8)
        assert slide.read_many(np.array([[10, 100], [10, 101], [10, 200]]), 0, out).tolist() == [True, False, True]
        assert np.array_equal(out[2], IMAGE[200:250, 10:70])


@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_a_cut_striped_file_is_refused(tmp_path, codec, share):
    path = write_tiff(tmp_path / "slide.tif", [IMAGE], TiffOptions(codec, None, None))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"lie inside the file|ends"):
        open_slide(path)


def test_a_short_uncompressed_strip_loses_its_last_rows(tmp_path):
    image = np.tile(IMAGE, (8, 2, 1))
    path = write_tiff(tmp_path / "slide.tif", [image], TiffOptions(None, None, None))
    _set_tag(path, 279, image.nbytes - 1_000)
    with TiffSlide(path, "asked for") as slide:
        out = np.empty((2, 50, 50, 3), np.uint8)
        assert slide.read_many(np.array([[0, 0], [0, 3_150]]), 0, out).tolist() == [True, False]


def _j2k_slide(path: Path, streams: list[bytes], compression: int = 33005) -> Path:
    return write_j2k_svs(path, IMAGE, compression, [streams])


def _without_end(stream: bytes) -> bytes:
    return stream[:-2]


def _end_lost(stream: bytes) -> bytes:
    return stream[:-2] + b"\0\0"


def _padded(stream: bytes) -> bytes:
    return stream + bytes(500)


@pytest.mark.parametrize("change", [_without_end, _end_lost, _padded])
def test_a_jpeg_2000_tile_without_its_end_marker_is_read(tmp_path, change):
    streams = [change(encode_j2k(tile)) for tile in cut(IMAGE, 256)]
    with TiffSlide(_j2k_slide(tmp_path / "slide.svs", streams), "asked for") as slide:
        assert np.array_equal(slide.read(Region(0, 0, 500, 400), 0), IMAGE)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("fill", [b"\0", b""], ids=["zeros", "short"])
def test_a_jpeg_2000_tile_that_is_cut_is_marked(tmp_path, keep, fill):
    streams = [encode_j2k(tile, 45) for tile in cut(IMAGE, 256)]
    part = streams[0][: int(len(streams[0]) * keep)]
    streams[0] = part.ljust(len(streams[0]), fill) if fill else part
    with TiffSlide(_j2k_slide(tmp_path / "slide.svs", streams), "asked for") as slide:
        for number in range(len(slide.levels)):
            out = np.empty((2, 40, 40, 3), np.uint8)
            assert slide.read_many(np.array([[20, 20], [300, 20]]), number, out).tolist() == [False, True]


def test_jpeg_2000_colours_that_contradict_their_tag_are_never_shown(tmp_path):
    streams = [encode_j2k(tile) for tile in cut(IMAGE, 256)]
    with (
        TiffSlide(_j2k_slide(tmp_path / "slide.svs", streams, 33003), "asked for") as slide,
        pytest.raises(TileError, match="its TIFF says YCbCr, its own code stream RGB"),
    ):
        slide.read(Region(0, 0, 100, 100), 0)

    def halved(tile: np.ndarray) -> bytes:
        luma, cb, cr = to_ycbcr(tile).transpose(2, 0, 1)
        return join_components([luma, cb[:, ::2], cr[:, ::2]], halved=True)

    path = _j2k_slide(tmp_path / "halved.svs", [halved(tile) for tile in cut(IMAGE, 256)], 33005)
    with pytest.raises(SlideError, match="its TIFF says RGB in JPEG 2000"):
        open_slide(path)
    path = _j2k_slide(tmp_path / "text.svs", streams, 33005)
    path.write_bytes(path.read_bytes().replace(b"J2K/KDU", b"J2K/YUV"))
    with pytest.raises(SlideError, match="its description says YUV"):
        open_slide(path)


def test_a_damaged_associated_image_is_an_error_and_not_absent(tmp_path):
    path = write_svs(tmp_path / "slide.svs", IMAGE, SvsOptions(128))
    with tifffile.TiffFile(path) as file:
        label = next(page for page in file.pages if "label" in page.description)
        offset, count = label.dataoffsets[0], label.databytecounts[0]
    _overwrite(path, offset, bytes(count))
    with open_slide(path) as slide:
        assert slide.info.associated == ("label", "macro", "thumbnail")
        assert slide.associated("macro").shape == (60, 160, 3)
        with pytest.raises(TileError, match="its label image cannot be decoded"):
            slide.associated("label")


@pytest.mark.parametrize("target", ["parent", "twin", "beyond"])
def test_sub_directories_that_lead_astray_are_refused(tmp_path, target):
    path = write_ome(tmp_path / "a.ome.tif", {"slide": [IMAGE, smaller(IMAGE, 2), smaller(IMAGE, 4)]})
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        wrong = {"parent": page.offset, "twin": page.subifds[0], "beyond": path.stat().st_size + 5}[target]
        at = page.tags[330].valueoffset
    _overwrite(path, at + 8, struct.pack("<Q", wrong))
    problem = "the file ends at byte" if target == "beyond" else "leads back to an earlier one"
    with pytest.raises(SlideError, match=f"sub-directory 1 of directory 0.*{problem}"):
        open_slide(path)


def test_a_level_in_a_sub_directory_that_leaves_the_file_is_refused(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", {"slide": [IMAGE, smaller(IMAGE, 2)]})
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].pages[0].tags[324].valueoffset
    _overwrite(path, at, struct.pack("<Q", 2**40))
    with pytest.raises(SlideError, match="tiles of sub-image 0 of image 0 lie inside the file"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        (256, 2**31 - 1, "implausible size"),
        (257, 30_000_000, "implausible size"),
        (278, 0, None),
        (278, 2**32 - 1, None),
    ],
)
def test_an_absurd_striped_size_is_refused_and_strip_rows_may_mean_all(tmp_path, tag, value, problem):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, compression="zlib", rowsperstrip=400)
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[tag]
        at, width = entry.valueoffset, {3: 2, 4: 4}[int(entry.dtype)]
    _overwrite(path, at, min(value, 256**width - 1).to_bytes(width, "little"))
    if problem is None:
        with open_slide(path, mpp=0.5) as slide:
            assert np.array_equal(slide.read(Region(0, 0, 500, 400), 0), IMAGE)
        return
    with pytest.raises(SlideError, match=problem):
        open_slide(path)


def test_one_giant_compressed_strip_is_refused_with_the_limit(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        shape = {"shape": (12_000, 12_000, 3), "dtype": np.uint8, "rowsperstrip": 12_000}
        file.write(iter([zlib.compress(b"")]), **shape, compression="zlib", photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match="the limit is 100,000,000 px each"):
        open_slide(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_random_bytes_in_the_directories_never_crash_or_hang(sound, tmp_path, seed):
    rng = np.random.default_rng(seed)
    codec = list(sound)[seed % len(sound)]
    data = bytearray(sound[codec].read_bytes())
    at = int.from_bytes(data[4:8], "little")
    for _ in range(4):
        data[at + int(rng.integers(0, 200))] = int(rng.integers(0, 256))
    path = tmp_path / "copy.tif"
    path.write_bytes(data)
    try:
        with TiffSlide(path, "asked for") as slide:
            out = np.empty((len(MIDDLE), 90, 90, 3), np.uint8)
            if slide.levels[0].width * slide.levels[0].height < 10_000_000:
                slide.read_many(MIDDLE, 0, out)
    except SlideError:
        pass
