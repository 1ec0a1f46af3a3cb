"""CTransPath: a Swin-T whose patches are embedded by convolutions (Wang et al., 2022, doi 10.1016/j.media.2022.102559).

The authors' files name tensors as timm 0.5.4 did: a stage ends with its downsampling, where timm of today begins the
next one with it; and masks and indices, which are computed when the network is made, are among them.
"""

import re
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone

UNUSED = r"layers\.\d\.blocks\.\d\.(attn_mask|attn\.relative_position_index)$"


class ConvStem(nn.Module):
    """Pixels (n, 3, s, s) → tokens (n, s/4, s/4, embed_dim): two strided convolutions and a linear map."""

    def __init__(self, img_size: int, embed_dim: int, **_: Any):
        super().__init__()
        self.grid_size = (img_size // 4, img_size // 4)  # read by timm's SwinTransformer
        width = embed_dim // 8
        self.proj = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, embed_dim, 1),
        )  # fmt: skip
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return tokens


def create(backbone: Backbone) -> nn.Module:
    """timm's Swin Transformer with the stem above, not yet filled."""
    import timm

    return timm.create_model(
        backbone.arch, pretrained=False, num_classes=0, img_size=backbone.input_px, embed_layer=ConvStem,
        **backbone.options,
    )  # fmt: skip


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The authors' tensors → today's names: downsampling moves to the stage that follows."""
    return {
        re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name): value
        for name, value in state.items()
    }
