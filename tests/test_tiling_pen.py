"""Pen marks: on real pictures, pen is found and clean tissue is left alone; on painted ones, the share is known."""

import zipfile

import cv2
import numpy as np
import pytest

from tests.slides import ArraySlide
from tiling import TissueSpec, find_tissue
from tiling.pen import find_pen, near

GLASS = (242, 241, 243)
INKS = {"blue": (40, 90, 180), "green": (50, 160, 140), "red": (200, 25, 30), "black": (30, 28, 34)}
STAINS = {
    "eosin": (222, 120, 170), "haematoxylin": (96, 70, 140), "H&E": (150, 83, 136), "bluish H&E": (120, 118, 170),
    "DAB": (130, 85, 50), "dark DAB": (85, 48, 30), "blood": (195, 72, 103), "dense nuclei": (96, 47, 101),
}  # fmt: skip


def picture(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def at_8_um(pixels, um):
    size = round(pixels.shape[1] * um / 8), round(pixels.shape[0] * um / 8)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if um < 8 else pixels


def stroke(colour, on=GLASS, side=200):
    """A stroke 0.4 mm wide over noise of `on`, at 8 µm per pixel, and where it is: (pixels, mask)."""
    mask = np.zeros((side, side), np.uint8)
    cv2.line(mask, (30, 40), (170, 150), 1, 50)
    pixels = np.where(mask[..., None] > 0, colour, on) + np.random.default_rng(0).normal(0, 3, (side, side, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), mask > 0


@pytest.mark.parametrize("under", [GLASS, STAINS["H&E"]], ids=["glass", "tissue"])
@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_of_each_ink_is_found_whole_and_little_more(ink, under):
    pixels, drawn = stroke(INKS[ink], under)
    found = find_pen(pixels, 8.0)
    assert found[drawn].mean() > 0.99
    assert not found[~near(drawn, 9)].any()  # a rim of 30 µm about the stroke as it is smoothed


@pytest.mark.parametrize("stain", STAINS)
def test_stains_are_no_pen(stain):
    pixels, _ = stroke(STAINS[stain])
    assert not find_pen(pixels, 8.0).any()


@pytest.mark.parametrize(
    ("name", "um", "least", "most"),
    [  # shares of the picture under pen, as counted by eye on the pictures with what was found drawn
        ("histolab_no-tissue-green-pen.png", 4.0, 0.76, 0.88),
        ("histolab_tcga-green-pen.png", 6.0, 0.16, 0.23),
        ("histolab_tcga-red-pen.png", 4.0, 0.27, 0.35),
        ("histolab_wsi-blue-pen.png", 60.0, 0.03, 0.05),
        ("histoprep_slide_with_ink.jpeg", 4.0, 0.007, 0.013),
        ("histolab_diagnostic-slide-thumb-rgb.png", 40.0, 0.23, 0.31),
    ],
)
def test_pen_on_real_slides_is_found(data_dir, name, um, least, most):
    assert least < find_pen(at_8_um(picture(data_dir / "qc" / name), um), max(8.0, um)).mean() < most


@pytest.mark.parametrize(
    ("name", "um"),
    [
        ("histolab_almost-white-2.png", 0.5), ("histolab_high-nuclei-score-level0.png", 1.0),
        ("histolab_low-nuclei-score-level0.png", 1.0), ("histolab_tcga-lung-rgb.png", 0.5),
        ("histoprep_slide.jpeg", 2.0), ("torchstain_source.png", 1.0), ("torchstain_target.png", 1.0),
        ("histolab_tissue-level0-4302-10273-4814-10785.png", 0.5),
    ],
)  # fmt: skip
def test_clean_real_tissue_loses_nothing_to_pen(data_dir, name, um):
    pixels = picture(data_dir / "qc" / name)
    for finer in (1, 4):  # as a thumbnail, and magnified so that single structures are as large as strokes
        assert not find_pen(at_8_um(pixels, um * finer), 8.0).any()


def test_tiles_of_many_patients_lose_nothing_to_pen(data_dir):
    fields = [picture(path) for path in sorted((data_dir / "tiles" / "monuseg" / "images").iterdir())[::4]]
    with zipfile.ZipFile(data_dir / "tiles" / "uni_tcga_luadlusc.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".jpg", ".jpeg", ".png"))][::5]
        fields += [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR_RGB) for name in names]
    assert len(fields) > 40
    for um in (0.25, 0.5):  # what the two sets are scanned at: each is also seen at the other's scale
        assert not any(
            find_pen(cv2.resize(field, None, fx=um / 2, fy=um / 2, interpolation=cv2.INTER_AREA), 2.0).any()
            for field in fields
        )


def test_a_slide_with_nothing_but_pen_has_no_tissue(data_dir):
    slide = ArraySlide([picture(data_dir / "qc" / "histolab_no-tissue-green-pen.png")], 4.0)
    assert find_tissue(slide, TissueSpec()).area_um2 == 0
    assert find_tissue(slide, TissueSpec(pen=False)).area_um2 > 0


@pytest.mark.parametrize("method", ["otsu", "texture"])
def test_pen_is_taken_out_of_the_tissue_and_shifts_no_threshold(method):
    pixels = np.full((500, 500, 3), GLASS, np.uint8)
    pixels[100:400, 100:400] = (225, 205, 220)  # pale tissue that strong pen would hide from Otsu
    clean = find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method=method))
    pixels[:60] = INKS["green"]
    pixels[200:260, :] = INKS["blue"]
    tissue = find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method=method))
    assert tissue.pen is not None
    assert not (tissue.mask & tissue.pen).any()
    assert (tissue.mask | tissue.pen)[clean.mask].mean() > 0.999
    assert (tissue.mask & ~clean.mask).mean() < 0.01


def test_what_counts_as_given_keeps_its_pen_and_reports_it():
    pixels, drawn = stroke(INKS["red"])
    tissue = find_tissue(ArraySlide([pixels], 8.0), TissueSpec(method="none"))
    assert tissue.mask.all()
    assert tissue.pen[drawn].mean() > 0.99
