"""Probabilities are fitted on bags they are not judged by, and judged as published definitions and libraries say."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from mil.evaluation.calibration import (
    Bins,
    brier_parts,
    calibration_error,
    judge_calibration,
    reliability_diagram,
)
from mil.evaluation.calibrators import Calibrator, as_logits, cross_calibrated, feasible_method, fit_calibrator
from wsi.errors import SpecError


def cohort(n=400, classes=2, sharp=3.0, seed=0):
    """Logits (n, C) that are `sharp` times too large, and the truth drawn from the right ones."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 1.5
    truth = (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return z * sharp, np.minimum(truth, classes - 1)


def one(n):
    return np.ones((1, n))


def people(n):
    return [f"p{k}" for k in range(n)]


def nll(p, truth):
    return -np.log(p[np.arange(len(truth)), truth]).mean()


# calibrators


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_is_that_of_scikit_learn(classes):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        """Hands its input on as the decision."""

        def __init__(self):
            self.classes_ = np.arange(classes)

        def fit(self, x, y):
            return self

        def decision_function(self, x):
            return x[:, 1] - x[:, 0] if classes == 2 else x

        def predict(self, x):
            return x.argmax(axis=1)

    z, truth = cohort(classes=classes)
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature").fit(z, truth).predict_proba(z)
    found = fit_calibrator(z, truth, "temperature")
    np.testing.assert_allclose(found.apply(z), theirs, atol=1e-5)
    assert found.parameters["temperature"][0] == pytest.approx(3.0, rel=0.25)


def test_platt_is_that_of_scikit_learn():
    from sklearn.calibration import _SigmoidCalibration

    z, truth = cohort(sharp=2.0)
    score = z[:, 1] - z[:, 0]
    theirs = _SigmoidCalibration().fit(score, truth).predict(score)
    np.testing.assert_allclose(fit_calibrator(z, truth, "platt").apply(z)[:, 1], theirs, atol=1e-4)


def test_isotonic_is_that_of_scikit_learn_but_never_0_or_1():
    from sklearn.isotonic import IsotonicRegression

    z, truth = cohort(n=150)
    score = z[:, 1] - z[:, 0]
    theirs = np.clip(IsotonicRegression().fit(score, truth).predict(score), 1 / 152, 151 / 152)
    found = fit_calibrator(z, truth, "isotonic")
    np.testing.assert_allclose(found.apply(z)[:, 1], theirs, atol=1e-9)
    far = found.apply(np.array([[0.0, 1e6], [0.0, -1e6]]))
    np.testing.assert_allclose(far[:, 1], [151 / 152, 1 / 152])


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_every_method_mends_overconfidence_on_bags_it_never_saw(method, classes):
    z, truth = cohort(n=1200, classes=classes)
    p = cross_calibrated(z, truth, np.arange(1200) % 4, method)
    raw = softmax(z, axis=1)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert nll(p, truth) < 0.8 * nll(raw, truth)
    patients = people(1200)
    after, before = (judge_calibration(q, truth, patients, resamples=2).ece.value for q in (p, raw))
    assert after < 0.5 * before


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_labels_that_do_not_exclude_are_calibrated_one_by_one(method):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2000, 2)) * 2
    truth = (rng.random((2000, 2)) < expit(z)).astype(int)
    given = z * [4.0, 0.5]
    p = fit_calibrator(given, truth, method, kind="sigmoid").apply(given)
    assert np.abs(p - expit(z)).mean() < 0.03
    alone = fit_calibrator(given[:, :1], truth[:, :1], method, kind="sigmoid").apply(given[:, :1])
    np.testing.assert_allclose(p[:, :1], alone)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_bag_of_weight_two_counts_as_two_bags(method):
    z, truth = cohort(n=120)
    weights = np.random.default_rng(2).integers(0, 3, 120)
    weighed = fit_calibrator(z, truth, method, weights.astype(float)).apply(z)
    repeated = fit_calibrator(np.repeat(z, weights, axis=0), np.repeat(truth, weights), method).apply(z)
    np.testing.assert_allclose(weighed, repeated, atol=1e-5)


def test_no_fold_is_judged_by_a_map_fitted_on_it():
    z, truth = cohort(n=200)
    folds = np.arange(200) % 2
    other = truth.copy()
    other[folds == 0] = 1 - other[folds == 0]
    before, after = cross_calibrated(z, truth, folds, "platt"), cross_calibrated(z, other, folds, "platt")
    np.testing.assert_array_equal(before[folds == 0], after[folds == 0])
    assert np.abs(before[folds == 1] - after[folds == 1]).max() > 0.1


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic", "none"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_calibrator_survives_json(method, kind):
    z, truth = cohort(classes=3)
    found = fit_calibrator(z, truth if kind == "softmax" else np.eye(3, dtype=int)[truth], method, kind=kind)
    again = Calibrator.from_dict(json.loads(json.dumps(found.as_dict())))
    np.testing.assert_array_equal(again.apply(z), found.apply(z))


def test_bags_that_are_all_right_say_nothing_of_the_temperature():
    z = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.5]])
    assert fit_calibrator(z, np.array([0, 1, 0]), "temperature").parameters["temperature"] == [1.0]


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_one_bag_with_a_wild_logit_does_not_decide_for_all(method):
    z, truth = cohort(n=400)
    wild, answer = np.vstack([z, [[0.0, 1e9]]]), np.append(truth, 0)
    p, alone = (fit_calibrator(*given, method).apply(z) for given in ((wild, answer), (z, truth)))
    np.testing.assert_allclose(p, alone, atol=0.08)
    far = fit_calibrator(z, truth, method).apply(np.array([[0.0, 20.0], [0.0, 60.0]]))
    assert far[0, 1] < far[1, 1]  # though fitted on tamed logits, it ranks what lies beyond


def test_platt_stays_finite_when_classes_separate():
    z = np.stack([np.zeros(20), np.linspace(-1, 1, 20)], axis=1)
    p = fit_calibrator(z, (z[:, 1] > 0).astype(int), "platt").apply(z)[:, 1]
    assert p.mean() == pytest.approx(0.5, abs=1e-6)
    assert 0.01 < p[0] < 1 / 12 < p[9] < 0.5  # about Platt's target of ten bags, 1 / 12


def rare(n=1500, classes=2, seed=0):
    """Logits (n, C) of a network that class weights taught equal shares, the truth, and the classes' true shares."""
    rng = np.random.default_rng(seed)
    prior = np.array([0.88, 0.12]) if classes == 2 else np.array([0.7, 0.2, 0.06, 0.04])
    truth = rng.choice(len(prior), n, p=prior)
    z = rng.normal(size=(n, len(prior))) + 1.6 * np.eye(len(prior))[truth]
    return 1.6 * z, truth, prior  # the log posterior of equal shares


@pytest.mark.parametrize("classes", [2, 4])
def test_a_prior_that_class_weights_moved_is_mended_by_platt_and_not_by_a_temperature(classes):
    z, truth, prior = rare(classes=classes)
    folds, patients = np.arange(len(z)) % 5, people(len(z))
    p = {method: cross_calibrated(z, truth, folds, method) for method in ("temperature", "platt")}
    found = {method: judge_calibration(q, truth, patients, resamples=2) for method, q in p.items()}
    assert found["platt"].brier.value < 0.85 * found["temperature"].brier.value
    assert found["platt"].ece.value < 0.03
    np.testing.assert_allclose(p["platt"].mean(axis=0), prior, atol=0.02)
    assert np.abs(p["temperature"].mean(axis=0) - prior).max() > 0.1


def test_several_classes_get_one_temperature_and_a_bias_each():
    """The optimum of bias-corrected temperature scaling: residuals are orthogonal to logits, and 0 in each class."""
    z, truth, prior = rare(classes=4)
    found = fit_calibrator(z, truth, "platt")
    assert [len(found.parameters[key]) for key in ("slope", "intercept")] == [1, 4]
    np.testing.assert_allclose(found.parameters["intercept"], np.log(prior) - np.log(prior).mean(), atol=0.35)
    count = np.bincount(truth)[truth][:, None]
    smooth = (np.eye(4)[truth] * count + 1) / (count + 4)
    left = found.apply(z) - smooth
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-6)
    assert (left * z).mean() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_ranking_that_looks_reversed_is_not_turned_round(kind, classes):
    rng = np.random.default_rng(4)
    truth = np.repeat(np.arange(classes), 5 * (1 + np.arange(classes)))
    hot = np.eye(classes, dtype=int)[truth]
    z = rng.normal(size=hot.shape) - 2 * hot
    found = fit_calibrator(z, truth if kind == "softmax" else hot, "platt", kind=kind)
    assert found.flat
    np.testing.assert_allclose(found.apply(z), np.tile(hot.mean(axis=0), (len(z), 1)))
    assert not fit_calibrator(-z, truth if kind == "softmax" else hot, "platt", kind=kind).flat


@pytest.mark.parametrize(
    ("method", "truth", "folds", "expected"),
    [
        ("platt", [0, 1, 0, 1], [0, 0, 1, 1], "platt"),
        ("isotonic", [0, 1, 0, 1], None, "isotonic"),
        ("platt", [0, 0, 0, 1], [0, 0, 1, 1], "none"),  # without fold 1 there is one class
        ("platt", [0, 0, 0, 1], None, "platt"),
        ("platt", [0, 0, 0, 1], [0, 0, 0, 0], "platt"),  # a single fold is calibrated as a whole
        ("platt", [0, 1, 0, 1, 2], [0, 0, 1, 1, 1], "temperature"),
        ("isotonic", [0, 1, 0, 1, 2], [0, 0, 1, 1, 1], "temperature"),
        ("temperature", [0, 1, 0, 1, 2], [0, 0, 1, 1, 1], "temperature"),
        ("none", [0, 1, 0, 1, 2], [0, 0, 1, 1, 1], "none"),
        ("platt", [[0, 1], [1, 0], [0, 1], [1, 0]], [0, 0, 1, 1], "platt"),
        ("platt", [[0, 1], [1, 0], [0, 1], [0, 0]], [0, 0, 1, 1], "none"),  # label 0 is in fold 0 alone
    ],
)
def test_what_bags_cannot_fit_falls_back_to_less(method, truth, folds, expected):
    y = np.array(truth)
    classes = y.shape[1] if y.ndim == 2 else len(np.unique(y))
    found = feasible_method(method, y, classes, folds)
    assert found == expected
    if folds is not None and len(set(folds)) > 1:  # and it can indeed be done
        z = np.random.default_rng(0).normal(size=(len(y), classes))
        assert np.isfinite(cross_calibrated(z, y, folds, found, "sigmoid" if y.ndim == 2 else "softmax")).all()


def test_probabilities_and_logits_are_each_others_inverse():
    z, _ = cohort(classes=3)
    p = softmax(z, axis=1)
    np.testing.assert_allclose(fit_calibrator(z, np.zeros(len(z), int), "none").apply(as_logits(p)), p, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "beta"}, "choose one of temperature"),
        ({"logits": np.full((4, 2), np.nan)}, "NaN"),
        ({"truth": np.array([0, 1, 2, 0])}, "whole numbers, 0 to 1"),
        ({"truth": np.zeros(4, int), "method": "platt"}, "class 0 has no bag, or no other"),
        ({"weights": np.array([1.0, -1, 1, 1])}, "negative"),
        ({"weights": np.zeros(4)}, "no held-out bags"),
        ({"logits": np.zeros((4, 1))}, "two classes or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given = {"logits": np.arange(8.0).reshape(4, 2), "truth": np.array([0, 1, 0, 1]), "method": "temperature"}
    with pytest.raises(SpecError, match=message):
        fit_calibrator(**{**given, **change})


def test_a_single_fold_is_refused():
    z, truth = cohort(n=10)
    with pytest.raises(SpecError, match="give two or more"):
        cross_calibrated(z, truth, np.zeros(10, int), "temperature")


# figures


def test_calibration_error_is_that_of_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    z, truth = cohort(classes=2)
    p = softmax(z, axis=1)
    found = judge_calibration(p, truth, people(len(p)), Bins(15), resamples=2)
    theirs = binary_calibration_error(torch.tensor(p[:, 1]), torch.tensor(truth), n_bins=15)
    assert found.ece.value == pytest.approx(float(theirs), abs=1e-6)
    z, truth = cohort(classes=4)
    p = softmax(z, axis=1)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(truth), num_classes=4, n_bins=15)
    found = judge_calibration(p, truth, people(len(p)), Bins(15), resamples=2)
    assert found.ece.value == pytest.approx(float(theirs), abs=1e-6)


def test_bins_of_equal_mass_hold_equally_many_and_keep_ties_together():
    values = np.random.default_rng(0).random(100) ** 4
    assert np.bincount(Bins(5, "mass").place(values)).tolist() == [20] * 5
    assert len(set(Bins(4, "mass").place(np.array([0.1, 0.5, 0.5, 0.5, 0.9]))[1:4])) == 1


def test_calibration_error_by_hand():
    p, y = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    # two bins: means 0.15 and 0.85, observed 0.5 and 1
    assert calibration_error(p, y, Bins(2))(one(4))[0] == pytest.approx(0.5 * 0.35 + 0.5 * 0.15)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes):
    from sklearn.metrics import brier_score_loss, log_loss

    z, truth = cohort(classes=classes, sharp=1)
    p = softmax(z, axis=1)
    found = judge_calibration(p, truth, people(len(p)), resamples=50)
    theirs = brier_score_loss(truth, p[:, 1] if classes == 2 else p)
    assert found.brier.value == pytest.approx(theirs)
    assert found.nll.value == pytest.approx(log_loss(truth, p))
    assert found.brier.low < found.brier.value < found.brier.high


def test_the_parts_add_up_and_hide_nothing_when_predictions_of_a_bin_are_equal():
    rng = np.random.default_rng(0)
    p = rng.choice([0.05, 0.35, 0.75], 300)
    y = (rng.random(300) < p).astype(float)
    parts = brier_parts(p, y, Bins(10))
    whole = parts.reliability - parts.resolution + parts.uncertainty
    assert parts.within_bins == pytest.approx(0, abs=1e-12)
    assert whole == pytest.approx(np.mean((p - y) ** 2))
    assert parts.uncertainty == pytest.approx(y.mean() * (1 - y.mean()))


def test_slope_and_intercepts_are_those_of_statsmodels():
    import statsmodels.api as sm

    z, truth = cohort(n=300, sharp=2.0)
    p = softmax(z, axis=1)
    logit = np.log(p[:, 1] / p[:, 0])
    found = judge_calibration(p, truth, people(300), resamples=100)
    line = sm.Logit(truth, sm.add_constant(logit)).fit(disp=0).params
    large = sm.GLM(truth, np.ones(300), family=sm.families.Binomial(), offset=logit).fit().params
    assert [found.intercept.value, found.slope.value] == pytest.approx(line.tolist(), abs=1e-6)
    assert found.in_the_large.value == pytest.approx(large[0], abs=1e-6)
    assert found.slope.low < found.slope.value < found.slope.high < 1  # twice too extreme, so about a half


def test_the_diagram_is_wilsons_over_patients():
    p, y = np.array([0.1, 0.1, 0.7, 0.7]), np.array([0.0, 0.0, 1.0, 0.0])
    low, high = reliability_diagram(p, y, ["a", "b", "c", "d"], Bins(2))
    assert (low.predicted, low.observed, low.count, low.low) == (pytest.approx(0.1), 0.0, 2, pytest.approx(0, abs=1e-9))
    assert low.high == pytest.approx(1.959964**2 / (2 + 1.959964**2), abs=1e-6)
    assert high.observed == 0.5
    assert high.high - high.low == pytest.approx(1.959964 / np.sqrt(2 + 1.959964**2), abs=1e-6)
    same = reliability_diagram(p, y, ["a", "a", "c", "c"], Bins(2))[1]
    assert same.low < high.low
    assert same.high > high.high


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("p", "truth", "reason"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "no slides"),
        (np.array([[0.2, 0.8]] * 3), np.ones(3, int), "one class"),
        (np.array([[0.5, 0.5]] * 4), np.array([0, 1, 0, 1]), "not defined"),  # equal predictions have no slope
        (np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.0, 1.0]]), np.array([0, 0, 1, 1]), "not defined"),
    ],
)
def test_degenerate_tables_give_reasons_not_crashes(p, truth, reason):
    found = judge_calibration(p, truth, people(len(p)), resamples=20)
    assert found.slope.value is None
    assert reason in (found.slope.reason if len(p) else found.brier.reason)
    assert len(p) == 0 or found.brier.value is not None
    json.dumps(found.as_dict())


def test_more_classes_have_no_slope_but_a_diagram_each():
    z, truth = cohort(classes=3)
    found = judge_calibration(softmax(z, axis=1), truth, people(len(z)), resamples=20)
    assert found.slope.reason == "for two classes only"
    assert len(found.diagrams) == 3
    assert found.parts is None
