"""A linear probe: what the embedding itself knows, with nothing learned in between."""

from torch import Tensor, nn

from ..spec import HeadSpec
from .attention import weighted_sum
from .head import Head, MILOutput


class LinearProbe(Head):
    """Logistic or linear regression on a slide's vector: a bag of one vector. Of several tiles it takes the mean.

    It has no hidden layer: the spec's hidden, attention and dropout do nothing. Attention is uniform.
    """

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.classify = nn.Linear(spec.dim, spec.outputs)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        tiles = features.to(self.classify.weight.dtype)
        attention = mask.to(tiles.dtype) / mask.sum(dim=1, keepdim=True).to(tiles.dtype)  # (B, N)
        return MILOutput(self.classify(weighted_sum(attention.unsqueeze(1), tiles).squeeze(1)), attention)
