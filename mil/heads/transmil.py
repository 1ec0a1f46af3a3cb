"""TransMIL: a transformer over the tiles, whose positions come from folding their sequence into a square."""

import math

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .equal import EqualBags
from .head import MILOutput
from .nystrom import NystromAttention
from .options import at_least, divides


class PyramidPosition(nn.Module):
    """Pyramid position encoding generator (PPEG): depth-wise 7 x 7, 5 x 5 and 3 x 3 convolutions over the square."""

    def __init__(self, width: int):
        super().__init__()
        self.convolve = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """tokens (B, 1 + side * side, W), the class token first, which passes unchanged."""
        square = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        square = square + sum(convolve(square) for convolve in self.convolve)
        return torch.cat([tokens[:, :1], square.flatten(2).transpose(1, 2).to(tokens.dtype)], dim=1)


class TransMIL(EqualBags):
    """Correlated MIL by two Nyström attention layers with PPEG between (Shao et al., NeurIPS 2021).

    The sequence of tiles is filled up to a square by its own first ones and folded row by row: so the answer depends on
    the order of tiles (`order_free` is False), which should be that of the slide's grid. Attention is the class token's
    in the second layer, mean over heads, taken from the Nyström factors: what a tile repeated gets is added to it,
    negative entries, which the approximation may have, are set to 0, and the rest is scaled to sum to 1.
    The authors' code has hidden 512, 8 heads, and half as many landmarks as the width. `attention` is not used.

    heads      of each layer; divides `hidden`
    landmarks  of the Nyström method; 0 for hidden / 2
    """

    order_free = False

    def __init__(self, spec: HeadSpec, heads: int = 8, landmarks: int = 0):
        super().__init__()
        at_least("heads", heads)
        at_least("landmarks", landmarks, 0)
        divides("heads", heads, spec.hidden)
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU())
        self.token = nn.Parameter(torch.randn(1, 1, spec.hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(spec.hidden) for _ in range(3))
        self.layers = nn.ModuleList(
            NystromAttention(spec.hidden, heads, landmarks or max(1, spec.hidden // 2), spec.dropout) for _ in range(2)
        )
        self.position = PyramidPosition(spec.hidden)
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def whole(self, features: Tensor) -> MILOutput:
        """features (b, n, D), real tiles only, in the order of the slide's grid."""
        tiles = self.project(features.to(self.classify.weight.dtype))  # (b, n, H)
        count = tiles.shape[1]
        side = math.isqrt(count - 1) + 1
        repeated = side * side - count
        tokens = torch.cat([self.token.expand(len(tiles), -1, -1), tiles, tiles[:, :repeated]], dim=1)
        tokens = tokens + self.layers[0](self.norms[0](tokens))[0]
        tokens = self.position(tokens, side)
        mixed, row = self.layers[1](self.norms[1](tokens))
        logits = self.classify(self.norms[2]((tokens + mixed)[:, 0]))
        weights = torch.cat([row[:, 1 : 1 + repeated] + row[:, 1 + count :], row[:, 1 + repeated : 1 + count]], dim=1)
        weights = weights.clamp(min=0) + torch.finfo(weights.dtype).tiny  # even where no tile has any
        return MILOutput(logits, weights / weights.sum(dim=1, keepdim=True))
