"""Mean pooling: the baseline that every slide encoder should beat."""

from torch import Tensor, nn

from .encoder import SlideEncoder

UNUSED = r"$^"


def create(encoder: SlideEncoder) -> nn.Module:
    return Mean()


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


class Mean(nn.Module):
    """Embeddings (n, d) → (d,)."""

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        return tiles.float().mean(dim=0)
