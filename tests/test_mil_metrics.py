"""Figures agree with scikit-learn and with a plain bootstrap; degenerate tables give None and a reason."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from mil import auroc, auroc_interval, evaluate
from mil.metrics import roc_curve
from wsi.errors import SpecError

BOTH = ("normal", "tumour")


def table(slides, patients, classes=2, seed=0, decimals=1):
    """Truth, softmax with many ties, and patients with several slides."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, slides)
    raw = rng.normal(size=(slides, classes)) + 0.8 * np.eye(classes)[truth]
    softmax = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    if classes == 2:
        softmax[:, 1] = softmax[:, 1].round(decimals)
        softmax[:, 0] = 1 - softmax[:, 1]
    return truth, softmax, [f"p{rng.integers(patients)}" for _ in range(slides)]


def one_hot(score):
    return np.stack([1 - score, score], axis=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_auroc_is_scikit_learns_also_with_ties(rows):
    positive, score = (np.array(column) for column in zip(*rows, strict=True))
    value = auroc(positive, score / 6)
    if positive.all() or not positive.any():
        assert value is None
    else:
        assert value == pytest.approx(roc_auc_score(positive, score))


def test_macro_auroc_is_scikit_learns_one_versus_rest():
    truth, softmax, patients = table(80, 40, classes=4)
    expected = roc_auc_score(truth, softmax, multi_class="ovr", average="macro")
    assert auroc_interval(truth, softmax, patients, resamples=50).value == pytest.approx(expected)


def test_the_interval_is_that_of_a_plain_bootstrap_over_patients():
    truth, softmax, patients = table(60, 20)
    names = sorted(set(patients))
    rows = {name: np.flatnonzero(np.array(patients) == name) for name in names}
    rng, values = np.random.default_rng(7), []
    for _ in range(1500):
        chosen = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        if 0 < truth[chosen].sum() < len(chosen):
            values.append(roc_auc_score(truth[chosen], softmax[chosen, 1]))
    estimate = auroc_interval(truth, softmax, patients, resamples=4000)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.015)


def test_several_slides_of_a_patient_do_not_count_as_independent():
    truth, softmax, patients = table(40, 10_000)
    once = auroc_interval(truth, softmax, patients)
    copied = auroc_interval(np.tile(truth, 5), np.tile(softmax, (5, 1)), patients * 5)
    fooled = auroc_interval(np.tile(truth, 5), np.tile(softmax, (5, 1)), [str(i) for i in range(200)])
    assert copied.value == pytest.approx(once.value)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, abs=0.02)
    assert fooled.high - fooled.low < 0.6 * (copied.high - copied.low)


def test_two_thousand_resamples_of_500_slides_take_less_than_a_second():
    truth, softmax, patients = table(500, 300)
    started = time.process_time()
    assert auroc_interval(truth, softmax, patients, resamples=2000).resamples == 2000
    assert time.process_time() - started < 1


def test_the_interval_is_the_same_every_time_and_encloses_the_value():
    truth, softmax, patients = table(60, 30)
    first = auroc_interval(truth, softmax, patients, seed=4)
    assert first == auroc_interval(truth, softmax, patients, seed=4)
    assert first.low < first.value < first.high


def test_the_roc_curve_is_scikit_learns():
    truth, softmax, _ = table(50, 50)
    expected = sklearn_roc_curve(truth, softmax[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(truth == 1, softmax[:, 1]), expected[:2])


@pytest.mark.parametrize("classes", [2, 4])
def test_an_evaluation_counts_and_agrees_with_scikit_learn(classes):
    truth, softmax, patients = table(70, 30, classes)
    names = [f"class {c}" for c in range(classes)]
    found = evaluate([names[t] for t in truth], softmax, names, patients, folds=[i % 5 for i in range(70)])
    predicted = softmax.argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, predicted))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert (found.slides, found.patients, sum(found.slides_per_class)) == (70, len(set(patients)), 70)
    assert len(found.per_fold) == 5
    judged = [value for value in found.per_fold if value is not None]
    assert found.mean_of_folds == pytest.approx(np.mean(judged))
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "patients", "reason"),
    [
        (["tumour"] * 4, ["a", "b", "c", "d"], "has no slide"),
        ([], [], "has no slide"),
        (["tumour", "normal"], ["a", "a"], "single patient"),
    ],
)
def test_a_table_that_cannot_be_judged_gives_a_reason_instead_of_an_interval(labels, patients, reason):
    softmax = one_hot(np.linspace(0.2, 0.8, len(labels)))
    found = evaluate(labels, softmax, BOTH, patients, folds=[0] * len(labels))
    assert reason in found.auroc.reason
    assert found.auroc.low is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_fold_without_one_class_has_no_auroc_and_does_not_count_in_the_mean():
    found = evaluate(
        ["normal", "tumour", "tumour"], one_hot(np.array([0.1, 0.9, 0.7])), BOTH, ["a", "b", "c"], [0, 0, 1]
    )
    assert found.per_fold == (1.0, None)
    assert found.mean_of_folds == 1.0


def test_two_patients_give_a_value_but_say_why_there_is_no_interval():
    found = auroc_interval(np.array([0, 1]), one_hot(np.array([0.2, 0.9])), ["a", "b"], resamples=200)
    assert found.value == 1.0
    # half of all draws of two from two have one patient twice
    assert 70 < found.resamples < 130


def test_labels_the_model_does_not_know_are_refused():
    with pytest.raises(SpecError, match="'benign' is none of normal, tumour"):
        evaluate(["benign"], one_hot(np.array([0.5])), BOTH, ["a"])
