"""Find a slide encoder's weights, and name them by their digest."""

import hashlib
from pathlib import Path

from wsi.errors import BackboneError

from ..hub import snapshot
from ..weights import find_weights, weights_digest
from .encoder import SlideEncoder
from .spec import EncodeSpec

PATTERNS = ("*.json", "*.py", "*.safetensors")  # of a repository with code, each must be there


def find_encoder_weights(encoder: SlideEncoder, spec: EncodeSpec) -> Path | None:
    """The encoder's weights file; its folder, where it comes with code; None where it has none.

    Raises BackboneError with what to do where they cannot be had, and before anything is fetched where code would have
    to run that is not trusted.
    """
    if encoder.weights == "none:":
        return None
    given = Path(spec.weights) if spec.weights else None
    if not encoder.remote_code:
        return find_weights(encoder, given, spec.offline, spec.own_weights)
    require_trust(encoder, spec.trust_remote_code, given)
    if given is None:
        return snapshot(encoder.weights.removeprefix("hf-hub:"), encoder.revision, PATTERNS, spec.offline)
    if not (given / "config.json").is_file():
        raise BackboneError(given, f"it is no folder of {encoder.name}: it has no config.json", "give its folder")
    return given


def require_trust(encoder: SlideEncoder, trusted: bool, folder: Path | None = None) -> None:
    """Raise BackboneError, naming what would run, unless the encoder needs no code or the user trusts it."""
    if trusted or not encoder.remote_code:
        return
    if folder is not None:
        code = f"{', '.join(sorted(path.name for path in folder.glob('*.py'))) or 'none'} in {folder}"
    else:
        code = f"the *.py of {encoder.weights.removeprefix('hf-hub:')}, revision {encoder.revision or 'main'}"
    raise BackboneError(
        encoder.name,
        f"its network is Python code of its authors, which would run on this machine: {code}",
        "read that code, then allow it with --trust-remote-code",
    )


def encoder_digest(encoder: SlideEncoder, weights: Path | None) -> str | None:
    """sha256 of the weights file, or over weights and code of a folder, in hex; None where there are none."""
    if weights is None:
        return None
    return folder_digest(weights) if encoder.remote_code else weights_digest(weights)


def folder_digest(folder: Path) -> str:
    """sha256, in hex, over names and content of all that PATTERNS lets in."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in PATTERNS for path in folder.rglob(pattern)}):
        total.update(f"{path.relative_to(folder).as_posix()} {weights_digest(path)}\n".encode())
    return total.hexdigest()
