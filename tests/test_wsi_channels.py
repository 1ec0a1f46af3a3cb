"""Channels of fluorescence and 16-bit files: an explicit choice, blended by a stated formula, or a helpful refusal."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.range_server import range_server
from tests.slides import tissue_like, write_svs
from wsi import Region, SlideError, SpecError, TileError, open_slide
from wsi.channels import Blend, Channels, FileChannels
from wsi.errors import RemoteError
from wsi.formats.channel_tiff import ChannelTiffReader
from wsi.source import LocalFile

FOUND = FileChannels(("DAPI", "CD3", "", "1"), np.dtype(np.uint16))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("DAPI=0000FF:100-4000,1=FF0000", "DAPI=0000FF:100-4000,1=FF0000"),
        (" dapi=#00ff00 , Opal 570=ffffff:-5.5--1 ", "dapi=00FF00,Opal 570=FFFFFF:-5.5--1"),
        ("a=b=123456:0-1", "a=b=123456:0-1"),
    ],
)
def test_a_choice_of_channels_has_one_text_form(text, canonical):
    assert str(Channels.parse(text)) == canonical
    assert Channels.parse(canonical) == Channels.parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no choice of a channel"),
        ("DAPI", "no choice of a channel"),
        ("DAPI=blue", "no choice of a channel"),
        ("DAPI=0000F", "no choice of a channel"),
        ("DAPI=0000FF:1%-99%", "no choice of a channel"),
        ("DAPI=0000FF:100", "no choice of a channel"),
        ("DAPI=0000FF:5-5", "window .* is empty"),
        ("DAPI=0000FF,,1=FF0000", "no choice of a channel"),
    ],
)
def test_a_text_that_is_no_choice_is_refused(text, problem):
    with pytest.raises(SpecError, match=problem):
        Channels.parse(text)


@pytest.mark.parametrize(
    ("text", "used"),
    [("DAPI=FFFFFF", (0,)), ("cd3=FFFFFF,0=FF0000", (1, 0)), ("2=FFFFFF,3=FFFFFF", (2, 3))],
)
def test_a_channel_is_named_or_counted_from_zero(text, used):
    assert Blend(Channels.parse(text), FOUND).used == used


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("CD8=FFFFFF", "no channel of the file"),
        ("4=FFFFFF", "no channel of the file"),
        ("1=FFFFFF", "means several channels"),  # the name of number 3
        ("DAPI=FFFFFF,0=FF0000", "stands twice"),
    ],
)
def test_a_channel_that_is_not_there_or_not_one_is_a_wrong_setting(text, problem):
    with pytest.raises(SpecError, match=problem):
        Blend(Channels.parse(text), FOUND)


@pytest.mark.parametrize(
    ("dtype", "window", "values", "red"),
    [
        ("uint8", "", [0, 1, 128, 255], [0, 1, 128, 255]),
        ("int8", "", [-128, -127, 0, 127], [0, 1, 128, 255]),
        ("uint16", "", [0, 128, 129, 65_535], [0, 0, 1, 255]),
        (">u2", ":100-1120", [0, 100, 102, 1120, 60_000], [0, 0, 1, 255, 255]),
        ("int16", ":-10-10", [-32_768, -10, 0, 10, 32_767], [0, 0, 128, 255, 255]),
        ("uint32", ":0-510", [0, 1, 2, 2**32 - 1], [0, 1, 1, 255]),
        ("float32", "", [-1.0, 0.0, 0.5, 1.0, np.inf, np.nan], [0, 0, 128, 255, 255, 0]),
    ],
)
def test_values_are_shown_by_the_stated_formula(dtype, window, values, red):
    plane = np.array([values], dtype)
    out = np.zeros((1, len(values), 3), np.uint8)
    Blend(Channels.parse(f"0=FF0000{window}"), FileChannels(("",), plane.dtype)).blend([plane], out)
    assert out[0, :, 0].tolist() == red
    assert not out[..., 1:].any()


def test_channels_add_up_and_are_cut_at_the_full_colour():
    planes = [np.array([[200, 10]], np.uint8), np.array([[100, 20]], np.uint8)]
    out = np.zeros((1, 2, 3), np.uint8)
    Blend(Channels.parse("0=FF8000,1=FF0000"), FileChannels(("", ""), np.dtype(np.uint8))).blend(planes, out)
    assert out.tolist() == [[[255, 100, 0], [30, 5, 0]]]


def expected(image: np.ndarray, text: str, names: tuple[str, ...] | None = None) -> np.ndarray:
    """(channels, rows, cols) blended by the formula as the docstring states it."""
    out = np.zeros((*image.shape[1:], 3))
    for choice in Channels.parse(text).choices:
        number = int(choice.channel) if names is None else names.index(choice.channel)
        low, high = choice.window or (np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
        share = np.clip((image[number].astype(np.float64) - low) / (high - low), 0, 1)
        out += np.floor(share[..., None] * choice.colour + 0.5)
    return np.minimum(out, 255).astype(np.uint8)


def assert_reads_as(path: Path, text: str, levels: list[np.ndarray]) -> None:
    """Every level, inside, across the border, at odd offsets and as a whole, is exactly `levels` (RGB)."""
    with open_slide(path, channels=Channels.parse(text)) as slide:
        assert slide.info.reader == "channel_tiff"
        assert [(level.width, level.height) for level in slide.levels] == [p.shape[1::-1] for p in levels]
        for number, pixels in enumerate(levels):
            downsample = slide.levels[number].downsample
            padded = np.pad(pixels, ((70, 200), (70, 200), (0, 0)), constant_values=255)
            corners = np.array([(0, 0), (-31, -17), (33, 47), (pixels.shape[1] - 50, pixels.shape[0] - 41)])
            out = np.zeros((len(corners), 90, 90, 3), np.uint8)
            assert slide.read_many(np.rint(corners * downsample).astype(np.int64), number, out).all()
            for (x, y), patch in zip(corners.tolist(), out, strict=True):
                assert np.array_equal(patch, padded[y + 70 : y + 160, x + 70 : x + 160])
        whole = slide.read(Region(0, 0, slide.levels[0].width, slide.levels[0].height), 0)
        assert np.array_equal(whole, levels[0])


def image(dtype: str = "uint16", channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = tissue_like(410, 300, seed).astype(np.float64).transpose(2, 0, 1)[np.arange(channels) % 3]
    top = min(np.iinfo(dtype).max, 4_000)
    return (smooth / 255 * top + rng.integers(0, 3, smooth.shape)).clip(0, top).astype(dtype)


TEXT = "DAPI=0000FF:100-4000,CD3=00FF00,CD8=FF2000:0-3000"
NAMES = ("DAPI", "CD3", "CD8")


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (128, 96), "compression": "deflate", "predictor": True},
        {"tile": (128, 96), "compression": "lzw", "predictor": True},
        {"tile": (64, 64), "compression": "zstd"},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"rowsperstrip": 97},
        {"rowsperstrip": 300},
        {"rowsperstrip": 300, "compression": "packbits"},
    ],
    ids=str,
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_an_ome_tiff_of_channels_is_read_exactly_at_every_level(tmp_path, options, byteorder):
    path, full = tmp_path / "a.ome.tif", image()
    half = np.ascontiguousarray(full[:, ::2, ::2])
    metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES)}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True, byteorder=byteorder) as file:
        file.write(full, subifds=1, metadata=metadata, photometric="minisblack", **options)
        file.write(half, subfiletype=1, photometric="minisblack", **options)
    assert_reads_as(path, TEXT, [expected(full, TEXT, NAMES), expected(half, TEXT, NAMES)])
    with open_slide(path, channels=Channels.parse(TEXT)) as slide:
        assert (slide.info.mpp, slide.info.mpp_source, slide.info.vendor) == (0.5, "ome", "ome-tiff")
        assert slide.info.channels == "DAPI=0000FF:100-4000,CD3=00FF00:0-65535,CD8=FF2000:0-3000"


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (image(channels=1)[0], {"photometric": "minisblack"}),
        (image("uint8", 5), {"photometric": "minisblack", "planarconfig": "separate"}),
        (image("uint16", 5).transpose(1, 2, 0), {"photometric": "minisblack", "planarconfig": "contig"}),
        (image("uint16").transpose(1, 2, 0), {"photometric": "rgb"}),
        (image("uint8", 4), {"photometric": "minisblack"}),
    ],
    ids=["grey", "planar", "side by side", "deep rgb", "pages"],
)
@pytest.mark.parametrize("tile", [None, (128, 96)])
def test_other_layouts_of_channels_are_read_exactly(tmp_path, values, options, tile):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, tile=tile, compression="deflate", metadata=None, **options)
    planes = values[None] if values.ndim == 2 else values if values.shape[1] == 300 else values.transpose(2, 0, 1)
    text = "0=FFFFFF:0-4000" if len(planes) == 1 else "2=FF0000:0-200,0=0040FF"
    assert_reads_as(path, text, [expected(planes, text)])


def test_a_vectra_qptiff_shows_its_channels_as_tifffile_reads_them(data_dir):
    path = data_dir / "slides" / "pathml_small_vectra.qptiff"
    with pytest.raises(SlideError, match=r"3 channels of uint8 \(0 DAPI, 1 FITC, 2 Cy3\)") as refusal:
        open_slide(path)
    text = refusal.value.args[2].partition("--channels ")[2]
    assert text == "DAPI=0000FF:0-255,FITC=00FF00:0-255,Cy3=FFFF00:0-255"  # the file's own colours
    with tifffile.TiffFile(path) as file:
        values = file.series[0].asarray()
    assert_reads_as(path, text, [expected(values, text, ("DAPI", "FITC", "Cy3"))])
    with open_slide(path, channels=Channels.parse(text)) as slide:
        assert slide.info.mpp == pytest.approx(0.4965, abs=1e-4)
        assert (slide.info.mpp_source, slide.info.objective) == ("tiff", 20)
        assert slide.info.vendor == "perkinelmer-qptiff"


def test_a_sixteen_bit_grey_tiff_shows_its_window(data_dir):
    path = data_dir / "slides" / "pathml_smalltif.tif"
    with pytest.raises(SlideError, match="1 channel of uint16") as refusal:
        open_slide(path)
    assert refusal.value.args[2].endswith("--channels 0=FFFFFF:0-65535")
    text = "0=FFFFFF:200-3000"
    assert_reads_as(path, text, [expected(tifffile.imread(path)[None], text)])


def test_a_stack_is_refused_by_its_focal_planes(data_dir):
    path = data_dir / "slides" / "multi-channel-z-series.ome.tif"
    for channels in (None, Channels.parse("0=FFFFFF")):
        with pytest.raises(SlideError, match="5 focal planes"):
            open_slide(path, channels=channels)


def test_a_plane_of_that_stack_is_read_exactly(data_dir, tmp_path):
    plane = tifffile.imread(data_dir / "slides" / "multi-channel-z-series.ome.tif")[:, 2]
    path, text = tmp_path / "a.ome.tif", "0=FF0000:0-127,1=00FF00,2=0000FF:-20-100"
    tifffile.imwrite(path, plane, metadata={"axes": "CYX"}, photometric="minisblack")
    assert_reads_as(path, text, [expected(plane, text)])


def test_an_rgb_slide_has_no_channels_to_choose(tmp_path, real_slide):
    tifffile.imwrite(tmp_path / "a.tif", tissue_like(300, 200), tile=(64, 64), photometric="rgb")
    for path in (real_slide, write_svs(tmp_path / "b.svs", tissue_like(600, 500)), tmp_path / "a.tif"):
        with pytest.raises(SpecError, match="none to choose"):
            open_slide(path, channels=Channels.parse("0=FF0000"))


def damaged(path: Path, where: str) -> Path:
    """A tiled OME-TIFF of three channels with the tile at row 1, column 1 of channel 1 damaged."""
    tifffile.imwrite(
        path, image(), tile=(128, 96), compression="deflate", metadata={"axes": "CYX"}, photometric="minisblack"
    )
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        offset, count = page.dataoffsets[6], page.databytecounts[6]
        sizes = page.aspage().tags["TileByteCounts"]
    data = bytearray(path.read_bytes())
    if where == "flip":
        data[offset + count // 2] ^= 1
    elif where == "zeros":
        data[offset : offset + count] = bytes(count)
    else:
        step = {3: 2, 4: 4}[int(sizes.dtype)]
        at = sizes.valueoffset + 6 * step
        data[at : at + step] = (0 if where == "missing" else count // 2).to_bytes(step, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("where", ["flip", "zeros", "missing", "short"])
def test_a_damaged_tile_of_one_channel_is_bad_in_a_picture_that_shows_it(tmp_path, where):
    path = damaged(tmp_path / "a.ome.tif", where)
    xy, out = np.array([[100, 130], [200, 10]]), np.zeros((2, 60, 60, 3), np.uint8)
    with open_slide(path, channels=Channels.parse("0=0000FF,1=FF0000")) as slide:
        assert slide.read_many(xy, 0, out).tolist() == [False, True]
        with pytest.raises(TileError, match="cannot be decoded"):
            slide.read(Region(100, 130, 60, 60), 0)
    with open_slide(path, channels=Channels.parse("0=0000FF,2=FF0000")) as slide:
        assert slide.read_many(xy, 0, out).all()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image(), compression="lzw", metadata={"axes": "CYX"}, photometric="minisblack")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for channels in (None, Channels.parse("0=FF0000")):
        with pytest.raises(SlideError):
            open_slide(path, channels=channels)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"compression": "jpeg2000"}, "stored as jpeg2000"),
        ({"photometric": "miniswhite"}, "photometric 0"),
        ({"compression": "deflate", "predictor": 3, "dtype": "float32"}, "predictor 3"),
        ({"compression": "lzma"}, "stored as lzma; convert it"),
        ({"dtype": "bool"}, "it is a 1-bit TIFF; convert it to 8-bit RGB"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, options, problem):
    values = image().astype(options.pop("dtype", "uint16"))
    tifffile.imwrite(tmp_path / "a.tif", values[0], **{"photometric": "minisblack", **options})
    with pytest.raises(SlideError, match=problem):
        open_slide(tmp_path / "a.tif")


def test_channels_are_chosen_behind_a_url_as_they_are_here(tmp_path):
    values = np.moveaxis(tissue_like(700, 500), 2, 0).astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "a.ome.tif", values, tile=(128, 128), compression="deflate", metadata={"axes": "CYX"})
    chosen, region = Channels.parse("0=FF0000:0-20000,2=00FF00:0-20000"), Region(50, 60, 400, 300)
    with range_server(tmp_path) as server:
        with pytest.raises(SlideError, match=r"3 channels of uint16.*such as --channels 0=0000FF"):
            open_slide(server.url("a.ome.tif"))
        with (
            open_slide(server.url("a.ome.tif"), channels=chosen) as slide,
            open_slide(tmp_path / "a.ome.tif", channels=chosen) as here,
        ):
            assert slide.info.reader == "channel_tiff"
            assert np.array_equal(slide.read(region, 0), here.read(region, 0))
            assert slide.read(region, 0).any()


class FailingLater(LocalFile):
    """A file whose store answers so many times."""

    answers = 10**9

    def read_at(self, offset: int, count: int) -> bytes:
        FailingLater.answers -= 1
        if FailingLater.answers < 0:
            raise RemoteError(self.name, "no answer", "try again")
        return super().read_at(offset, count)


def test_a_store_that_fails_at_any_point_is_not_taken_for_the_end_of_the_file(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(3):
            file.write(np.zeros((600, 700), np.uint16), metadata=None)
    monkeypatch.setattr("wsi.formats.channel_tiff.open_source", FailingLater)
    reader = ChannelTiffReader(Channels.parse("0=FF0000"))
    assert reader.matches(tmp_path / "a.tif").takes
    needed = 10**9 - FailingLater.answers
    for answers in range(needed):
        FailingLater.answers = answers
        with pytest.raises(RemoteError, match="no answer"):
            reader.matches(tmp_path / "a.tif")
