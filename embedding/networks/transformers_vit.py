"""ViTs published for Hugging Face transformers (ViTModel, Dinov2Model, Dinov2WithRegistersModel), run by timm.

timm's network computes the same, query, key and value in one product, and needs neither transformers nor the authors'
remote code. `norm_eps` among an entry's options is the epsilon of the authors' configuration.
"""

import re
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone
from . import timm_models

UNUSED = r"(embeddings\.mask_token|pooler\.dense\.(weight|bias))$"

# The class token's position is added to the token itself, so position embeddings are those of the patches alone.
_FIXED = {"num_classes": 0, "global_pool": "", "no_embed_class": True}

_OUTER = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
_LAYER = {
    "layernorm_before": "norm1", "norm1": "norm1", "layernorm_after": "norm2", "norm2": "norm2",
    "attention.output.dense": "attn.proj", "layer_scale1": "ls1", "layer_scale2": "ls2",
    "intermediate.dense": "mlp.fc1", "mlp.fc1": "mlp.fc1", "mlp.weights_in": "mlp.fc1",
    "output.dense": "mlp.fc2", "mlp.fc2": "mlp.fc2", "mlp.weights_out": "mlp.fc2",
}  # fmt: skip
_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))


def create(backbone: Backbone) -> nn.Module:
    """timm's VisionTransformer of the entry's architecture, for patches of `input_px`, not yet filled."""
    options = {**backbone.options, **_FIXED, "img_size": backbone.input_px, "patch_size": backbone.patch_px}
    options["norm_layer"] = partial(nn.LayerNorm, eps=options.pop("norm_eps", 1e-6))
    return timm_models.create(replace(backbone, options=options))


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """transformers' tensors → timm's. What is not known keeps its name, and is then refused."""
    state = {name.removeprefix("vit.").removeprefix("dinov2."): value for name, value in state.items()}
    renamed = _tokens(state, side=backbone.input_px // (backbone.patch_px or 16))
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", owner)
        block, part = (f"blocks.{layer[1]}.", layer[2]) if layer else ("", owner)
        if part in _LAYER:
            renamed[f"{block}{_LAYER[part]}.{'gamma' if kind == 'lambda1' else kind}"] = value
        elif part == _QKV[0]:
            parts = [state.get(name.replace(_QKV[0], other), value[:0]) for other in _QKV]
            renamed[f"{block}attn.qkv.{kind}"] = torch.cat(parts)
        elif part not in _QKV:
            renamed[f"{_OUTER[owner]}.{kind}" if owner in _OUTER else name] = value
    return renamed


def _tokens(state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Class token, registers and position embeddings of a grid of side², taken out of `state`, as timm has them."""
    tokens = {name: state.pop(f"embeddings.{name}").float() for name in
              ("cls_token", "register_tokens", "position_embeddings") if f"embeddings.{name}" in state}  # fmt: skip
    if "position_embeddings" not in tokens or "cls_token" not in tokens:
        return tokens
    cls, positions = tokens["cls_token"], tokens["position_embeddings"]
    registers = {"reg_token": tokens["register_tokens"]} if "register_tokens" in tokens else {}
    patches = _resized(positions[:, 1:], side, antialias=bool(registers))
    return {"cls_token": cls + positions[:, :1], "pos_embed": patches, **registers}


def _resized(positions: Tensor, side: int, antialias: bool) -> Tensor:
    """(1, n, d) position embeddings of a square grid → (1, side², d), as transformers resizes them.

    It antialiases only in networks with registers, where timm's own rule antialiases always.
    """
    trained = round(positions.shape[1] ** 0.5)
    if trained == side or trained**2 != positions.shape[1]:
        return positions
    grid = positions.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias)
    return grid.permute(0, 2, 3, 1).flatten(1, 2)
