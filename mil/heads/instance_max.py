"""Instance-level maximum: every tile is classified, and the strongest tile of each output speaks for the slide."""

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .head import Head, MILOutput


class InstanceMax(Head):
    """mi-Net with max pooling (Wang et al., Pattern Recognition 2018): logits of tiles, then their maximum per output.

    The head has no attention weights. What is returned in their place is exact all the same: (B, O, N), 1 on the tile
    that each output's logit was taken from, ties shared evenly.
    """

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        tiles = self.classify(self.project(features.to(self.classify.weight.dtype))).transpose(1, 2)  # (B, O, N)
        tiles = tiles.masked_fill(~mask.unsqueeze(1), -torch.inf)
        logits = tiles.amax(dim=2)
        winners = (tiles == logits.unsqueeze(2)).float()
        return MILOutput(logits, winners / winners.sum(dim=2, keepdim=True))
