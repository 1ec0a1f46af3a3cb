"""Bags → slide predictions and attention; training and evaluation.

Names that need torch load it when they are first asked for, so that reading a model's configuration or evaluating a
table of predictions does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bag import Bag, load_bag
from .metrics import Estimate, Evaluation, auroc, auroc_interval, evaluate
from .model import CohortRow, TrainedModel, load_model, save_model
from .predict import Prediction, predict
from .spec import HeadSpec, TrainSpec
from .splits import check_leakage, make_splits

if TYPE_CHECKING:
    from .heads import ABMIL, HEADS, MaxPool, MeanPool, MILOutput, build_head
    from .train import cross_validate

_NEED_TORCH = {
    "ABMIL": "heads",
    "HEADS": "heads",
    "MILOutput": "heads",
    "MaxPool": "heads",
    "MeanPool": "heads",
    "build_head": "heads",
    "cross_validate": "train",
}

__all__ = [
    "ABMIL",
    "HEADS",
    "Bag",
    "CohortRow",
    "Estimate",
    "Evaluation",
    "HeadSpec",
    "MILOutput",
    "MaxPool",
    "MeanPool",
    "Prediction",
    "TrainSpec",
    "TrainedModel",
    "auroc",
    "auroc_interval",
    "build_head",
    "check_leakage",
    "cross_validate",
    "evaluate",
    "load_bag",
    "load_model",
    "make_splits",
    "predict",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(f".{_NEED_TORCH[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
