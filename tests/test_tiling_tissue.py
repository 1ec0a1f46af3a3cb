import numpy as np
import pytest
import shapely
import tifffile
from shapely.geometry import shape

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import (
    TileSpec,
    Tissue,
    TissueSpec,
    find_tissue,
    iter_patches,
    plan_grid,
    read_thumbnail,
    tissue_outline,
)  # fmt: skip
from tiling.pen import keep_large
from wsi import SlideError, open_slide

GLASS, STAIN = (242, 241, 243), (190, 110, 170)


def slide_with(mpp: float, *boxes_um: tuple[int, int, int, int], side_um: int = 2000) -> ArraySlide:
    """Glass with sensor noise and stained boxes (x, y, width, height in µm)."""
    side = round(side_um / mpp)
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = GLASS
    for box in boxes_um:
        x, y, width, height = (round(value / mpp) for value in box)
        pixels[y : y + height, x : x + width] = STAIN
    noise = np.random.default_rng(0).normal(0, 2, pixels.shape)
    return ArraySlide([np.clip(pixels + noise, 0, 255).astype(np.uint8)], mpp)


@pytest.mark.parametrize("mpp", [0.5, 1.0, 2.0])
def test_thresholds_are_areas_so_scanners_agree(mpp):
    pieces = ((200, 200, 600, 600), (1200, 200, 60, 60))  # 360,000 µm² of tissue and 3,600 µm² of dust
    tissue = find_tissue(slide_with(mpp, *pieces), TissueSpec())
    assert tissue.area_um2 == pytest.approx(360_000, rel=0.08)


def test_a_slide_of_bare_glass_has_no_tissue():
    assert find_tissue(slide_with(1.0), TissueSpec()).area_um2 == 0


def test_a_slide_full_of_tissue_is_not_split_into_pale_and_dark():
    assert find_tissue(slide_with(1.0, (0, 0, 2000, 2000)), TissueSpec()).mask.mean() > 0.98


def test_grey_dust_and_a_black_edge_are_no_tissue():
    slide = slide_with(1.0, (200, 200, 600, 600))
    slide._arrays[0][1200:1500, 1200:1500] = 120
    slide._arrays[0][:, 1900:] = 5
    assert find_tissue(slide, TissueSpec()).area_um2 == pytest.approx(360_000, rel=0.08)


def test_method_none_takes_the_whole_slide():
    assert find_tissue(slide_with(1.0), TissueSpec(method="none")).mask.all()


def test_a_dark_background_is_refused():
    slide = ArraySlide([np.full((500, 500, 3), 8, np.uint8)], 1.0)
    with pytest.raises(SlideError, match="fluorescence"):
        find_tissue(slide, TissueSpec())


def test_a_slide_without_scale_is_refused_with_the_column_and_the_flag_that_mend_it():
    with pytest.raises(SlideError, match=r"`mpp` column.*--slide-mpp"):
        find_tissue(ArraySlide([np.zeros((500, 500, 3), np.uint8)], None), TissueSpec())


def test_a_thumbnail_pixel_covers_the_same_level_0_pixels_everywhere():
    pixels = np.full((1003, 2011, 3), 255, np.uint8)
    pixels[490:500, 2000:2010] = 0
    thumbnail = read_thumbnail(ArraySlide([pixels, pixels[::5, ::5]], 0.5), 10)
    assert thumbnail.pixels.shape == (101, 202, 3)
    assert np.argwhere(thumbnail.pixels[..., 0] < 128).tolist() == [[49, 200]]


def test_small_pieces_are_dropped_by_size():
    mask = np.zeros((20, 20), bool)
    mask[1:4, 1:4] = mask[10:12, 10:12] = True
    assert keep_large(mask, 5).sum() == 9


def test_the_outline_is_valid_keeps_holes_and_has_the_masks_area():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:70] = True
    mask[20:40, 30:50] = False
    outline = shape(tissue_outline(Tissue(mask, 16, 0.0)))
    assert outline.is_valid
    assert len(outline.geoms[0].interiors) == 1
    assert outline.area == pytest.approx(mask.sum() * 256, rel=0.02)
    assert shapely.contains_xy(outline, 15 * 16, 15 * 16)
    assert not shapely.contains_xy(outline, 40 * 16, 30 * 16)


def test_tissue_of_the_real_slide_is_where_a_person_sees_it(real_slide):
    with open_slide(real_slide) as slide:
        tissue = find_tissue(slide, TissueSpec())
    assert 0.25 < tissue.mask.mean() < 0.55
    rows, columns = tissue.mask.shape
    assert tissue.mask[int(rows * 0.9), int(columns * 0.5)]  # epidermis at the lower middle
    assert not tissue.mask[int(rows * 0.3), int(columns * 0.1)]  # glass at the left


def test_a_damaged_part_is_lost_from_the_thumbnail_and_nothing_else(tmp_path):
    """One stored tile of glass is overwritten: the slide still opens, and its tiles there fail one by one."""
    image = np.full((1440, 1440, 3), GLASS, np.uint8)
    image[480:960, 480:960] = STAIN
    path = write_svs(tmp_path / "a.svs", image, SvsOptions(downsamples=(1,)))
    with open_slide(path) as slide:
        sound = find_tissue(slide, TissueSpec(min_area_um2=0))
    (start, count) = stored_tile(path, 8)  # row 1, column 2 of six a row: x 480-720, y 240-480
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(count)
    path.write_bytes(content)
    with open_slide(path) as slide:
        thumbnail = read_thumbnail(slide, 16)
        lost = np.argwhere(thumbnail.unread) * 16
        assert lost.min(axis=0).tolist() >= [240 - 128, 480 - 128]
        assert lost.max(axis=0).tolist() <= [480 + 128, 720 + 128]
        assert thumbnail.unread[(240 // 16) + 1 : (480 // 16) - 1, (480 // 16) + 1 : (720 // 16) - 1].all()
        tissue = find_tissue(slide, TissueSpec(min_area_um2=0))
        assert (tissue.mask != (sound.mask | thumbnail.unread)).mean() < 0.01  # a blurred edge about the lost part
        grid = plan_grid(slide.levels, TileSpec(tile_px=120, max_failed_tiles=0.5), tissue)
        ok = np.concatenate([batch.ok for batch in iter_patches(slide, grid)])
    corners = {tuple(corner) for corner in grid.xy[~ok].tolist()}
    assert corners == {(480, 240), (600, 240), (480, 360), (600, 360)}


def stored_tile(path, number):
    """(offset, bytes) of a stored tile of level 0."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return page.dataoffsets[number], page.databytecounts[number]


def test_a_damaged_coarse_level_is_read_around(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue_like(960, 960), SvsOptions(downsamples=(1, 4)))
    with open_slide(path) as slide:
        sound = read_thumbnail(slide, 16).pixels.astype(int)
    with tifffile.TiffFile(path) as file:
        page = next(page for page in file.pages if page.is_tiled and page.imagewidth == 240)
        start, count = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + count] = b"\xab" * count
    path.write_bytes(content)
    with open_slide(path) as slide:
        thumbnail = read_thumbnail(slide, 16)
    assert not thumbnail.unread.any()
    assert np.abs(thumbnail.pixels - sound).mean() < 4


def test_the_outline_of_a_huge_mask_is_coarser_and_encloses_the_same_area():
    rows, cols = np.mgrid[:2400, :2100]
    mask = (rows - 1200) ** 2 + (cols - 1000) ** 2 < 800**2
    mask &= (rows - 1200) ** 2 + (cols - 1000) ** 2 > 200**2
    outline = shape(tissue_outline(Tissue(mask, 32, 0.0)))
    assert abs(outline.area / (mask.sum() * 32**2) - 1) < 0.005
    assert len(outline.geoms) == 1
    assert len(outline.geoms[0].interiors) == 1
