"""The network of a backbone computed by OpenVINO instead of torch, on a CPU.

Measured on a core with AVX-512, tiles per CPU-second against torch: EfficientNet-Lite0 2.8 to 3.5 times, ResNet-50 1.5
times, ViT-S/16 1.1 times, at a cosine of at least 1 − 1e-10. It computes in float32: in bf16 EfficientNet-Lite0's
embeddings are at a cosine as low as 0.988, and without AMX all three are slower than in float32.
"""

import sys
import threading
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from wsi.errors import BackboneError

from .loader import Embedder

LEAST_COSINE = 0.99999  # of what was compiled, against torch


def check_openvino(backbone: str, device: str) -> None:
    """Raise BackboneError where OpenVINO is not installed, or the device is not a CPU."""
    if device.partition(":")[0] != "cpu":
        raise BackboneError(backbone, f"OpenVINO computes on a CPU, not on {device}", "add --device cpu")
    if find_spec("openvino") is None:
        raise BackboneError(backbone, "OpenVINO is not installed", "run `pip install 'slidestream[openvino]'`")


def use_openvino(embedder: Embedder, threads: int = 1) -> None:
    """From now on the embedder computes with OpenVINO, for up to `threads` callers at a time, each on one core.

    torch's network is given up, so that its memory is free. Compiling takes seconds, and no network call is made.
    Raises BackboneError, see `check_openvino`, and where what OpenVINO compiled gives other embeddings than torch.
    """
    name, side = embedder.backbone.name, embedder.backbone.input_px
    check_openvino(name, str(embedder.device))
    # another number of patches than it was traced with: a trace may have taken that for a constant
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        theirs = embedder.vectors(pixels).flatten(1).double()
    frontend = _import_openvino().frontend
    try:
        compiled = Compiled(embedder, threads)
        ours = compiled(pixels).flatten(1).double()
    except (RuntimeError, frontend.OpConversionFailure, frontend.GeneralFailure) as error:
        said = str(error).strip().splitlines()[-1]
        raise BackboneError(name, f"OpenVINO cannot compute it ({said})", "leave --engine away") from error
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs).min())
    if not cosine >= LEAST_COSINE:
        problem = f"OpenVINO computes other embeddings than torch: they are at a cosine of {cosine:.6f}"
        raise BackboneError(name, problem, "leave --engine away")
    embedder.compute, embedder.network = compiled, nn.Identity()


def _import_openvino() -> Any:
    """The package. It reports its import to Google Analytics, unless openvino_telemetry cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino.frontend

    return openvino


class Compiled:
    """Grey levels (n, 3, input_px, input_px) → float32 embeddings (n, *row_shape), as `Embedder.vectors`.

    Thread-safe: each thread has a request of its own, and there are as many streams of one core as threads.
    """

    def __init__(self, embedder: Embedder, threads: int):
        openvino, side = _import_openvino(), embedder.backbone.input_px
        self._tensor = openvino.Tensor
        shape = openvino.PartialShape([-1, side, side, 3])
        with warnings.catch_warnings():  # of what the trace may take for constant: `use_openvino` checks that
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            model = openvino.convert_model(
                _Grey(embedder), example_input=torch.zeros(2, side, side, 3), input=[(shape, openvino.Type.f32)]
            )
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # or the processes of a machine would all compute on its first cores
        }
        self._model: Any = openvino.Core().compile_model(model, "CPU", settings)
        self._own = threading.local()

    def __call__(self, pixels: Tensor) -> Tensor:
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        grey = pixels.permute(0, 2, 3, 1).float().contiguous()
        self._own.request.infer([self._tensor(grey.numpy(), shared_memory=True)])
        return torch.from_numpy(self._own.request.get_output_tensor().data.copy())


class _Grey(nn.Module):
    """`Embedder.vectors` of (n, input_px, input_px, 3), as the memory of patches lies."""

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.embedder = embedder

    def forward(self, grey: Tensor) -> Tensor:
        return self.embedder.vectors(grey.permute(0, 3, 1, 2))
