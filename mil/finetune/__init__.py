"""Fine-tune a backbone from labels of tiles, regions or slides: LoRA, or its last blocks.

Names that need torch load it when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .cohort import PARTS, TEST, TRAIN, VALIDATION, Cohort, check_split, given_split, split_cohort
from .spec import LABELS, METHODS, FinetuneSpec

if TYPE_CHECKING:
    from .loop import Watcher
    from .memory import Memory
    from .probe import Figures, fit_probe, judge
    from .run import Base, check_out, finetune, plan

_HOMES = {"Memory": "memory", "Figures": "probe", "fit_probe": "probe", "judge": "probe", "Base": "run",
          "check_out": "run", "finetune": "run", "plan": "run", "Watcher": "loop"}  # fmt: skip

__all__ = [
    "LABELS", "METHODS", "PARTS", "TEST", "TRAIN", "VALIDATION", "Base", "Cohort", "Figures", "FinetuneSpec", "Memory",
    "Watcher", "check_out", "check_split", "finetune", "fit_probe", "given_split", "judge", "plan", "split_cohort",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
