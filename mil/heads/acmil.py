"""ACMIL: several attention branches that must look at different tiles, and lose their favourites at random."""

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import SpecError

from ..spec import HeadSpec
from .attention import GatedScore, masked_softmax, weighted_sum
from .head import Criterion, Head, MILOutput
from .options import at_least, share


class ACMIL(Head):
    """Attention-challenging MIL (Zhang et al., ECCV 2024), with gated attention as the authors' ACMIL_GA.

    Multiple branch attention: each branch pools and is classified by itself; the slide is classified from the mean of
    the branches' attention. Stochastic top-k instance masking: in training each branch loses a random share of its
    strongest tiles. Branches are held apart by the cosine similarity of their attention.

    branches   attention branches (the authors' n_token); one alone is judged as the slide only
    top        strongest tiles of a branch that may be lost; no more than a tenth of the bag, for the authors' bags hold
               thousands of tiles and a small one would lose all its evidence
    mask_drop  share of them that is lost, [0, 1)
    """

    def __init__(self, spec: HeadSpec, branches: int = 5, top: int = 10, mask_drop: float = 0.6):
        super().__init__()
        at_least("branches", branches)
        at_least("top", top, 0)
        share("mask_drop", mask_drop)
        if mask_drop == 1:
            raise SpecError("head_options.mask_drop", "1 may leave a branch no tile", "give less than 1, such as 0.6")
        self.top, self.mask_drop = top, mask_drop
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU())
        self.attend = GatedScore(spec.hidden, spec.attention, branches)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.hidden, spec.outputs))
            for _ in range(branches if branches > 1 else 0)
        )
        self.classify = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.hidden, spec.outputs))

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward. Attention is the branches' mean.

        extra  attention: (B, M, N), each branch's; branches: (B, M, O), each branch's logits, where there are several
        """
        hidden = self.project(features.to(self.attend.score.weight.dtype))  # (B, N, H)
        score = self.attend(hidden)  # (B, M, N)
        keep = mask.unsqueeze(1).expand_as(score)
        if self.training and self.top:
            keep = keep & ~self._lost(score.detach(), mask)
        attention = masked_softmax(score, keep)
        pooled = weighted_sum(attention, hidden)  # (B, M, H)
        extra = {"attention": attention}
        if self.branches:
            judged = [head(one) for head, one in zip(self.branches, pooled.unbind(1), strict=True)]
            extra["branches"] = torch.stack(judged, dim=1)
        # The mean of the branches' vectors is the vector of their mean attention: the sum is linear.
        return MILOutput(self.classify(pooled.mean(dim=1)), attention.mean(dim=1), extra)

    def _lost(self, score: Tensor, mask: Tensor) -> Tensor:
        """(B, M, N) bool: int(mask_drop x k) random ones among each branch's k = min(top, n // 10) strongest tiles."""
        count = min(self.top, score.shape[2])
        strongest = score.masked_fill(~mask.unsqueeze(1), -torch.inf).topk(count).indices  # (B, M, count)
        within = (mask.sum(dim=1) // 10).clamp(max=count)[:, None, None]
        # A random order of 0, 1, 2, …; what lies beyond a small bag's k comes last in it.
        draw = torch.rand(strongest.shape, device=score.device)
        draw = draw.masked_fill(torch.arange(count, device=score.device) >= within, 2.0)
        drawn = draw.argsort(dim=2) < (within * self.mask_drop).long()
        return torch.zeros_like(score, dtype=torch.bool).scatter(2, strongest, drawn)

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """The slide's loss + the branches' mean loss + the mean cosine similarity of two branches' attention."""
        loss = criterion(output.logits, target)
        if not self.branches:  # a branch alone is the slide itself
            return loss
        branches = torch.stack([criterion(one, target) for one in output.extra["branches"].unbind(dim=1)]).mean()
        attention = output.extra["attention"].unbind(dim=1)
        pairs = [functional.cosine_similarity(a, b, dim=1).mean() for a, b in combinations(attention, 2)]
        return loss + branches + torch.stack(pairs).mean()
