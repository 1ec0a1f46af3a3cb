"""What a network computes in: float32, or halves where the chip is made for them."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .backbone import Backbone

if TYPE_CHECKING:
    from torch import Tensor

    from .loader import Embedder

BF16_CUDA = (8, 0)  # compute capability from which CUDA devices multiply bfloat16


def choose_precision(asked: str, backbone: Backbone, device: str) -> str:
    """fp32, bf16 or fp16: what was asked for, or for auto what is fast here and exact enough.

    A ViT: on CUDA bf16 from Ampere on, fp16 before; on a CPU bf16 with AMX, where it is 2.7 to 4.1 times as fast as
    fp32. With avx512_bf16 alone fp32 stays: there bf16 has been measured at 0.56 to 0.7 times its speed.
    Other networks stay in fp32: EfficientNet-Lite0 in bf16 is 1.4 times as fast on such a CPU, but its embeddings of
    real tiles then are at a cosine as low as 0.986 of the exact ones (a ViT's: 0.9999).
    """
    if asked != "auto":
        return asked
    kind = device.partition(":")[0]
    if backbone.patch_px is None:
        return "fp32"
    if kind == "cuda":
        return "bf16" if _capability(device) >= BF16_CUDA else "fp16"
    return "bf16" if kind == "cpu" and "amx_bf16" in cpu_flags() else "fp32"


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names; elsewhere nothing is known."""
    if sys.platform != "linux":
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def measured_cosine(exact: "Embedder", other: "Embedder", patches: "Tensor") -> float:
    """The least cosine between what two embedders make of the same patch, uint8 (n, t, t, 3): 1 is the same."""
    import torch

    with torch.inference_mode():
        ours, theirs = (one(patches.to(one.device)).flatten(1).double().cpu() for one in (exact, other))
    return float(torch.nn.functional.cosine_similarity(ours, theirs).min())


@lru_cache(maxsize=8)
def _capability(device: str) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)
