"""Stain normalisation and jitter: against torchstain and scikit-learn, on planted stains, on what cannot be fitted."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embedding.spec import StainSpec
from embedding.stain import draws, fit_stain, needs_stain, stain_contract
from embedding.stain_fit import Basis, Moments, UnfitError, measure, nonnegative, stained
from embedding.stain_target import SHIPPED
from wsi.errors import SpecError

METHODS = ("macenko", "reinhard", "vahadane")
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
REDDER = np.array([0.75, 0.70, 0.39]), np.array([0.07, 0.99, 0.21])  # the same dyes at another laboratory


def tissue(pixels: int = 20_000, strength: float = 1.0, dyes=(HAEMATOXYLIN, EOSIN), white: float = 240) -> np.ndarray:
    """RGB pixels (m, 3) of two dyes in sparse amounts: a third each has the first alone, the second, and both."""
    random = np.random.default_rng(5)
    amounts = strength * random.gamma(4, 0.25, (pixels, 2))
    amounts[: pixels // 3, 1] = amounts[pixels // 3 : 2 * pixels // 3, 0] = 0
    unit = np.stack([dye / np.linalg.norm(dye) for dye in dyes])
    return (white * np.exp(-amounts @ unit)).round().clip(0, 255).astype(np.uint8)


def as_patches(pixels: np.ndarray, count: int = 4) -> torch.Tensor:
    """The first pixels of (m, 3) as `count` patches of 32 px: float (count, 3, 32, 32)."""
    return torch.from_numpy(pixels[: count * 1024]).reshape(count, 32, 32, 3).permute(0, 3, 1, 2).float()


def apply(spec: StainSpec, pixels: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
    """Pixels (m, 3) as a patch of one row, through the transform of a slide with that tissue."""
    strip = torch.from_numpy(pixels.T.copy()).float()[None, :, None]
    return fit_stain(spec, fitted_on)(strip, torch.tensor([0]))[0, :, 0].T.numpy()


def save(pixels: np.ndarray, path: Path) -> str:
    Image.fromarray(pixels[None]).save(path)
    return str(path)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_the_same_pixels_are_normalised_as_by_torchstain(method, data_dir, tmp_path):
    torchstain = pytest.importorskip("torchstain")
    source, target = (
        stained(
            np.asarray(Image.open(data_dir / "qc" / f"torchstain_{name}.png").convert("RGB")).reshape(-1, 3), 90_000
        )
        for name in ("source", "target")
    )  # torchstain has a fit for each picture, so its picture is all that ours was fitted on
    theirs = getattr(torchstain.normalizers, f"{method.title()}Normalizer")("torch")
    theirs.fit(torch.from_numpy(target.T.copy())[:, None])
    strip = torch.from_numpy(source.T.copy())[:, None]
    wanted = theirs.normalize(strip, stains=False)[0] if method == "macenko" else theirs.normalize(strip)
    spec = StainSpec(method, save(target.astype(np.uint8), tmp_path / "target.png"))
    got = apply(spec, source.astype(np.uint8), source.astype(np.uint8))
    difference = np.abs(got - wanted.reshape(-1, 3).numpy().clip(0, 255))
    assert difference.max() <= 1  # torchstain cuts decimals off, we round
    assert 0.3 < difference.mean() < 0.6


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_planted_stains_are_recovered(method):
    found = measure(method, tissue(white=240 if method == "macenko" else 255))
    for dye, planted in zip(np.array(found.dyes), (HAEMATOXYLIN, EOSIN), strict=True):
        angle = np.degrees(np.arccos(dye @ planted / np.linalg.norm(planted)))
        assert angle < (2 if method == "macenko" else 5)  # sparsity draws Vahadane's to where the pixels are


def test_the_factorisation_reaches_the_dyes_of_scikit_learn():
    from sklearn.decomposition import DictionaryLearning

    pixels = stained(tissue(1_000), 500)
    density = -np.log((pixels + 1) / 256)
    first = np.stack([dye / np.linalg.norm(dye) for dye in (HAEMATOXYLIN, EOSIN)])
    theirs = DictionaryLearning(
        2, alpha=0.1, max_iter=100, fit_algorithm="cd", transform_algorithm="lasso_cd", dict_init=first,
        code_init=nonnegative(first, density).T, positive_code=True, positive_dict=True, random_state=0,
    ).fit(density).components_  # fmt: skip
    ours = measure("vahadane", pixels.astype(np.uint8))
    assert np.degrees(np.arccos((np.array(ours.dyes) * theirs).sum(axis=1).clip(-1, 1))).max() < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_two_slides_of_one_tissue_look_alike_after_normalisation(method):
    faint, strong = tissue(strength=0.6), tissue(strength=1.1, dyes=REDDER)
    both = (faint.min(axis=1) < 215) & (strong.min(axis=1) < 215)
    before = np.abs(faint[both].astype(float) - strong[both]).mean()
    spec = StainSpec(method)
    after = np.abs(apply(spec, faint[both], faint) - apply(spec, strong[both], strong)).mean()
    assert after < 0.35 * before


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_normalised_to_itself_stays_as_it_is(method, tmp_path):
    pixels = tissue(white=255 if method == "vahadane" else 240)
    target = save(pixels, tmp_path / "same.png")
    difference = np.abs(apply(StainSpec(method, target), pixels, pixels) - pixels)
    assert np.percentile(difference, 99) <= (10 if method == "vahadane" else 2)  # its dyes lie within the colours


def test_the_reference_that_ships_is_that_of_the_public_slide(real_slide):
    from wsi import Region, open_slide

    with open_slide(real_slide) as slide:
        region = slide.read(Region(600, 2400, 480, 480), 0).reshape(-1, 3)
    thinned = np.rint(256 * ((region + 1) / 256) ** 0.7 - 1).astype(np.uint8)
    for method, shipped in SHIPPED.items():
        found = measure(method, thinned)
        fields = ("dyes", "most") if isinstance(shipped, Basis) else ("mean", "std")
        assert isinstance(found, Basis | Moments)
        for name in fields:
            np.testing.assert_allclose(getattr(found, name), getattr(shipped, name), atol=2e-5)


UNFIT = {
    "nothing": (np.zeros((0, 3), np.uint8), "too little tissue"),
    "a few pixels": (tissue(100), "too little tissue"),
    "white": (np.full((9_000, 3), 255, np.uint8), "too little tissue"),
    "black": (np.zeros((9_000, 3), np.uint8), "too little tissue"),
    "pen black": (np.full((9_000, 3), 40, np.uint8), "only one stain|do not vary"),
    "one colour": (np.full((9_000, 3), (200, 90, 150), np.uint8), "only one stain|do not vary"),
    "not a number": (np.full((9_000, 3), np.nan), "too little tissue"),
    "grey": (np.zeros((9_000, 1), np.uint8), "no RGB pixels"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_fitted_keeps_its_colours_and_says_why(method, case, caplog):
    pixels, reason = UNFIT[case]
    with caplog.at_level(logging.WARNING):
        transform = fit_stain(StainSpec(method), pixels)
    patches = as_patches(tissue())
    assert not transform.fitted
    assert any(word in transform.problem for word in reason.split("|"))
    assert transform.problem in caplog.text
    assert torch.equal(transform(patches, torch.arange(4)), patches)


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
@pytest.mark.parametrize("dye", [HAEMATOXYLIN, EOSIN], ids=["haematoxylin", "eosin"])
def test_one_stain_alone_is_not_taken_for_two(method, dye):
    noise = np.random.default_rng(1).normal(0, 2, (20_000, 3))
    alone = (tissue(dyes=(dye, dye), strength=1.5, white=255) + noise).clip(0, 255).astype(np.uint8)
    with pytest.raises(UnfitError, match="only one stain"):
        measure(method, alone)


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_glass_is_left_as_it_is_and_no_grey_level_breaks(method):
    transform = fit_stain(StainSpec(method, jitter=0.2), tissue())
    glass = torch.tensor([[255, 255, 255], [243, 244, 242], [240, 250, 255]]).float().T.reshape(1, 3, 1, 3)
    assert torch.equal(transform(glass, torch.tensor([3])), glass)
    levels = torch.tensor([0, 1, 20, 128, 219, 230, 255]).float()
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 7, 49)
    out = transform(colours, torch.tensor([3]))
    assert torch.equal(out, out.round())
    assert 0 <= out.min() <= out.max() <= 255


@pytest.mark.parametrize("method", ["macenko", "none"])
def test_a_patch_is_jittered_by_its_place_alone(method):
    spec, patches = StainSpec(method, jitter=0.1, seed=3), as_patches(tissue(), 4)
    transform = fit_stain(spec, tissue())
    places = torch.tensor([7, 2, 900_000, 0])
    together = transform(patches, places)
    alone = torch.cat([transform(patches[i : i + 1], places[i : i + 1]) for i in (3, 2, 1, 0)]).flip(0)
    assert torch.equal(together, alone)
    same = transform(patches[:1].expand(4, -1, -1, -1), places)
    assert len({tuple(patch.flatten().tolist()) for patch in same}) == 4
    other = fit_stain(StainSpec(method, jitter=0.1, seed=4), tissue())
    assert not torch.equal(other(patches, places), together)


def test_jitter_grows_with_its_setting_and_moves_no_mean():
    patches = as_patches(tissue(), 1).expand(400, -1, -1, -1)
    before, moved = patches[0].mean(), []
    for jitter in (0.05, 0.2):
        shift = fit_stain(StainSpec(jitter=jitter), tissue())(patches, torch.arange(400)).mean(dim=(1, 2, 3)) - before
        assert abs(shift.mean()) < 0.3 * shift.std()
        moved.append(float(shift.std()))
    assert 2 < moved[1] / moved[0] < 6


def test_draws_are_those_of_splitmix64():
    def scrambled(state: int) -> int:
        state = (state + 1) * 0x9E3779B97F4A7C15 % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    assert scrambled(0) == 0xE220A8397B1DCDAF  # the generator's first number for seed 0, as published
    places = [0, 1, 5, 10**7]
    wanted = [[(scrambled(p * 6 + c + scrambled(9)) >> 40) / 2**23 - 1 for c in range(6)] for p in places]
    assert draws(9, torch.tensor(places), 6).tolist() == wanted
    many = draws(0, torch.arange(20_000), 6)
    assert many.mean(dim=0).abs().max() < 0.02
    assert (many.std(dim=0) - 3**-0.5).abs().max() < 0.01
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.03


def test_a_target_counts_by_its_content_and_is_refused_where_it_has_no_stains(tmp_path):
    one, copy = save(tissue(), tmp_path / "one.png"), save(tissue(), tmp_path / "copy.png")
    other = save(tissue(strength=0.5), tmp_path / "other.png")
    assert stain_contract(StainSpec("macenko", one)) == stain_contract(StainSpec("macenko", copy))
    assert stain_contract(StainSpec("macenko", one)) != stain_contract(StainSpec("macenko", other))
    assert stain_contract(StainSpec("macenko")) != stain_contract(StainSpec("macenko", one))
    (tmp_path / "text.png").write_text("no picture")
    white = save(np.full((9_000, 3), 255, np.uint8), tmp_path / "white.png")
    for target in (white, str(tmp_path / "text.png"), str(tmp_path / "absent.png")):
        with pytest.raises(SpecError, match=Path(target).name):
            fit_stain(StainSpec("macenko", target), tissue())


def test_the_contract_holds_what_shapes_pixels_and_nothing_else():
    assert stain_contract(StainSpec()) is None
    assert stain_contract(StainSpec(seed=5)) is None
    assert not needs_stain(StainSpec(seed=5))
    assert needs_stain(StainSpec(jitter=0.1))
    contracts = [stain_contract(StainSpec(method)) for method in METHODS]
    assert len({contract["target"] for contract in contracts}) == 3
    assert stain_contract(StainSpec("macenko", seed=5)) == contracts[0]  # without jitter nothing is drawn
    assert stain_contract(StainSpec("macenko", jitter=0.1, seed=5)) != stain_contract(StainSpec("macenko", jitter=0.1))
