"""What the cells of a table mean for each task: the truth, and which columns hold what was predicted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ManifestError, SpecError

from ..spec import TaskSpec
from .table import Row, Table, listed

PREFIXES = ("probability_", "prob_", "p_", "softmax_", "sigmoid_")  # of a column for each class, in this preference
PROBABILITY = ("probability", "prob", "p", "y_prob")  # of one column for the positive class
SCORE = ("score", "y_score", "logit", "output")
NUMBER = ("value", "prediction", "predicted", "y_pred", "score")
RISK = ("risk", "log_hazard", "hazard", "score")
LIVES = "survival_"  # then a time
NONE = "-"  # the truth of a bag with none of the labels
EVENTS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_ROUNDED = 1e-3  # a row so near to 1 is left as it is: scaling it would break ties
_SUM = 0.02  # rows of rounded probabilities may miss 1 by so much; they are scaled to it


@dataclass(frozen=True, slots=True)
class TableSpec:
    """How tables are read.

    task         the task and the truth's columns; its classes are () for those that occur
    positive     of two classes, the one that is looked for; None for the last of the task's, else of the sorted
    id           column that names a prediction's bag, in both tables; None to guess
    probability  column of the positive class's probability; None to guess
    score        column of a score, a number or a risk; None to guess
    """

    task: TaskSpec = field(default_factory=TaskSpec)
    positive: str | None = None
    id: str | None = None
    probability: str | None = None
    score: str | None = None

    def __post_init__(self) -> None:
        if self.probability and (self.score or self.task.name != "classification"):
            problem = "it is for one probability, of two classes"
            raise SpecError("--probability", problem, "give --score for scores, numbers and risks, not both")
        if self.positive and self.task.name != "classification":
            raise SpecError("--positive", f"{self.task.name} has no positive class", "leave it out")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where predictions stand: read (row) → numbers; `classes` in the order of these; `notes` say what was guessed."""

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    read: Callable[[Row], list[float]]
    calibrated: bool = False
    times: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def truth_columns(task: TaskSpec, manifest: Table) -> tuple[str, ...]:
    """Columns of the manifest that hold the truth: the target, or time and event."""
    if task.is_survival:
        return manifest.column(task.time, "--time"), manifest.column(task.event, "--event")
    return (manifest.column(task.target, "--target"),)


def labels_of(task: TaskSpec, texts: Sequence[str]) -> tuple[str, ...]:
    """Sorted classes or labels among the truths, () for tasks without any; 0.0 beside 1 is 0."""
    if task.is_survival or task.name == "regression":
        return ()
    if task.name != "multilabel":
        return tuple(sorted({_plain(text) for text in texts}))
    return tuple(sorted({label for text in texts for label in _split(text)}))


def read_truth(task: TaskSpec, classes: Sequence[str], columns: Sequence[str], row: Row) -> float | int | list[float]:
    """The truth of one bag as `Predictions` holds it. Raises ManifestError naming the line."""
    if task.is_survival:
        time = row.number(columns[0], "give the time to event or to the end of follow-up as a number")
        if time <= 0:
            remedy = "give the time from a start that lies before it, or leave the slide out"
            raise ManifestError(row.where, f"{columns[0]} {time:g} is not above 0", remedy)
        event = EVENTS.get(row.text(columns[1]).casefold())
        if event is None:
            problem = f"{columns[1]} {row.text(columns[1])!r} is neither 0 nor 1"
            raise ManifestError(row.where, problem, "give 1 where the event was seen, 0 where follow-up ended")
        return [time, event]
    text = row.text(columns[0])
    if task.name == "regression":
        return row.number(columns[0], "regression needs numbers as truth; for classes leave --task out")
    if task.name == "multilabel":
        return [float(name in {_index(row, label, classes) for label in _split(text)}) for name in classes]
    return list(classes).index(_index(row, text, classes))


def find_outputs(spec: TableSpec, table: Table, labels: Sequence[str]) -> Outputs:
    """Which columns hold the predictions. Raises ManifestError with the columns there are.

    labels  the classes that occur in the truth, sorted. Classes that the spec does not order are sorted, as training
            does: the order of the columns says nothing
    """
    name = spec.task.name
    if name == "regression":
        column = _named(table, spec.score, NUMBER, "the predicted number")
        return Outputs((), (column,), lambda row: [row.number(column)])
    if name == "cox":
        column = _named(table, spec.score, RISK, "the risk")
        return Outputs((), (column,), lambda row: [row.number(column)])
    if name == "survival":
        return _survival(spec, table)
    columns = None if spec.probability or spec.score else _class_columns(spec, table, labels)
    if columns is not None:
        return _several(spec, columns)
    if name != "classification":
        problem = f"it has no column for each of {listed(labels)}; it has {listed(table.columns, 12)}"
        raise ManifestError(table.path, problem, "name the columns as the classes, or probability_<class>")
    return _single(spec, table, labels)


def _named(table: Table, given: str | None, names: Sequence[str], what: str) -> str:
    if given:
        return table.column(given, "--score")
    found = table.first(names)
    if found is None:
        problem = f"no column holds {what}: none is called {listed(names)}; it has {listed(table.columns, 12)}"
        raise ManifestError(table.path, problem, "name it with --score")
    return found


def _survival(spec: TableSpec, table: Table) -> Outputs:
    risk = _named(table, spec.score, RISK, "the risk")
    times = {}
    for column in table.columns:
        if column.startswith(LIVES):
            try:
                times[float(column.removeprefix(LIVES))] = column
            except ValueError:
                continue  # a column of another meaning
    if not times:
        problem = f"no column is called {LIVES}<time>, the chance to live past it"
        raise ManifestError(table.path, problem, "for a risk alone give --task cox")
    ordered = tuple(sorted(times))

    def read(row: Row) -> list[float]:
        alive = [_share(row, times[time]) for time in ordered]
        if any(later > earlier + 1e-6 for earlier, later in pairwise(alive)):
            raise ManifestError(row.where, "its survival rises with time", "give chances that fall with time")
        return [row.number(risk), *alive]

    return Outputs((), (risk, *(times[time] for time in ordered)), read, times=ordered)


def _class_columns(spec: TableSpec, table: Table, labels: Sequence[str]) -> dict[str, str] | None:
    """class → its column, in the classes' order; None when there is not one for each. A truth alone decides nothing:
    all columns of a prefix are classes, whether or not any bag is of each."""
    wanted = spec.task.classes
    for prefix in (*PREFIXES, ""):
        if prefix:
            found = {column[len(prefix) :]: column for column in table.columns if column.casefold().startswith(prefix)}
        else:
            found = {name: name for name in (wanted or labels) if name in table.columns}
        if wanted and set(wanted) <= set(found):
            return {name: found[name] for name in wanted}
        if not wanted and len(found) > 1 and labels and {_plain(label) for label in labels} <= set(map(_plain, found)):
            return dict(sorted(found.items()))
    return None


def _several(spec: TableSpec, columns: Mapping[str, str]) -> Outputs:
    names: tuple[str, ...] = tuple(columns)
    notes: tuple[str, ...] = ()
    if len(names) < 2 and spec.task.name != "multilabel":
        raise SpecError("--classes", f"{listed(names)} is one class", "name two or more")
    if spec.task.name == "classification" and len(names) == 2:
        names, notes = _positive_last(spec, names)
    read = [columns[name] for name in names]
    calibrated = all(column.casefold().startswith("prob") for column in read)

    def labels(row: Row) -> list[float]:
        return [_share(row, column) for column in read]

    def classes(row: Row) -> list[float]:
        values = labels(row)
        if abs(sum(values) - 1) > _SUM:
            problem = f"{' + '.join(read[:4])}{' …' if len(read) > 4 else ''} is {sum(values):.4g}, not 1"
            raise ManifestError(row.where, problem, "give one probability for each class; --classes names them")
        if abs(sum(values) - 1) <= _ROUNDED:
            return values
        return [value / sum(values) for value in values]

    return Outputs(names, tuple(read), labels if spec.task.name == "multilabel" else classes, calibrated, notes=notes)


def _single(spec: TableSpec, table: Table, labels: Sequence[str]) -> Outputs:
    """One column of one of two classes: a probability, or a score that only ranks.

    A probability whose column is named for a class is of that class, which is the positive one unless the spec says
    otherwise; any other column is of the positive class.
    """
    classes = spec.task.classes or tuple(labels)
    own = {c: c[len(p) :] for p in PREFIXES for c in table.columns if c.casefold().startswith(p)}
    own = {column: name for column, name in own.items() if name in classes}
    chance = table.column(spec.probability, "--probability") if spec.probability else None
    score = table.column(spec.score, "--score") if spec.score else None
    if chance is None and score is None:
        chance = next(iter(own)) if len(own) == 1 else table.first(PROBABILITY)
        score = None if chance else table.first(SCORE)
    if chance is None and score is None:
        problem = f"no column holds predictions of {listed(classes)}; it has {listed(table.columns, 12)}"
        raise ManifestError(table.path, problem, "name columns as the classes, or one with --probability or --score")
    if len(classes) != 2:
        problem = f"{chance or score!r} is one column, and the classes are {listed(classes)}"
        raise ManifestError(table.path, problem, "two classes need one, more need a column each; see --classes")
    if score is not None:
        names, notes = _positive_last(spec, classes)

        def ranks(row: Row) -> list[float]:  # rows sum to 0: no probabilities, by which judges know them
            return [-row.number(score), row.number(score)]

        return Outputs(names, (score,), ranks, notes=notes)
    column = str(chance)
    names, notes = _positive_last(spec, classes, own.get(column))
    positive = own.get(column, names[-1]) == names[-1]

    def shares(row: Row) -> list[float]:
        share = _share(row, column)
        return [1 - share, share] if positive else [share, 1 - share]

    return Outputs(names, (column,), shares, column.casefold().startswith("prob"), (), notes)


def _positive_last(
    spec: TableSpec, names: Sequence[str], named: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two classes with the positive one last, and the note that says how it was guessed.

    named  the class of the only column, which is then the guess; without it the last of the sorted, as in training
    """
    if spec.positive is not None and spec.positive not in names:
        raise SpecError("--positive", f"{spec.positive!r} is no class", f"choose {' or '.join(names)}")
    if spec.positive is None and spec.task.classes:
        return tuple(names), ()
    positive = spec.positive or named or max(names)
    ordered = (*(name for name in names if name != positive), positive)
    if spec.positive is not None:
        return ordered, ()
    why = "the only column is of it" if named else "the last of the sorted"
    return ordered, (f"positive class: {positive} ({why}; --positive names another)",)


def _share(row: Row, column: str) -> float:
    value = row.number(column)
    if not 0 <= value <= 1:
        problem = f"{column} {value:g} is no probability"
        raise ManifestError(row.where, problem, "give numbers from 0 to 1; scores of any size with --score COLUMN")
    return value


def _split(text: str) -> list[str]:
    return [label.strip() for label in text.split(";") if label.strip() and label.strip() != NONE]


def _index(row: Row, text: str, classes: Sequence[str]) -> str:
    """The class that a text names; 1.0 is 1, as tables write numbers where some are missing."""
    if text in classes:
        return text
    alike = [name for name in classes if _plain(name) == _plain(text)]
    if len(alike) == 1:
        return alike[0]
    remedy = "correct it, empty it to leave the slide out, or name all classes with --classes"
    raise ManifestError(row.where, f"{text!r} is none of the classes {listed(classes)}", remedy)


def _plain(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:g}"


def as_array(task: TaskSpec, truths: Sequence[float | int | list[float]]) -> NDArray[np.generic]:
    """Truths of n bags as one array of the type that the task has."""
    whole = task.name in ("classification", "ordinal", "multilabel")
    return np.array(truths, dtype=np.int64 if whole else np.float64)
