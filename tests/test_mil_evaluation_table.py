"""Which class of a table is the positive one, and whom its rows are counted as."""

from pathlib import Path

import pytest

from mil.evaluation.table_join import Joined, read_joined
from mil.evaluation.table_truth import TableSpec
from mil.spec import TaskSpec

MANIFEST = "slide_id,patient_id,label,site\na,p1,tumor,x\nb,p1,normal,x\nc,p2,tumor,y\nd,p3,,y\ne,p4,normal,y\n"
SHARES = "slide_id,softmax_normal,softmax_tumor\na,0.2,0.8\nb,0.7,0.3\nc,0.4,0.6\nd,0.5,0.5\n"


def joined(folder: Path, predictions: str, manifest: str = MANIFEST, spec: TableSpec | None = None) -> Joined:
    (folder / "p.csv").write_text(predictions)
    (folder / "m.csv").write_text(manifest)
    return read_joined(folder / "p.csv", folder / "m.csv", spec)


@pytest.mark.parametrize(
    ("spec", "classes", "shares"),
    [
        (TableSpec(), ("normal", "tumor"), {"a": 0.8, "b": 0.3}),
        (TableSpec(positive="normal"), ("tumor", "normal"), {"a": 0.2, "b": 0.7}),
        (TableSpec(TaskSpec(classes=("tumor", "normal"))), ("tumor", "normal"), {"a": 0.2, "b": 0.7}),
    ],
)
@pytest.mark.parametrize("head", ["softmax_tumor,softmax_normal", "tumor,normal", "softmax_normal,softmax_tumor"])
def test_the_positive_of_two_classes_is_the_last_of_the_sorted_whatever_the_columns_order(
    tmp_path, head, spec, classes, shares
):
    values = {"a": (0.8, 0.2), "b": (0.3, 0.7)}  # of tumor, of normal
    turned = -1 if head.startswith("softmax_normal") else 1
    lines = "".join(f"{name},{','.join(map(str, pair[::turned]))}\n" for name, pair in values.items())
    found = joined(tmp_path, f"slide_id,{head}\n{lines}", spec=spec)
    assert found.predictions.classes == classes
    assert dict(zip(found.predictions.ids, found.predictions.outputs[:, 1].tolist(), strict=True)) == shares
    guessed = [note for note in found.notes if note.startswith("positive class: tumor (the last of the sorted")]
    assert bool(guessed) == (spec == TableSpec())


@pytest.mark.parametrize("option", [{}, {"probability": "softmax_normal"}])
@pytest.mark.parametrize(
    ("spec", "classes", "share"),
    [
        ({}, ("tumor", "normal"), 0.2),
        ({"positive": "tumor"}, ("normal", "tumor"), 0.8),
        ({"task": TaskSpec(classes=("normal", "tumor"))}, ("normal", "tumor"), 0.8),
    ],
)
def test_one_column_is_of_the_class_it_is_named_for_whichever_is_positive(tmp_path, option, spec, classes, share):
    found = joined(tmp_path, "slide_id,softmax_normal\na,0.2\nb,0.7\n", spec=TableSpec(**spec, **option))
    assert found.predictions.classes == classes
    assert found.predictions.outputs[0, 1] == pytest.approx(share)
    assert any("the only column is of it" in note for note in found.notes) == (not spec)


def test_rows_that_name_no_patient_are_said_to_count_as_one_each(tmp_path):
    def said(manifest: str, predictions: str = SHARES) -> list[str]:
        return [note for note in joined(tmp_path, predictions, manifest).notes if "intervals are too narrow" in note]

    assert said(MANIFEST) == []
    bare = "slide_id,label\na,tumor\nb,normal\nc,tumor\nd,\n"
    (note,) = said(bare)
    assert note.startswith("no column names patients: every row counts as one")
    (some,) = said(MANIFEST.replace("a,p1", "a,").replace("b,p1", "b,"))
    assert some.startswith("no patient is named of 2 rows")
    assert said("patient_id,label\na,tumor\nb,normal\n", "patient_id,prob\na,0.3\nb,0.2\n") == []
    assert said("case_id,label\na,tumor\nb,normal\n", "case_id,prob\na,0.3\nb,0.2\n") == []


def test_a_models_own_table_of_patients_has_one_row_for_each(tmp_path):
    """At the level of patients every slide of one says the same: they are one bag, and not several."""
    said, known = tmp_path / "said.csv", tmp_path / "known.csv"
    head = "slide_id,case_id,patient_id,bag,status,softmax_a,softmax_b\n"
    rows = [f"s{i},c{i},p{i // 2},p{i // 2},{'failed' if i == 0 else 'done'}" for i in range(8)]
    answers = ["," if i == 0 else f"{0.9 - 0.1 * (i // 2):.1f},{0.1 + 0.1 * (i // 2):.1f}" for i in range(8)]
    said.write_text(head + "\n".join(f"{row},{text}" for row, text in zip(rows, answers, strict=True)))
    truth = "\n".join(f"s{i},p{i // 2},{'ab'[i // 4]}" for i in range(8))
    known.write_text(f"slide_id,patient_id,label\n{truth}\n")
    joined = read_joined(said, known)
    assert joined.predictions.ids == joined.predictions.patients
    assert sorted(joined.predictions.ids) == ["p0", "p1", "p2", "p3"]
