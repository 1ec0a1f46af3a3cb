"""A backbone's entry and its weights → a module from uint8 patches to embeddings."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi.errors import BackboneError

from .backbone import Backbone
from .networks import find_family
from .transform import Transform
from .weights import read_state


class Embedder(nn.Module):
    """uint8 patches (n, t, t, 3) → float32 embeddings (n, *row_shape): transform, network and pooling of a backbone."""

    def __init__(self, backbone: Backbone, network: nn.Module):
        super().__init__()
        self.backbone, self.network = backbone, network
        self.transform = Transform(backbone)

    @property
    def device(self) -> torch.device:
        return self.transform.mean.device

    def forward(self, patches: Tensor) -> Tensor:
        pixels = self.transform(patches).contiguous(memory_format=torch.channels_last)
        with self._precision(patches.device.type):
            if hasattr(self.network, "embed"):  # it pools in ways of its own
                return self.network.embed(pixels, self.backbone.pooling).float()  # type: ignore[operator]
            features = self.network.forward_features(pixels)  # type: ignore[operator]
            return self.pool(features).float()

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.backbone.precision)
        return torch.autocast("cuda", half) if device == "cuda" and half is not None else nullcontext()

    def pool(self, features: Tensor) -> Tensor:
        """Network output → (n, *row_shape), by the backbone's pooling."""
        pooling = self.backbone.pooling
        if pooling == "pool":
            return self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        prefix = int(self.network.num_prefix_tokens)  # type: ignore[arg-type]
        if pooling == "dense":
            return features[:, prefix:].unflatten(1, self.backbone.row_shape[:2])
        cls, mean = features[:, 0], features[:, prefix:].mean(dim=1)
        return {"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), dim=-1)}[pooling]


def build(backbone: Backbone, weights: Path | None, device: str | torch.device = "cpu") -> Embedder:
    """The backbone, ready to embed. `weights` None leaves it uninitialised, which only a test of shapes wants.

    Raises BackboneError when the weights do not fit the architecture exactly.
    """
    family = find_family(backbone.family)
    if weights is None:
        with torch.device(device):
            return Embedder(backbone, family.create(backbone)).eval()
    network = create_unfilled(lambda: family.create(backbone))
    state = family.rename(backbone, read_state(weights), network)
    fill(network, state, family.UNUSED, backbone.name, weights)
    embedder = Embedder(backbone, network).eval().requires_grad_(False)
    return embedder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def create_unfilled(create: Callable[[], nn.Module]) -> nn.Module:
    """The network without the minutes that filling a large one with random numbers takes, where that can be had."""
    with torch.device("meta"):
        network = create()
    kept = network.state_dict()
    if all(name in kept for name, _ in network.named_buffers()):
        return network
    return create()  # buffers that no weights file holds are computed when the network is made


def fill(network: nn.Module, state: dict[str, Tensor], unused: str, name: str, path: Path) -> None:
    """Put the tensors of `state` into `network`. Raises BackboneError, naming which, unless they fit it exactly;
    tensors that match `unused` may be there beside them.
    """
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    wrong = sorted(key for key in set(expected) & set(state) if expected[key].shape != state[key].shape)
    left = sorted(key for key in set(state) - set(expected) if not re.match(unused, key))
    if missing or wrong or left:
        parts = (f"{len(names)} {what} (such as {', '.join(names[:3])})" for what, names in
                 (("missing", missing), ("of another shape", wrong), ("unknown", left)) if names)  # fmt: skip
        raise BackboneError(path, f"not the weights of {name}: tensors {', '.join(parts)}", "give the right file")
    network.load_state_dict({key: state[key].float() for key in expected}, assign=True)
