"""ViTs published for Hugging Face transformers (ViTModel, Dinov2Model, Dinov2WithRegistersModel), run by timm.

timm's network computes the same, query, key and value in one product, and needs neither transformers nor the authors'
remote code. `norm_eps` among an entry's options is the epsilon of the authors' configuration.
"""

from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone
from . import timm_models
from .renaming import renamed

UNUSED = r"(embeddings\.mask_token|pooler\.dense\.(weight|bias))$"

# The class token's position is added to the token itself, so position embeddings are those of the patches alone.
_FIXED = {"num_classes": 0, "global_pool": "", "no_embed_class": True}

_RULES = (
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".self_attn.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.weights_out\.", ".mlp.fc2."),
)


def create(backbone: Backbone) -> nn.Module:
    """timm's VisionTransformer of the entry's architecture, for patches of `input_px`, not yet filled."""
    options = {**backbone.options, **_FIXED, "img_size": backbone.input_px, "patch_size": backbone.patch_px}
    options["norm_layer"] = partial(nn.LayerNorm, eps=options.pop("norm_eps", 1e-6))
    return timm_models.create(replace(backbone, options=options))


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """transformers' tensors → timm's. What is not known keeps its name, and is then refused."""
    state = renamed(state, _RULES, joined="attn.qkv.")
    cls, positions = state.pop("embeddings.cls_token", None), state.pop("embeddings.position_embeddings", None)
    if cls is None or positions is None:  # another network's file
        return state
    side = backbone.input_px // (backbone.patch_px or 16)
    patches = _resized(positions[:, 1:].float(), side, antialias="reg_token" in state)
    return {**state, "cls_token": cls.float() + positions[:, :1].float(), "pos_embed": patches}


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
