"""What training multiplies in: float32, or halves where the chip is made for them. Weights and losses stay float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from embedding.precision import BF16_CUDA
from wsi.errors import SpecError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of features, as `batches` names them


def training_precision(asked: str, device: str) -> str:
    """fp32, bf16 or fp16: what was asked for, or for auto what is fast on this device and as good.

    On CUDA bf16 from Ampere on, else fp32: fp16 needs its gradients scaled, and a head gains little by it. On a CPU
    fp32: with avx512_bf16 a step of gated attention in bf16 runs at 0.7 times its speed, and with AMX none has been
    measured. Raises SpecError for fp16 off CUDA.
    """
    kind = device.partition(":")[0]
    if asked == "fp16" and kind != "cuda":
        raise SpecError("precision", f"fp16 trains on CUDA only, not on {device}", "give auto, bf16 or fp32")
    if asked != "auto":
        return asked
    return "bf16" if kind == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CUDA else "fp32"


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context in which matrix products are made in this precision."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.partition(":")[0], dtype)
