"""Prediction sets and abstention keep their promise on bags that are exchangeable, patients counted once."""

import json
import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from mil.evaluation.abstain import abstain_threshold, risk_coverage
from mil.evaluation.conformal import (
    Conformal,
    ConformalSpec,
    conformal_threshold,
    cross_conformal,
    fit_conformal,
    nonconformity,
)
from wsi.errors import SpecError


def cohort(n=400, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(n, classes)) * 2, axis=1)
    truth = np.minimum((p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), classes - 1)
    return p, truth


def people(n):
    return [f"p{k}" for k in range(n)]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.31])
def test_lac_sets_are_those_of_mapie(alpha):
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Hands probabilities on."""

        def __init__(self):
            self.classes_ = np.arange(3)
            self.fitted_ = True

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return x

        def predict(self, x):
            return x.argmax(axis=1)

    p, truth = cohort()
    theirs = SplitConformalClassifier(Given(), confidence_level=1 - alpha, conformity_score="lac", prefit=True)
    sets = theirs.conformalize(p[:200], truth[:200]).predict_set(p[200:])[1][:, :, 0]
    found = fit_conformal(p[:200], truth[:200], ConformalSpec(alpha))
    np.testing.assert_array_equal(found.sets(p[200:]), sets)


def test_the_threshold_is_the_corrected_order_statistic():
    scores = np.arange(1, 20) / 20  # n = 19: the 18th at 10 %, the 19th at 5 %, none at 4 %
    assert conformal_threshold(scores, 0.1) == 0.9
    assert conformal_threshold(scores, 0.05) == 0.95
    assert math.isinf(conformal_threshold(scores, 0.04))


def test_a_patient_counts_once_however_many_slides_he_has():
    scores = np.array([0.1, 0.2, 0.3, *[0.9] * 100])
    crowd = ["a", "b", "c", *["d"] * 100]
    assert conformal_threshold(scores, 0.4, crowd) == 0.3  # three of five
    assert conformal_threshold(scores, 0.4) == 0.9


def test_aps_adds_up_to_the_class_itself():
    p = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(nonconformity(p, "aps"), [[1, 0, 0.8], [0, 0.8, 1]])
    np.testing.assert_allclose(nonconformity(p, "lac"), 1 - p)


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_over_many_cohorts_is_what_was_promised(score, by_class):
    spec, held, counts = ConformalSpec(0.2, score, by_class), np.zeros(3), np.zeros(3)
    for seed in range(60):
        p, truth = cohort(n=300, seed=seed)
        sets = fit_conformal(p[:100], truth[:100], spec).sets(p[100:])
        inside = sets[np.arange(200), truth[100:]]
        held, counts = held + np.bincount(truth[100:], inside, 3), counts + np.bincount(truth[100:], minlength=3)
    covered = held / counts if by_class else held.sum() / counts.sum()
    assert np.min(covered) > 0.8 - 0.015
    assert score == "aps" or np.max(covered) < 0.8 + (0.05 if by_class else 0.02)


def test_slides_of_one_patient_do_not_break_the_promise():
    rng, held, naive = np.random.default_rng(0), [], []
    for _ in range(300):  # patients with many slides are the easy ones
        slides = rng.choice([1, 12], 20)
        hard = np.where(slides == 1, 1.0, 0.1)
        score = np.repeat(hard * rng.random(20), slides)
        patient = np.repeat(np.arange(20), slides).astype(str)
        new = np.where(rng.random() < 0.5, 1.0, 0.1) * rng.random()
        held.append(new <= conformal_threshold(score, 0.2, patient.tolist()))
        naive.append(new <= conformal_threshold(score, 0.2))
    assert np.mean(held) > 0.76
    assert np.mean(naive) < 0.65


def test_folds_are_covered_by_thresholds_of_the_others():
    p, truth = cohort(n=600)
    folds = np.arange(600) % 3
    found = cross_conformal(p, truth, folds, people(600), ConformalSpec(0.1))
    assert found.coverage.low < 0.9 < found.coverage.high
    assert found.coverage.value == pytest.approx(found.sets[np.arange(600), truth].mean())
    assert found.size.value == pytest.approx(found.sets.sum(axis=1).mean())
    assert found.singletons.value + found.empty.value < 1
    other = truth.copy()
    other[folds == 0] = (other[folds == 0] + 1) % 3
    again = cross_conformal(p, other, folds, people(600), ConformalSpec(0.1))
    np.testing.assert_array_equal(again.sets[folds == 0], found.sets[folds == 0])
    json.dumps(found.as_dict())


def test_too_few_patients_promise_nothing_so_every_class_is_in():
    p, truth = cohort(n=12, classes=2)
    found = fit_conformal(p, truth, ConformalSpec(0.05, by_class=True))
    assert found.sets(p).all()
    again = Conformal.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found


@pytest.mark.filterwarnings("error")
def test_a_class_without_slides_has_no_coverage_but_a_reason():
    p, truth = cohort(n=40, classes=3)
    found = cross_conformal(p, np.minimum(truth, 1), np.arange(40) % 2, people(40))
    assert found.per_class[2].value is None
    assert "class 2" in found.per_class[2].reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConformalSpec(0), "alpha in"),
        (lambda: ConformalSpec(0.1, "raps"), "lac or aps"),
        (lambda: nonconformity(np.array([[1.5, -0.5]]), "lac"), "outside"),
        (lambda: fit_conformal(np.full((2, 2), 0.5), np.array([0, 2]), ConformalSpec()), "class index"),
        (lambda: cross_conformal(np.full((2, 2), 0.5), np.array([0, 1]), [0, 0], ["a", "b"]), "two folds"),
        (lambda: abstain_threshold(np.full((2, 2), 0.5), np.array([0, 1]), 1.0), "between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(SpecError, match=message):
        call()


# abstention


def test_the_bound_inverts_the_binomial_as_in_the_paper():
    p = np.array([[0.1, 0.9]] * 50)
    truth = np.array([0] * 2 + [1] * 48)
    found = abstain_threshold(p, truth, 0.3)
    assert (found.threshold, found.coverage, found.selective_risk) == (0.9, 1.0, 0.04)
    assert binom.cdf(2, 50, found.bound) == pytest.approx(0.05 / 6, rel=1e-6)  # log2 of 50, rounded up
    assert abstain_threshold(p, truth, 0.1).threshold is None
    assert "too few patients" in abstain_threshold(p, truth, 0.1).reason


def test_the_promised_risk_is_kept_on_new_bags():
    broken = 0
    for seed in range(100):
        p, truth = cohort(n=400, classes=2, seed=seed)
        found = abstain_threshold(p, truth, 0.15)
        fresh, answer = cohort(n=4000, classes=2, seed=1000 + seed)
        given = fresh.max(axis=1) >= found.threshold
        broken += (fresh.argmax(axis=1) != answer)[given].mean() > 0.15
        assert 0.1 < found.coverage < 1
    assert broken <= 5


def test_copies_of_a_slide_prove_nothing_more():
    p, truth = cohort(n=300, classes=2)
    patients = [f"p{k // 5}" for k in range(1500)]
    alone = abstain_threshold(p, truth, 0.2)
    copied = abstain_threshold(np.repeat(p, 5, axis=0), np.repeat(truth, 5), 0.2, patients)
    assert copied.coverage <= alone.coverage
    assert copied.threshold >= alone.threshold


def test_risk_coverage_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    found = risk_coverage(p, np.array([0, 1, 1, 0]), people(4), resamples=20)
    assert found.coverage == (0.25, 0.75, 1.0)  # the two of 0.8 come together
    assert found.risk == (0, pytest.approx(1 / 3), 0.5)
    assert found.aurc.value == pytest.approx((0 + 2 / 3 + 0.5) / 4)


def test_the_area_without_ties_is_the_mean_of_running_risks():
    p, truth = cohort(n=200)
    wrong = (p.argmax(axis=1) != truth)[np.argsort(-p.max(axis=1))]
    found = risk_coverage(p, truth, people(200), resamples=100)
    assert found.aurc.value == pytest.approx(np.mean(wrong.cumsum() / np.arange(1, 201)))
    assert found.aurc.low < found.aurc.value < found.aurc.high


def test_nothing_to_answer_gives_a_reason():
    assert risk_coverage(np.zeros((0, 2)), np.zeros(0, int), []).aurc.reason == "there are no bags"
    assert abstain_threshold(np.zeros((0, 2)), np.zeros(0, int), 0.1).threshold is None
