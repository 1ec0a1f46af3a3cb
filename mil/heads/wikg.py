"""WiKG: tiles form a graph by learned head and tail roles; each is updated by its nearest, and the graph is pooled."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..spec import HeadSpec
from .equal import EqualBags
from .head import MILOutput
from .options import at_least

CHUNK = 1024  # rows of the similarity matrix held at once


class WiKG(EqualBags):
    """Dynamic graph with knowledge-aware attention (Li et al., CVPR 2024), bi-interaction and attention read-out.

    Edges run from each tile, as head, to the k tiles whose tails are most similar to it. The score of an edge is
    tail · tanh(head + edge), as in the paper; the authors' code multiplies the sums of both factors instead. Attention
    is the read-out's over updated tiles. `attention` is the read-out's hidden width (hidden / 2 in the authors' code).

    Cost: k x tiles in memory; time grows with the square of tiles, for every pair is compared once (10,000 tiles of
    width 128: 26 GFLOP), without gradient and never held whole.

    k  edges of each tile, at most its bag's tiles
    """

    def __init__(self, spec: HeadSpec, k: int = 6):
        super().__init__()
        at_least("k", k)
        self.k = k
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.LeakyReLU())
        self.head = nn.Linear(spec.hidden, spec.hidden)
        self.tail = nn.Linear(spec.hidden, spec.hidden)
        self.add = nn.Linear(spec.hidden, spec.hidden)
        self.multiply = nn.Linear(spec.hidden, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.score = nn.Sequential(nn.Linear(spec.hidden, spec.attention), nn.LeakyReLU(), nn.Linear(spec.attention, 1))
        self.norm = nn.LayerNorm(spec.hidden)
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def whole(self, features: Tensor) -> MILOutput:
        """features (b, n, D), real tiles only."""
        tiles = self.project(features.to(self.classify.weight.dtype))  # (b, n, H)
        tiles = (tiles + tiles.mean(dim=1, keepdim=True)) / 2
        head, tail = self.head(tiles), self.tail(tiles)
        nearest = _nearest(head.detach(), tail.detach(), min(self.k, tiles.shape[1]))  # (b, n, k)
        bag = torch.arange(len(tiles), device=tiles.device)[:, None, None]
        tails, heads = tail[bag, nearest], head.unsqueeze(2)  # (b, n, k, H), (b, n, 1, H)
        share = ((heads * tails).sum(dim=3) * head.shape[2] ** -0.5).softmax(dim=2).unsqueeze(3).to(tails.dtype)
        edges = share * tails + (1 - share) * heads
        weight = (tails * torch.tanh(heads + edges)).sum(dim=3).softmax(dim=2)  # (b, n, k)
        message = torch.einsum("bnk,bnkh->bnh", weight.to(tails.dtype), tails)
        updated = functional.leaky_relu(self.add(head + message)) + functional.leaky_relu(self.multiply(head * message))
        updated = self.dropout(updated)
        attention = self.score(updated).squeeze(2).softmax(dim=1)  # (b, n)
        pooled = torch.einsum("bn,bnh->bh", attention.to(updated.dtype), updated)
        return MILOutput(self.classify(self.norm(pooled)), attention)


def _nearest(head: Tensor, tail: Tensor, k: int) -> Tensor:
    """int64 (b, n, k): for each head the k tails of greatest inner product; head and tail (b, n, H)."""
    with torch.no_grad():
        found = [(rows @ tail.transpose(1, 2)).topk(k, dim=2).indices for rows in head.split(CHUNK, dim=1)]
    return torch.cat(found, dim=1)
