"""Families of networks: how each is built, and how its authors' files name its tensors.

A family is a module with

    create(backbone) -> nn.Module           on torch's current device (the meta device in tests), in any state
    rename(backbone, state, network)        the authors' tensors → this network's names
    UNUSED                                  regular expression of the authors' tensors that the embedding does not need

The network offers forward_features(pixels) → tokens (n, t, d) with `num_prefix_tokens`, from which the loader pools
cls, mean, cls+mean and dense; or forward_head(features, pre_logits=True) for `pool`. A network that pools in ways of
its own has embed(pixels, pooling) → (n, dim) instead.
"""

from importlib import import_module
from types import ModuleType

FAMILIES = {
    "timm": "timm_models",
    "transformers-vit": "transformers_vit",
    "ctranspath": "ctranspath",
    "resnet": "resnet",
    "conch": "conch",
    "musk": "musk",
    "open-clip": "open_clip_models",
}


def find_family(name: str) -> ModuleType:
    """The module of a family; loaded when it is first needed, as some bring large libraries."""
    return import_module(f".{FAMILIES[name]}", __name__)
