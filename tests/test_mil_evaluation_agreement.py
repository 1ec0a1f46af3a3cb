"""Agreement figures are scikit-learn's, for weights as well, with intervals over patients."""

import time
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, confusion_matrix, f1_score

from mil.evaluation.agreement import (
    accuracies,
    agreement,
    balanced_accuracies,
    balanced_accuracy,
    confusion,
    f1_macros,
    f1_weighteds,
    from_draws,
    kappas,
)
from mil.evaluation.estimate import bootstrap
from wsi.errors import SpecError

FIGURES = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "kappa", "kappa_linear", "kappa_quadratic")


def calls(slides=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, slides)
    called = np.clip(truth + rng.integers(-1, 2, slides), 0, classes - 1)
    return truth, called, [str(i // 2) for i in range(slides)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore::UserWarning")
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=30))
def test_figures_are_scikit_learns_also_with_weights(rows):
    truth, called, weight = (np.array(column) for column in zip(*rows, strict=True))
    matrix = confusion_matrix(truth, called, labels=[0, 1, 2], sample_weight=weight)[None].astype(float)
    given_ = {"sample_weight": weight}
    assert accuracies(matrix)[0] == pytest.approx(accuracy_score(truth, called, **given_))
    assert balanced_accuracies(matrix)[0] == pytest.approx(balanced_accuracy_score(truth, called, **given_))
    assert f1_macros(matrix)[0] == pytest.approx(f1_score(truth, called, average="macro", **given_))
    assert f1_weighteds(matrix)[0] == pytest.approx(f1_score(truth, called, average="weighted", **given_))
    for power, name in ((0, None), (1, "linear"), (2, "quadratic")):
        expected = cohen_kappa_score(truth, called, labels=[0, 1, 2], weights=name, **given_)
        assert kappas(matrix, power=power)[0] == pytest.approx(expected, nan_ok=True)


def test_an_agreement_holds_scikit_learns_figures_inside_their_intervals():
    truth, called, patients = calls()
    found = agreement(truth, called, 4, patients)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, called))
    assert found.kappa_quadratic.value == pytest.approx(cohen_kappa_score(truth, called, weights="quadratic"))
    assert found.accuracy.value == pytest.approx(accuracy_score(truth, called))
    for name in FIGURES:
        estimate = getattr(found, name)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.resamples == 2000


def test_one_matrix_per_resample_gives_the_interval_of_the_general_bootstrap():
    truth, called, patients = calls()
    cells = np.eye(16)[truth * 4 + called]
    expected = bootstrap(lambda w: kappas((w @ cells).reshape(-1, 4, 4), power=2), patients)
    found = agreement(truth, called, 4, patients).kappa_quadratic
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_slides_of_one_patient_that_say_the_same_do_not_narrow_the_interval():
    truth, called, _ = calls(60)
    once = agreement(truth, called, 4, [str(i) for i in range(60)]).accuracy
    copied = agreement(np.tile(truth, 4), np.tile(called, 4), 4, [str(i % 60) for i in range(240)]).accuracy
    fooled = agreement(np.tile(truth, 4), np.tile(called, 4), 4, [str(i) for i in range(240)]).accuracy
    assert copied.high - copied.low == pytest.approx(once.high - once.low, abs=0.02)
    assert fooled.high - fooled.low < 0.6 * (once.high - once.low)


def test_the_interval_of_kappa_covers_the_truth_about_as_often_as_promised():
    rng, hits = np.random.default_rng(4), 0
    for run in range(150):
        truth = rng.integers(0, 2, 120)
        called = np.where(rng.random(120) < 0.8, truth, 1 - truth)  # kappa is 0.6
        estimate = agreement(truth, called, 2, [str(i) for i in range(120)], seed=run).kappa
        hits += estimate.low <= 0.6 <= estimate.high
    assert 0.89 <= hits / 150 <= 0.99


def test_a_thousand_slides_of_ten_classes_take_about_a_second():
    truth, called, patients = calls(1000, 10)
    started = time.process_time()
    agreement(truth, called, 10, patients)
    assert time.process_time() - started < 2.5


@pytest.mark.parametrize(
    ("truth", "called", "patients", "accuracy", "reason"),
    [
        ([], [], [], None, "not defined"),
        ([0, 1], [0, 0], ["a", "a"], 0.5, "single patient"),
        ([0, 1, 1], [0, 1, 1], ["a", "b", "c"], 1.0, "the same in every resample"),
    ],
)
def test_a_table_without_an_interval_says_why(truth, called, patients, accuracy, reason):
    found = agreement(np.array(truth, int), np.array(called, int), 2, patients).accuracy
    assert (found.value, found.low) == (accuracy, None)
    assert reason in found.reason


def test_kappa_of_one_class_alone_is_not_defined():
    found = agreement(np.zeros(5, int), np.zeros(5, int), 3, list("abcde"))
    assert found.kappa.value is None
    assert found.accuracy.value == 1.0
    assert asdict(found)["confusion"][0] == (5, 0, 0)


def test_resamples_that_are_mostly_undefined_give_no_interval():
    found = from_draws(0.5, np.array([0.4, np.nan, np.nan, 0.6, np.nan]))
    assert (found.value, found.low, found.resamples) == (0.5, None, 2)


def test_balanced_accuracy_leaves_out_classes_without_slides():
    assert balanced_accuracy(np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])) == pytest.approx((0.75 + 0.5) / 2)
    assert balanced_accuracy(np.zeros((2, 2), int)) is None


@pytest.mark.parametrize("call", [confusion, partial(agreement, patients=["a", "b"])])
def test_classes_out_of_range_are_refused(call):
    with pytest.raises(SpecError, match="outside 0 to 1"):
        call(np.array([0, 1]), np.array([0, 2]), 2)
    with pytest.raises(SpecError, match="one of each"):
        call(np.array([0, 1]), np.array([0]), 2)
