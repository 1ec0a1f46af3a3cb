"""A table of predictions beside a table of truths: who is judged, and who is not, and why.

Rules, each of which an option overrides:
- a bag is a row of the predictions, named by its column slide_id, case_id or patient_id, the first there is, else by
  the manifest's first column (--id)
- it meets the truth by that column, else by the first of case_id and patient_id that both tables have
- its patient is the manifest's patient_id, else that of the predictions, else the case, else the bag itself: a note
  says how many bags no column names a patient of
- its fold is the column `fold`, or `origin` where that says `held-out fold N` of every bag
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ManifestError, SpecError

from .predictions import Predictions
from .table import Row, Table, listed, read_table
from .table_truth import (
    Outputs,
    TableSpec,
    as_array,
    find_outputs,
    labels_of,
    read_truth,
    truth_columns,
)

IDS = ("slide_id", "case_id", "patient_id")
_FOLD = re.compile(r"held-out folds? (\d+)\b.*")
_NO_SUBGROUP = ("path", "mpp", "slide_id", "case_id", "patient_id")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the flow: what is left, and who was lost on the way from the step before, reason → ids."""

    step: str
    slides: int
    patients: int
    excluded: Mapping[str, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        excluded = {reason: list(ids) for reason, ids in self.excluded.items()}
        return {"step": self.step, "slides": self.slides, "patients": self.patients, "excluded": excluded}


@dataclass(frozen=True, slots=True)
class Joined:
    """What is judged.

    flow     from all that the manifest names to the bags that are judged
    columns  what was read: role → column
    notes    what was guessed
    """

    predictions: Predictions
    flow: tuple[Step, ...]
    columns: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the manifest says of one id: the row its truth stands in, None without one, its patient and columns."""

    truth: Row | None
    patient: str
    columns: Mapping[str, str]


def read_joined(predictions: Path, manifest: Path, spec: TableSpec | None = None) -> Joined:
    """Read both tables and join them.

    Raises ManifestError, naming file and line, for whatever cannot be judged: an id that the manifest does not have,
    or that stands twice, a value that is no number or out of its range; and when nothing is left to judge.
    """
    spec = spec or TableSpec()
    if spec.task.name == "ordinal" and not spec.task.classes:
        raise SpecError("--classes", "the order of the classes is not known", "name them from the least to the most")
    said, known = read_table(predictions), read_table(manifest)
    said = said if spec.id else _one_a_bag(said)
    bag, join = _ids(spec, said, known)
    columns = truth_columns(spec.task, known)
    at = said.column(join, "--id")
    facts = _group(known, known.column(join, "--id"), columns, {row.cells[at] for row in said.rows})
    rows = _rows(said, bag, join, facts, manifest)
    status = said.first(("status",))
    states = {name: row.text(status).casefold() if status else "" for name, row in rows.items()}
    labelled = [name for name, row in rows.items() if facts[row.cells[join]].truth is not None]
    judged = [name for name in labelled if states[name] in ("", "done")]
    if not judged:
        problem = f"none of its {len(rows)} rows has a truth in {listed(columns)} of {manifest}"
        raise ManifestError(predictions, problem, "fill that column, or name another with --target")
    outputs = find_outputs(spec, said, labels_of(spec.task, _texts(facts, columns)))
    about = {name: facts[rows[name].cells[join]] for name in judged}
    truths = [
        read_truth(spec.task, outputs.classes, columns, row) for one in about.values() if (row := one.truth) is not None
    ]
    folds, repeats, fold_notes = _folds(said, [rows[name] for name in judged])
    owners = [_patient(one, rows[name], said) for name, one in about.items()]
    found = Predictions(
        task=spec.task.name,
        classes=outputs.classes,
        ids=tuple(judged),
        patients=tuple(owner or name for owner, name in zip(owners, judged, strict=True)),
        truth=as_array(spec.task, truths),
        outputs=np.array([outputs.read(rows[name]) for name in judged], dtype=np.float64),
        folds=folds,
        calibrated=outputs.calibrated,
        times=outputs.times,
        columns=_columns(list(about.values()), known, {join, *columns}),
        repeats=repeats,
    )
    flow = _flow(facts, {name: row.cells[join] for name, row in rows.items()}, states, found)
    roles = {"id": bag, "joined by": join, "truth": listed(columns), "predictions": listed(outputs.columns)}
    unowned = 0 if bag.casefold() == "patient_id" else owners.count("")
    return Joined(found, flow, roles, (*_notes(outputs, bag, join), *_owner_notes(unowned, len(judged)), *fold_notes))


def _one_a_bag(said: Table) -> Table:
    """Of the engine's own table with a row for each slide, one row for each case or patient that its `bag` names.

    Each is then named so, and not by the slide.
    """
    if not {"bag", *IDS} <= set(said.columns):
        return said
    owner = next((name for name in IDS if all(row.cells["bag"] == row.cells[name] for row in said.rows)), "slide_id")
    if owner == "slide_id":
        return said
    rows = sorted(
        said.rows, key=lambda row: row.cells.get("status") not in ("", "done", None)
    )  # one that says something
    firsts = {row.cells["bag"]: row for row in reversed(rows)}
    columns = tuple(name for name in said.columns if name not in IDS or name == owner)
    return Table(said.path, columns, tuple(firsts.values()))


def _ids(spec: TableSpec, said: Table, known: Table) -> tuple[str, str]:
    """The columns that name a prediction's bag and that both tables are joined by."""
    if spec.id:
        bag = said.column(spec.id, "--id")
        return bag, bag if known.first((bag,)) else known.column(spec.id, "--id")
    found = said.first(IDS) or said.first(known.columns[:1])
    if found is None:
        problem = f"no column names the slides; it has {listed(said.columns, 12)}"
        raise ManifestError(said.path, problem, f"call it slide_id, or as in {known.path} and name it with --id")
    shared = [name for name in (found, *IDS[1:]) if said.first((name,)) and known.first((name,))]
    if not shared:
        problem = f"it has no column {found!r}, by which {said.path} names its rows"
        raise ManifestError(known.path, problem, "give both tables one id column, and name it with --id")
    return found, str(said.first(shared[:1]))


def _group(known: Table, join: str, columns: Sequence[str], predicted: set[str]) -> dict[str, _Facts]:
    """id → what the manifest says of it. Rows of one predicted case or patient must agree on truth and patient."""
    groups: dict[str, list[Row]] = {}
    for row in known.rows:
        name = row.cells[join]
        if not name:
            raise ManifestError(row.where, f"{join} is empty", "name the slide")
        if name in groups and join.casefold() == "slide_id":
            problem = f"{name} stands there again, first in {groups[name][0].where}"
            raise ManifestError(row.where, problem, "keep one line for each slide")
        groups.setdefault(name, []).append(row)
    owner = known.first(("patient_id",)) or known.first(("case_id",))
    return {name: _agreed(name, rows, columns, owner, name in predicted) for name, rows in groups.items()}


def _agreed(name: str, rows: Sequence[Row], columns: Sequence[str], owner: str | None, strict: bool) -> _Facts:
    labelled = [row for row in rows if all(row.text(column) for column in columns)]
    for what, texts in (
        ("truth", {tuple(row.text(column) for column in columns) for row in labelled}),
        ("patient", {row.text(owner) for row in rows if row.text(owner)} if owner else set()),
    ):
        if len(texts) > 1 and strict:
            shown = " and ".join(sorted(str(t if isinstance(t, str) else listed(t)) for t in texts)[:2])
            problem = f"the rows of {name} do not agree on its {what}: {shown}"
            raise ManifestError(rows[-1].where, problem, "correct them, or give predictions for each slide")
    shared = {key: value for key, value in rows[0].cells.items() if all(row.cells[key] == value for row in rows)}
    patient = next((row.text(owner) for row in rows if row.text(owner)), "") if owner else ""
    return _Facts(labelled[0] if labelled else None, patient, shared)


def _rows(said: Table, bag: str, join: str, facts: Mapping[str, _Facts], manifest: Path) -> dict[str, Row]:
    """Name of each bag → its row. Refuses repeated names and those that the manifest does not have."""
    rows: dict[str, Row] = {}
    for row in said.rows:
        name = row.cells[bag]
        if not name:
            raise ManifestError(row.where, f"{bag} is empty", "name the slide, case or patient")
        if name in rows:
            problem = f"{name} is predicted twice, first in {rows[name].where}"
            raise ManifestError(row.where, problem, f"keep one row for each {bag}, or name another column with --id")
        rows[name] = row
    strange = [name for name, row in rows.items() if row.cells[join] not in facts]
    if strange:
        problem = f"{len(strange)} of {len(rows)} ids are not in {manifest}: {listed(strange)}"
        remedy = f"add them to its column {join}, take them out here, or name the column of ids with --id"
        raise ManifestError(said.path, problem, remedy)
    return rows


def _texts(facts: Mapping[str, _Facts], columns: Sequence[str]) -> list[str]:
    return [one.truth.text(columns[0]) for one in facts.values() if one.truth is not None]


def _patient(facts: _Facts, row: Row, said: Table) -> str:
    """Whose the bag is, "" where neither table says it."""
    column = said.first(("patient_id",)) or said.first(("case_id",))
    return facts.patient or (row.text(column) if column else "")


def _owner_notes(unowned: int, judged: int) -> tuple[str, ...]:
    """What it means that no patient is named of some bags, or of all."""
    if not unowned:
        return ()
    what = "no column names patients: every row counts as one"
    if unowned < judged:
        what = f"no patient is named of {unowned} rows: each of them counts as one"
    return (f"{what}; intervals are too narrow if some share a patient",)


def _folds(said: Table, rows: Sequence[Row]) -> tuple[NDArray[np.int64] | None, int, tuple[str, ...]]:
    """The fold of each row, (n,), None unless every row names one; over how many repeats it is the mean, and a note."""
    column, origin, repeats = said.first(("fold",)), said.first(("origin",)), 1
    if column:
        texts = [row.text(column) for row in rows]
    elif origin:
        found = [_FOLD.fullmatch(row.text(origin)) for row in rows]
        texts = [match[1] if match else "" for match in found]
        repeats = max(row.text(origin).count(",") + 1 for row in rows)
    else:
        return None, 1, ()
    if not all(texts) or len(set(texts)) < 2:
        return None, 1, ()
    names = sorted(set(texts), key=lambda text: (len(text), text))  # 2 before 10
    note = f"out of fold by the column {column or origin!r}: {len(names)} folds"
    numbers = {name: int(name) if all(n.isdigit() for n in names) else i for i, name in enumerate(names)}
    return np.array([numbers[text] for text in texts], np.int64), repeats, (note,)


def _columns(about: Sequence[_Facts], known: Table, used: set[str]) -> dict[str, tuple[str, ...]]:
    """Every other column of the manifest, for subgroups; a value that differs within a case is unknown."""
    names = [name for name in known.columns if name not in used and name.casefold() not in _NO_SUBGROUP]
    return {name: tuple(one.columns.get(name, "") for one in about) for name in names}


def _flow(
    facts: Mapping[str, _Facts], joined: Mapping[str, str], states: Mapping[str, str], found: Predictions
) -> tuple[Step, ...]:
    """What the manifest names, what of it has a truth, and what of that is judged.

    joined: bag → its id in the manifest; states: bag → what its row says became of it.
    """
    labelled = [name for name, one in facts.items() if one.truth is not None]
    without = tuple(name for name, one in facts.items() if one.truth is None)
    lost: dict[str, tuple[str, ...]] = {}
    predicted = set(joined.values())
    if missing := tuple(name for name in labelled if name not in predicted):
        lost["no row in the table of predictions"] = missing
    kept = set(labelled)
    for state in sorted({state for state in states.values() if state not in ("", "done")}):
        if ids := tuple(bag for bag, name in joined.items() if states[bag] == state and name in kept):
            lost[f"its row says {state!r}"] = ids
    owners = [len({facts[name].patient or name for name in names}) for names in (facts, labelled)]
    return (
        Step("in the manifest", len(facts), owners[0], {}),
        Step("labelled", len(labelled), owners[1], {"no truth in the manifest": without} if without else {}),
        Step("predicted and judged", len(found), len(set(found.patients)), lost),
    )


def _notes(outputs: Outputs, bag: str, join: str) -> tuple[str, ...]:
    notes: list[str] = list(outputs.notes)
    if bag != join:
        notes.append(f"the truth is of the {join}: every {bag} of one {join} has the same")
    return tuple(notes)
