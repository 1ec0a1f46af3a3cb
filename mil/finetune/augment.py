"""Light augmentation on the device: what keeps tissue tissue."""

import torch
from torch import Tensor


def augment(pixels: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Grey levels (n, 3, s, s), each picture flipped, turned by quarters and its colours changed a little: float32.

    jitter     each channel is multiplied by a factor within ± jitter, and all three by another one
    generator  of the CPU, so that the same seed makes the same pictures on every device
    """
    count, device = len(pixels), pixels.device
    flips = torch.rand(count, generator=generator) < 0.5
    turns = torch.randint(0, 4, (count,), generator=generator)
    factors = 1 + jitter * (2 * torch.rand(count, 4, generator=generator) - 1)
    made = torch.where(flips.to(device)[:, None, None, None], pixels.flip(3), pixels)
    turned = torch.stack([torch.rot90(one, int(k), (1, 2)) for one, k in zip(made, turns, strict=True)])
    scale = (factors[:, :3] * factors[:, 3:]).to(device)[:, :, None, None]
    return (turned.float() * scale).clamp_(0, 255)
