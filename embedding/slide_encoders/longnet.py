"""Prov-GigaPath's slide encoder: LongNet (Ding et al. 2023, arXiv 2307.02486) over tiles and a class token.

Follows prov-gigapath/prov-gigapath (Apache-2.0) and its torchscale (MIT), in plain attention: no flash-attn is needed.
Modules are named as in the authors' slide_encoder.pth. Memory grows with the number of
tiles (measured to 10,000: under 0.1 MB each), and time little faster: a tile looks at 1/ratio of each segment.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import SlideEncoder

UNUSED = r"(pos_embed$|mask_token$|decoder)"
SCORES = 1 << 24  # numbers held at once where queries meet keys: 64 MiB
PART = 8192  # tokens that go through a feed-forward layer at once


def create(encoder: SlideEncoder) -> nn.Module:
    """The entry's network, not yet filled."""
    return LongNetViT(encoder.tile_dim or 0, encoder.options)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


class LongNetViT(nn.Module):
    """Tiles (n, dim) and their columns and rows int64 (n, 2) → (width,): the class token after the last layer.

    options  width, depth, heads and hidden of the layers; segments and ratios of their attention; places: columns and
             rows that positions were trained for
    """

    def __init__(self, dim: int, options: Mapping[str, Any]):
        width, depth, heads, hidden = (options[name] for name in ("width", "depth", "heads", "hidden"))
        super().__init__()
        self.width = width
        self.patch_embed = nn.ModuleDict({"proj": nn.Linear(dim, width)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        branches = tuple(zip(options["segments"], options["ratios"], strict=True))
        self.encoder = Encoder([Layer(width, heads, hidden, branches) for _ in range(depth)], width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        tokens = self.patch_embed["proj"](tiles).float()  # what layers add to stays in float32, as in the authors' code
        tokens = tokens + positions(places, self.width).to(tokens.device)
        tokens = torch.cat((self.cls_token[0], tokens))  # the class token's position is all zeros
        return self.norm(self.encoder(tokens)[0])


class Encoder(nn.Module):
    """The layers and a norm."""

    def __init__(self, layers: list["Layer"], width: int):
        super().__init__()
        self.layers, self.layer_norm = nn.ModuleList(layers), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.layer_norm(tokens)


class Layer(nn.Module):
    """A transformer's layer with norms before and, as in Magneto, inside of both its halves."""

    def __init__(self, width: int, heads: int, hidden: int, branches: tuple[tuple[int, int], ...]):
        super().__init__()
        self.self_attn = DilatedAttention(width, heads, branches)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.ffn = nn.ModuleDict(
            {"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width), "ffn_layernorm": nn.LayerNorm(hidden)}
        )
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens))
        return tokens + torch.cat([self._feed(part) for part in tokens.split(PART)])

    def _feed(self, tokens: Tensor) -> Tensor:
        hidden = self.ffn["fc1"](self.final_layer_norm(tokens))
        return self.ffn["fc2"](self.ffn["ffn_layernorm"](F.gelu(hidden.float()).to(hidden)))


class DilatedAttention(nn.Module):
    """Attention within segments of tokens, of which each head takes every `ratio`-th: several segments and ratios,
    from near and dense to far and thin, are averaged by the sums of their softmaxes.

    branches  (segment, ratio), the first of ratio 1, so that no token is without
    """

    def __init__(self, width: int, heads: int, branches: tuple[tuple[int, int], ...]):
        super().__init__()
        self.heads, self.branches = heads, branches
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.inner_attn_ln = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            project(tokens).unflatten(1, (self.heads, -1)).transpose(0, 1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.mix(q, k, v).transpose(0, 1).flatten(1)
        return self.out_proj(self.inner_attn_ln(mixed))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(heads, n, d) each → float32 (heads, n, d), over all branches."""
        (segment, ratio), *others = self.branches
        mixed, top = dilated(q, k, v, segment, ratio)
        total = torch.ones_like(top)
        for segment, ratio in others:
            found, sums = dilated(q, k, v, segment, ratio)
            peak = torch.maximum(top, sums)
            kept, weight = (top - peak).exp(), (sums - peak).exp()
            mixed = mixed * kept[..., None] + found * weight[..., None]
            total, top = total * kept + weight, peak
        return mixed / total[..., None]


def dilated(q: Tensor, k: Tensor, v: Tensor, segment: int, ratio: int) -> tuple[Tensor, Tensor]:
    """One branch: q, k, v (heads, n, d) → float32 values (heads, n, d) and the logarithms of the sums under their
    softmaxes (heads, n), which are -inf where a head passes over a token.

    Where tokens are filled up to whole segments and ratios, the filling is keys and values of zero that take part in
    the softmax, as in the authors' code. (There, a segment that is no multiple of its ratio also shifts the segments
    after it; of the published sizes that befalls slides of more than 185,363 tiles, and is not done here.)
    """
    heads, n, width = q.shape
    segment = min(segment, n)
    pieces, thinned = -(-n // segment), -(-segment // ratio)
    head = torch.arange(heads, device=q.device)
    offset = head // -(-heads // ratio)  # heads are dealt out in blocks: each block begins at another token

    def thin(x: Tensor) -> Tensor:
        """(heads, n, d) → (heads, pieces, thinned, d)"""
        x = F.pad(x, (0, 0, 0, pieces * segment - n)).unflatten(1, (pieces, segment))
        x = F.pad(x, (0, 0, 0, thinned * ratio - segment)).unflatten(2, (thinned, ratio))
        return x[head, :, :, offset]

    values = torch.zeros(heads, pieces, thinned, ratio, width, device=q.device)
    sums = torch.full((heads, pieces, thinned, ratio), -torch.inf, device=q.device)
    keys, queries, theirs = thin(k), thin(q), thin(v)
    for piece in range(pieces):
        found, logarithms = attention(queries[:, piece], keys[:, piece], theirs[:, piece])
        values[head, piece, :, offset], sums[head, piece, :, offset] = found, logarithms
    values, sums = values.flatten(2, 3)[:, :, :segment], sums.flatten(2, 3)[:, :, :segment]
    return values.flatten(1, 2)[:, :n], sums.flatten(1, 2)[:, :n]


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention of (heads, n, d) → float32 values (heads, n, d) and log-sums (heads, n), a part at a time."""
    heads, keys, width = k.shape
    values, sums = [], []
    for part in q.split(max(1, SCORES // (heads * keys)), dim=1):
        scores = (part @ k.mT).float() * width**-0.5
        peak = scores.amax(-1, keepdim=True)
        weights = scores.sub_(peak).exp_()
        total = weights.sum(-1, keepdim=True)
        values.append((weights.to(v.dtype) @ v).float() / total)
        sums.append((peak + total.log())[..., 0])
    return torch.cat(values, dim=1), torch.cat(sums, dim=1)


def positions(places: Tensor, width: int) -> Tensor:
    """Sine and cosine of row, then of column, at wavelengths from 2π to 20,000π: int64 (n, 2) → float32 (n, width).

    The same numbers as the authors' table of 1000 x 1000 places, which holds 3 GB; computed in double precision.
    """
    quarter = width // 4
    wave = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    column, row = (at.cpu().double()[:, None] * wave for at in places.unbind(1))
    return torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), dim=1).float()
