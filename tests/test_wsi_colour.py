"""An embedded ICC profile is applied when asked for, the same on every road pixels take."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import TileSpec, Tissue, iter_patches, plan_grid
from wsi import Region, open_slide
from wsi.colour import in_srgb
from wsi.errors import SlideError

# sRGB's primaries in the profile connection space (D50), from the ICC's sRGB profile
PRIMARIES = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7139)}


def matrix_profile(red: str, green: str, blue: str, gamma: float = 2.2) -> bytes:
    """A version-2 matrix profile whose three channels are the named primaries. Source: ICC.1:2001-04."""

    def fixed(values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    text = b"slidestream test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(79),
        b"cprt": b"text" + bytes(4) + text,
        b"wtpt": b"XYZ " + bytes(4) + fixed((0.9642, 1.0, 0.8249)),
        **{f"{channel}TRC".encode(): curve for channel in "rgb"},
    }
    for channel, primary in zip("rgb", (red, green, blue), strict=True):
        tags[f"{channel}XYZ".encode()] = b"XYZ " + bytes(4) + fixed(PRIMARIES[primary])
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"scnr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed((0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + table + body


class ProfiledSlide(ArraySlide):
    """A slide in memory with an ICC profile."""

    def __init__(self, pixels, profile: bytes):
        super().__init__([pixels], 0.25)
        self._profile = profile

    def icc_profile(self) -> bytes:
        return self._profile


def test_a_profile_with_red_and_blue_exchanged_exchanges_them():
    pixels = tissue_like(300, 200)
    slide = in_srgb(ProfiledSlide(pixels, matrix_profile("b", "g", "r")))
    seen = slide.read(Region(0, 0, 300, 200), 0).astype(int)
    # the curve of the profile is a plain power of 2.2, sRGB's has a linear foot: a few grey levels in the dark
    assert np.abs(seen - pixels[..., ::-1]).max() <= 6
    assert np.abs(seen - pixels).max() > 30
    assert slide.info.colour == "srgb"


def test_all_roads_give_the_colours_that_littlecms_gives(tmp_path, monkeypatch):
    path = write_svs(tmp_path / "slide.svs", tissue_like(900, 700), SvsOptions(240, (1,), mpp="0.25", objective="40"))
    profile = matrix_profile("g", "b", "r", 1.8)
    with open_slide(path) as plain:
        monkeypatch.setattr(type(plain), "icc_profile", lambda self: profile)
        slide = in_srgb(plain)
        region = Region(100, 50, 512, 512)
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        expected = ImageCms.profileToProfile(
            Image.fromarray(plain.read(region, 0)), source, ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
        )
        assert np.array_equal(slide.read(region, 0), np.asarray(expected))
        many = np.empty((1, 512, 512, 3), np.uint8)
        assert slide.read_many(np.array([[100, 50]]), 0, many).all()
        assert np.array_equal(many[0], np.asarray(expected))
        tissue = Tissue(np.ones((44, 57), bool), 16, 1.0)
        for mpp in (0.25, 0.5, 0.35):
            grid = plan_grid(slide.levels, TileSpec(128, mpp), tissue)
            converted = np.concatenate([batch.patches for batch in iter_patches(slide, grid)])
            stored = np.concatenate([batch.patches for batch in iter_patches(plain, grid)])
            again = ImageCms.profileToProfile(
                Image.fromarray(stored.reshape(-1, 128, 3)), source, ImageCms.createProfile("sRGB")
            )
            # converted before averaging, not after: the curve makes that differ by little
            off = np.abs(converted.reshape(-1, 128, 3).astype(int) - np.asarray(again))
            assert off.max() == 0 if mpp != 0.35 else off.mean() < 1


def test_a_slide_without_profile_stays_itself():
    slide = ArraySlide([tissue_like(64, 64)])
    assert in_srgb(slide) is slide


@pytest.mark.parametrize(
    "profile", [b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_is_damaged_or_not_of_rgb_is_refused(profile):
    with pytest.raises(SlideError, match="ICC profile"):
        in_srgb(ProfiledSlide(tissue_like(64, 64), profile))


def test_a_real_slide_whose_profile_is_srgb_keeps_its_colours(data_dir):
    with open_slide(data_dir / "slides" / "TCGA-CR-7395-01A-01-TS1.svs") as slide:
        assert len(slide.icc_profile()) == slide.info.icc_bytes == 3144  # Hewlett-Packard's sRGB profile
        region = Region(1000, 1000, 400, 300)
        plain, converted = slide.read(region, 0).astype(int), in_srgb(slide).read(region, 0)
    assert np.abs(plain - converted).max() <= 1
