"""Which devices embed: what a user may ask for, and what this machine has."""

import platform
import sys
from functools import lru_cache
from pathlib import Path

from wsi.errors import SpecError

KINDS = ("cpu", "cuda", "mps", "xpu")
_GPU_FILES = ("nvidia[0-9]*", "nvhost-gpu", "dxg", "kfd")  # NVIDIA's, Jetson's, WSL's, AMD's


def find_devices(wanted: str = "auto") -> tuple[str, ...]:
    """The devices to embed on, each for a process of its own.

    wanted  auto: every CUDA device, else Apple's mps, else cpu; or names with commas between, such as cuda:0,cuda:1
    Raises SpecError for a device that is not there.
    """
    if wanted != "auto":
        names = tuple(name.strip() for name in wanted.split(","))
        if "" in names:
            raise SpecError("--device", f"{wanted!r} has no name where a comma asks for one", "leave the comma out")
        for name in dict.fromkeys(names):
            _check(name)
        return names
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in _GPU_FILES):
        return ("cpu",)  # without loading torch, which takes seconds
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return tuple(f"cuda:{number}" for number in range(count)) if count > 1 else ("cuda",)
    return ("mps",) if torch.backends.mps.is_available() else ("cpu",)


def best_device(wanted: str = "auto") -> str:
    """The first of `find_devices`."""
    return find_devices(wanted)[0]


@lru_cache(maxsize=16)
def device_name(device: str) -> str:
    """What the chip behind a device is called, such as NVIDIA H200 or the processor's model."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    if device == "cpu" and sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, "") or platform.machine()
    return f"{device} of {platform.processor() or platform.machine()}"


def _check(name: str) -> None:
    if name == "cpu":
        return
    import torch

    kind = name.partition(":")[0]
    if kind == "cuda":  # nothing is put there: that takes hundreds of MiB, and a GPU may be for one process alone
        known = ("cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
        there = torch.cuda.is_available() and name in known
    else:
        try:
            there = kind in KINDS and torch.zeros(1, device=name).sum().item() == 0
        except (RuntimeError, AssertionError):  # torch's ways of saying that a device is absent
            there = False
    if not there:
        raise SpecError("--device", f"{name!r} cannot be used here", "choose auto, cpu, or what `wsi doctor` shows")
