"""What the workers of a run must agree on, and each machine would choose otherwise."""

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from embedding.spec import EmbedSpec
from wsi.errors import StoreError
from wsi.publish import draft_of, fingerprint

from .extraction import precision_of
from .folder import RunFolder


def agreed(spec: EmbedSpec, folder: RunFolder, choose: bool = False) -> EmbedSpec:
    """The settings with the precision in which the run folder's slides are embedded, where it is left to the machine.

    The precision is part of the contract, and what suits one chip is not what suits another: the first worker that
    embeds chooses for all, so that slides, and parts of a slide, that several machines embed belong together.

    choose  whether to choose where nobody has; else the settings come back as they are then
    """
    if spec.precision != "auto":
        return spec
    path = _path(spec, folder)
    if choose and not path.is_file():
        _say(path, precision_of(spec))
    if not path.is_file():
        return spec
    chosen = _read(path)
    if chosen not in ("fp32", "fp16", "bf16"):
        raise StoreError(path, f"{chosen!r} is no precision", "remove the file, or give --precision")
    return replace(spec, precision=chosen)


def _path(spec: EmbedSpec, folder: RunFolder) -> Path:
    """Of a backbone and its engine: whatever else is part of the contract is the same everywhere."""
    return folder.root / "lists" / f"precision-{fingerprint(spec.backbone, spec.variant, spec.engine)}"


def _say(path: Path, precision: str) -> None:
    """Write what was chosen, unless another was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path, uuid4().hex[:6])
    draft.write_text(precision, encoding="ascii")
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # no hard links here
        with suppress(FileExistsError), path.open("x", encoding="ascii") as file:
            file.write(precision)
    finally:
        draft.unlink()


def _read(path: Path) -> str:
    """What was chosen; where it is just being written, that is awaited."""
    for _ in range(100):
        chosen = path.read_text(encoding="ascii").strip()
        if chosen:
            return chosen
        time.sleep(0.02)
    return ""
