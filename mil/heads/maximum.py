"""Max pooling: the strongest response anywhere on the slide decides."""

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .head import Head, MILOutput


class MaxPool(Head):
    """Maximum over tiles of each hidden unit, then a linear classifier (MI-Net; Wang et al., Pattern Recognition 2018).

    The head has no attention weights. What is returned in their place is each tile's share of the maxima: the part
    of the hidden units whose largest value comes from that tile, ties shared evenly. It says which tiles the pooled
    vector was taken from, not how strongly each speaks for a class.
    """

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        hidden = self.project(features.to(self.classify.weight.dtype))  # (B, N, H)
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        pooled = hidden.amax(dim=1)  # (B, H)
        winners = (hidden == pooled.unsqueeze(1)).to(pooled.dtype)
        attention = (winners / winners.sum(dim=1, keepdim=True)).mean(dim=-1)
        return MILOutput(self.classify(pooled), attention.detach())
