"""The transform against torchvision's and timm's own, on Pillow pictures, over all that the catalogue asks for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from embedding import BACKBONES, find_backbone
from embedding.backbone import HALF, IMAGENET
from embedding.transform import Transform
from wsi import Region, open_slide

RECIPES = sorted({
    (entry.tile_px, entry.resize_px, entry.input_px, entry.interpolation, entry.norm) for entry in BACKBONES.values()
})  # fmt: skip
OTHERS = [  # odd margins, where halves are rounded to even numbers, and a tile that grows
    (224, 235, 224, "bicubic", IMAGENET),
    (300, 227, 224, "bilinear", HALF),
    (96, 233, 224, "bicubic", HALF),
]


@pytest.fixture(scope="module")
def synthetic():
    """512 x 512 px of hard edges, noise and flat colours: the worst that a resize can meet."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return np.where(rng.random((8, 8, 1)).repeat(64, 0).repeat(64, 1) < 0.5, flat, noise)


@pytest.fixture(scope="module")
def tissue(real_slide):
    with open_slide(real_slide) as slide:
        return slide.read(Region(900, 1500, 512, 512), 0)


def entry_of(resize, crop, interpolation, norm):
    plain = replace(find_backbone("uni"), resize_px=resize, input_px=crop)
    return replace(plain, interpolation=interpolation, norm=norm)


def theirs_of(resize, crop, interpolation, norm):
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    return transforms.Compose([
        transforms.Resize(resize, interpolation=mode, antialias=True),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize(*norm),
    ])  # fmt: skip


def assert_alike(ours, theirs, most=1e-4):
    """Two pictures in grey levels of 0 to 255: alike to one, but for a share of at most `most` of their values, which
    differ by two. Where Pillow's sums end in a half, other sums of the same numbers are rounded the other way.
    """
    assert ours.shape == theirs.shape
    off = (ours - theirs).abs()
    assert off.max() < 2.01
    assert (off > 1.5).float().mean() < most
    assert (off > 0.5).float().mean() < 0.12


def grey_levels(normalised, norm):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in norm)
    return (normalised * std + mean) * 255


@pytest.mark.parametrize("picture", ["synthetic", "tissue"])
@pytest.mark.parametrize(("tile", "resize", "crop", "interpolation", "norm"), RECIPES + OTHERS)
def test_the_transform_is_torchvisions_to_one_grey_level(
    tile, resize, crop, interpolation, norm, picture, request
):  # also for tiles of other sizes than the backbone's own: torchvision resizes them
    pixels = request.getfixturevalue(picture)
    recipe = (resize, crop, interpolation, norm)
    transform, theirs = Transform(entry_of(*recipe)), theirs_of(*recipe)
    for side in {tile, 200, 256, 512}:
        cut = np.ascontiguousarray(pixels[:side, :side])
        ours, expected = transform(torch.from_numpy(cut[None]))[0], theirs(Image.fromarray(cut))
        assert ours.shape == (3, crop, crop)
        assert_alike(grey_levels(ours, norm), grey_levels(expected, norm))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [200, 256, 512])
def test_so_it_is_on_devices_that_resize_floats_only(side, interpolation, synthetic):
    recipe = (224, 224, interpolation, IMAGENET)
    cut = np.ascontiguousarray(synthetic[:side, :side])
    ours = Transform(entry_of(*recipe)).crop(torch.from_numpy(cut[None]).permute(0, 3, 1, 2).float())[0]
    assert_alike(ours, grey_levels(theirs_of(*recipe)(Image.fromarray(cut)), IMAGENET), most=1e-3)


@pytest.mark.parametrize(("share", "resize"), [(1.0, 224), (0.95, 235), (0.9, 248), (0.875, 256)])
def test_timms_share_of_the_crop_is_a_size_to_resize_to(share, resize, synthetic):
    from timm.data import create_transform

    theirs = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=share, mean=HALF[0], std=HALF[1])
    cut = np.ascontiguousarray(synthetic[:300, :300])
    ours = Transform(entry_of(resize, 224, "bicubic", HALF))(torch.from_numpy(cut[None]))[0]
    assert_alike(grey_levels(ours, HALF), grey_levels(theirs(Image.fromarray(cut)), HALF))
