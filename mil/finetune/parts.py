"""Which weights of a network fine-tuning changes: a ViT's attention, a convolutional network's pointwise layers, or
all of the last blocks."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from embedding.adapter import Change, add_lora
from wsi.errors import BackboneError

from .spec import FinetuneSpec

_STAGES = ("layer1", "layer2", "layer3", "layer4")  # of a ResNet


def blocks_of(network: nn.Module) -> tuple[list[str], list[str]]:
    """(names of the blocks from first to last, names of the modules after them), as the network's named_modules say.

    A stage of several blocks counts as so many. Raises BackboneError for a network without blocks.
    """
    prefix = "trunk." if isinstance(getattr(network, "trunk", None), nn.Module) else ""
    trunk = network.get_submodule("trunk") if prefix else network
    children = [name for name, _ in trunk.named_children()]
    known: list[str] = [name for name in ("blocks", "layers") if name in children]
    homes = known[:1] or [name for name in _STAGES if name in children]
    if not homes:
        problem = f"a {type(trunk).__name__} has no blocks that are known here"
        raise BackboneError(type(network).__name__, problem, "fine-tune a ViT, Swin, ResNet or EfficientNet")
    found: list[str] = []
    for home in homes:
        inner = trunk.get_submodule(home)
        if home in _STAGES:
            found += [f"{prefix}{home}.{name}" for name, _ in inner.named_children()]
            continue
        for name, block in inner.named_children():
            stage = block if isinstance(block, nn.Sequential) else getattr(block, "blocks", None)
            at = f"{prefix}{home}.{name}" + ("" if isinstance(block, nn.Sequential) else ".blocks")
            parts = [f"{at}.{number}" for number, _ in stage.named_children()] if stage is not None else []
            found += parts or [f"{prefix}{home}.{name}"]
    after = [prefix + name for name in children[children.index(homes[-1]) + 1 :]]
    if prefix:  # what pools the trunk's tokens
        outer = [name for name, _ in network.named_children()]
        after += outer[outer.index("trunk") + 1 :]
    return found, after


def choose_change(network: nn.Module, spec: FinetuneSpec) -> Change:
    """The change that `spec` asks for. Raises BackboneError where the network has nothing that it could change."""
    blocks, after = blocks_of(network)
    depth = len(blocks) if spec.depth is None else spec.depth
    if depth > len(blocks):
        raise BackboneError("finetune.blocks", f"the network has {len(blocks)} blocks, not {depth}", "ask for fewer")
    chosen = blocks[-depth:]
    if spec.method == "last-blocks":
        names = [name for name, _ in network.named_parameters() if _within(name, [*chosen, *after])]
        return Change("last-blocks", tuple(names))
    targets = lora_targets(network, [*chosen, *after])
    return Change("lora", tuple(targets), spec.rank, spec.alpha)


def lora_targets(network: nn.Module, within: Sequence[str]) -> list[str]:
    """Modules for LoRA: the linear layers of attention (Hu et al. 2022, section 4.2); where there are none, plain
    convolutions without groups. A subclass that computes in a way of its own would not notice the product beside it.
    """
    inside = [(name, module) for name, module in network.named_modules() if _within(name, within)]
    found = [name for name, module in inside if type(module) is nn.Linear and "attn" in name]
    if not found:
        found = [name for name, module in inside if type(module) is nn.Conv2d and module.groups == 1]
    if not found:
        problem = "it has no layer that LoRA is known to fit"
        raise BackboneError(type(network).__name__, problem, "choose --method last-blocks")
    return found


def prepare(network: nn.Module, change: Change) -> list[nn.Parameter]:
    """Freeze the network but for what `change` names, put LoRA's products in, and return what is trained.

    The network stays in its evaluation mode: running statistics of batch norms do not move, nothing is dropped.
    """
    network.requires_grad_(False).eval()
    if change.method == "lora":
        add_lora(network, change)
        network.eval()
        return [value for name, value in network.named_parameters() if "lora_" in name]
    own = dict(network.named_parameters())
    for name in change.targets:
        own[name].requires_grad_(True)
    return [own[name] for name in change.targets]


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Compute activations again in the backward pass. Raises BackboneError where the network cannot."""
    if not on:
        return
    trunk: Any = getattr(network, "trunk", network)
    if not hasattr(trunk, "set_grad_checkpointing"):
        raise BackboneError(type(trunk).__name__, "it cannot checkpoint gradients", "leave --checkpointing out")
    trunk.set_grad_checkpointing(True)


def _within(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)
