"""Tile quality: real tissue, sharp and spoiled on purpose."""

import cv2
import numpy as np
import pytest

from tests.slides import ArraySlide, SvsOptions, write_svs
from tiling import QualitySpec, TileSpec, TissueSpec, find_tissue, measure_quality, plan_grid
from tiling.quality import measure_sharpness
from wsi import Region, open_slide

SPEC = QualitySpec()
WHOLE = TileSpec(tissue=TissueSpec(method="none"))


def quality_of(slide, spec=None):
    spec = spec or TileSpec()
    tissue = find_tissue(slide, spec.tissue)
    grid = plan_grid(slide.levels, spec, tissue)
    return grid, measure_quality(slide, grid, tissue, spec.quality)


@pytest.fixture(scope="module")
def real_pixels(real_slide):
    with open_slide(real_slide) as slide:
        return slide.read(Region(0, 0, slide.levels[0].width, slide.levels[0].height), 0)


def halved(pixels):
    return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def blurred(pixels, sigma_um, mpp):
    return cv2.GaussianBlur(pixels, (0, 0), sigma_um / mpp)


@pytest.fixture(scope="module")
def fields(data_dir):
    """Real H&E at 0.25 µm per pixel, mirrored to 2,000 px; uint8 (1000, 2000, 3) of several organs."""
    paths = sorted((data_dir / "tiles" / "monuseg" / "images").iterdir())[::6]
    pictures = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    return [np.hstack([picture, picture[:, ::-1]]) for picture in pictures]


@pytest.mark.parametrize("scan_um", [0.25, 0.5])
def test_sharp_real_tissue_is_not_flagged_and_its_blurred_copy_is(fields, scan_um):
    for blur_um, least, most in ((0, 0.0, 0.0), (2.0, 0.95, 1.0)):
        flags = []
        for field in fields:
            pixels = blurred(field, blur_um, 0.25) if blur_um else field
            slide = ArraySlide([pixels if scan_um == 0.25 else halved(pixels)], scan_um)
            flags.append(quality_of(slide, WHOLE)[1].flags(SPEC)["blur"])
        assert least <= np.concatenate(flags).mean() <= most


def test_sharpness_is_the_same_from_scans_of_0_25_and_0_5_um(fields):
    for field in fields:
        fine = quality_of(ArraySlide([field], 0.25), WHOLE)[1].sharpness
        coarse = quality_of(ArraySlide([halved(field)], 0.5), WHOLE)[1].sharpness
        np.testing.assert_allclose(fine, coarse, rtol=0.05)


def test_a_clean_real_slide_has_no_flagged_tiles_and_a_blurred_scan_of_it_has(real_slide, real_pixels, tmp_path):
    with open_slide(real_slide) as slide:
        grid, quality = quality_of(slide)
    assert len(grid) > 30
    assert {name: flag.sum() for name, flag in quality.flags(SPEC).items()} == dict.fromkeys(quality.flags(SPEC), 0)
    path = write_svs(tmp_path / "a.svs", blurred(real_pixels, 2.0, 0.499), SvsOptions(downsamples=(1, 4), mpp="0.499"))
    with open_slide(path) as slide:
        assert quality_of(slide)[1].flags(SPEC)["blur"].mean() > 0.95


def test_one_blurred_part_is_flagged_where_it_is(real_pixels):
    pixels = real_pixels.copy()
    soft = blurred(pixels, 3.0, 0.499)
    pixels[1500:2000] = soft[1500:2000]
    grid, quality = quality_of(ArraySlide([pixels], 0.499))
    top = grid.xy[:, 1]
    inside, outside = (top >= 1500) & (top + grid.span_px <= 2000), (top >= 2000) | (top + grid.span_px <= 1500)
    assert inside.any()
    blur = quality.flags(SPEC)["blur"]
    assert blur[inside].all()
    assert not blur[outside].any()


def pink_slide(mpp=1.0, side_um=3000):
    """Stained tissue with grain and nuclei on glass."""
    rng = np.random.default_rng(0)
    side = round(side_um / mpp)
    pixels = np.full((side, side, 3), 242, np.float32)
    inner = slice(side // 10, side - side // 10)
    pixels[inner, inner] = (205, 140, 180)
    pixels += rng.standard_normal((side, side, 1), np.float32) * 12
    return np.clip(pixels, 0, 255).astype(np.uint8)


def paint(pixels, name):
    """(pixels with the artefact in the middle, the band of rows it covers in µm)."""
    spoiled = pixels.astype(np.float32)
    band, inner = slice(1400, 1600), slice(400, 2600)
    part = spoiled[band, inner]
    if name == "fold":  # twice the tissue: the light passes two layers
        part[...] = part * part / 245
    elif name == "pen":
        part[...] = (40, 90, 180)
    elif name == "dark":
        part[...] = 20
    else:
        part[...] = 190
    return np.clip(spoiled, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["fold", "pen", "dark", "bubble"])
def test_a_painted_artefact_is_flagged_where_it_is_and_nowhere_else(name):
    method = "otsu" if name == "fold" else "none"  # a fold is told from the slide's own tissue
    spec = TileSpec(tile_px=64, mpp=1.0, min_tissue=0.0, tissue=TissueSpec(method=method))
    grid, quality = quality_of(ArraySlide([paint(pink_slide(), name)], 1.0), spec)
    x, y = grid.xy.T
    inside = (y >= 1400) & (y + 64 <= 1600) & (x >= 400) & (x + 64 <= 2600)
    outside = (y + 64 <= 1350) | (y >= 1650)
    flagged = quality.flags(SPEC)[name]
    assert flagged[inside].mean() > 0.95
    assert flagged[outside].mean() < 0.02


def test_clean_tissue_has_none_of_the_painted_flags():
    _, quality = quality_of(ArraySlide([pink_slide()], 1.0), TileSpec(tile_px=64, mpp=1.0))
    flags = quality.flags(SPEC)
    assert {name: flag.mean() for name, flag in flags.items()} == dict.fromkeys(flags, 0)


def test_a_tile_that_cannot_be_read_has_no_sharpness_and_no_flag():
    class Torn(ArraySlide):
        def read_many(self, xy, level, out):
            super().read_many(xy, level, out)
            return xy[:, 1] < 1000

    slide = Torn([pink_slide()], 1.0)
    grid, quality = quality_of(slide, TileSpec(tile_px=64, mpp=1.0))
    lost = grid.xy[:, 1] >= 1000
    assert np.isnan(quality.sharpness[lost]).all()
    assert not np.isnan(quality.sharpness[~lost]).any()
    assert not quality.flags(SPEC)["blur"][lost].any()


def test_excluded_tiles_are_those_of_the_named_flags_only():
    slide = ArraySlide([paint(pink_slide(), "pen")], 1.0)
    _, quality = quality_of(slide, TileSpec(tile_px=64, mpp=1.0, min_tissue=0.0, tissue=TissueSpec(method="none")))
    flags = quality.flags(SPEC)
    assert not quality.excluded(QualitySpec()).any()
    assert (quality.excluded(QualitySpec(exclude=("pen",))) == flags["pen"]).all()
    assert (quality.excluded(QualitySpec(exclude=("pen", "blur"))) == flags["pen"] | flags["blur"]).all()


@pytest.mark.parametrize(("tile_px", "mpp"), [(16, 0.5), (64, 0.5), (64, 2.0)])
def test_sharpness_is_measured_for_small_tiles_and_coarse_slides(tile_px, mpp):
    slide = ArraySlide([pink_slide(mpp, side_um=800)], mpp)
    spec = TileSpec(tile_px=tile_px, mpp=mpp, max_tiles=50, tissue=TissueSpec(method="none"))
    grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
    assert (measure_sharpness(slide, grid, 1.0) > 0).all()


def test_of_a_fluorescence_slide_only_the_sharpness_is_looked_at():
    pixels = np.full((1000, 1000, 3), 6, np.uint8)
    pixels[200:800, 200:800] = (0, 0, 90)
    spec = TileSpec(tile_px=64, mpp=1.0, tissue=TissueSpec(method="fluorescence"))
    grid, quality = quality_of(ArraySlide([pixels], 1.0), spec)
    assert len(grid) > 20
    assert max(quality.pen.max(), quality.fold.max(), quality.dark.max(), quality.bubble.max()) == 0
