"""CLAM: attention pooling whose strongest and weakest tiles are classified too, by labels made from the attention."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import SpecError

from ..spec import HeadSpec
from .attention import GatedScore, masked_softmax, weighted_sum
from .head import Criterion, Head, MILOutput
from .options import at_least, one_of, share

INSTANCE_LOSSES = ("svm", "cross-entropy")


class ClamSB(Head):
    """Clustering-constrained attention MIL, single branch (Lu et al., Nature Biomedical Engineering 2021).

    Gated attention; a linear bag classifier; and for each class a two-way instance classifier. In training the k tiles
    of highest attention are positive evidence of the bag's class, the k of lowest are negative. The authors' code has
    hidden 512, attention 256 and dropout 0.25.

    k                at each end; no more than half a bag's tiles, so that no tile is told to be both
    instance_weight  of the instance loss, the bag's loss having the rest
    instance_loss    svm: smooth top-1 SVM (Berrada, Zisserman & Kumar, ICLR 2018, with margin and temperature 1, which
                     smooths the multi-class hinge of Lapin et al., CVPR 2016); or cross-entropy
    subtyping        classes exclude each other: the k tiles of highest attention are negatives of every other class
    """

    classes_only = True
    branch_per_class: ClassVar[bool] = False

    def __init__(
        self,
        spec: HeadSpec,
        k: int = 8,
        instance_weight: float = 0.3,
        instance_loss: str = "svm",
        subtyping: bool = False,
    ):
        super().__init__()
        at_least("k", k)
        share("instance_weight", instance_weight)
        one_of("instance_loss", instance_loss, INSTANCE_LOSSES)
        if spec.outputs < 2:
            raise SpecError("head", "CLAM has one output", "give it a logit per class, or choose another head")
        self.k, self.instance_weight, self.instance_loss, self.subtyping = k, instance_weight, instance_loss, subtyping
        self.outputs = spec.outputs
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        branches = spec.outputs if self.branch_per_class else 1
        self.attend = GatedScore(spec.hidden, spec.attention, branches, spec.dropout)
        self.classify = nn.Linear(spec.hidden, spec.outputs)
        self.instance = nn.Linear(spec.hidden, 2 * spec.outputs)  # rows 2c, 2c + 1: is not, is class c

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward. Attention is (B, N), and (B, O, N) with a branch for each class.

        extra  top, bottom: (B, O, k', 2), each class's instance logits of the tiles of highest attention, of lowest,
               k' = min(k, N); entries past a bag's own tiles mean nothing. tiles: int64 (B,), real tiles
        """
        hidden = self.project(features.to(self.classify.weight.dtype))  # (B, N, H)
        score = self.attend(hidden)  # (B, K, N)
        attention = masked_softmax(score, mask.unsqueeze(1))
        pooled = weighted_sum(attention, hidden)  # (B, K, H)
        # Row c of the classifier reads branch c; the single branch is read by all rows.
        logits = (pooled * self.classify.weight).sum(dim=2) + self.classify.bias
        extra = {**self._evidence(hidden, score.detach(), mask), "tiles": mask.sum(dim=1)}
        return MILOutput(logits, attention if self.branch_per_class else attention.squeeze(1), extra)

    def _evidence(self, hidden: Tensor, score: Tensor, mask: Tensor) -> dict[str, Tensor]:
        k, padding = min(self.k, mask.shape[1]), ~mask.unsqueeze(1)
        bag = torch.arange(len(hidden), device=hidden.device)[:, None, None]
        weight, bias = self.instance.weight.unflatten(0, (-1, 2)), self.instance.bias.unflatten(0, (-1, 2))
        found = {}
        for name, largest in (("top", True), ("bottom", False)):
            index = score.masked_fill(padding, -torch.inf if largest else torch.inf).topk(k, largest=largest).indices
            tiles = hidden[bag, index].expand(-1, self.outputs, -1, -1)  # (B, O, k, H)
            found[name] = torch.einsum("bckh,coh->bcko", tiles, weight) + bias.unsqueeze(1)
        return found

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """(1 - instance_weight) x the bag's loss + instance_weight x the instances', the mean over bags."""
        instances = self._instance_loss(output, target).mean()
        return (1 - self.instance_weight) * criterion(output.logits, target) + self.instance_weight * instances

    def _instance_loss(self, output: MILOutput, target: Tensor) -> Tensor:
        """(B,): the mean over tiles shown to the bag's own class; with subtyping the mean over all classes."""
        top, bottom, tiles = output.extra["top"], output.extra["bottom"], output.extra["tiles"].unsqueeze(1)
        rank = torch.arange(top.shape[2], device=top.device)
        high, low = rank < (tiles + 1) // 2, rank < tiles // 2  # (B, k'): a bag of one tile has positive evidence only
        positive = self._loss(top, 1).mul(high.unsqueeze(1)).sum(dim=2)
        negative = self._loss(bottom, 0).mul(low.unsqueeze(1)).sum(dim=2)
        inside = (positive + negative) / (high.sum(1) + low.sum(1)).unsqueeze(1)  # (B, O)
        own = functional.one_hot(target, self.outputs).bool()
        if not self.subtyping:
            return inside[own]
        real = (rank < tiles).unsqueeze(1)  # (B, 1, k')
        outside = self._loss(top, 0).mul(real).sum(dim=2) / real.sum(dim=2)
        return torch.where(own, inside, outside).mean(dim=1)

    def _loss(self, logits: Tensor, label: int) -> Tensor:
        """Loss of each instance (…) from its two logits (…, 2)."""
        margin = logits - logits[..., label : label + 1]
        if self.instance_loss == "svm":
            margin = margin + (torch.arange(2, device=logits.device) != label)
        return margin.logsumexp(dim=-1)  # without the margin: cross entropy


class ClamMB(ClamSB):
    """CLAM with an attention branch for each class: class c is judged by its own pooled vector. Options as ClamSB."""

    branch_per_class = True
