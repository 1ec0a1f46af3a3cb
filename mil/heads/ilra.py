"""ILRA-MIL: tiles speak to each other through a few latent vectors, at a cost linear in tiles."""

from typing import cast

import torch
from torch import Tensor, nn

from ..spec import HeadSpec
from .head import Head, MILOutput
from .options import at_least, divides


class LowRankAttention(nn.Module):
    """Attention of queries (B, Q, query_dim) to keys (B, K, key_dim) → (B, Q, width), residual, gated by queries."""

    def __init__(self, query_dim: int, key_dim: int, width: int, heads: int, gated: bool):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, width) for dim in (query_dim, key_dim, key_dim))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, width)
        self.gate = nn.Sequential(nn.Linear(query_dim, width), nn.SiLU()) if gated else None

    def forward(
        self, queries: Tensor, keys: Tensor, mask: Tensor | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """mask (B, K) bool, True is a real key. Also the attention (B, Q, K), mean over heads, where asked for."""
        asked, padding = self.query(queries), None if mask is None else ~mask
        found, attention = self.attend(
            asked, self.key(keys), self.value(keys), key_padding_mask=padding, need_weights=weights
        )
        residual = asked + found
        residual = residual + torch.relu(self.out(residual))
        return residual if self.gate is None else residual * self.gate(queries), attention


class LatentBlock(nn.Module):
    """Gated attention block (equation 16): latents read tiles, then tiles read latents: (B, N, D) → (B, N, W)."""

    def __init__(self, dim: int, width: int, heads: int, rank: int):
        super().__init__()
        self.latent = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, rank, width)))
        self.gather = LowRankAttention(width, dim, width, heads, gated=True)
        self.scatter = LowRankAttention(dim, width, width, heads, gated=True)

    def forward(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """mask (B, N) bool, True is a real tile; what comes out on padding means nothing."""
        latents, _ = self.gather(self.latent.expand(len(tiles), -1, -1), tiles, mask)
        spread, _ = self.scatter(tiles, latents)
        return cast(Tensor, spread)


class ILRA(Head):
    """Iterative low-rank attention MIL (Xiang & Zhang, ICLR 2023); structure as in the authors' code.

    Blocks of latents, then non-local pooling: a learned query attends to the tiles. Attention is that query's, the mean
    over heads; by then each tile's vector also knows of the others. `attention` is not used: latents have length
    `hidden` (256 in the authors' code), a multiple of `heads`.

    layers  latent blocks
    heads   of each attention
    rank    latent vectors of a block. The authors' code has 1, where reading it back gives every tile the same
    """

    def __init__(self, spec: HeadSpec, layers: int = 2, heads: int = 8, rank: int = 16):
        super().__init__()
        for name, value in (("layers", layers), ("heads", heads), ("rank", rank)):
            at_least(name, value)
        divides("heads", heads, spec.hidden)
        dims = [spec.dim] + [spec.hidden] * (layers - 1)
        self.blocks = nn.ModuleList(LatentBlock(dim, spec.hidden, heads, rank) for dim in dims)
        self.seed = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, spec.hidden)))
        self.pool = LowRankAttention(spec.hidden, spec.hidden, spec.hidden, heads, gated=False)
        self.dropout = nn.Dropout(spec.dropout)
        self.classify = nn.Linear(spec.hidden, spec.outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        tiles = features.to(self.classify.weight.dtype)
        for block in self.blocks:
            tiles = block(tiles, mask)
        pooled, attention = self.pool(self.seed.expand(len(tiles), -1, -1), tiles, mask, weights=True)
        return MILOutput(self.classify(self.dropout(pooled.squeeze(1))), attention.squeeze(1))
