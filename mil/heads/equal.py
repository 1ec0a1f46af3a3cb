"""Heads whose algorithm has no place for padding: they see whole bags only."""

import torch
from torch import Tensor

from .head import Head, MILOutput


class EqualBags(Head):
    """Handles the bags of a batch in groups of equal length, so that padding cannot reach the algorithm at all.

    For heads that square, split or search the sequence, where a mask would have to be carried through every step. A
    batch of one bag, or of bags of one length, is one group and costs nothing.
    """

    def whole(self, features: Tensor) -> MILOutput:
        """features (b, n, D): real tiles only. As `forward`; entries of `extra` have one shape for every n."""
        raise NotImplementedError

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        lengths = mask.sum(dim=1)
        sizes = lengths.unique().tolist()
        if sizes == [mask.shape[1]]:
            return self.whole(features)
        groups = [torch.nonzero(lengths == size).squeeze(1) for size in sizes]
        parts = [
            self.whole(features[rows][mask[rows]].unflatten(0, (len(rows), size)))
            for rows, size in zip(groups, sizes, strict=True)
        ]
        back = torch.cat(groups).argsort()
        attention = [_spread(part.attention, mask[rows]) for part, rows in zip(parts, groups, strict=True)]
        return MILOutput(
            torch.cat([part.logits for part in parts])[back],
            torch.cat(attention)[back],
            {name: torch.cat([part.extra[name] for part in parts])[back] for name in parts[0].extra},
        )


def _spread(attention: Tensor | None, mask: Tensor) -> Tensor:
    """Weights (b, n) of real tiles → (b, N) with 0 on padding."""
    if attention is None:
        raise TypeError("a head of equal bags returns attention")
    return attention.new_zeros(mask.shape).masked_scatter(mask, attention)
