"""A backbone's entry and its weights → a module from uint8 patches to embeddings."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import BackboneError

from .backbones import Backbone
from .weights import read_state


class Embedder(nn.Module):
    """uint8 patches (n, t, t, 3) → float32 embeddings (n, dim): the backbone's transform, network and pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, network: nn.Module):
        super().__init__()
        self.backbone, self.network = backbone, network
        for name, values in zip(("mean", "std"), backbone.norm, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def transform(self, patches: Tensor) -> Tensor:
        """uint8 (n, t, t, 3) → float32 (n, 3, input_px, input_px), normalised, on the patches' device."""
        resize, crop = self.backbone.resize_px, self.backbone.input_px
        pixels = patches.permute(0, 3, 1, 2)
        if pixels.shape[-1] != resize:
            pixels = _resize(pixels, resize)
        if resize != crop:
            edge = (resize - crop) // 2
            pixels = pixels[..., edge : edge + crop, edge : edge + crop]
        return pixels.float().mul_(1 / (255 * self.std)).sub_(self.mean / self.std)

    def forward(self, patches: Tensor) -> Tensor:
        pixels = self.transform(patches).contiguous(memory_format=torch.channels_last)
        with self._precision(patches.device.type):
            features = self.network.forward_features(pixels)  # type: ignore[operator]
            return self.pool(features).float()

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.backbone.precision)
        return torch.autocast("cuda", half) if device == "cuda" and half is not None else nullcontext()

    def pool(self, features: Tensor) -> Tensor:
        """Network output → (n, dim), by the backbone's pooling."""
        pooling = self.backbone.pooling
        if pooling == "pool":
            return self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        prefix = int(self.network.num_prefix_tokens)  # type: ignore[arg-type]
        cls, mean = features[:, 0], features[:, prefix:].mean(dim=1)
        return {"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), dim=-1)}[pooling]


def _resize(pixels: Tensor, side: int) -> Tensor:
    """(n, 3, t, t) → (n, 3, side, side), bicubic with antialiasing, in whole grey levels as in the authors' pipelines.

    On a CPU torch's 8-bit kernel equals Pillow's to one grey level; on other devices there is only the float kernel.
    """
    exact = pixels if pixels.device.type == "cpu" else pixels.float()
    resized = functional.interpolate(exact, size=(side, side), mode="bicubic", antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.round().clamp(0, 255)


def build(backbone: Backbone, weights: Path | None, device: str | torch.device = "cpu") -> Embedder:
    """The backbone, ready to embed. `weights` None leaves it uninitialised, which only a test of shapes wants.

    Raises BackboneError when the weights do not fit the architecture exactly.
    """
    if weights is None:
        with torch.device(device):
            return Embedder(backbone, _create(backbone)).eval()
    network = _create_unfilled(backbone)
    state = _rename(backbone, read_state(weights), network)
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    wrong = sorted(name for name in set(expected) & set(state) if expected[name].shape != state[name].shape)
    left = sorted(name for name in set(state) - set(expected) if not re.match(r"(head|fc|classifier|mask_token)", name))
    if missing or wrong or left:
        parts = (f"{len(names)} {what} (such as {names[0]})" for what, names in
                 (("missing", missing), ("of another shape", wrong), ("unknown", left)) if names)  # fmt: skip
        raise BackboneError(
            weights, f"not the weights of {backbone.name}: tensors {', '.join(parts)}", "give the right file"
        )
    network.load_state_dict({name: state[name].float() for name in expected}, assign=True)
    embedder = Embedder(backbone, network).eval().requires_grad_(False)
    return embedder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _create_unfilled(backbone: Backbone) -> nn.Module:
    """The network without the minutes that filling a large one with random numbers takes, where that can be had."""
    with torch.device("meta"):
        network = _create(backbone)
    kept = network.state_dict()
    if all(name in kept for name, _ in network.named_buffers()):
        return network
    return _create(backbone)  # buffers that no weights file holds are computed when the network is made


def _create(backbone: Backbone) -> nn.Module:
    import timm  # `wsi`, imported above, lets it import beside a CPU torch
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]

    layers: dict[str, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    options: dict[str, Any] = {
        name: layers.get(value, value) if isinstance(value, str) else value for name, value in backbone.options.items()
    }
    return timm.create_model(backbone.arch, pretrained=False, **options)


def _rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Published weights → timm's keys, and position embeddings of another grid resized, where they differ."""
    if backbone.arch == "tf_efficientnet_lite0" and "_conv_stem.weight" in state:
        return {_efficientnet_key(name): value for name, value in state.items() if not name.startswith("_fc.")}
    if backbone.arch.startswith("vit_"):
        from timm.models.vision_transformer import checkpoint_filter_fn

        return checkpoint_filter_fn(state, network)  # type: ignore[arg-type]
    return state


_LITE0_BLOCKS = [(stage, index) for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for index in range(repeats)]


def _efficientnet_key(name: str) -> str:
    """Key of the TensorFlow-derived layout (`_blocks.N._depthwise_conv`) → timm's (`blocks.S.I.conv_dw`)."""
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    match = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        module, _, rest = name.partition(".")
        return f"{stem[module]}.{rest}"
    stage, index = _LITE0_BLOCKS[int(match[1])]
    # the first block has no expansion, so timm numbers its layers differently
    layers = (
        {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        if stage == 0
        else {
            "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }
    )  # fmt: skip
    return f"blocks.{stage}.{index}.{layers[match[2]]}.{match[3]}"
