"""Scores of tiles → weights over a bag: what several heads share."""

import torch
from torch import Tensor, nn


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of score (…, N) among tiles where `mask`, broadcast to it, is True; else 0.

    Every row needs one True.
    """
    return score.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B, K, N) and values (B, N, H) → (B, K, H), in the values' precision."""
    # Under autocast softmax is float32 while the values are bfloat16, hence the cast.
    return torch.einsum("bkn,bnh->bkh", weights.to(values.dtype), values)


class GatedScore(nn.Module):
    """K unnormalised scores of each tile: gated attention before its softmax (Ilse et al., ICML 2018, equation 9)."""

    def __init__(self, width: int, attention: int, branches: int = 1, dropout: float = 0.0):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(width, attention), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(width, attention), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(attention, branches)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles (…, N, width) → (…, K, N)."""
        scores: Tensor = self.score(self.value(tiles) * self.gate(tiles))
        return scores.transpose(-1, -2)
