"""One training step of gated ABMIL on a bag of 10,000 tiles x 1024: float32 against bfloat16, CPU time on one thread.

python benchmarks/bench_mil.py
"""

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from mil import HeadSpec, build_head

TILES, DIM, REPEATS = 10_000, 1024, 5


def step(dtype: torch.dtype) -> Callable[[], None]:
    """A forward, backward and optimiser step on a resident bag of that type; bfloat16 runs under autocast."""
    torch.manual_seed(0)
    head = build_head(HeadSpec("abmil", DIM, classes=2, hidden=256, attention=128))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-4)
    features, mask = torch.randn(1, TILES, DIM).to(dtype), torch.ones(1, TILES, dtype=torch.bool)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            # forward() casts features to its weights' type; under autocast the first layer casts them back, for little
            loss = functional.cross_entropy(head(features, mask).logits.float(), torch.tensor([1]))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def best_of(repeats: int, run: Callable[[], None]) -> float:
    """Least CPU seconds of one call."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    full, half = best_of(REPEATS, step(torch.float32)), best_of(REPEATS, step(torch.bfloat16))
    print(
        f"gated ABMIL, {TILES:,} x {DIM}: bfloat16 step {full / half:.1f}x float32 "
        f"({1e3 * half:.0f} against {1e3 * full:.0f} ms CPU)"
    )


if __name__ == "__main__":
    main()
