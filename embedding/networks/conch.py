"""CONCH and CONCH v1.5: a ViT of timm's and one learned query that gathers its tokens.

Facts from the authors' repositories (github.com/mahmoodlab/CONCH; TITAN for v1.5); the pooling is that of CoCa (Yu et
al., 2022). `options` of an entry:

trunk       arguments of timm's ViT
width       length of the query, and so of the embedding
bias        whether the pooling's projections have one: v1 has, v1.5 has not
projection  whether a projection into the space shared with text follows: v1 has one
positions   how positions of another input size are resized: v1 bilinearly, v1.5 as DINO does
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone import Backbone

UNUSED = r"(text\.|text_decoder\.|logit_scale|attn_pool_caption\.|ln_caption\.)"
HEADS = 8


class AttentionalPooler(nn.Module):
    """One learned query that attends to all tokens: (n, t, context) → (n, width)."""

    def __init__(self, width: int, context: int, bias: bool):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(context)
        self.q, self.out = nn.Linear(width, width, bias), nn.Linear(width, width, bias)
        self.k, self.v = nn.Linear(context, width, bias), nn.Linear(context, width, bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ln_k(tokens)
        query = self.q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        heads = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, self.k(tokens), self.v(tokens)))
        gathered = functional.scaled_dot_product_attention(*heads)  # (n, heads, 1, width / heads)
        return self.out(gathered.transpose(1, 2).flatten(2))[:, 0]


class Conch(nn.Module):
    """Image tower. `pool` is what the authors use as features of a patch, `projected` what is compared with text."""

    def __init__(self, trunk: nn.Module, options: dict[str, Any]):
        super().__init__()
        width = options["width"]
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(width, int(trunk.num_features), options["bias"])  # type: ignore[arg-type]
        self.ln_contrast = nn.LayerNorm(width)
        if options["projection"]:
            self.proj_contrast = nn.Parameter(torch.zeros(width, width))

    def embed(self, pixels: Tensor, pooling: str) -> Tensor:
        """Pixels (n, 3, s, s) → (n, width); of unit length where projected, as the authors' encode_image gives it."""
        pooled = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(pixels)))  # type: ignore[operator]
        return functional.normalize(pooled @ self.proj_contrast, dim=-1) if pooling == "projected" else pooled


def create(backbone: Backbone) -> nn.Module:
    """The tower, not yet filled."""
    import timm

    options = dict(backbone.options)
    trunk = {"num_classes": 0, "img_size": backbone.input_px, **options["trunk"]}
    return Conch(timm.create_model(backbone.arch, pretrained=False, **trunk), options)


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The authors' tensors, of the whole model or its image tower alone, → this network's names.

    Where the file holds positions for another input size they are resized as the authors' code does it.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        found |= _pooling(name.removeprefix("visual."), value)
    if "trunk.pos_embed" in found:
        side = round((network.state_dict()["trunk.pos_embed"].shape[1] - 1) ** 0.5)
        found["trunk.pos_embed"] = _positions(found["trunk.pos_embed"], side, backbone.options["positions"])
    return found


def _pooling(name: str, value: Tensor) -> dict[str, Tensor]:
    """The pooling's projections: v1 keeps them as torch's MultiheadAttention does, v1.5 keys and values in one."""
    pool = "attn_pool_contrast."
    if name == f"{pool}attn.in_proj_bias":
        return {f"{pool}{part}.bias": bias for part, bias in zip("qkv", value.chunk(3), strict=True)}
    if name == f"{pool}to_kv.weight":
        return {f"{pool}{part}.weight": weight for part, weight in zip("kv", value.chunk(2), strict=True)}
    name = re.sub(r"^attn_pool_contrast\.attn\.([qkv])_proj_weight$", rf"{pool}\1.weight", name)
    name = re.sub(r"^attn_pool_contrast\.attn\.out_proj\.", f"{pool}out.", name)
    return {re.sub(r"^attn_pool_contrast\.to_(q|out)\.", rf"{pool}\1.", name): value}


def _positions(value: Tensor, side: int, how: str) -> Tensor:
    """Position embeddings (1, 1 + g·g, d) for a grid of `side`; the class token's stays.

    DINO's way is bicubic, by a factor with a tenth of a token added to it.
    """
    old = round((value.shape[1] - 1) ** 0.5)
    if old == side:
        return value
    grid = value[:, 1:].unflatten(1, (old, old)).movedim(-1, 1).float()
    if how == "dino":
        grid = functional.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    else:
        grid = functional.interpolate(grid, size=(side, side), mode="bilinear", antialias=False)
    return torch.cat((value[:, :1].float(), grid.movedim(1, -1).flatten(1, 2)), dim=1)
