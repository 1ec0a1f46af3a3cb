"""What a backbone's authors do to a patch before the network sees it: resize, central crop, normalise."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbone import Backbone


class Transform(nn.Module):
    """uint8 patches (n, t, t, 3) → float32 (n, 3, input_px, input_px), normalised, on the patches' device."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        for name, values in zip(("mean", "std"), backbone.norm, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def crop(self, pixels: Tensor) -> Tensor:
        """(n, 3, t, t) of grey levels 0 to 255 → (n, 3, input_px, input_px) of whole grey levels: resized, cropped."""
        resize, crop = self.backbone.resize_px, self.backbone.input_px
        if pixels.shape[-1] != resize:
            pixels = _resize(pixels, resize, self.backbone.interpolation)
        if resize != crop:
            edge = (resize - crop) // 2
            pixels = pixels[..., edge : edge + crop, edge : edge + crop]
        return pixels

    def forward(self, patches: Tensor) -> Tensor:
        pixels = self.crop(patches.permute(0, 3, 1, 2))
        return pixels.float().mul_(1 / (255 * self.std)).sub_(self.mean / self.std)


def _resize(pixels: Tensor, side: int, mode: str) -> Tensor:
    """(n, 3, t, t) → (n, 3, side, side), antialiased, in whole grey levels as in the authors' pipelines.

    On a CPU torch's 8-bit kernel equals Pillow's to one grey level; on other devices there is only the float kernel.
    """
    exact = pixels if pixels.device.type == "cpu" else pixels.float()
    resized = functional.interpolate(exact, size=(side, side), mode=mode, antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.round().clamp(0, 255)
