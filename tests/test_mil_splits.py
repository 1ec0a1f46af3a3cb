"""Folds: one patient, one fold; classes spread evenly; refused where that cannot be."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mil import Bag, check_leakage, make_splits
from mil.splits import validation_part, who
from wsi.errors import SpecError


def bag(slide_id, patient_id=None, case_id=None, identity=""):
    return Bag(
        np.zeros((1, 2), np.float32),
        np.zeros((1, 2), np.int64),
        256,
        (slide_id,),
        "tumour",
        patient_id,
        case_id,
        identity,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.booleans()), min_size=12, max_size=60), st.integers(2, 5))
def test_a_patient_lies_in_one_fold_whatever_the_cohort(rows, folds):
    patients = [f"p{patient}" for patient, _ in rows]
    labels = ["tumour" if positive else "normal" for _, positive in rows]
    try:
        fold_of = make_splits(patients, labels, folds, seed=0)
    except SpecError:
        assume(False)
    assert set(fold_of) <= set(range(folds))
    for patient in set(patients):
        assert len({fold for fold, name in zip(fold_of, patients, strict=True) if name == patient}) == 1
    for fold in range(folds):
        assert {label for label, other in zip(labels, fold_of, strict=True) if other != fold} == {"tumour", "normal"}


def test_classes_are_spread_evenly_and_the_seed_decides():
    patients, labels = [f"p{i}" for i in range(40)], ["tumour"] * 10 + ["normal"] * 30
    fold_of = make_splits(patients, labels, 5, seed=1)
    assert np.bincount(fold_of[:10]).tolist() == [2] * 5
    assert np.bincount(fold_of[10:]).tolist() == [6] * 5
    assert (fold_of == make_splits(patients, labels, 5, seed=1)).all()
    assert (fold_of != make_splits(patients, labels, 5, seed=2)).any()


def test_a_patient_with_slides_of_two_labels_stays_together():
    patients = [f"p{i // 2}" for i in range(24)]
    labels = ["tumour", "normal"] * 8 + ["normal"] * 8
    fold_of = make_splits(patients, labels, 4, seed=0)
    assert (fold_of[::2] == fold_of[1::2]).all()


@pytest.mark.parametrize(
    ("patients", "labels", "folds", "message"),
    [
        (["a", "b", "c", "d", "e"], ["x", "x", "x", "y", "y"], 3, "class 'y' has 2 patient"),
        (["a", "b", "c", "c", "c"], ["x", "x", "y", "y", "y"], 2, "class 'y' has 1 patient"),
        (["a", "b"], ["x", "x"], 2, "one class"),
    ],
)
def test_a_cohort_too_small_for_its_folds_is_refused(patients, labels, folds, message):
    with pytest.raises(SpecError, match=message):
        make_splits(patients, labels, folds, seed=0)


def test_the_validation_part_is_by_patient_and_has_every_class():
    patients, labels = [f"p{i // 2}" for i in range(40)], ["tumour", "tumour", "normal", "normal"] * 10
    part = validation_part(patients, labels, seed=0)
    assert not {p for p, held in zip(patients, part, strict=True) if held} & {
        p for p, held in zip(patients, part, strict=True) if not held
    }
    assert {label for label, held in zip(labels, part, strict=True) if held} == {"tumour", "normal"}
    assert part.mean() == pytest.approx(0.2, abs=0.06)


def test_with_one_patient_of_a_class_nothing_is_held_back():
    assert not validation_part(["a", "b", "c"], ["x", "x", "y"], seed=0).any()


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (bag("s1", patient_id="p"), bag("s2", patient_id="p"), "patient"),
        (bag("s1", case_id="c"), bag("s2", case_id="c"), "case"),
        (bag("s1", "p", identity="ab"), bag("s2", "q", identity="ab"), "slide content"),
        (bag("s1", "p"), bag("s1", "q"), "slide"),
    ],
)
def test_whatever_two_folds_share_is_called_a_leak(first, second, shared):
    check_leakage([first, second], np.array([0, 0]))
    with pytest.raises(SpecError, match=f"shares its {shared} with s1"):
        check_leakage([first, second], np.array([0, 1]))


def test_bags_that_share_anything_belong_together_also_through_a_third():
    names = who([bag("s1", "p"), bag("s2", "q", "c"), bag("s3", "p", "c"), bag("s4", "r"), bag("s5")])
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


def test_bags_of_which_nothing_is_known_do_not_leak():
    check_leakage([bag("s1"), bag("s2")], np.array([0, 1]))
