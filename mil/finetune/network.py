"""The network in training: a backbone whose change is trained, and a head on its embeddings."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedding.loader import Embedder

from ..heads.abmil import ABMIL
from ..spec import HeadSpec
from .augment import augment
from .cohort import Cohort
from .probe import Probe


class Tuned(nn.Module):
    """uint8 patches → logits. Its head is linear for tiles, gated attention (Ilse et al., ICML 2018) for slides.

    mean, std  (d,) of the frozen backbone's embeddings of the training tiles: the head sees standardised ones
    precision  fp32, or bf16: the backbone computes under autocast
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embedder: Embedder, head: nn.Module, scale: tuple[NDArray, NDArray], precision: str = "fp32"):
        super().__init__()
        self.embedder, self.head, self.precision = embedder, head, precision
        for name, values in zip(("mean", "std"), scale, strict=True):
            self.register_buffer(name, torch.from_numpy(values).float())
        self.to(embedder.device)

    @property
    def device(self) -> torch.device:
        return self.embedder.device

    def embed(
        self, patches: NDArray[np.uint8], jitter: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """uint8 (n, t, t, 3) → float32 (n, d), with gradients; augmented where there is a generator."""
        pixels = self.embedder.transform.crop(torch.from_numpy(patches).to(self.device).permute(0, 3, 1, 2))
        if generator is not None:
            pixels = augment(pixels, jitter, generator)
        with self.autocast():
            return self.embedder.vectors(pixels).float()

    def logits(self, features: Tensor) -> Tensor:
        """Tiles (n, d) → (n, C); with a head for slides, the tiles of one slide → (1, C)."""
        scaled = (features - self.mean) / self.std
        if isinstance(self.head, ABMIL):
            return self.head(scaled[None], torch.ones(1, len(scaled), dtype=torch.bool, device=scaled.device)).logits
        return self.head(scaled)

    def attention(self, features: Tensor) -> Tensor:
        """Of one slide's tiles (n, d): (n,), sums to 1."""
        scaled = (features - self.mean) / self.std
        mask = torch.ones(1, len(scaled), dtype=torch.bool, device=scaled.device)
        return self.head(scaled[None], mask).attention[0]

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def tile_head(probe: Probe) -> nn.Linear:
    """The frozen probe as the head to begin with: a random one would first distort what the backbone knows (Kumar et
    al., ICLR 2022, linear probing then fine-tuning)."""
    head = nn.Linear(probe.weight.shape[1], len(probe.weight))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))
    return head


def slide_head(dim: int, classes: int) -> ABMIL:
    """Gated attention, with weights from torch's random state."""
    return ABMIL(HeadSpec("abmil", dim, classes, hidden=128, attention=64, dropout=0.25))


def embed_tiles(
    tuned: Tuned,
    cohort: Cohort,
    numbers: NDArray[np.int64],
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Embeddings of these tiles as the network makes them now, without augmentation: float32 (k, d)."""
    made = []
    with torch.inference_mode():
        for pixels in read_ahead(cohort, [numbers[at : at + batch] for at in range(0, len(numbers), batch)]):
            made.append(tuned.embed(pixels).cpu().numpy())
            progress(sum(map(len, made)))
    return np.concatenate(made).astype(np.float32, copy=False)


def read_ahead(cohort: Cohort, groups: list[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
    """Pixels of each group of tiles in turn; the next are read while those at hand are used."""
    with ThreadPoolExecutor(1, "read") as pool:
        ahead = [pool.submit(cohort.read, group) for group in groups[:1]]
        for place in range(len(groups)):
            current = ahead.pop()
            if place + 1 < len(groups):
                ahead.append(pool.submit(cohort.read, groups[place + 1]))
            yield current.result()
