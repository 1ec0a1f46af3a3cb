"""What a backbone's authors do to a patch before the network sees it: resize, central crop, normalise."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbone import Backbone


class Transform(nn.Module):
    """uint8 patches (n, t, t, 3) → float32 (n, 3, input_px, input_px), normalised, on the patches' device.

    It equals torchvision's Resize(resize_px, interpolation), CenterCrop(input_px), ToTensor and Normalize of a Pillow
    picture to one grey level (to two in a few of 100,000 values). A patch of any other size than the backbone's own
    goes the same way: it is resized.
    """

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
            edge = round((resize - crop) / 2)  # halves to the even number, as torchvision rounds
            pixels = pixels[..., edge : edge + crop, edge : edge + crop]
        return pixels

    def forward(self, patches: Tensor) -> Tensor:
        pixels = self.crop(patches.permute(0, 3, 1, 2))
        return pixels.float().mul_(1 / (255 * self.std)).sub_(self.mean / self.std)


def _resize(pixels: Tensor, side: int, mode: str) -> Tensor:
    """(n, 3, t, t) → (n, 3, side, side), antialiased, in whole grey levels as Pillow resizes.

    A CPU has a kernel for 8 bits. Others have one for floats only: Pillow rounds and clips between its two passes, so
    they are made one by one; in one go, dark outlines differ by up to 20 grey levels.
    """
    if pixels.device.type == "cpu" and pixels.dtype == torch.uint8:
        return functional.interpolate(pixels, size=(side, side), mode=mode, antialias=True)
    for size in ((pixels.shape[-2], side), (side, side)):
        pixels = functional.interpolate(pixels.float(), size=size, mode=mode, antialias=True)
        pixels = pixels.add_(0.5).floor_().clamp_(0, 255)  # halves go up there, and between 256 and 224 px are common
    return pixels
