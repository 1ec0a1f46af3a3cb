"""DSMIL: the strongest tile, and what resembles it, judge a slide together."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .attention import masked_softmax, weighted_sum
from .head import Criterion, Head, MILOutput


class DSMIL(Head):
    """Dual-stream MIL (Li, Li & Eliceiri, CVPR 2021).

    The first stream classifies tiles and takes each output's maximum: its critical tile. The second weighs all tiles by
    the similarity of their query to the critical tile's, sums them, and classifies. Logits are the mean of both
    streams, and so is the training loss. The authors work on the embedding itself with queries of length 128; so does
    this head: `attention` is the query's length, and `hidden` is used with `project` alone.

    nonlinear  queries of two layers, as in the authors' code; False for one, as in the paper
    value      a learned value of each tile (linear, ReLU); False sums the embeddings themselves, the authors' default
    project    a ReLU layer to `hidden` before both streams
    average    logits of both streams averaged, as in the paper; False for the second alone, as the authors' code tests
    """

    REFERENCE_KEYS: ClassVar[Mapping[str, str]] = {
        "instance": "i_classifier.fc.0",
        "query.0": "b_classifier.q.0",
        "query.2": "b_classifier.q.2",
        "classify": "b_classifier.fcc",
    }

    def __init__(
        self,
        spec: HeadSpec,
        nonlinear: bool = True,
        value: bool = False,
        project: bool = False,
        average: bool = True,
    ):
        super().__init__()
        width, length = spec.hidden if project else spec.dim, spec.attention
        self.average = average
        self.project = (
            nn.Sequential(nn.Linear(spec.dim, width), nn.ReLU(), nn.Dropout(spec.dropout)) if project else nn.Identity()
        )
        self.instance = nn.Linear(width, spec.outputs)
        self.query = (
            nn.Sequential(nn.Linear(width, length), nn.ReLU(), nn.Linear(length, length), nn.Tanh())
            if nonlinear
            else nn.Linear(width, length)
        )
        self.value = (
            nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(width, width), nn.ReLU()) if value else nn.Identity()
        )
        self.classify = nn.Conv1d(spec.outputs, spec.outputs, kernel_size=width)  # every output reads every embedding

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward. Attention is (B, O, N): the second stream's.

        extra  instance, bag: (B, O), the logits of the two streams
        """
        hidden = self.project(features.to(self.instance.weight.dtype))  # (B, N, W)
        tiles = self.instance(hidden).masked_fill(~mask.unsqueeze(2), -torch.inf)  # (B, N, O)
        strongest, critical = tiles.max(dim=1)  # (B, O)
        query = self.query(hidden)  # (B, N, Q)
        bag = torch.arange(len(query), device=query.device).unsqueeze(1)
        score = query[bag, critical] @ query.transpose(1, 2) / math.sqrt(query.shape[2])  # (B, O, N)
        attention = masked_softmax(score, mask.unsqueeze(1))
        whole = self.classify(weighted_sum(attention, self.value(hidden))).squeeze(2)  # (B, O)
        logits = (strongest + whole) / 2 if self.average else whole
        return MILOutput(logits, attention, {"instance": strongest, "bag": whole})

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """The mean of the two streams' losses, whichever of them the logits come from."""
        return (criterion(output.extra["instance"], target) + criterion(output.extra["bag"], target)) / 2


def dsmil_from_reference(state: Mapping[str, Tensor]) -> DSMIL:
    """The head with weights published in the authors' format (an aggregator of two-layer queries and no values).

    Its logits are the second stream's, as their tests use them; `extra` has both. Raises KeyError for another format.
    """
    instance, query = state["i_classifier.fc.0.weight"], state["b_classifier.q.0.weight"]
    spec = HeadSpec("dsmil", dim=instance.shape[1], outputs=instance.shape[0], attention=query.shape[0])
    head = DSMIL(spec, average=False)
    kinds = ("weight", "bias")
    head.load_state_dict(
        {f"{own}.{kind}": state[f"{theirs}.{kind}"] for own, theirs in DSMIL.REFERENCE_KEYS.items() for kind in kinds}
    )
    return head.eval()
