"""Slide encoders that are gated attention pooling (Ilse et al. 2018, arXiv 1802.04712): CHIEF, MADELEINE, FEATHER.

They do not look at where tiles are, and the order of tiles does not matter. Modules are named as in the authors' files.
Tiles are worked on in parts and the softmax is taken over all of them as they come, so memory grows with nothing but
the embeddings themselves.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .encoder import SlideEncoder

PART = 8192  # tiles at once

# classifiers and text of the authors' training, and MADELEINE's projection of single tiles
UNUSED = r"(classifiers?|instance_classifiers|att_head|text_to_vision|organ_embedding|token_projector)(\.|$)"


def create(encoder: SlideEncoder) -> nn.Module:
    """The entry's network, not yet filled."""
    network = {"chief": Chief, "madeleine": Madeleine, "feather": Feather}[encoder.arch]
    return network(encoder.tile_dim or 0, encoder.options)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors by this module's names: FEATHER's lie below `model.`."""
    return {name.removeprefix("model."): value for name, value in state.items()}


class GatedScore(nn.Module):
    """(n, d) → (n, 1): how much each tile counts, before the softmax."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(dim, hidden), nn.Sigmoid())
        self.attention_c = nn.Linear(hidden, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.attention_c(self.attention_a(tiles) * self.attention_b(tiles))


def attend(tiles: Tensor, value: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Mean of all tiles' values, weighted by the softmax of their scores over all tiles.

    tiles  (n, d), n ≥ 1
    value  (m, d) → values (m, v, k) and scores (m, k), for each of k heads
    Returns float32 (v, k).
    """
    peaks, totals, sums = [], [], []
    for part in tiles.split(PART):
        values, scores = value(part)
        peaks.append(scores.float().amax(0))
        weights = (scores.float() - peaks[-1]).exp()
        totals.append(weights.sum(0))
        sums.append(torch.einsum("mvk,mk->vk", values.float(), weights))
    peak = torch.stack(peaks)
    share = (peak - peak.amax(0)).exp()  # (parts, k)
    return torch.einsum("pvk,pk->vk", torch.stack(sums), share) / (torch.stack(totals) * share).sum(0)


class Chief(nn.Module):
    """CHIEF: attention looks at a projection of the tiles, and averages the tiles' embeddings themselves."""

    def __init__(self, dim: int, options: Mapping[str, int]):
        super().__init__()
        hidden, attention = options["hidden"], options["attention"]
        layers = (nn.Linear(dim, hidden), nn.ReLU(), nn.Identity(), GatedScore(hidden, attention))
        self.attention_net = nn.Sequential(*layers)

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        return attend(tiles, lambda part: (part[:, :, None], self.attention_net(part)))[:, 0]


class Feather(nn.Module):
    """FEATHER: attention looks at a projection of the tiles and averages that."""

    def __init__(self, dim: int, options: Mapping[str, int]):
        super().__init__()
        hidden, attention = options["hidden"], options["attention"]
        self.patch_embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.global_attn = GatedScore(hidden, attention)

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        def value(part: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.patch_embed(part)
            return hidden[:, :, None], self.global_attn(hidden)

        return attend(tiles, value)[:, 0]


class Madeleine(nn.Module):
    """MADELEINE: each of several heads has a projection of the tiles and an attention of its own."""

    def __init__(self, dim: int, options: Mapping[str, int]):
        super().__init__()
        hidden, heads = options["hidden"], options["heads"]
        self.wsi_embedders = Heads(dim, hidden, heads)
        self.projector = nn.Linear(hidden * heads, hidden)

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        return self.projector(attend(tiles, self.wsi_embedders).flatten())


class Heads(nn.Module):
    """MADELEINE's tiles (m, d) → values (m, hidden, heads) and scores (m, heads)."""

    def __init__(self, dim: int, hidden: int, heads: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((dim, hidden), (hidden, hidden), (hidden, hidden * heads)):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU(), nn.Identity()]
        self.pre_attn = nn.Sequential(*layers)
        self.attn = nn.ModuleList(GatedScore(hidden, hidden) for _ in range(heads))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        # the projection's numbers belong to the heads in turn, not in blocks
        values = self.pre_attn(tiles).unflatten(1, (-1, len(self.attn)))
        return values, torch.cat([head(values[:, :, at]) for at, head in enumerate(self.attn)], dim=1)
