"""Nyström attention: softmax attention among T tokens through m landmarks, linear in T."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class NystromAttention(nn.Module):
    """Multi-head self-attention by the Nyström method (Xiong et al., AAAI 2021), as TransMIL uses it.

    softmax(QK') is replaced by softmax(Q K~') pinv(softmax(Q~ K~')) softmax(Q~ K'), where landmarks Q~, K~ are means of
    consecutive tokens; the pseudo-inverse is iterated; values pass a depth-wise convolution along the
    sequence beside it. As in the package TransMIL is built on, tokens of zeros are put before the sequence until
    landmarks divide it, and take part.
    """

    def __init__(self, width: int, heads: int, landmarks: int, dropout: float = 0.0, iterations: int = 6):
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.convolve = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T, W) → (B, T, W), and the first token's attention to all of them (B, T), mean over heads.

        The attention is a row of the approximated matrix: it may have small negative entries, and sums to about 1 only
        together with the zeros put before.
        """
        front = -tokens.shape[1] % self.landmarks
        qkv = self.qkv(functional.pad(tokens, (0, 0, front, 0))).unflatten(2, (3, self.heads, -1))
        # The iterated inverse loses its way in half precision.
        with torch.autocast(tokens.device.type, enabled=False):
            query, key, value = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).permute(2, 0, 3, 1, 4).unbind()
            query = query * query.shape[3] ** -0.5  # all (B, heads, T + front, W / heads)
            means = [part.unflatten(2, (self.landmarks, -1)).mean(dim=3) for part in (query, key)]
            left = (query @ means[1].mT).softmax(dim=3)  # (B, heads, T + front, m)
            left = left @ pseudo_inverse((means[0] @ means[1].mT).softmax(dim=3), self.iterations)
            right = (means[0] @ key.mT).softmax(dim=3)  # (B, heads, m, T + front)
            mixed = left @ (right @ value)
            first = (left[:, :, front : front + 1] @ right).squeeze(2).mean(dim=1)
        mixed = mixed + self.convolve(value)
        return self.out(mixed.transpose(1, 2).flatten(2)[:, front:].to(tokens.dtype)), first[:, front:]


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of square matrices (B, heads, m, m) by the iteration of that paper, each bag by itself.

    The start, the transpose over the product of the largest row sum and column sum, makes it converge.
    """
    rows, columns = (matrix.abs().sum(dim=dim).amax(dim=(1, 2)) for dim in (3, 2))
    inverse = matrix.mT / (rows * columns)[:, None, None, None]
    unit = torch.eye(matrix.shape[3], device=matrix.device, dtype=matrix.dtype)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse @ (13 * unit - product @ (15 * unit - product @ (7 * unit - product))) / 4
    return inverse
