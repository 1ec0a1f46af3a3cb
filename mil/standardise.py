"""Embeddings to zero mean and unit variance per dimension, as fitted on a training fold and kept with its weights.

Backbones differ in scale by orders of magnitude between dimensions (EfficientNet's pooled features are non-negative
and skewed); a layer norm over the tile would leave that in place and mix dimensions. With the standardisation inside
the network, a model folder needs nothing else to be applied, and no test slide ever enters its statistics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .heads.output import MILOutput


class Standardised(nn.Module):
    """A head behind per-dimension standardisation; buffers `mean` and `scale`, each float32 (D,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, head: nn.Module, dim: int):
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, bags: Sequence[Tensor]) -> None:
        """Set mean and scale from bags (n, D) float32, each bag weighing the same however many tiles it has.

        A dimension that does not vary in training is switched off (scale 0): its later variation means nothing.
        """
        mean = torch.stack([bag.mean(0, dtype=torch.float64) for bag in bags]).mean(0)
        square = torch.stack([(bag.double() - mean).square().mean(0) for bag in bags]).mean(0)
        varies = square.sqrt() > 1e-6 * mean.abs().clamp(min=1e-3)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(varies, square.clamp(min=1e-30).rsqrt(), 0.0))

    def forward(self, features: Tensor, mask: Tensor) -> MILOutput:
        """features (B, N, D) float; mask (B, N) bool, True is a real tile."""
        # ±8 standard deviations: a rare outlier in one dimension must not decide over a whole slide.
        shifted = ((features.to(self.mean.dtype) - self.mean) * self.scale).clamp(-8, 8)
        output: MILOutput = self.head(shifted, mask)
        return output
