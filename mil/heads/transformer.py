"""A plain transformer: every tile attends to every other, and a class token reads the result."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import SpecError

from ..spec import HeadSpec
from .head import Head, MILOutput
from .options import at_least, divides, one_of

ENCODINGS = ("sinusoidal", "alibi")
CHUNK = 512  # queries whose distances to all tiles are held at once


class Block(nn.Module):
    """Pre-norm transformer layer (Xiong et al., ICML 2020): attention and a GELU layer of 4 x width, both residual."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None, distance: "Distance | None") -> Tensor:
        """tokens (B, T, W) → the same; mask (B, 1, 1, T) bool, True is a real token, or None where all are."""
        query, key, value = self._qkv(tokens)
        if distance is None:
            found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            chunks = []
            for start in range(0, query.shape[2], CHUNK):
                rows = slice(start, start + CHUNK)
                bias = distance.bias(rows, mask).to(query.dtype)
                chunks.append(functional.scaled_dot_product_attention(query[:, :, rows], key, value, attn_mask=bias))
            found = torch.cat(chunks, dim=2)
        return self._finish(tokens, found)

    def read(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The class token alone (B, W), as `forward` makes it, and its attention (B, heads, T): linear in tokens.

        It is near to all tokens, so no distance comes in.
        """
        query, key, value = self._qkv(tokens)
        score = (query[:, :, :1] * query.shape[3] ** -0.5) @ key.mT  # (B, heads, 1, T)
        attention = (score if mask is None else score.masked_fill(~mask, -torch.inf)).softmax(dim=3)
        return self._finish(tokens[:, :1], attention.to(value.dtype) @ value).squeeze(1), attention.squeeze(2)

    def _qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, T, W / heads)."""
        split = self.qkv(self.norm_attention(tokens)).unflatten(2, (3, self.heads, -1))
        return cast(tuple[Tensor, Tensor, Tensor], split.permute(2, 0, 3, 1, 4).unbind())

    def _finish(self, tokens: Tensor, found: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return cast(Tensor, tokens + self.dropout(self.mlp(self.norm_mlp(tokens))))


class Distance:
    """Linear bias by distance (ALiBi; Press, Smith & Lewis, ICLR 2022), here the Euclidean one between tiles.

    xy (B, N, 2), in tiles. Head h of H loses 2^(-8h/H) per tile of distance; the class token is near to all.
    """

    def __init__(self, xy: Tensor, heads: int):
        self.xy = xy.float()
        self.slope = torch.exp2(-8 * torch.arange(1, heads + 1, device=xy.device) / heads)

    def bias(self, rows: slice, mask: Tensor | None) -> Tensor:
        """(B, heads, rows, 1 + N) for these tokens, the class token being the first; -inf on padding."""
        asked = self.xy[:, max(rows.start - 1, 0) : rows.stop - 1]
        # Not through a matrix product: far from the origin that is wrong by whole tiles.
        near = torch.cdist(asked, self.xy, compute_mode="donot_use_mm_for_euclid_dist")
        near = functional.pad(near, (1, 0))
        if rows.start == 0:
            near = functional.pad(near, (0, 0, 1, 0))
        bias = -self.slope[:, None, None] * near.unsqueeze(1)
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


class Transformer(Head):
    """Pre-norm transformer over tiles with a class token (Vaswani et al., 2017; Dosovitskiy et al., ICLR 2021).

    It knows nothing of position. Attention is the class token's to the tiles in the last layer, mean over heads, scaled
    to sum to 1 without its attention to itself; by then each tile's vector also knows of the others. In the last layer
    only the class token is worked out, for nothing else is read. `attention` is not used.

    Cost: all layers but the last compare every pair of tiles: time grows with the square of tiles, and so does memory
    where torch has no fused kernel (half precision on a GPU, and the CPU, have one).

    layers  at least 1
    heads   of each layer; divides `hidden`
    """

    def __init__(self, spec: HeadSpec, layers: int = 2, heads: int = 8):
        super().__init__()
        at_least("layers", layers)
        at_least("heads", heads)
        divides("heads", heads, spec.hidden)
        self.heads = heads
        self.project = nn.Sequential(nn.Linear(spec.dim, spec.hidden), nn.Dropout(spec.dropout))
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, spec.hidden), std=0.02))
        self.blocks = nn.ModuleList(Block(spec.hidden, heads, spec.dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(spec.hidden)
        self.classify = nn.Linear(spec.hidden, spec.outputs)

    def forward(self, features: Tensor, mask: Tensor, xy: Tensor | None = None) -> MILOutput:
        """See Head.forward."""
        tiles = self.project(features.to(self.classify.weight.dtype))  # (B, N, H)
        tiles, distance = self.locate(tiles, mask, xy)
        tokens = torch.cat([self.token.expand(len(tiles), -1, -1).to(tiles.dtype), tiles], dim=1)
        whole = None if bool(mask.all()) else functional.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, T)
        for block in list(self.blocks)[:-1]:
            tokens = block(tokens, whole, distance)
        pooled, attention = cast(Block, self.blocks[-1]).read(tokens, whole)
        weights = attention[:, :, 1:].mean(dim=1)
        return MILOutput(self.classify(self.norm(pooled)), weights / weights.sum(dim=1, keepdim=True))

    def locate(self, tiles: Tensor, mask: Tensor, xy: Tensor | None) -> tuple[Tensor, Distance | None]:
        """Tiles (B, N, H) that know their place, and how far they lie from each other; here neither."""
        return tiles, None


class TransformerPosition(Transformer):
    """The plain transformer, told where tiles lie; it raises SpecError without their positions.

    encoding  sinusoidal: sines and cosines (Vaswani et al., 2017) of x in one half of the vector and of y in the other,
              measured from the bag's left and top tile; `hidden` is then a multiple of 4. alibi: attention falls with
              the distance between tiles, as for whole slides in TITAN (Ding et al., Nature Medicine 2025); its biases
              are made in chunks, yet training keeps heads x tiles x tiles of them
    """

    needs_xy: ClassVar[bool] = True

    def __init__(self, spec: HeadSpec, layers: int = 2, heads: int = 8, encoding: str = "sinusoidal"):
        super().__init__(spec, layers, heads)
        one_of("encoding", encoding, ENCODINGS)
        if encoding == "sinusoidal":
            divides("2 axes x sine and cosine", 4, spec.hidden)
        self.encoding = encoding

    def locate(self, tiles: Tensor, mask: Tensor, xy: Tensor | None) -> tuple[Tensor, Distance | None]:
        """See Transformer.locate. xy (B, N, 2) float, in tiles."""
        if xy is None:
            raise SpecError("xy", "this head reads where tiles lie, and got no positions", "choose transformer instead")
        if self.encoding == "alibi":
            return tiles, Distance(xy, self.heads)
        # float32: half precision cannot tell the 2,049th column from the 2,048th
        origin = xy.float().masked_fill(~mask.unsqueeze(2), torch.inf).amin(dim=1, keepdim=True)
        return tiles + sinusoids(xy.float() - origin, tiles.shape[2]).to(tiles.dtype), None


def sinusoids(xy: Tensor, width: int) -> Tensor:
    """xy (…, 2) → (…, width): for x, then y, width / 4 sines and as many cosines of wavelengths 2π to 20,000π tiles."""
    quarter = width // 4
    frequency = torch.pow(10_000.0, -torch.arange(quarter, device=xy.device) / quarter)
    angle = xy.unsqueeze(-1) * frequency  # (…, 2, width / 4)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
