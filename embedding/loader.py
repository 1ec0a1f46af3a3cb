"""A backbone's entry and its weights → a module from uint8 patches to embeddings."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wsi.errors import BackboneError

from .adapter import apply_adapter, check_adapter, open_adapter
from .backbone import Backbone
from .networks import find_family
from .transform import Transform
from .weights import read_state, weights_digest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Embedder(nn.Module):
    """uint8 patches (n, t, t, 3) → float32 embeddings (n, *row_shape): transform, network and pooling of a backbone.

    precision  fp32, bf16 or fp16: what the network's weights are and what it computes in. They are cast once: autocast
               casts them again for every batch. The transform stays in float32
    """

    def __init__(self, backbone: Backbone, network: nn.Module, precision: str = "fp32"):
        super().__init__()
        self.backbone, self.precision = backbone, precision
        self.network = network if precision == "fp32" else network.to(DTYPES[precision])
        self.transform = Transform(backbone)
        self.compute: Callable[[Tensor], Tensor] = self.vectors  # what `compile_network` replaces

    @property
    def device(self) -> torch.device:
        return self.transform.mean.device

    def forward(self, patches: Tensor) -> Tensor:
        return self.compute(self.transform.crop(patches.permute(0, 3, 1, 2)))

    def embed_views(
        self, patches: Tensor, count: int = 1, stain: nn.Module | None = None, places: Tensor | None = None
    ) -> Tensor:
        """uint8 patches (n, t, t, 3) → float32 (n, count, *row_shape): of each patch as it is, and of its other views.

        stain, places  changes the patches' colours before, by their places in the grid, int64 (n,)
        """
        pixels = self.transform.crop(patches.permute(0, 3, 1, 2))
        if stain is not None:
            pixels = stain(pixels.float(), places)
        if count > 1:
            from .views import views

            pixels = views(pixels, count)
        return self.compute(pixels).unflatten(0, (len(patches), count))

    def vectors(self, pixels: Tensor) -> Tensor:
        """Grey levels (n, 3, input_px, input_px) → float32 embeddings (n, *row_shape)."""
        mean, std = self.transform.mean, self.transform.std
        pixels = pixels.to(torch.float32, copy=True).mul_(1 / (255 * std)).sub_(mean / std)
        pixels = pixels.to(DTYPES[self.precision]).contiguous(memory_format=torch.channels_last)
        if hasattr(self.network, "embed"):  # it pools in ways of its own
            return self.network.embed(pixels, self.backbone.pooling).float()  # type: ignore[operator]
        return self.pool(self.network.forward_features(pixels)).float()  # type: ignore[operator]

    def compile_network(self) -> None:
        """From now on compute with torch.compile; the first batch of each shape then takes a minute or so."""
        self.compute = torch.compile(self.vectors, dynamic=False)

    def pool(self, features: Tensor) -> Tensor:
        """Network output → (n, *row_shape), by the backbone's pooling."""
        pooling = self.backbone.pooling
        if pooling == "pool":
            return self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        prefix = int(self.network.num_prefix_tokens)  # type: ignore[arg-type]
        features = features.float()  # a mean of hundreds of tokens needs more digits than they have
        if pooling == "dense":
            return features[:, prefix:].unflatten(1, self.backbone.row_shape[:2])
        cls, mean = features[:, 0], features[:, prefix:].mean(dim=1)
        return {"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), dim=-1)}[pooling]


def build(
    backbone: Backbone,
    weights: Path | None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    adapter: Path | str | None = None,
) -> Embedder:
    """The backbone, ready to embed. `weights` None leaves it uninitialised, which only a test of shapes wants.

    precision  fp32, bf16 or fp16; see precision.choose_precision
    adapter    folder that fine-tuning made, merged into the weights before they are cast

    Raises BackboneError when the weights do not fit the architecture exactly, or the adapter not these weights.
    """
    family = find_family(backbone.family)
    if weights is None:
        with torch.device(device):
            return Embedder(backbone, family.create(backbone), precision).eval()
    network = create_unfilled(lambda: family.create(backbone))
    state = _renamed(backbone, read_state(weights), network, weights)
    fill(network, state, family.UNUSED, backbone.name, weights)
    if adapter is not None:
        opened = open_adapter(adapter)
        check_adapter(opened, backbone, weights_digest(weights))
        apply_adapter(network, opened)
    embedder = Embedder(backbone, network, precision).eval().requires_grad_(False)
    return embedder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_weights(backbone: Backbone, path: Path) -> None:
    """Compare a weights file with the network: the names and shapes of its tensors, which are not read where the file
    can be mapped into memory. Raises BackboneError, naming which, unless they fit exactly.
    """
    family = find_family(backbone.family)
    with torch.device("meta"):
        network = family.create(backbone)
    state = _renamed(backbone, read_state(path, mapped=True), network, path)
    compare(network.state_dict(), state, family.UNUSED, backbone.name, path)


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
    compare(expected, state, unused, name, path)
    network.load_state_dict({key: state[key].float() for key in expected}, assign=True)


def compare(expected: dict[str, Tensor], state: dict[str, Tensor], unused: str, name: str, path: Path) -> None:
    """Raise BackboneError, naming which, unless names and shapes in `state` are the `expected`; see `fill`."""
    missing = sorted(set(expected) - set(state))
    wrong = sorted(key for key in set(expected) & set(state) if expected[key].shape != state[key].shape)
    left = sorted(key for key in set(state) - set(expected) if not re.match(unused, key))
    if missing or wrong or left:
        parts = (f"{len(names)} tensor{'s' * (len(names) > 1)} {what} (such as {', '.join(names[:3])})"
                 for what, names in (("missing", missing), ("of another shape", wrong), ("unknown", left))
                 if names)  # fmt: skip
        raise BackboneError(path, f"not the weights of {name}: {', '.join(parts)}", "give the right file")


def _renamed(backbone: Backbone, state: dict[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """`state` by the network's names. Another network's file may hold the same in shapes that cannot be renamed."""
    try:
        renamed: dict[str, Tensor] = find_family(backbone.family).rename(backbone, state, network)
    except (RuntimeError, LookupError, ValueError, AttributeError, AssertionError) as error:
        problem = f"not the weights of {backbone.name}: {type(error).__name__} when its tensors were renamed ({error})"
        raise BackboneError(path, problem, "give the right file") from error
    return renamed
