"""MUSK: the vision branch of a BEiT-3 (Wang et al., 2023), which timm has as a ViT with two more norms in each block.

Facts from github.com/lilab-stanford/MUSK and torchscale. Of every pair of weights, A is vision's and B is language's.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone
from .renaming import renamed

UNUSED = r"(language_head|vision_head|logit_scale|beit3\.text_embed|beit3\.vision_embed\.mask_token|.*\.B\.)"
_RULES = (
    (r"^beit3\.(encoder|vision_embed)\.", ""),
    (r"\.A\.", "."),
    (r"^proj\.", "patch_embed.proj."),
    (r"^embed_positions\.weight$", "pos_embed"),
    (r"^layer_norm\.", "norm."),
    (r"^layers\.", "blocks."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.self_attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.ffn_layernorm\.", ".mlp.norm."),
    (r"\.ffn\.", ".mlp."),
)


class Musk(nn.Module):
    """`cls` is the class token; `ms_aug` adds the patch seen at twice the scale: the mean over its four quarters."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def embed(self, pixels: Tensor, pooling: str) -> Tensor:
        """Pixels (n, 3, s, s), normalised → (n, width), or (n, 2 · width) for ms_aug."""
        whole = self._cls(pixels)
        if pooling == "cls":
            return whole
        side = pixels.shape[-1]
        # as float, and before it is cut, as the authors do it
        large = functional.interpolate(pixels.float(), size=2 * side, mode="bicubic").to(pixels.dtype)
        quarters = [part for row in large.split(side, dim=2) for part in row.split(side, dim=3)]
        return torch.cat((whole, torch.stack([self._cls(part) for part in quarters]).mean(dim=0)), dim=-1)

    def _cls(self, pixels: Tensor) -> Tensor:
        return self.trunk.forward_features(pixels)[:, 0]  # type: ignore[operator]


def create(backbone: Backbone) -> nn.Module:
    """The vision branch, not yet filled."""
    import timm

    options = {"num_classes": 0, "global_pool": "token", "img_size": backbone.input_px, **backbone.options}
    return Musk(timm.create_model(backbone.arch, pretrained=False, **options))


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The authors' tensors → timm's: vision's of each pair, with queries, keys and values in one."""
    others = {name: value for name, value in state.items() if re.match(UNUSED, name)}
    vision = renamed({name: value for name, value in state.items() if name not in others}, _RULES, "attn.qkv.")
    if "pos_embed" in vision:
        vision["pos_embed"] = vision["pos_embed"][2:][None]  # fairseq counts positions from 2
    return others | {f"trunk.{name}": value for name, value in vision.items()}
