"""Plain images as slides: exact pixels, no scale believed, and nothing half decoded."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from tests.slides import tissue_like
from wsi import Region, SlideError, SpecError, open_slide
from wsi.channels import Channels

IMAGE = tissue_like(1100, 700)


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.PNG", {}), ("a.bmp", {}), ("a.webp", {"lossless": True})]
)
def test_a_lossless_image_is_read_exactly_and_beyond_it_is_white(tmp_path, name, options):
    Image.fromarray(IMAGE).save(tmp_path / name, dpi=(96, 96), **options)
    with open_slide(tmp_path / name) as slide:
        assert slide.info.reader == "plain"
        assert [(level.width, level.height) for level in slide.levels] == [(1100, 700)]
        assert np.array_equal(slide.read(Region(0, 0, 1100, 700), 0), IMAGE)
        out = np.zeros((2, 300, 300, 3), np.uint8)
        assert slide.read_many(np.array([[400, 391], [1000, 600]]), 0, out).all()
        assert np.array_equal(out[0], IMAGE[391:691, 400:700])
        assert np.array_equal(out[1, :100, :100], IMAGE[600:, 1000:])
        assert (out[1, 100:] == 255).all()
        assert (out[1, :, 100:] == 255).all()


def test_a_jpeg_image_is_what_pillow_decodes(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(IMAGE).save(path, quality=90, subsampling=0)
    with open_slide(path) as slide:
        expected = np.asarray(Image.open(path).convert("RGB"))
        difference = slide.read(Region(0, 0, 1100, 700), 0).astype(int) - expected
        assert np.abs(difference).max() <= 1  # both are libjpeg-turbo, of different versions


def test_the_scale_must_be_given(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png", dpi=(101_600, 101_600))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.info.mpp is None
        assert "no pixel size that can be believed" in (slide.info.mpp_problem or "")
    with open_slide(tmp_path / "a.png", mpp=0.25, mpp_source="manifest") as slide:
        assert (slide.levels[0].mpp, slide.info.mpp_source) == (0.25, "manifest")


def test_transparency_lies_over_white_and_grey_becomes_rgb(tmp_path):
    alpha = np.zeros((700, 1100, 1), np.uint8)
    alpha[:, 100:200], alpha[:, 200:] = 128, 255
    Image.fromarray(np.concatenate([IMAGE, alpha], axis=2)).save(tmp_path / "alpha.png")
    with open_slide(tmp_path / "alpha.png") as slide:
        pixels = slide.read(Region(0, 0, 1100, 700), 0)
    assert (pixels[:, :100] == 255).all()
    halfway = np.rint(IMAGE[:, 100:200] * (128 / 255) + 127)
    assert np.abs(pixels[:, 100:200] - halfway).max() <= 1
    assert np.array_equal(pixels[:, 200:], IMAGE[:, 200:])
    Image.fromarray(IMAGE[..., 0]).save(tmp_path / "grey.png")
    with open_slide(tmp_path / "grey.png") as slide:
        assert np.array_equal(slide.read(Region(0, 0, 1100, 700), 0), np.repeat(IMAGE[..., :1], 3, axis=2))


def test_an_orientation_is_not_applied_and_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", exif=exif)
    with open_slide(tmp_path / "a.jpg") as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == (1100, 700)
        assert "orientation is not applied" in slide.info.why


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_image_is_refused(tmp_path, name, share):
    path = tmp_path / name
    Image.fromarray(IMAGE).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match="damaged"):
        open_slide(path)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_png_is_found_by_its_checksum(tmp_path, at):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    with pytest.raises(SlideError, match="damaged"):
        open_slide(path)


def _png_bomb(width: int, height: int) -> bytes:
    """A few bytes that claim an image of that size."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_more_pixels_than_the_limit_are_refused_before_decoding(tmp_path, size):
    (tmp_path / "a.png").write_bytes(_png_bomb(*size))
    with pytest.raises(SlideError, match=r"more than the 100,000,000"):
        open_slide(tmp_path / "a.png")


def test_an_animation_and_foreign_colour_spaces_are_refused(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (64, 64)).save(tmp_path / "a.jpg")
    for name, problem in (("a.webp", "animation"), ("a.jpg", "colour space CMYK")):
        with pytest.raises(SlideError, match=problem):
            open_slide(tmp_path / name)


def test_sixteen_bits_are_refused_without_channels_and_shown_with_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 65_536, (90, 80, 3)).astype(np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(values))
    with pytest.raises(SlideError, match="3 channels of uint16") as refusal:
        open_slide(path)
    assert "red=FF0000:0-65535,green=00FF00" in refusal.value.args[2]
    with open_slide(path, channels=Channels.parse("red=FF0000,green=00FF00,blue=0000FF:0-1000")) as slide:
        expected = np.floor(np.clip(values / [65_535, 65_535, 1000], 0, 1) * 255 + 0.5)
        assert np.array_equal(slide.read(Region(0, 0, 80, 90), 0), expected.astype(np.uint8))
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(SpecError, match="none to choose"):
        open_slide(tmp_path / "a.png", channels=Channels.parse("red=FF0000"))
