"""Every entry of the catalogue keeps its word; timm's families load their authors' files exactly."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedding import BACKBONES, Backbone, build, find_backbone, find_weights, weights_digest
from embedding.loader import Embedder
from embedding.networks import FAMILIES, find_family
from embedding.transform import Transform
from wsi import BackboneError

ALL = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda backbone: backbone.name)

# Millions of parameters that the authors or their repositories publish, some as the size of a float32 file.
PUBLISHED = {
    "uni": 303.4, "uni2-h": 681, "virchow": 631.2, "virchow2": 631.2, "prov-gigapath": 1135, "h-optimus-0": 1135,
    "h-optimus-1": 1135, "h0-mini": 86, "kaiko-vits16": 86.7 / 4, "kaiko-vits8": 86.7 / 4, "kaiko-vitb16": 343 / 4,
    "kaiko-vitb8": 343 / 4, "kaiko-vitl14": 304, "lunit-vits16": 86.7 / 4, "lunit-vits8": 86.7 / 4,
    "lunit-resnet50-bt": 23.6, "gpfm": 303, "mstar": 303.3, "pathorchestra": 303.3, "openmidnight": 1135,
    "dinov3-vits16": 86.4 / 4, "dinov3-vits16plus": 115 / 4, "dinov3-vitl16": 303, "dinov3-vith16plus": 3360 / 4,
    "dinov3-vit7b16": 26_900 / 4,
}  # fmt: skip


def network_of(backbone):
    return backbone.family, backbone.arch, json.dumps(dict(backbone.options)), backbone.input_px, backbone.patch_px


@cache
def on_meta(first):
    """The full network without its memory, and what it makes of two patches."""
    with torch.device("meta"):
        network = find_family(first.family).create(first).eval()
        pixels = torch.zeros(2, 3, first.input_px, first.input_px)
        return network, None if hasattr(network, "embed") else network.forward_features(pixels)


def width_of(backbone):
    return backbone.variants.get("cls", backbone.dim)


@ALL
def test_every_variant_of_every_backbone_keeps_its_word(backbone):  # nothing is skipped for want of weights or memory
    same = (entry for entry in BACKBONES.values() if network_of(entry) == network_of(backbone))
    network, features = on_meta(next(same))  # several entries have one network
    assert backbone.variants.get(backbone.pooling, backbone.dim) == backbone.dim
    patches = torch.zeros(2, backbone.tile_px, backbone.tile_px, 3, dtype=torch.uint8, device="meta")
    assert Transform(backbone).to("meta")(patches).shape == (2, 3, backbone.input_px, backbone.input_px)
    if backbone.name in PUBLISHED:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert parameters / 1e6 == pytest.approx(PUBLISHED[backbone.name], rel=0.006)
    if features is not None and backbone.pooling != "pool":
        patch = network.patch_embed.patch_size
        assert backbone.patch_px == (patch[0] if isinstance(patch, tuple) else patch)
        assert backbone.prefix_tokens == network.num_prefix_tokens
        grid = backbone.input_px // backbone.patch_px
        assert features.shape == (2, backbone.prefix_tokens + grid**2, width_of(backbone))
    for pooling in backbone.variants or (backbone.pooling,):
        variant = backbone.variant(pooling)
        embedder = Embedder(variant, network).to("meta")
        made = embedder(patches) if features is None else embedder.pool(features)
        assert made.shape == (2, *variant.row_shape), pooling


@ALL
def test_every_entry_states_what_its_users_must_know(backbone):
    assert backbone.family in FAMILIES
    assert backbone.licence
    assert backbone.paper.startswith("https://")
    assert backbone.weights.startswith(("hf-hub:", "package:", "file:"))
    assert backbone.notes
    assert all(0.1 <= mpp <= 2 for mpp in backbone.mpp)
    assert backbone.precision in ("fp32", "fp16", "bf16")
    assert backbone.revision is None or len(backbone.revision) == 40
    assert backbone.sha256 is None or len(backbone.sha256) == 64
    assert backbone.interpolation in ("bilinear", "bicubic")
    assert backbone.input_px <= backbone.resize_px


def test_the_default_backbone_equals_its_packages_own_recipe(real_slide):
    """EfficientNet-Lite0 as its package builds and feeds it: (x - 127) / 128, last features averaged."""
    from efficientnet_lite_pytorch import EfficientNet

    from wsi import Region, open_slide

    with open_slide(real_slide) as slide:
        patch = slide.read(Region(900, 1500, 224, 224), 0)
    patches = torch.from_numpy(np.stack([patch, np.rot90(patch).copy()]))
    backbone = find_backbone("efficientnet-lite0")
    weights = find_weights(backbone)
    assert weights_digest(weights) == backbone.sha256
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    with torch.inference_mode():
        inputs = (patches.permute(0, 3, 1, 2).float() - 127) / 128
        expected = theirs.extract_features(inputs).mean(dim=(2, 3))
        embeddings = build(backbone, weights)(patches)
    assert embeddings.shape == (2, 1280)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert expected.std() > 0.1


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
DINOV3 = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0,
          "global_pool": "token"}  # fmt: skip
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 5.33334}


def tiny(name="tiny", arch="vit_tiny_patch16_224", **changes) -> Backbone:
    """A backbone of the shape of the real ones, small: of a ViT, two blocks of 48 numbers on a grid of 4 x 4."""
    fields = {
        "name": name, "arch": arch, "weights": "hf-hub:nobody/tiny", "dim": 48, "licence": "none", "paper": "",
        "tile_px": 32, "input_px": 32, "resize_px": 32, "patch_px": 8, "options": {**TINY, "reg_tokens": 4},
    }  # fmt: skip
    return Backbone(**{**fields, **changes})


def patches_of(side, count=3):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def source_of(backbone):
    """Its network with numbers in every tensor, so that one which is lost or taken for another shows."""
    embedder = build(backbone, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in embedder.network.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else 0.3 * noise)
    return embedder


@pytest.mark.parametrize("prefix", [1, 5, 9])
@pytest.mark.parametrize(("pooling", "expected"), [("cls", [1]), ("mean", [3]), ("cls+mean", [1, 3]), ("dense", [3])])
def test_pooling_takes_the_right_tokens(prefix, pooling, expected):
    backbone = tiny(options={**TINY, "reg_tokens": prefix - 1}, pooling=pooling)
    tokens = torch.zeros(1, prefix + 16, 48)
    tokens[:, 0], tokens[:, 1:prefix], tokens[:, prefix:] = 1, 100, 3  # class token, registers, patch tokens
    assert build(backbone, None).pool(tokens).unique().tolist() == expected


def test_dense_embeddings_lie_as_the_patches_do():
    tokens = torch.arange(1 + 16.0).view(1, 17, 1).expand(1, 17, 48)
    grid = build(tiny(options=TINY, pooling="dense"), None).pool(tokens)
    assert grid[0, :, :, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]


def bare(state):
    return state


def with_head(state):
    return {**state, "fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}


def dinov2_training(state):
    """A training checkpoint: the teacher's backbone in chunks of blocks beside its head, as GPFM is on GitHub."""
    renamed = {name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): value
               for name, value in state.items()}  # fmt: skip
    teacher = {f"backbone.{name}": value for name, value in renamed.items()}
    return {"teacher": teacher | {"backbone.mask_token": torch.ones(1, 48), "dino_head.mlp.0.weight": torch.ones(3)}}


def dinov2_release(state):
    """DINOv2's own names, with registers: the class token's position is separate, SwiGLU's layers are w12 and w3."""
    names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3", "reg_token": "register_tokens"}
    released = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        released[name] = value
    place = torch.full((1, 1, 48), 0.25)
    released["cls_token"] = state["cls_token"] - place
    released["pos_embed"] = torch.cat((place, state["pos_embed"]), dim=1)
    return released | {"mask_token": torch.ones(1, 48)}


def dinov3_release(state, bias=0.0):
    """Meta's names, with what only training needs, and biases that are all zero but for those of the keys."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    released = {"rope_embed.periods": torch.ones(4), "mask_token": torch.ones(1, 48)}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        released[name] = value
        if name.endswith("attn.qkv.weight"):
            key = torch.full((48,), torch.nan)
            released[name.replace("weight", "bias")] = torch.cat((torch.full((48,), bias), key, torch.zeros(48)))
            released[name.replace("weight", "bias_mask")] = torch.ones(144)
    return released


RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "num_classes": 0}
LAYOUTS = [
    ("uni: LayerScale", tiny(options={**TINY, "init_values": 1e-5, "dynamic_img_size": True}), bare),
    ("uni2-h: SwiGLU, registers", tiny(options={**TINY, **SWIGLU, "reg_tokens": 8, "no_embed_class": True,
                                                "init_values": 1e-5, "dynamic_img_size": True}), bare),
    ("virchow2: all tokens", tiny(pooling="cls+mean", dim=96, options={**TINY, **SWIGLU, "reg_tokens": 4,
                                                                      "global_pool": ""}), bare),
    ("gpfm of GitHub", tiny(arch="vit_small_patch14_dinov2", options=TINY), dinov2_training),
    ("gpfm of the hub", tiny(arch="vit_small_patch14_dinov2", options=TINY), bare),
    ("openmidnight", tiny(arch="vit_giant_patch14_reg4_dinov2", options=TINY), dinov2_release),
    ("dinov3 of timm", tiny(arch="vit_small_patch16_dinov3", options=DINOV3), bare),
    ("dinov3 of Meta", tiny(arch="vit_small_patch16_dinov3", options=DINOV3), dinov3_release),
    ("dinov3, SwiGLU", tiny(arch="vit_small_plus_patch16_dinov3", options=DINOV3), bare),
    ("resnet50", tiny(arch="resnet50", dim=32, pooling="pool", patch_px=None, options=RESNET), with_head),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "released"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
def test_a_file_in_its_authors_layout_gives_the_embeddings_of_the_network_that_it_came_from(
    backbone, released, tmp_path
):
    source = source_of(backbone)
    torch.save(released(source.network.state_dict()), tmp_path / "weights.pth")
    patches = patches_of(32)
    with torch.inference_mode():
        expected = source(patches)
        loaded = build(backbone, tmp_path / "weights.pth")(patches)
    assert expected.std() > 0.01
    assert torch.allclose(loaded, expected, atol=1e-5)


def test_biases_that_the_network_could_not_hold_are_not_dropped(tmp_path):
    backbone = tiny(arch="vit_small_patch16_dinov3", options=DINOV3)
    torch.save(dinov3_release(source_of(backbone).network.state_dict(), bias=0.1), tmp_path / "weights.pth")
    with pytest.raises(BackboneError, match=r"unknown \(such as blocks.0.attn.qkv.bias"):
        build(backbone, tmp_path / "weights.pth")


def test_a_checkpoint_of_any_of_the_usual_forms_loads(tmp_path):
    source = source_of(tiny())
    state = source.network.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"model": state}, tmp_path / "other.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "third.pt")
    patches = patches_of(32)
    expected = source(patches).detach()
    for given in (tmp_path, tmp_path / "model.safetensors", tmp_path / "other.pth", tmp_path / "third.pt"):
        loaded = build(tiny(), find_weights(tiny(), given))
        assert torch.allclose(loaded(patches), expected, atol=1e-6)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_position_embeddings_of_another_grid_are_resized_as_timm_does_for_pictures_of_another_size(tmp_path):
    trained = tiny(options={**TINY, "img_size": 64, "dynamic_img_size": True})
    source = source_of(trained)
    torch.save(source.network.state_dict(), tmp_path / "weights.pth")
    loaded = build(tiny(options=TINY), tmp_path / "weights.pth")
    patches = patches_of(32)
    assert torch.allclose(loaded(patches), source(patches), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stranger": torch.zeros(3)}, r"1 tensor unknown \(such as stranger\)"),
        ({"fc_norm.weight": torch.ones(48)}, r"1 tensor unknown \(such as fc_norm.weight\)"),  # averages
        ({"cls_token": torch.zeros(1, 1, 7)}, r"1 tensor of another shape \(such as cls_token\)"),
        ({"norm.bias": None}, r"1 tensor missing \(such as norm.bias\)"),
    ],
)
def test_a_file_that_does_not_fit_exactly_is_refused_with_what_differs(change, said, tmp_path):
    state = {**build(tiny(), None).network.state_dict(), **change}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=f"not the weights of tiny: {said}"):
        build(tiny(), tmp_path / "w.pth")


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(BackboneError, match="did you mean virchow"):
        find_backbone("virchov2")


def test_a_variant_has_its_own_dimension_and_an_unknown_one_names_those_there_are():
    assert find_backbone("virchow2").dim == 2560
    assert find_backbone("virchow2", "cls") == replace(find_backbone("virchow2"), pooling="cls", dim=1280)
    assert find_backbone("virchow2", "dense").row_shape == (16, 16, 1280)
    with pytest.raises(BackboneError, match="no variant 'max'; choose cls, mean, cls\\+mean, dense"):
        find_backbone("virchow2", "max")
