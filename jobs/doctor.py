"""Look at this machine: can the engine run here, and what will it use?"""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

from .executors import cpu_count

PACKAGES = ("wsi", "tiling", "embedding", "mil", "heatmaps", "jobs", "viewer", "cli", "configs")
GOOD, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its name, ok, note or bad, what was seen, and what to do about it."""

    name: str
    state: str
    seen: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield Finding(
        "python", GOOD if sys.version_info >= (3, 11) else BAD, sys.version.split()[0], "use Python 3.11 or newer"
    )
    yield _names()
    yield _openslide()
    yield _codecs()
    yield from _torch()
    yield _weights()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding(
        "disk", GOOD if free > 10 else NOTE, f"{free:,.0f} GB free here", "runs need room for embeddings: 3 kB a tile"
    )
    yield Finding("processors", GOOD, f"{cpu_count()} usable")


def _names() -> Finding:
    """Top-level names such as `tiling` and `mil` exist on package indexes too; another package's could win silently."""
    here = Path(__file__).resolve().parent.parent
    foreign = [name for name in PACKAGES if _home(name) != here]
    claimed = sorted(
        {
            f"{entry.metadata['Name']} ({top})"
            for entry in distributions()
            if entry.metadata["Name"] != "slidestream"
            for top in (entry.read_text("top_level.txt") or "").split()
            if top in PACKAGES
        }
    )
    if foreign or claimed:
        seen = "; ".join([*(f"{name} comes from {_home(name)}" for name in foreign), *claimed])
        return Finding("package names", BAD, seen, "install slidestream in an environment of its own")
    return Finding("package names", GOOD, "all from slidestream")


def _home(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent.parent if spec and spec.origin else None


def _openslide() -> Finding:
    import openslide

    library = openslide.__library_version__
    good = int(library.split(".")[0]) >= 4
    return Finding(
        "openslide", GOOD if good else BAD, f"library {library}", "pip install openslide-bin (DICOM needs 4.0)"
    )


def _codecs() -> Finding:
    import imagecodecs

    missing = [name for name in ("JPEG8", "JPEG2K", "LZW", "ZSTD") if not getattr(imagecodecs, name).available]
    seen = (
        f"missing {', '.join(missing)}"
        if missing
        else f"imagecodecs {imagecodecs.__version__.split()[0]}, simplejpeg {version('simplejpeg')}"
    )
    return Finding("codecs", BAD if missing else GOOD, seen, "pip install --force-reinstall imagecodecs")


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding("torch", GOOD, torch.__version__)
    try:
        import torchvision
        from torchvision import extension
    except (ImportError, RuntimeError) as error:
        yield Finding(
            "torchvision",
            BAD,
            f"does not import beside this torch ({error})",
            "install the pair of constraints/cpu.txt",
        )
    else:
        built = extension._has_ops()
        seen = torchvision.__version__ + ("" if built else ": its compiled operators do not load beside this torch")
        remedy = (
            ""
            if built
            else "harmless: slidestream uses none of them and declares what timm needs; a matching pair ends it"
        )
        yield Finding("torchvision", GOOD if built else NOTE, seen, remedy)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("GPU", GOOD, ", ".join(names))
    elif torch.backends.mps.is_available():
        yield Finding("GPU", GOOD, "Apple mps")
    else:
        yield Finding(
            "GPU",
            NOTE,
            "none seen: embedding runs on the processor",
            "install the CUDA build of torch if there is a GPU",
        )
    import timm

    yield Finding("timm", GOOD, timm.__version__)


def _weights() -> Finding:
    from embedding.backbones import DEFAULT_BACKBONE, find_backbone
    from embedding.weights import find_weights, weights_digest

    digest = weights_digest(find_weights(find_backbone(DEFAULT_BACKBONE)))
    return Finding("default backbone", GOOD, f"{DEFAULT_BACKBONE}, weights sha256 {digest[:12]}")
