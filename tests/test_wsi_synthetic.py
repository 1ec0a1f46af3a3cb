"""Synthetic slides: readable by OpenSlide, true to their truth map, and not solved by colour."""

import csv
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi.errors import SlideError, SpecError
from wsi.synthetic import (
    GLASS,
    SCANNERS,
    STAINS,
    TISSUE,
    TUMOUR,
    CohortSpec,
    SyntheticSpec,
    Truth,
    plan_cohort,
    read_truth,
    tile_truth,
    write_synthetic_cohort,
    write_synthetic_slide,
)

SMALL = SyntheticSpec(seed=3, width_px=1200, height_px=1000, nests=2, nest_radius_um=70, tissue=0.5)


@pytest.fixture(scope="module")
def positive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "positive.svs"
    write_synthetic_slide(path, SMALL)
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_cohort(
        tmp_path_factory.mktemp("cohort"), patients=4, second_slides=2, sites=2, width_px=768, height_px=768
    )


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def full_size(truth: Truth, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = int(truth.scale)
    return truth.labels.repeat(scale, 0).repeat(scale, 1)[: pixels.shape[0], : pixels.shape[1]]


def rows_of(manifest: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(manifest.read_text(encoding="utf-8"))))


def test_openslide_reads_it_as_an_aperio_slide(positive: Path) -> None:
    with openslide.OpenSlide(positive) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert float(slide.properties["openslide.objective-power"]) == 20
        assert slide.level_dimensions == ((1200, 1000), (300, 250), (75, 62))
        assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.02)
        assert set(slide.associated_images) == {"label", "macro", "thumbnail"}


def test_it_says_that_it_is_synthetic(positive: Path) -> None:
    with openslide.OpenSlide(positive) as slide:
        assert "synthetic" in slide.properties["openslide.comment"]
        assert slide.properties["aperio.ScanScope ID"] == "SYNTHETIC"
        label = np.asarray(slide.associated_images["label"].convert("L"))
        macro = np.asarray(slide.associated_images["macro"].convert("L"))
    assert 0.02 < (label[50:100] < 100).mean() < 0.4  # the line of large letters
    assert (macro[:, :360] < 100).any()
    with Image.open(positive.with_name("positive.truth.png")) as image:
        assert "SYNTHETIC" in image.info["content"]


def test_upper_levels_show_the_same_picture(positive: Path) -> None:
    with openslide.OpenSlide(positive) as slide:
        fine = slide.read_region((0, 0), 0, (1200, 992)).convert("RGB").resize((75, 62), Image.Resampling.BOX)
        coarse = slide.read_region((0, 0), 2, (75, 62)).convert("RGB")
    one, two = np.asarray(fine, float).mean(2), np.asarray(coarse, float).mean(2)
    shifted = np.abs(one - np.roll(two, 1, axis=1)).mean()
    assert np.abs(one - two).mean() < min(6, shifted / 2)  # JPEG at this scale costs about 4 grey levels


def test_the_same_spec_gives_the_same_bytes(positive: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "positive.svs", tmp_path / "other" / "positive.svs"
    write_synthetic_slide(again, SMALL)
    write_synthetic_slide(other, replace(SMALL, seed=4))
    assert again.read_bytes() == positive.read_bytes()
    assert other.read_bytes() != positive.read_bytes()


def test_truth_is_where_it_says(positive: Path) -> None:
    truth, pixels = read_truth(positive), pixels_of(positive)
    labels = full_size(truth, pixels)
    assert set(np.unique(truth.labels)) == {GLASS, TISSUE, TUMOUR}
    assert 0.05 < truth.tumour_share < 0.6
    assert (truth.labels != GLASS).mean() == pytest.approx(SMALL.tissue, abs=0.05)
    assert np.median(pixels[labels == GLASS], axis=0).min() > 235
    assert (pixels[labels == GLASS].min(axis=1) > 215).mean() > 0.93  # dust, and fibres that reach out
    assert (pixels[labels != GLASS].min(axis=1) < 215).mean() > 0.85  # lumens and fat are pale too
    assert read_truth(positive.with_name("positive.truth.png")).scale == truth.scale == 16


def test_a_negative_slide_has_no_tumour(tmp_path: Path) -> None:
    truth = write_synthetic_slide(tmp_path / "negative.svs", replace(SMALL, nests=0))
    assert truth.tumour_share == 0
    assert (read_truth(tmp_path / "negative.svs").labels == truth.labels).all()


def test_mean_colour_does_not_give_the_tumour_away(tmp_path: Path) -> None:
    tumour, normal = [], []
    for seed in range(4):
        path = tmp_path / f"{seed}.svs"
        truth = write_synthetic_slide(path, SyntheticSpec(seed, 1536, 1536, nests=3, nest_radius_um=110, tissue=0.6))
        pixels = pixels_of(path)
        labels = full_size(truth, pixels)
        tumour.append(pixels[labels == TUMOUR])
        normal.append(pixels[labels == TISSUE])
    one, two = np.concatenate(tumour), np.concatenate(normal)
    assert np.abs(one.mean(0) - two.mean(0)).max() < 14  # of 255; stains and scanners differ by far more
    assert abs((one.min(1) < 90).mean() - (two.min(1) < 90).mean()) < 0.12


@pytest.mark.parametrize("stain", STAINS)
def test_every_stain_is_pink_and_purple_on_white(stain: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    truth = write_synthetic_slide(path, replace(SMALL, width_px=640, height_px=640, nests=0, stain=stain))
    pixels = pixels_of(path)
    red, green, blue = pixels[full_size(truth, pixels) == TISSUE].astype(float).mean(0)
    assert green < min(red, blue) - 20
    assert 90 < red < 215


@pytest.mark.parametrize(("mpp", "power"), [(0.25, "40"), (1.0, "10")])
def test_other_scales_work(mpp: float, power: str, tmp_path: Path) -> None:
    truth = write_synthetic_slide(tmp_path / "slide.svs", replace(SMALL, width_px=700, height_px=900, mpp=mpp))
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        assert float(slide.properties["openslide.mpp-x"]) == mpp
        assert slide.properties["aperio.AppMag"] == power
        assert slide.dimensions == (700, 900)
    assert truth.labels.shape == (57, 44)


def test_a_slide_without_tissue_is_glass(tmp_path: Path) -> None:
    truth = write_synthetic_slide(tmp_path / "glass.svs", replace(SMALL, width_px=512, height_px=512, tissue=0.0))
    assert (truth.labels == GLASS).all()
    assert np.median(pixels_of(tmp_path / "glass.svs")) > 235


@given(
    st.integers(0, 2**32 - 1),
    st.integers(-40, 200),
    st.integers(-40, 200),
    st.sampled_from([8, 16, 40]),
    st.floats(1, 40),
)
def test_tile_truth_counts_the_labels_under_a_tile(seed: int, x: int, y: int, span: int, scale: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (9, 7)).astype(np.uint8)
    share = tile_truth(Truth(labels, scale), np.array([[x, y]]), span)
    columns, rows = (
        slice(int(np.clip(np.floor(v / scale), 0, n - 1)), int(np.clip(np.ceil((v + span) / scale), 1, n)))
        for v, n in ((x, 7), (y, 9))
    )
    assert share.dtype == np.float32
    assert share[0] == pytest.approx((labels[rows, columns] == TUMOUR).mean())


def test_a_cohort_has_a_manifest_and_its_slides(cohort: Path) -> None:
    rows = rows_of(cohort)
    assert list(rows[0]) == ["slide_id", "path", "case_id", "patient_id", "label", "site"]
    assert len(rows) == 6
    for row in rows:
        slide = cohort.parent / row["path"]
        assert openslide.OpenSlide.detect_format(slide) == "aperio"
        assert (read_truth(slide).tumour_share > 0) == (row["label"] == "tumor")


@pytest.mark.parametrize("seed", range(4))
def test_patients_keep_their_label_and_sites_have_both(seed: int, tmp_path: Path) -> None:
    rows = [slide.row for slide in plan_cohort(tmp_path, CohortSpec(seed=seed))]
    of_patient = {row["patient_id"]: {row["label"]} for row in rows}
    sites: dict[str, set[str]] = {}
    for row in rows:
        assert of_patient[row["patient_id"]] == {row["label"]}
        sites.setdefault(row["site"], set()).add(row["label"])
    assert len(of_patient) == 24
    assert len(rows) == 30
    assert len({row["slide_id"] for row in rows}) == 30
    assert sum(labels == {"tumor"} for labels in of_patient.values()) == 12
    assert len(sites) == 4
    assert all(labels == {"tumor", "normal"} for labels in sites.values())


def test_a_plan_is_the_same_each_time_and_writes_nothing(tmp_path: Path) -> None:
    assert plan_cohort(tmp_path, CohortSpec(seed=9)) == plan_cohort(tmp_path, CohortSpec(seed=9))
    assert plan_cohort(tmp_path, CohortSpec(seed=9)) != plan_cohort(tmp_path, CohortSpec(seed=8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: SyntheticSpec(width_px=10), "width_px"),
        (lambda: SyntheticSpec(tissue=2.0), "tissue"),
        (lambda: SyntheticSpec(tile_px=250), "multiple of 16"),
        (lambda: SyntheticSpec(stain="green"), ", ".join(STAINS)),
        (lambda: SyntheticSpec(scanner="x"), ", ".join(SCANNERS)),
        (lambda: CohortSpec(patients=5), "even"),
        (lambda: CohortSpec(sites=9), "sites"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(build, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        build()


def test_a_slide_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no truth map"):
        read_truth(tmp_path / "real.svs")


def test_importing_it_is_light() -> None:
    heavy = "{'cv2', 'tifffile', 'torch', 'PIL', 'openslide', 'simplejpeg'} & set(sys.modules)"
    code = f"import sys, wsi.synthetic; found = {heavy}; sys.exit(str(found) if found else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
