"""DTFD-MIL: a slide is dealt into pseudo-bags, each with the slide's label; what they distil is pooled once more."""

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .attention import GatedScore, masked_softmax, weighted_sum
from .equal import EqualBags
from .head import Criterion, MILOutput
from .options import at_least, one_of

DISTILLATIONS = ("AFS", "MaxS", "MaxMinS")


class DTFD(EqualBags):
    """Double-tier feature distillation MIL (Zhang et al., CVPR 2022), layers as in the authors' code.

    The first tier pools and classifies each pseudo-bag by gated attention and is trained by the slide's label; the
    second pools what the first distils from them. In training the second tier does not reach back into the first: each
    is optimised by its own loss. Pseudo-bags are dealt at random in training. The authors deal at random in
    testing too; here tiles are then dealt in turn by falling attention score, so that a slide has one answer, whatever
    the order of its tiles.

    bags      pseudo-bags; a slide of fewer tiles has one for each tile
    distil    AFS: a pseudo-bag's pooled vector; MaxS: its `per_bag` tiles of the highest class activation for the last
              output (the positive class); MaxMinS: those and the lowest ones
    per_bag   tiles distilled at each end (MaxS, MaxMinS)
    """

    def __init__(self, spec: HeadSpec, bags: int = 4, distil: str = "AFS", per_bag: int = 1):
        super().__init__()
        at_least("bags", bags)
        at_least("per_bag", per_bag)
        one_of("distil", distil, DISTILLATIONS)
        self.bags, self.distil, self.per_bag = bags, distil, per_bag
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden, bias=False), nn.ReLU(), nn.Dropout(spec.dropout))
        self.attend = GatedScore(spec.hidden, spec.attention)
        self.classify_bag = nn.Linear(spec.hidden, spec.outputs)
        self.attend_again = GatedScore(spec.hidden, spec.attention)
        self.classify = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(spec.hidden, spec.outputs))

    def whole(self, features: Tensor) -> MILOutput:
        """features (b, n, D). Attention of a tile: its weights in both tiers multiplied, summed where it comes twice.

        extra  pseudo: (b, bags, O), the first tier's logits; a slide of fewer tiles repeats its own
        """
        hidden = self.project(features.to(self.classify_bag.weight.dtype))  # (b, n, H)
        score = self.attend(hidden).squeeze(1)  # (b, n)
        place, real = self._deal(score)  # (b, G, L)
        bag = torch.arange(len(hidden), device=hidden.device)[:, None, None]
        tiles = hidden[bag, place]  # (b, G, L, H)
        weights = masked_softmax(score[bag, place], real)  # (b, G, L)
        pooled = torch.einsum("bgl,bglh->bgh", weights.to(tiles.dtype), tiles)
        pseudo = self.classify_bag(pooled)  # (b, G, O)
        if self.distil == "AFS":
            distilled, source, share = pooled, place, weights
        else:
            kept, chosen = self._choose(tiles.detach(), weights.detach(), real)  # (b, G, K)
            source = place.gather(2, kept).flatten(1).unsqueeze(2)  # (b, G * K, 1)
            distilled, share = hidden[bag, source].squeeze(2), chosen.flatten(1).unsqueeze(2).to(score.dtype)
        if self.training:
            distilled = distilled.detach()
        again = masked_softmax(self.attend_again(distilled), share.sum(2).unsqueeze(1) > 0)  # (b, 1, G or G * K)
        logits = self.classify(weighted_sum(again, distilled).squeeze(1))
        attention = again.new_zeros(score.shape).scatter_add(
            1, source.flatten(1), (again.squeeze(1).unsqueeze(2) * share).flatten(1).to(again.dtype)
        )
        repeated = torch.arange(self.bags, device=pseudo.device) % pseudo.shape[1]
        return MILOutput(logits, attention, {"pseudo": pseudo[:, repeated]})

    def _deal(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles of each pseudo-bag, int64 (b, G, L), and which of them are real; sizes differ by one at most."""
        slides, tiles = score.shape
        groups = min(self.bags, tiles)
        rank = torch.rand_like(score, dtype=torch.float32) if self.training else score.detach()
        order = rank.argsort(dim=1, descending=True, stable=True)
        padded = nn.functional.pad(order, (0, -tiles % groups))
        real = torch.arange(padded.shape[1], device=score.device) < tiles
        return (
            padded.unflatten(1, (-1, groups)).transpose(1, 2),
            real.unflatten(0, (-1, groups)).T.expand(slides, -1, -1),
        )

    def _choose(self, tiles: Tensor, weights: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Places (b, G, K) of the tiles of extreme activation in each pseudo-bag, and which of them are real.

        The activation (class activation map) is softmaxed over outputs where there are several.
        """
        activation = (weights.unsqueeze(3).to(tiles.dtype) * tiles) @ self.classify_bag.weight.detach().T
        strength = (activation.softmax(dim=3) if activation.shape[3] > 1 else activation)[..., -1]
        count = min(self.per_bag, tiles.shape[2])
        highest = strength.masked_fill(~real, -torch.inf).topk(count).indices
        if self.distil == "MaxS":
            return highest, real.gather(2, highest)
        lowest = strength.masked_fill(~real, torch.inf).topk(count, largest=False).indices
        kept = torch.cat([highest, lowest], dim=2)
        return kept, real.gather(2, kept)

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """The second tier's loss plus the first's, the mean over pseudo-bags, each of which has its slide's label."""
        pseudo = output.extra["pseudo"].unbind(dim=1)
        return criterion(output.logits, target) + torch.stack([criterion(one, target) for one in pseudo]).mean()
