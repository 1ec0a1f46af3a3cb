"""The flips and quarter turns of a patch: tissue has no up, so a slide may be seen in eight ways."""

import torch
from torch import Tensor

MOST = 8


def views(pixels: Tensor, count: int) -> Tensor:
    """(n, 3, t, t) → (n × count, 3, t, t): the first `count` views of each patch, a patch's own side by side.

    The order: 0 as it is, 1 mirrored left to right, 2 top to bottom, 3 half a turn, 4 transposed, 5 a quarter turn to
    the right, 6 a quarter turn to the left, 7 mirrored on the other diagonal. The first 1, 2, 4 and 8 are each closed
    under themselves, so that the mean over them is the same for a patch and for its mirror image among them.
    Raises ValueError for a count outside 1 to 8, or patches that are not square where quarter turns are asked for.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"{count} views: there are 1 to {MOST}")
    height, width = pixels.shape[-2:]
    if count > 4 and height != width:
        raise ValueError(f"patches of {height} x {width} px: only square ones have quarter turns")
    if count == 1:
        return pixels
    seen = [pixels, pixels.flip(-1), pixels.flip(-2), pixels.flip(-2, -1)][:count]
    if count > 4:
        turned = pixels.transpose(-2, -1)
        seen += [turned, turned.flip(-1), turned.flip(-2), turned.flip(-2, -1)][: count - 4]
    return torch.stack(seen, dim=1).flatten(0, 1)
