"""Make a torchvision importable whose compiled operators do not load.

PyPI's torchvision is built for CUDA. Beside a CPU torch its library cannot load, and `import torchvision` (hence timm,
torchmetrics, peft) ends with "operator torchvision::nms does not exist": `torchvision/_meta_registrations.py` registers
shape functions for operators that nobody declared. Declaring those two just before that module runs is enough for all
of torchvision's Python side. On a sound pair the hook does nothing, and until torchvision is imported it costs nothing.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODULE = "torchvision._meta_registrations"
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _DeclareOperatorsFirst(Loader):
    """Runs the module's own loader after the missing operators are declared."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.extension import _has_ops

        if not _has_ops():
            declare_operators()
        self._loader.exec_module(module)


class _TorchvisionFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclareOperatorsFirst(spec.loader)
        return spec


def declare_operators() -> None:
    """Declare the schemas of torchvision's detection operators, which have no kernel then."""
    import torch

    for operator in _OPERATORS:
        try:
            torch.library.define(f"torchvision::{operator}", _SCHEMA)
        except RuntimeError:  # declared already, by torchvision itself or by an earlier import that failed
            continue


def install_torchvision_hook() -> None:
    """Put the finder first in `sys.meta_path`, once, unless torchvision is loaded already."""
    if _MODULE not in sys.modules and not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())
