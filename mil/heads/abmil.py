"""Gated attention pooling: which tiles count is learned from the slide's label alone."""

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .attention import masked_softmax, weighted_sum
from .head import Head, MILOutput


class ABMIL(Head):
    """Gated attention-based MIL (Ilse, Tomczak & Welling, ICML 2018, equation 9), attention softmaxed over the bag."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        self.value = nn.Linear(spec.hidden, spec.attention)
        self.gate = nn.Linear(spec.hidden, spec.attention)
        self.score = nn.Linear(spec.attention, 1)
        self.classify = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.hidden, spec.outputs))

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        hidden = self.project(features.to(self.score.weight.dtype))  # (B, N, H)
        score = self.score(torch.tanh(self.value(hidden)) * torch.sigmoid(self.gate(hidden)))  # (B, N, 1)
        attention = score.squeeze(-1).masked_fill(~mask, -torch.inf).softmax(dim=1)  # (B, N)
        # Under autocast softmax is float32 while hidden is bfloat16, hence the cast.
        pooled = torch.einsum("bn,bnh->bh", attention.to(hidden.dtype), hidden)
        return MILOutput(self.classify(pooled), attention)


class PlainABMIL(Head):
    """Attention-based MIL without the gate (Ilse, Tomczak & Welling, ICML 2018, equation 8)."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        self.value = nn.Linear(spec.hidden, spec.attention)
        self.score = nn.Linear(spec.attention, 1)
        self.classify = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.hidden, spec.outputs))

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        hidden = self.project(features.to(self.score.weight.dtype))  # (B, N, H)
        score = self.score(torch.tanh(self.value(hidden))).transpose(1, 2)  # (B, 1, N)
        attention = masked_softmax(score, mask.unsqueeze(1))
        return MILOutput(self.classify(weighted_sum(attention, hidden).squeeze(1)), attention.squeeze(1))
