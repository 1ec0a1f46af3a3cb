"""What is predicted: loss, activation and truth of each task. A task is one class and one line in TASKS."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsi.errors import StoreError

from ..spec import TaskSpec
from .classification import Classification
from .cox import Cox
from .multilabel import MultiLabel
from .ordinal import Ordinal
from .regression import Regression
from .survival import DiscreteSurvival
from .task import Task

if TYPE_CHECKING:
    from ..bag import Bag

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, MultiLabel, Ordinal, Regression, Cox, DiscreteSurvival)
}


def make_task(spec: TaskSpec, bags: "Sequence[Bag]") -> Task:
    """The task for these labelled bags. Raises ManifestError for a truth that cannot be read, naming the bag, and
    SpecError for a cohort that cannot be trained on."""
    return TASKS[spec.name].of_cohort(spec, bags)


def task_from_dict(spec: TaskSpec, facts: Mapping[str, Any]) -> Task:
    """The task that `as_dict` described. Raises StoreError where the facts are not those of such a task."""
    try:
        return TASKS[spec.name].from_dict(spec, facts)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"an entry is missing or misshapen ({error!r})"
        raise StoreError(f"task {spec.name}", problem, "copy the model's folder again or train it again") from error


__all__ = [
    "TASKS",
    "Classification",
    "Cox",
    "DiscreteSurvival",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "Task",
    "TaskSpec",
    "make_task",
    "task_from_dict",
]
