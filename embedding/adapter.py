"""An adapter: the few weights that fine-tuning changed of one backbone, kept apart from it and laid over it again.

LoRA (Hu et al., ICLR 2022): beside a frozen matrix W stands a product of two thin ones, and W + alpha / rank · BA is
computed; it is merged into W when the backbone is loaded, so that embedding costs nothing more. `last-blocks` keeps
the tensors of a network's last blocks as they became.

A folder holds adapter.json, which states all of it, and the tensors as safetensors; for LoRA under the names that peft
reads (adapter_model.safetensors, adapter_config.json). Nothing is unpickled, and of peft's configuration nothing is
believed: rank, alpha and targets come from adapter.json and are part of the adapter's digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.errors import BackboneError
from wsi.publish import write_json

from .backbone import Backbone
from .weights import weights_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

FACTS = "adapter.json"
SCHEMA = "slidestream/adapter/1"
FILES = {"lora": "adapter_model.safetensors", "last-blocks": "adapter.safetensors"}
_PEFT = "base_model.model."  # what peft puts before the names of a network's modules


@dataclass(frozen=True, slots=True)
class Change:
    """Which weights of a network an adapter changes, and how.

    method       lora or last-blocks
    targets      lora: names of the modules that a product stands beside; last-blocks: names of the tensors
    rank, alpha  of lora: W + alpha / rank · BA; 0 for last-blocks
    """

    method: str
    targets: tuple[str, ...]
    rank: int = 0
    alpha: float = 0.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, opened.

    backbone, pooling  entry and variant that it was trained for
    base_sha256        of the weights file that it lies over
    sha256             of its own file of tensors
    facts              what else its maker wrote: classes, split, figures, versions
    """

    folder: Path
    change: Change
    backbone: str
    pooling: str
    base_sha256: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / FILES[self.change.method]

    @property
    def digest(self) -> str:
        """sha256 over its tensors and how they are laid over the backbone: what the contract states of it."""
        said = json.dumps([asdict(self.change), self.sha256], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def open_adapter(folder: Path | str) -> Adapter:
    """Read an adapter's facts, and hold its tensors to the checksum in them. Raises BackboneError."""
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise BackboneError(folder, f"it is no adapter: {FACTS} is not there", "give a folder of `wsi finetune`")
    try:
        said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        schema = str(said["schema"])
        change = Change(str(said["method"]), tuple(map(str, said["targets"])), int(said["rank"]), float(said["alpha"]))
        backbone, pooling, base, sha256 = (str(said[key]) for key in ("backbone", "pooling", "base_sha256", "sha256"))
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{FACTS} is damaged ({type(error).__name__}: {error})"
        raise BackboneError(folder, problem, "copy the adapter again") from error
    sound = change.method in FILES and change.targets and (change.method != "lora" or change.rank > 0)
    if schema != SCHEMA or not sound:
        problem = f"{FACTS} is of {schema}, method {change.method!r}, rank {change.rank}"
        raise BackboneError(folder, f"{problem}: that is not known here", f"this version reads {SCHEMA}")
    adapter = Adapter(folder, change, backbone, pooling, base, sha256, said)
    if not adapter.file.is_file():
        raise BackboneError(adapter.file, "the adapter's tensors are not there", "copy the adapter again")
    if weights_digest(adapter.file) != adapter.sha256:
        problem = "the adapter's tensors are damaged: their sha256 is not the one that it states"
        raise BackboneError(adapter.file, problem, "copy the adapter again")
    return adapter


def adapter_digest(folder: Path | str) -> str:
    """What the contract states of an adapter, sha256 in hex. Raises BackboneError as `open_adapter`."""
    return open_adapter(folder).digest


def check_adapter(adapter: Adapter, backbone: Backbone, base_sha256: str) -> None:
    """Raise BackboneError unless the adapter is of this backbone, this variant and these very weights."""
    if adapter.backbone != backbone.name:
        problem = f"it is an adapter of {adapter.backbone}, not of {backbone.name}"
        raise BackboneError(adapter.folder, problem, f"embed with --backbone {adapter.backbone}")
    if adapter.base_sha256 != base_sha256:
        problem = (
            f"it was trained over other weights of {backbone.name}: sha256 {adapter.base_sha256[:12]}…, "
            f"not {base_sha256[:12]}…"
        )
        raise BackboneError(adapter.folder, problem, "name the weights that it was trained over with --weights")
    if adapter.pooling != backbone.pooling:
        problem = f"it was trained for the variant {adapter.pooling}, not {backbone.pooling}"
        raise BackboneError(adapter.folder, problem, f"embed with --variant {adapter.pooling}")


def apply_adapter(network: "nn.Module", adapter: Adapter) -> None:
    """Lay the adapter over a network that holds the backbone's own weights, in float32 and in place; afterwards the
    network has the shapes and the speed that it had before. Raises BackboneError where the tensors do not fit it.
    """
    state = _read(adapter.file)
    if adapter.change.method == "last-blocks":
        own = network.state_dict()
        _compare(adapter, {name: own[name] for name in adapter.change.targets if name in own}, state)
        network.load_state_dict(state, strict=False)
        return
    tuner = add_lora(network, adapter.change)
    _compare(adapter, lora_state(network), state)
    network.load_state_dict({_inside(name): value for name, value in state.items()}, strict=False)
    tuner.merge_and_unload()


def add_lora(network: "nn.Module", change: Change) -> Any:
    """Put trainable products beside the target modules, in place, and freeze all else; returns peft's LoraModel.

    Raises BackboneError where peft is not installed, or a target is not in the network.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise BackboneError("peft", f"LoRA needs it, and it cannot be imported ({error})", "pip install peft") from None
    there = {name for name, _ in network.named_modules()}
    absent = [name for name in change.targets if name not in there]
    if absent:
        problem = f"the network has no module {absent[0]!r} ({len(absent)} of {len(change.targets)} are absent)"
        raise BackboneError("adapter", problem, "it is of another network")
    return LoraModel(network, LoraConfig(**lora_settings(change)), "default")


def lora_settings(change: Change) -> dict[str, Any]:
    """Fields of peft's LoraConfig. Targets are one expression that matches whole names: by a list of names, peft would
    take every module whose name ends so."""
    pattern = "|".join(re.escape(name) for name in change.targets)
    return {"r": change.rank, "lora_alpha": change.alpha, "target_modules": f"(?:{pattern})", "lora_dropout": 0.0}


def lora_state(network: "nn.Module") -> "dict[str, Tensor]":
    """The products beside a network's modules, by the names that peft gives them in a file."""
    return {
        _PEFT + name.replace(".default.", "."): value for name, value in network.state_dict().items() if "lora_" in name
    }


def _inside(name: str) -> str:
    """A name in peft's file → the one in the network."""
    return re.sub(r"\.(lora_[AB])\.", r".\1.default.", name.removeprefix(_PEFT))


def write_adapter(
    folder: Path, network: "nn.Module", change: Change, base: tuple[Backbone, str], facts: Mapping[str, Any]
) -> Adapter:
    """Write what `change` made of the network's weights into `folder`, the facts last; returns the opened adapter.

    base  the backbone's entry and the sha256 of the weights file that training began with
    """
    from safetensors.torch import save_file

    backbone, base_sha256 = base
    own = network.state_dict()
    state = lora_state(network) if change.method == "lora" else {name: own[name] for name in change.targets}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILES[change.method]
    save_file({name: value.detach().float().cpu().contiguous() for name, value in state.items()}, file,
              metadata={"format": "pt"})  # fmt: skip
    if change.method == "lora":
        from peft import LoraConfig

        config = LoraConfig(**lora_settings(change), inference_mode=True, base_model_name_or_path=backbone.name)
        config.save_pretrained(str(folder))
    said = {
        "schema": SCHEMA,
        **asdict(change),
        "backbone": backbone.name,
        "pooling": backbone.pooling,
        "base_sha256": base_sha256,
        "sha256": weights_digest(file),
        **facts,
    }
    write_json(folder / FACTS, said)
    return open_adapter(folder)


def _read(file: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.clone() for name, value in load_file(file).items()}  # else it stays mapped to the file
    except SafetensorError as error:
        raise BackboneError(file, f"it is a damaged safetensors file ({error})", "copy the adapter again") from error


def _compare(adapter: Adapter, expected: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]") -> None:
    """Raise BackboneError unless the file has the tensors that the network expects, and all that are finite."""
    wrong: Sequence[str] = sorted(
        name
        for name in set(expected) | set(found)
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    )
    if wrong or not found:
        problem = f"{len(wrong)} of its tensors do not fit the network (such as {', '.join(wrong[:3])})"
        raise BackboneError(adapter.file, problem, "it is of another network")
    if bad := [name for name, value in found.items() if not bool(value.isfinite().all())]:
        raise BackboneError(adapter.file, f"{bad[0]} holds NaN or infinity", "fine-tune again")
