"""Mean pooling: every tile counts the same. The baseline that attention has to beat."""

from torch import Tensor, nn

from ..spec import HeadSpec
from .head import Head, MILOutput


class MeanPool(Head):
    """Mean of the projected tiles, then a linear classifier. Attention is uniform: 1/n on each of n real tiles."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        hidden = self.project(features.to(self.classify.weight.dtype))  # (B, N, H)
        attention = mask.to(hidden.dtype) / mask.sum(dim=1, keepdim=True).to(hidden.dtype)  # (B, N)
        return MILOutput(self.classify((attention.unsqueeze(-1) * hidden).sum(dim=1)), attention)
