"""Settings of one network chosen by trial, within its training part alone: the outer test part is never seen.

Nested cross-validation (Cawley & Talbot, JMLR 2010): every network has a search of its own, so that what it reports
for its test part is not what the settings were chosen by. Trials are drawn by the tree-structured Parzen estimator
(Bergstra et al., NeurIPS 2011) and stopped early where they do worse than the median, both of Optuna.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi.errors import SpecError

from .heads import HEADS
from .spec import HeadSpec, TrainSpec
from .tasks.task import Task
from .train import DivergedError, Part, Report, Run, train_one

if TYPE_CHECKING:
    import optuna

HEAD_FIELDS = ("hidden", "attention", "dropout")  # that a TrainSpec and its HeadSpec share
HOW = ("learning_rate", "weight_decay", "batch", "accumulate", "instances", "instance_dropout", "noise", "views")
SETTINGS = (*HEAD_FIELDS, "head", *HOW, "epochs", "patience")  # those that leave the loss as it is
WARM_UP_EPOCHS = 5  # before which no trial is stopped


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers from low to high, by their logarithm where `log`."""

    low: float
    high: float
    log: bool = False


SPACE: Mapping[str, Between | tuple[Any, ...]] = {
    "learning_rate": Between(3e-5, 1e-2, log=True),
    "weight_decay": Between(1e-5, 1e-1, log=True),
    "dropout": Between(0.0, 0.6),
    "hidden": (64, 128, 256),
    "instances": (128, 256, 512, 1024),
}
"""What is tried by default: a setting of TrainSpec → numbers between two, or a choice. `head` may be one of them."""


def search(
    parts: tuple[Part, Part],
    task: Task,
    head: HeadSpec,
    spec: TrainSpec,
    run: Run,
    search_space: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Try `spec.search` settings on the training part, parts[0], and judge each by its best loss on parts[1].

    search_space  setting → Between, {"low", "high", "log"} or a list of choices; SPACE when not given
    The first trial is the settings as they are, where they lie in the space. The same seed finds the same. A trial
    that diverges counts for nothing. Returns {"chosen": setting → value, "loss": its validation loss, "trials":
    [{"values", "loss", "state"}]}, plain values for JSON. Raises SpecError without Optuna, without a validation part,
    for a space that names no setting, and where every trial diverged.
    """
    _require_optuna()
    import optuna

    if not len(parts[1]):
        problem = "a network's training part is too small to hold back some for comparing settings"
        raise SpecError("search", problem, "set search to 0, or use fewer folds")
    space = {name: _range(name, given) for name, given in (SPACE if search_space is None else search_space).items()}
    with _quiet():
        study = optuna.create_study(
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=run.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=WARM_UP_EPOCHS),
        )
    now = {name: getattr(spec, name) for name in space}
    if all(_holds(space[name], value) for name, value in now.items()):
        study.enqueue_trial(now)

    def objective(trial: "optuna.Trial") -> float:
        tried = apply_choice(spec, head, {name: _suggest(trial, name, given) for name, given in space.items()})
        history = train_one(*parts, task, tried[1], tried[0], replace(run, report=_pruning(trial)))[1]
        return float(min(history["validation_loss"]))

    with _quiet():
        study.optimize(objective, n_trials=spec.search, catch=(DivergedError,))
    trials = [{"values": t.params, "loss": t.value, "state": t.state.name.lower()} for t in study.trials]
    if not any(trial["state"] == "complete" for trial in trials):
        raise SpecError("search", f"none of {len(trials)} trials came to an end: they diverged", "narrow the space")
    return {"chosen": dict(study.best_params), "loss": float(study.best_value), "trials": trials}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs each study and trial; the trials are kept with the model."""
    import optuna

    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(loud)


def apply_choice(spec: TrainSpec, head: HeadSpec, chosen: Mapping[str, Any]) -> tuple[TrainSpec, HeadSpec]:
    """Settings and head with the chosen values. Another head leaves the options of the first behind."""
    options = {} if chosen.get("head", spec.head) != spec.head else spec.head_options
    spec = replace(spec, **chosen, head_options=dict(options))
    sizes = {name: getattr(spec, name) for name in HEAD_FIELDS}
    return spec, replace(head, name=spec.head, options=dict(options), **sizes)


def _pruning(trial: "optuna.Trial") -> Report:
    """Tells Optuna of every epoch's validation loss, and ends a trial that does worse than the median."""
    import optuna

    def report(epoch: int, loss: float, check: float | None) -> None:
        trial.report(math.inf if check is None else check, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def _suggest(trial: "optuna.Trial", name: str, given: Between | tuple[Any, ...]) -> Any:
    if not isinstance(given, Between):
        return trial.suggest_categorical(name, given)
    if isinstance(given.low, int) and isinstance(given.high, int):
        return trial.suggest_int(name, given.low, given.high, log=given.log)
    return trial.suggest_float(name, given.low, given.high, log=given.log)


def _holds(given: Between | tuple[Any, ...], value: Any) -> bool:
    if isinstance(given, Between):
        return value is not None and given.low <= value <= given.high  # None: what the task needs
    return value in given


def _range(name: str, given: Any) -> Between | tuple[Any, ...]:
    """What is tried of one setting, as a recipe or a program gives it."""
    if name not in SETTINGS:
        problem = f"{name!r} is no setting that trials can be compared over"
        raise SpecError("search_space", problem, f"choose among {', '.join(SETTINGS)}")
    if isinstance(given, Mapping) and {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        given = Between(**given)
    if isinstance(given, Between):
        if not given.low < given.high or (given.log and given.low <= 0):
            raise SpecError("search_space", f"{name}: {given.low} to {given.high} is no range", "give low < high")
        return given
    if isinstance(given, list | tuple) and given:
        unknown = [value for value in given if name == "head" and value not in HEADS]
        if unknown:
            raise SpecError("search_space", f"there is no head {unknown[0]!r}", f"choose among {', '.join(HEADS)}")
        return tuple(given)
    raise SpecError("search_space", f"{name}: {given!r} is no range", "give low and high, or a list of choices")


def _require_optuna() -> None:
    try:
        import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise SpecError("search", "the package optuna is missing", "pip install 'slidestream[search]'") from error
