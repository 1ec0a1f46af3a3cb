"""Networks that are not plain timm: each loads a file in its authors' layout and gives what its authors' code gives."""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from embedding.catalogue.own_networks import OWN_NETWORKS
from embedding.loader import build, fill
from embedding.networks import find_family
from wsi import BackboneError

ENTRIES = {backbone.name: backbone for backbone in OWN_NETWORKS}


def shrunk(name, width=48, **options):
    """The entry with a network of its kind that is small: two narrow blocks, patches of 8 in 32 px."""
    entry = ENTRIES[name]
    variants = {kind: width * dim // entry.variants["cls"] for kind, dim in entry.variants.items()}
    return replace(
        entry, dim=variants[entry.pooling], variants=variants, tile_px=32, input_px=32, resize_px=32, patch_px=8,
        options={**entry.options, "embed_dim": width, "depth": 2, "num_heads": 3, **options},
    )  # fmt: skip


def patches_of(side, count=3):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def pixels_of(backbone, patches):
    """What the authors' pipelines feed their networks: (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values) for values in backbone.norm)
    return ((patches / 255 - mean) / std).permute(0, 3, 1, 2)


def filled(network):
    """The network with numbers in every tensor, so that one which is lost or taken for another shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = tensor.ndim == 1 and name.endswith(("weight", "lambda1", "gamma", "running_var"))
                tensor.copy_(1 + 0.3 * noise.abs() if scale else 0.3 * noise)
    return network.eval()


@pytest.mark.parametrize(("name", "millions"), [
    ("phikon", 85.8), ("phikon-v2", 303.4), ("midnight-12k", 1140), ("hibou-b", 85.7), ("hibou-l", 303.7),
    ("ctranspath", 27.5), ("resnet50-trunc", 8.54), ("retccl", 23.5), ("pathdino", 9.6),
])  # fmt: skip
def test_the_network_has_the_published_size(name, millions):
    network = build(ENTRIES[name], None, "meta").network
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def transformers_model(name, trained_px):
    """transformers' own model of the entry's class and configuration, as small as `shrunk`."""
    transformers = pytest.importorskip("transformers")
    kind = {"phikon": "ViT", "hibou-b": "Dinov2WithRegisters", "hibou-l": "Dinov2WithRegisters"}.get(name, "Dinov2")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": trained_px,
             "patch_size": 8, "layer_norm_eps": ENTRIES[name].options["norm_eps"]}  # fmt: skip
    if kind == "ViT":
        sizes["intermediate_size"] = 4 * 48
    else:
        sizes["use_swiglu_ffn"] = "mlp_layer" in ENTRIES[name].options or "giant" in ENTRIES[name].arch
    return filled(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)))


@pytest.mark.parametrize(("name", "trained_px"), [
    ("phikon", 32),
    ("phikon-v2", 32),
    ("midnight-12k", 32),
    ("midnight-12k", 72),  # position embeddings of a larger grid, as it was trained at 518 px
    ("hibou-b", 32),
    ("hibou-l", 72),
])  # fmt: skip
def test_a_vit_made_for_transformers_gives_what_transformers_gives(name, trained_px, tmp_path):
    theirs, backbone, patches = transformers_model(name, trained_px), shrunk(name), patches_of(32)
    theirs.save_pretrained(tmp_path)
    with torch.inference_mode():
        tokens = theirs(pixel_values=pixels_of(backbone, patches)).last_hidden_state
        cls, mean = tokens[:, 0], tokens[:, backbone.prefix_tokens :].mean(dim=1)
        expected = {"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), dim=1)}
        for kind, vectors in expected.items():
            embedder = build(backbone.variant(kind), tmp_path / "model.safetensors")
            assert (embedder(patches) - vectors).abs().max() < 1e-5 * vectors.abs().max()
            assert embedder.network.norm.eps == theirs.layernorm.eps
    assert tokens.std() > 0.1
    assert (cls[0] - cls[1]).abs().max() > 0.05  # it looks at the patches


def by_formula(name, shape):
    """Numbers that any program can make again, for a tensor of that name."""
    wave = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.37 + zlib.crc32(name.encode()) % 100)
    wave = wave.reshape(shape)
    if len(shape) < 2:
        return (1 + 0.3 * wave).float()
    return (wave if "table" in name else wave * 3 / shape[-1] ** 0.5).float()


def ctranspath_layout(network):
    """The tensors of a file of CTransPath's authors, as timm 0.5.4 names them, for a network of ours."""
    state = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        theirs = ".".join(parts)
        state[theirs] = tensor if "tracked" in name else by_formula(theirs, tensor.shape)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return state


def test_ctranspath_gives_what_timm_0_5_4_gave(tmp_path):
    """The numbers were computed with timm 0.5.4 and the authors' stem, on the same weights and patch."""
    sizes = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    backbone = replace(ENTRIES["ctranspath"], dim=128, options=sizes)
    torch.save({"model": ctranspath_layout(build(backbone, None).network)}, tmp_path / "ctranspath.pth")
    row, column, colour = torch.arange(224).view(-1, 1, 1), torch.arange(224).view(1, -1, 1), torch.arange(3)
    patch = ((row * 7 + column * 13 + colour * 31 + row * column // 50) % 256).to(torch.uint8)
    vector = build(backbone, tmp_path / "ctranspath.pth")(patch[None])[0]
    assert vector.shape == (128,)
    assert vector[:6].tolist() == pytest.approx([2.43109, 1.09111, 0.02285, -1.55009, -0.54891, 0.36167], abs=2e-4)
    assert vector[-3:].tolist() == pytest.approx([1.23844, 1.83714, 2.12311], abs=2e-4)


@pytest.mark.parametrize("name", ["resnet50-trunc", "retccl"])
def test_a_resnet_gives_what_torchvision_gives(name, tmp_path):
    from torchvision.models.resnet import Bottleneck, ResNet

    backbone, patches = replace(ENTRIES[name], tile_px=64, input_px=64, resize_px=64), patches_of(64)
    backbone = replace(backbone, options={**backbone.options, "layers": (1, 1, 1, 1)})
    theirs = filled(ResNet(Bottleneck, [1, 1, 1, 1]))
    state = theirs.state_dict()
    if name == "retccl":  # whose file has no classifier
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    else:
        theirs.layer4 = torch.nn.Identity()
    theirs.fc = torch.nn.Identity()
    torch.save(state, tmp_path / "weights.pth")
    with torch.inference_mode():
        expected = theirs(pixels_of(backbone, patches))
        ours = build(backbone, tmp_path / "weights.pth")(patches)
    assert ours.shape == (3, backbone.dim)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    assert expected.std() > 0


def test_pathdino_gives_what_its_formula_gives(tmp_path):
    """Against the network written out, on the authors' names: width 48, 3 heads, 2 blocks, patches of 8."""
    backbone = shrunk("pathdino")
    backbone = replace(backbone, options={**backbone.options, "img_size": 32, "patch_size": 8})
    state = filled(build(backbone, None).network).state_dict()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "PathDino512.pth")
    patches = patches_of(32)

    def affine(name, values, layer):
        return layer(values, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"])

    def norm(values, weight, bias):
        return functional.layer_norm(values, (48,), weight, bias, eps=1e-6)

    def heads(values):
        return values.unflatten(-1, (3, 16)).transpose(1, 2)

    tokens = affine(
        "patch_embed.proj", pixels_of(backbone, patches), lambda x, **w: functional.conv2d(x, **w, stride=8)
    )
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = torch.cat((state["cls_token"].expand(3, -1, -1), tokens), dim=1) + state["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        query, key, value = affine(
            f"{block}.attn.qkv", affine(f"{block}.norm1", tokens, norm), functional.linear
        ).chunk(3, dim=-1)
        weight = (heads(query) @ heads(key).mT / 4).softmax(dim=-1)
        tokens = tokens + affine(
            f"{block}.attn.proj", (weight @ heads(value)).transpose(1, 2).flatten(2), functional.linear
        )
        hidden = functional.gelu(affine(f"{block}.mlp.fc1", affine(f"{block}.norm2", tokens, norm), functional.linear))
        tokens = tokens + affine(f"{block}.mlp.fc2", hidden, functional.linear)
    expected = affine("norm", tokens, norm)[:, 0]
    assert (build(backbone, tmp_path / "PathDino512.pth")(patches) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "foreign", "changes"), [
    ("retccl", "resnet50", {}),  # ImageNet's, with a classifier
    ("resnet50-trunc", "resnet50", {"num_classes": 0}),  # RetCCL's, without one
    ("resnet50-trunc", "resnet101", {}),
    ("ctranspath", "swin_tiny_patch4_window7_224", {}),  # without the stem of convolutions
    ("pathdino", "vit_small_patch16_224", {}),
    ("phikon", "vit_base_patch16_224", {}),
    ("hibou-b", "vit_base_patch14_reg4_dinov2", {}),
])  # fmt: skip
def test_weights_of_another_network_are_refused(name, foreign, changes):
    import timm

    family = find_family(ENTRIES[name].family)
    with torch.device("meta"):  # names and shapes are all that is looked at
        ours, theirs = family.create(ENTRIES[name]), timm.create_model(foreign, **changes).state_dict()
    with pytest.raises(BackboneError, match=f"not the weights of {name}"):
        fill(ours, family.rename(ENTRIES[name], theirs, ours), family.UNUSED, name, Path("weights.pth"))


def test_a_dinov2_without_registers_is_not_hibou(tmp_path):
    transformers_model("phikon-v2", 32).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"missing \(such as .*reg_token"):
        build(shrunk("hibou-b"), tmp_path / "model.safetensors")
