"""The ways to find tissue, and masks from outside."""

import json

import cv2
import numpy as np
import pytest
import shapely
from skimage.filters import threshold_otsu

from tests.slides import ArraySlide, SvsOptions, tissue_like, write_svs
from tiling import TissueSpec, find_tissue, read_mask, read_thumbnail
from tiling.outside import fit_mask, rasterise
from tiling.spec import TISSUE_METHODS
from tiling.tissue_methods import METHODS, hsv_tissue, otsu_threshold
from wsi import Region, SlideError, SpecError, open_slide

GLASS, STAIN = (242, 241, 243), (190, 110, 170)


def picture(background, *boxes, side=400, noise=2.0):
    """uint8 (side, side, 3) with boxes (x, y, width, height, colour) and sensor noise."""
    pixels = np.empty((side, side, 3))
    pixels[:] = background
    for x, y, width, height, colour in boxes:
        pixels[y : y + height, x : x + width] = colour
    return np.clip(pixels + np.random.default_rng(0).normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)


def test_every_method_of_the_spec_is_there():
    assert set(METHODS) | {"learned", "mask", "none"} == set(TISSUE_METHODS)


@pytest.mark.parametrize("method", ["otsu", "hsv", "texture"])
def test_each_brightfield_method_finds_the_stained_piece_and_no_glass(method):
    pixels = picture(GLASS, (100, 100, 200, 200, STAIN))
    tissue = find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method=method))
    assert tissue.area_um2 == pytest.approx(200 * 200 * 64, rel=0.06)
    assert find_tissue(ArraySlide([picture(GLASS)], 8.0), TissueSpec(method=method)).area_um2 == 0


@pytest.mark.parametrize("method", ["otsu", "hsv", "texture"])
def test_a_dark_background_is_refused_with_the_method_that_can(method):
    slide = ArraySlide([picture((6, 6, 6), (100, 100, 150, 150, (30, 40, 200)))], 8.0)
    with pytest.raises(SlideError, match="tissue method `fluorescence`"):
        find_tissue(slide, TissueSpec(method=method))
    tissue = find_tissue(slide, TissueSpec(method="fluorescence"))
    assert tissue.area_um2 == pytest.approx(150 * 150 * 64, rel=0.06)
    assert tissue.pen is None
    assert find_tissue(ArraySlide([picture((6, 6, 6))], 8.0), TissueSpec(method="fluorescence")).area_um2 == 0


def test_fluorescence_does_not_take_the_white_beyond_the_slides_edge_for_tissue():
    slide = ArraySlide([picture((6, 6, 6), (100, 100, 150, 150, (30, 40, 200)), side=397)], 4.0)
    spec = TissueSpec(method="fluorescence", min_area_um2=0, max_hole_um2=0)
    assert not find_tissue(slide, spec).mask[:, -2:].any()


@pytest.mark.parametrize(("name", "least", "most"), [("DAPI-2-387", 0.2, 0.6), ("TRITC-2-560", 0.1, 0.7)])
def test_fluorescence_on_real_slides(data_dir, name, least, most):
    with open_slide(data_dir / "slides" / f"stritt_test3-{name}.ndpi") as slide:
        assert least < find_tissue(slide, TissueSpec(method="fluorescence")).mask.mean() < most


def test_pale_fat_is_found_by_texture(data_dir):
    fat = cv2.cvtColor(cv2.imread(str(data_dir / "qc" / "histolab_low-nuclei-score-level0.png")), cv2.COLOR_BGR2RGB)
    pixels = picture(np.median(fat.reshape(-1, 3), axis=0), side=1600)
    pixels[400:1424, 400:1424] = np.vstack([np.hstack([fat, fat[:, ::-1]]), np.hstack([fat[::-1], fat[::-1, ::-1]])])
    share = {}
    for method in ("otsu", "texture"):
        tissue = find_tissue(ArraySlide([pixels], 1.0), TissueSpec(method=method))
        share[method] = tissue.area_um2 / (1024 * 1024)
    assert share["otsu"] < 0.1
    assert share["texture"] == pytest.approx(1, abs=0.1)


def test_hsv_is_clams_rule_at_its_own_scale():
    pixels = cv2.GaussianBlur(picture(GLASS, (100, 100, 200, 200, STAIN), noise=20), (0, 0), 2)
    saturation = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1].copy()
    assert (hsv_tissue(pixels, 16.0) == (cv2.medianBlur(saturation, 7) > 8)).all()


def test_hsv_keeps_clams_areas_and_eight_holes():
    piece = 160 * 8.0  # µm a side: a little less than 100 patches of 128 µm
    pixels = picture(GLASS, (20, 20, 150, 150, STAIN), side=200)
    assert find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method="hsv")).area_um2 == 0
    assert find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method="hsv", min_area_um2=1e6)).area_um2 > 0.8 * piece**2
    holes = [(40 + 130 * (k % 4), 40 + 130 * (k // 4), 70 + k, 70, GLASS) for k in range(12)]
    pixels = picture(GLASS, (10, 10, 580, 580, STAIN), *holes, side=600)
    mask = find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method="hsv")).mask
    open_holes = [not mask[y + 35, x + 35] for x, y, *_ in holes]
    assert open_holes == [False] * 4 + [True] * 8  # the largest ones stay open


@pytest.mark.parametrize("seed", range(5))
def test_otsus_threshold_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(20, 5, 3000), rng.normal(rng.integers(40, 200), 15, 1000)])
    values = np.clip(values, 0, 255).astype(np.uint8)[None]
    assert otsu_threshold(values, (0, 255)) == threshold_otsu(values)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def check_pair(pixels, mpp, method, folder):
    """A scan at `mpp` and one at half its resolution, both JPEG, have the same tissue."""
    half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    found = []
    for scan, um in ((pixels, mpp), (half, 2 * mpp)):
        path = write_svs(folder / f"{um}.svs", scan, SvsOptions(downsamples=(1, 4), mpp=str(um)))
        with open_slide(path) as slide:
            found.append(find_tissue(slide, TissueSpec(method=method)))
    assert found[0].area_um2 == pytest.approx(found[1].area_um2, rel=0.01)
    assert iou(found[0].mask, found[1].mask) > 0.97


@pytest.mark.parametrize("method", ["otsu", "texture"])
def test_scans_of_real_tissue_at_two_scales_have_the_same_tissue(real_slide, tmp_path, method):
    with open_slide(real_slide) as slide:
        check_pair(slide.read(Region(0, 0, 2220, 2960), 0), 0.5, method, tmp_path)


def test_scans_at_0_25_and_0_5_of_drawn_slides_have_the_same_tissue(tmp_path):
    rng = np.random.default_rng(1)
    blobs = cv2.GaussianBlur(rng.random((1600, 2000), np.float32), (0, 0), 90)
    tissue = (blobs > np.quantile(blobs, 0.6)).astype(np.float32)[..., None]
    grain = rng.standard_normal((1600, 2000, 1), np.float32) * 15
    pixels = np.array(GLASS, np.float32) * (1 - tissue) + tissue * (np.array(STAIN, np.float32) + grain)
    check_pair(np.clip(pixels, 0, 255).astype(np.uint8), 0.25, "otsu", tmp_path)


def test_a_thumbnail_never_reads_a_finer_level_than_it_needs():
    class Watched(ArraySlide):
        def read(self, region, level):
            asked.append(level)
            return super().read(region, level)

    asked = []
    pixels = picture(GLASS, side=1600)
    read_thumbnail(Watched([pixels, pixels[::4, ::4], pixels[::16, ::16], pixels[::32, ::32]], 0.5), 16)
    assert asked == [2]


# Masks from outside

REGIONS = {  # a square with a square hole, and a triangle; level-0 px
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "properties": {},
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]],
                    [[200, 200], [400, 200], [400, 400], [200, 400], [200, 200]],
                ],
            },
        },
        {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [[[600, 600], [760, 600], [600, 760], [600, 600]]]},
        },
    ],
}


@pytest.fixture
def slide():
    return ArraySlide([np.full((800, 1000, 3), 240, np.uint8)], 1.0)


def drawn():
    mask = np.zeros((800, 1000), np.uint8)
    mask[100:500, 100:500] = 1
    mask[200:400, 200:400] = 0
    mask[600:760, 600:760][np.add.outer(np.arange(160), np.arange(160)) < 160] = 1
    return mask


@pytest.mark.parametrize("shrink", [1, 2, 5, 10])
@pytest.mark.parametrize("suffix", ["png", "tiff", "npy", "rgba.png"])
def test_a_mask_image_of_any_size_covers_the_slide(tmp_path, slide, suffix, shrink):
    mask = drawn()[shrink // 2 :: shrink, shrink // 2 :: shrink]
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, mask)
    elif suffix == "rgba.png":
        cv2.imwrite(str(path), np.dstack([mask * 0, mask * 0, mask * 255, np.full_like(mask, 255)]))
    else:
        cv2.imwrite(str(path), mask * 255)
    tissue = find_tissue(slide, TissueSpec(method="mask", mask=str(path)))
    assert tissue.mask.shape == (100, 125)
    assert tissue.area_um2 == pytest.approx(drawn().sum(), rel=0.03)
    assert tissue.mask[15, 15]
    assert not tissue.mask[37, 37]  # the hole


def test_regions_are_a_mask_with_their_holes(tmp_path, slide):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(REGIONS))
    tissue = find_tissue(slide, TissueSpec(method="mask", mask=str(path)))
    assert tissue.area_um2 == pytest.approx(drawn().sum(), rel=0.03)
    assert iou(tissue.mask, drawn()[4::8, 4::8] > 0) > 0.97


def feature(geometry, name):
    properties = {"classification": {"name": name}}
    return {"type": "Feature", "geometry": shapely.geometry.mapping(geometry), "properties": properties}


def test_pen_is_cut_out_of_a_regions_mask_and_points_are_no_tissue(tmp_path, slide):
    path, box = tmp_path / "a.geojson", shapely.box
    pen, tissue = feature(box(300, 0, 800, 400), "PEN"), feature(box(0, 0, 400, 400), "Tissue")
    path.write_text(json.dumps([pen, tissue, feature(shapely.Point(900, 700), "Tissue")]))
    mask = read_mask(path, slide, 10)
    assert mask[:40, :30].all()
    assert mask.sum() == 40 * 30
    for nothing in ([], [pen]):  # as a run writes of a slide without tissue
        path.write_text(json.dumps(nothing))
        assert not read_mask(path, slide, 10).any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (shapely.box(1001, 0, 1500, 100), "none of it lies on this slide of 1000 x 800 px; is it of another slide"),
        (shapely.LineString([(0, 0), (500, 500)]), "none of the 1 objects of .* encloses an area"),
    ],
)
def test_regions_without_an_area_on_the_slide_are_no_mask(tmp_path, slide, shape, message):
    (tmp_path / "a.geojson").write_text(json.dumps([feature(shape, "Tissue"), feature(shapely.box(0, 0, 9, 9), "Pen")]))
    with pytest.raises(SpecError, match=message):
        read_mask(tmp_path / "a.geojson", slide, 10)


@pytest.mark.parametrize("content", [np.ones((80, 100), np.uint8), np.full((80, 100), 255, np.uint8), True, 1.0])
def test_a_mask_may_be_tissue_everywhere(tmp_path, slide, content):
    np.save(tmp_path / "a.npy", np.broadcast_to(content, (80, 100)))
    assert read_mask(tmp_path / "a.npy", slide, 10).all()


def test_a_mask_given_as_an_array_is_taken_as_it_is(slide):
    outside = np.zeros((80, 100), bool)
    outside[10:20, 30:36] = True  # a piece that other methods would drop as dust
    tissue = find_tissue(slide, TissueSpec(method="mask", mask="elsewhere"), outside)
    assert tissue.area_um2 == pytest.approx(6000, rel=0.15)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", None, "there is no file"),
        ("text.png", b"no image", "is no image"),
        ("turned.npy", np.zeros((100, 80), np.uint8), "not the same shape"),
        ("line.npy", np.zeros(100, np.uint8), "dimensions"),
        ("pickle.npy", np.array([{}], object), "cannot be read"),
        ("empty.npy", b"", "cannot be read"),
        ("nan.npy", np.full((80, 100), np.nan), "NaN"),
        ("grey.npy", np.arange(8000, dtype=np.uint16).reshape(80, 100), "8000 different values"),
        ("no_zero.npy", np.tri(80, 100, dtype=np.uint8) + 1, "2 different values; a mask has two, one of them 0"),
        ("flat.npy", np.full((80, 100), 7, np.uint8), "every pixel of .* is 7"),
        ("colours.npy", np.dstack([np.tri(80, 100, k) > 0 for k in (0, 5, 9)]), "other colours than one on black"),
        ("thumbnail.png", (tissue_like(100, 80)), "different values.*as PNG"),
        ("mask.jpg", np.eye(80, 100, dtype=np.uint8) * 255, "different values.*as PNG"),
    ],
)
def test_a_file_that_is_no_mask_of_this_slide_is_refused(tmp_path, slide, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None and not name.endswith(".npy"):
        cv2.imwrite(str(tmp_path / name), content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(SpecError, match=message):
        find_tissue(slide, TissueSpec(method="mask", mask=str(tmp_path / name)))


def test_a_learned_mask_is_cleaned_and_needed(slide):
    with pytest.raises(SpecError, match="needs a model's mask"):
        find_tissue(slide, TissueSpec(method="learned", weights="w.ckpt"))
    outside = np.zeros((100, 125), bool)
    outside[20:60, 20:60] = True
    outside[30:33, 30:33] = False  # 576 µm²
    outside[80:83, 80:83] = True
    tissue = find_tissue(slide, TissueSpec(method="learned", weights="w.ckpt"), outside)
    assert tissue.area_um2 == 40 * 40 * 64


@pytest.mark.parametrize("seed", range(4))
def test_rasterised_regions_are_the_pixels_whose_centres_lie_inside(seed):
    rng = np.random.default_rng(seed)
    shapes = [shapely.buffer(shapely.Point(*rng.uniform(-20, 420, 2)), rng.uniform(20, 120)) for _ in range(6)]
    shapes.append(shapely.difference(shapes[0].buffer(90), shapes[0].buffer(30)))
    shapes.append(shapely.LineString([(0, 0), (400, 300)]))
    mask = rasterise(shapes, (75, 100), 4.0)
    x, y = np.meshgrid((np.arange(100) + 0.5) * 4, (np.arange(75) + 0.5) * 4)
    inside = shapely.contains_xy(shapely.union_all(shapes[:-1]), x, y)
    assert (mask == inside).all()
    assert not rasterise([], (5, 6), 1.0).any()


def test_a_mask_that_reaches_over_the_slides_edge_as_ours_does_is_not_stretched(slide):
    mask = np.random.default_rng(0).random((27, 34)) < 0.5
    assert (fit_mask(mask, slide, (27, 34), 30) == mask).all()


def test_read_mask_of_regions_has_the_scale_asked_for(tmp_path, slide):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(REGIONS))
    assert read_mask(path, slide, 16).shape == (50, 63)
