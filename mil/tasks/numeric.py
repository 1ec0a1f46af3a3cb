"""Numbers that several tasks share. No torch is imported."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)), without overflow."""
    # tanh saturates where exp would overflow
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64))), np.float64)


def survival(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of the hazards of K successive steps, (n, K) → chance to live past each of them, (n, K), never rising."""
    return np.asarray(np.cumprod(sigmoid(-np.asarray(logits, np.float64)), axis=1), np.float64)


def log_odds(scores: "Tensor", column: int) -> "Tensor":
    """Log odds (B,) of one of C exclusive outcomes against all others: scores (B, C) are log chances up to a constant,
    such as logits of a softmax."""
    others = [place for place in range(scores.shape[1]) if place != column]
    return scores[:, column] - scores[:, others].logsumexp(dim=1)
