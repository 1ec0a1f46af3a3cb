"""Bags → predictions and what they rest on; training, calibration and evaluation.

Names that need torch or much of scipy load it when they are first asked for, so that reading a model's configuration
or a table of predictions does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bag import Bag, join_features, load_bag, merge_bags
from .evaluation.discrimination import auroc, auroc_interval
from .evaluation.estimate import Estimate
from .evaluation.predictions import Predictions
from .model import CohortRow, TrainedModel, load_model, save_model
from .predict import Prediction, predict
from .spec import HeadSpec, TaskSpec, TrainSpec
from .splits import check_leakage, make_splits

if TYPE_CHECKING:
    from .crossval import cross_validate
    from .evaluation.judge import JudgeSpec, judge
    from .heads import HEADS, Head, MILOutput, build_head

_LATER = {
    "HEADS": "heads",
    "Head": "heads",
    "JudgeSpec": "evaluation.judge",
    "MILOutput": "heads",
    "build_head": "heads",
    "cross_validate": "crossval",
    "judge": "evaluation.judge",
}

__all__ = [
    "HEADS",
    "Bag",
    "CohortRow",
    "Estimate",
    "Head",
    "HeadSpec",
    "JudgeSpec",
    "MILOutput",
    "Prediction",
    "Predictions",
    "TaskSpec",
    "TrainSpec",
    "TrainedModel",
    "auroc",
    "auroc_interval",
    "build_head",
    "check_leakage",
    "cross_validate",
    "join_features",
    "judge",
    "load_bag",
    "load_model",
    "make_splits",
    "merge_bags",
    "predict",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
