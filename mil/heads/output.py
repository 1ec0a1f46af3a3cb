"""What every head returns."""

from typing import NamedTuple

from torch import Tensor


class MILOutput(NamedTuple):
    """A head's answer for a batch of bags.

    logits     (B, C), before softmax
    attention  (B, N), each row sums to 1 over its real tiles and is exactly 0 on padding
    """

    logits: Tensor
    attention: Tensor
