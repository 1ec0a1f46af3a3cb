"""What fine-tuning will need of memory, said before it begins, and what it took."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .parts import blocks_of

if TYPE_CHECKING:
    from .cohort import Cohort
    from .network import Tuned
    from .spec import FinetuneSpec


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one step.

    parameters   numbers in the network and its head; trained: of these, those that change
    weights      bytes of all of them
    optimiser    of gradients and AdamW's two averages of what is trained
    activations  kept for the backward pass, of one step's tiles
    passing      the most that one layer takes and gives, of as many: what is in flight beside what is kept
    tiles        in a step
    """

    parameters: int
    trained: int
    weights: int
    optimiser: int
    activations: int
    passing: int
    tiles: int

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.activations + self.passing

    def in_words(self) -> str:
        share = self.trained / self.parameters
        return (
            f"{self.trained:,} of {self.parameters:,} parameters are trained ({share:.2%}); about "
            f"{_size(self.total)} a step: weights {_size(self.weights)}, gradients and AdamW {_size(self.optimiser)}, "
            f"activations of {self.tiles} tiles {_size(self.activations)} and {_size(self.passing)} in flight"
        )


def estimate(tuned: "Tuned", cohort: "Cohort", spec: "FinetuneSpec") -> Memory:
    """Count what one forward pass of two tiles keeps for its backward pass, and scale it to a step.

    Tensors are counted once, by where they lie, and weights not at all. With checkpointing a block's input is kept for
    each block, and the rest of one block at a time; that is reckoned as if blocks were alike. What PyTorch itself, its
    kernels' work space and the pixels read ahead need comes on top.
    """
    values = list(tuned.parameters())
    own = {value.untyped_storage().data_ptr() for value in (*values, *tuned.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    most = [0]

    def watch(module: torch.nn.Module, taken: tuple[object, ...], given: object) -> None:
        numbers = [one.nbytes for one in (*taken, given) if isinstance(one, torch.Tensor)]
        most[0] = max(most[0], sum(numbers))

    shape = (2, cohort.tile_px, cohort.tile_px, 3)
    generator = torch.Generator().manual_seed(0)
    leaves = [module for module in tuned.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(watch) for module in leaves]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = tuned.logits(tuned.embed(np.zeros(shape, np.uint8), spec.jitter, generator))
    for hook in hooks:
        hook.remove()
    per_tile = sum(kept.values()) / 2
    del logits
    if spec.checkpointing:
        blocks = len(blocks_of(tuned.embedder.network)[0])
        per_tile = per_tile / blocks + blocks * 4 * _token_numbers(tuned)
    trained = sum(value.numel() for value in values if value.requires_grad)
    tiles = spec.tiles if cohort.of_slides else spec.batch
    return Memory(
        parameters=sum(value.numel() for value in values),
        trained=trained,
        weights=sum(value.numel() * value.element_size() for value in values),
        optimiser=12 * trained,
        activations=round(per_tile * tiles),
        passing=round(most[0] / 2 * tiles),
        tiles=tiles,
    )


def _token_numbers(tuned: "Tuned") -> int:
    """Numbers in what passes from block to block, of one tile: of a ViT; others have fewer towards the end."""
    entry = tuned.embedder.backbone
    side = entry.input_px // (entry.patch_px or 16)
    return side * side * int(tuned.mean.numel())


def start_measuring(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most that was held: of a CUDA device since `start_measuring`, else by this process since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
