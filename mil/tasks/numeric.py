"""Numbers that several tasks share. numpy only."""

import numpy as np
from numpy.typing import NDArray


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)), without overflow."""
    # tanh saturates where exp would overflow
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


def survival(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of the hazards of K successive steps, (n, K) → chance to live past each of them, (n, K), never rising."""
    return np.cumprod(sigmoid(-np.asarray(logits, np.float64)), axis=1)
