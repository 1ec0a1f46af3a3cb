"""Image towers of CLIP's kind: a ViT of timm's, and the projection into the space shared with text.

They are read from files of two layouts: open_clip's with a ViT of timm's (BiomedCLIP), and that of transformers'
CLIPModel (PLIP). `options` of an entry are those of timm's ViT; num_classes is the length of the projection.
"""

import re

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from .renaming import renamed

UNUSED = r"(text\.|text_model\.|text_projection\.|logit_scale|vision_model\.embeddings\.position_ids)"
_OPEN_CLIP = ((r"^visual\.trunk\.", ""), (r"^visual\.head\.proj\.", "head."))
_TRANSFORMERS = (
    (r"^visual_projection\.", "head."),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^vision_model\.pre_layrnorm\.", "norm_pre."),
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)


class ImageTower(nn.Module):
    """`projected` is CLIP's embedding of an image, of any length; `pool` what it is projected from."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def embed(self, pixels: Tensor, pooling: str) -> Tensor:
        """Pixels (n, 3, s, s) → (n, dim)."""
        features = self.trunk.forward_features(pixels)  # type: ignore[operator]
        return self.trunk.forward_head(features, pre_logits=pooling == "pool")  # type: ignore[operator]


def create(backbone: Backbone) -> nn.Module:
    """The tower, not yet filled."""
    import timm

    options = {"global_pool": "token", "img_size": backbone.input_px, **backbone.options}
    return ImageTower(timm.create_model(backbone.arch, pretrained=False, **options))


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Either layout → this network's names. The projection has no bias: timm's head gets one of zeros."""
    others = {name: value for name, value in state.items() if re.match(UNUSED, name)}
    vision = {name: value for name, value in state.items() if name not in others}
    rules = _TRANSFORMERS if "visual_projection.weight" in vision else _OPEN_CLIP
    vision = renamed(vision, rules, "attn.qkv.")
    if "head.weight" in vision:
        vision["head.bias"] = torch.zeros(len(vision["head.weight"]))
    for name in vision.keys() & {"cls_token", "pos_embed"}:
        vision[name] = vision[name].reshape(1, -1, vision[name].shape[-1])  # transformers' has no axis for the batch
    return others | {f"trunk.{name}": value for name, value in vision.items()}
