"""Architectures that timm has."""

import re
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone

UNUSED = r"(head|fc|classifier|dino_head|ibot_head)\.|mask_token$"

_PATCHES = "patch_embed.proj.weight"


def create(backbone: Backbone) -> nn.Module:
    """timm's network, not yet filled."""
    import timm  # `wsi`, imported above, lets it import beside a CPU torch
    from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]

    layers: dict[str, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    options: dict[str, Any] = {
        name: layers.get(value, value) if isinstance(value, str) else value for name, value in backbone.options.items()
    }
    return timm.create_model(backbone.arch, pretrained=False, **options)


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Published weights → timm's keys, and position embeddings of another grid resized, where they differ. Timm would
    also resize the filters of another patch size: these are kept, so that the file, which is of another model, is
    refused.
    """
    if backbone.arch == "tf_efficientnet_lite0" and "_conv_stem.weight" in state:
        return {_efficientnet_key(name): value for name, value in state.items() if not name.startswith("_fc.")}
    if backbone.arch.endswith("_dinov3"):
        return _dinov3(state, network)
    if backbone.arch.startswith("vit_"):
        from timm.models.vision_transformer import checkpoint_filter_fn

        patches = {name: value for name, value in state.items() if name == _PATCHES and value.ndim == 4}
        return checkpoint_filter_fn(_unchunked(state), network) | patches  # type: ignore[arg-type]
    return state


def _unchunked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of DINOv2's training (`blocks.CHUNK.N.norm1.weight`; GPFM's on GitHub) → those of its release (`blocks.N`).
    N counts over all chunks.
    """
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): value for name, value in state.items()}


def _dinov3(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """timm's own files, or Meta's, to timm's keys. Meta's have biases of queries and values that are all zero; timm's
    network has none. Were one of them not zero, it is kept, so that the file is refused.
    """
    from timm.models.eva import checkpoint_filter_fn

    biases = {name: value for name, value in state.items() if name.endswith("attn.qkv.bias")}
    others = {name: value for name, value in state.items() if name not in biases}
    filled = {name: value for name, value in biases.items() if any(part.any() for part in value.chunk(3)[::2])}
    return checkpoint_filter_fn(others, network) | filled


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
