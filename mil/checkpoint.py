"""What a killed training goes on from: networks that are finished, and the state of the one that is being trained.

A state is one safetensors file, its plain values as JSON in the header, so that it is whole or absent; no pickle is
read. Files lie in a folder named by all that shapes the training: another setting, cohort or version never goes on
from them.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.errors import StoreError
from wsi.publish import appear_file, clear_drafts, write_json

if TYPE_CHECKING:
    from torch import Tensor

EVERY_EPOCHS = 5
EVERY_S = 60.0


class Checkpoint:
    """The file of one network in training, written every few epochs or, of long ones, every minute."""

    def __init__(self, path: Path):
        self.path = path
        self._written, self._epoch = time.monotonic(), -1

    def due(self, epoch: int) -> bool:
        """Whether the state after this epoch (from 0) is to be written."""
        return epoch - self._epoch >= EVERY_EPOCHS or time.monotonic() - self._written >= EVERY_S

    def write(self, tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any], epoch: int) -> None:
        """Replace the state by this one; a kill in between leaves the older one."""
        write_state(self.path, tensors, facts)
        self._written, self._epoch = time.monotonic(), epoch

    def read(self) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        """The state, tensors on the CPU, and its plain values; None without one. Raises StoreError if it is damaged."""
        return read_state(self.path)


class Checkpoints:
    """Finished and unfinished networks of one cross-validation, in `folder`/`mark`."""

    def __init__(self, folder: Path, mark: str):
        self.folder = folder / mark
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_drafts(self.folder)

    def running(self, place: int) -> Checkpoint:
        """The checkpoint of the network at this place."""
        return Checkpoint(self.folder / f"running-{place}.safetensors")

    def finished(self, place: int) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        """Weights of the network at this place and how its training went; None while it is not finished."""
        return read_state(self.folder / f"network-{place}.safetensors")

    def finish(self, place: int, weights: "Mapping[str, Tensor]", history: Mapping[str, Any]) -> None:
        """Keep a finished network, and drop the state that led to it."""
        write_state(self.folder / f"network-{place}.safetensors", weights, history)
        self.running(place).path.unlink(missing_ok=True)

    def chosen(self, place: int) -> dict[str, Any] | None:
        """What a search chose for the network at this place; None while it has not."""
        path = self.folder / f"search-{place}.json"
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(
                path, f"is damaged: no JSON ({error})", "remove it; the search is then done again"
            ) from error
        return values

    def choose(self, place: int, values: Mapping[str, Any]) -> None:
        write_json(self.folder / f"search-{place}.json", dict(values))


def write_state(path: Path, tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> None:
    """Tensors and plain values as one file, which appears whole."""
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with appear_file(path) as draft:
        save_file(held, draft, metadata={"facts": json.dumps(dict(facts))})


def read_state(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """What `write_state` wrote; None where there is no file. Raises StoreError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            facts = json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(path, f"is damaged ({error})", "remove it; that network is then trained again") from error
    return tensors, facts
