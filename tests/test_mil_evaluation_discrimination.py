"""AUROC and AUPRC agree with scikit-learn and scipy; their intervals cover what they promise, also over patients."""

import time

import numpy as np
import pytest
from confidenceinterval.delong import delong_roc_variance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import precision_recall_curve as sklearn_precision_recall_curve
from sklearn.metrics import roc_curve as sklearn_roc_curve

from mil.evaluation.discrimination import (
    auroc,
    auroc_covariance,
    auroc_delong,
    auroc_interval,
    average_precision,
    average_precision_interval,
    macro_auroc,
    precision_recall_curve,
    roc_curve,
    weighted_auroc,
    weighted_average_precision,
)
from wsi.errors import SpecError

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40)


def table(slides, seed=0, gain=1.0, decimals=1):
    """Labels and scores with many ties."""
    rng = np.random.default_rng(seed)
    positive = rng.random(slides) < 0.4
    return positive, (rng.normal(size=slides) + gain * positive).round(decimals)


def clustered(rng, patients=50, each=4, own=0.5):
    """Labels, scores, patients: slides of a patient share a class mostly and much of their score."""
    ill = np.repeat(rng.random(patients) < 0.5, each) ^ (rng.random(patients * each) < 0.15)
    shared = np.repeat(rng.normal(size=patients), each)
    score = ill + np.sqrt(1 - own) * shared + np.sqrt(own) * rng.normal(size=patients * each)
    return ill, score, np.repeat(np.arange(patients), each).astype(str)


@given(ROWS)
def test_figures_are_scikit_learns_also_with_ties_and_weights(rows):
    positive, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    kept = weight > 0
    valid = kept.any() and 0 < positive[kept].sum() < kept.sum()
    ours = weighted_auroc(positive, score / 6, weight[None].astype(float))[0]
    area = weighted_average_precision(positive, score / 6, weight[None].astype(float))[0]
    if not valid:
        assert np.isnan(ours)
        assert np.isnan(area)
    else:
        assert ours == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))
        assert area == pytest.approx(average_precision_score(positive, score, sample_weight=weight))


@given(ROWS, st.floats(0.1, 5), st.floats(-3, 3))
def test_auroc_depends_on_the_order_alone_and_flips_with_the_labels(rows, scale, shift):
    positive, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    value = auroc(positive, score)
    assert auroc(positive, np.exp(scale * score + shift)) == value
    if value is not None:
        assert auroc(~positive, score) == pytest.approx(1 - value)
        assert auroc(positive, -score) == pytest.approx(1 - value)
        assert auroc(positive, np.zeros(len(score))) == 0.5


def test_scores_that_differ_by_one_unit_in_the_last_place_are_not_tied():
    assert auroc(np.array([False, True]), np.array([0.5, np.nextafter(0.5, 1)])) == 1.0


@settings(max_examples=40)
@given(ROWS)
def test_the_delong_variance_is_a_second_implementations(rows):
    positive, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    if min(positive.sum(), (~positive).sum()) < 2:
        return
    expected = delong_roc_variance(positive.astype(int), score.astype(float))
    value, covariance = auroc_covariance(positive, score[None])
    assert value[0] == pytest.approx(expected[0])
    assert covariance[0, 0] == pytest.approx(float(expected[1]), rel=1e-5, abs=1e-7)  # theirs is float32


def test_patients_of_one_slide_each_leave_delong_as_it_is():
    positive, score = table(80)
    over_patients, plain = auroc_delong(positive, score, [str(i) for i in range(80)]), auroc_delong(positive, score)
    assert (over_patients.low, over_patients.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def test_the_clustered_variance_follows_the_equations_term_by_term():
    positive, score, patients = clustered(np.random.default_rng(3), patients=12, each=3)
    m, n = positive.sum(), (~positive).sum()
    wins = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    value, v10, v01 = wins.mean(), wins.mean(axis=1), wins.mean(axis=0)
    s10 = s01 = s11 = 0.0
    for name in set(patients):
        x = v10[patients[positive] == name].sum() - value * (patients[positive] == name).sum()
        y = v01[patients[~positive] == name].sum() - value * (patients[~positive] == name).sum()
        s10, s01, s11 = s10 + x * x, s01 + y * y, s11 + x * y
    ill, well, every = len(set(patients[positive])), len(set(patients[~positive])), len(set(patients))
    variance = ill / (ill - 1) * s10 / m**2 + well / (well - 1) * s01 / n**2 + 2 * every / (every - 1) * s11 / (m * n)
    assert auroc_covariance(positive, score[None], patients)[1][0, 0] == pytest.approx(variance)


def test_the_delong_interval_stays_within_bounds_where_the_plain_one_leaves_them():
    positive = np.arange(30) >= 24
    score = np.arange(30.0)
    score[24] = 19.5
    found, variance = auroc_delong(positive, score), auroc_covariance(positive, score[None])[1][0, 0]
    assert found.value + 1.96 * np.sqrt(variance) > 1
    assert found.low < found.value < found.high < 1


def test_the_bootstrap_interval_is_scipys():
    positive, score = table(60)

    def figure(rows):
        chosen = rows.astype(int)
        return roc_auc_score(positive[chosen], score[chosen])

    expected = scipy_bootstrap(
        (np.arange(60),), figure, n_resamples=1500, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    found = auroc_interval(positive, score, [str(i) for i in range(60)])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_bootstrap_and_delong_agree_over_patients():
    positive, score, patients = clustered(np.random.default_rng(1), patients=150)
    drawn, computed = auroc_interval(positive, score, patients), auroc_delong(positive, score, patients)
    assert (drawn.low, drawn.high) == pytest.approx((computed.low, computed.high), abs=0.012)


def test_intervals_over_patients_cover_the_truth_and_naive_ones_do_not():
    rng, runs = np.random.default_rng(11), 400
    truth = norm.cdf(1 / np.sqrt(2))  # slides of two patients: N(1, 1) against N(0, 1)
    hits = np.zeros(3)
    for run in range(runs):
        positive, score, patients = clustered(rng, own=0.2)
        found = [auroc_delong(positive, score, patients), auroc_delong(positive, score)]
        if run < 120:
            found.append(auroc_interval(positive, score, patients, seed=run))
        hits[: len(found)] += [estimate.low <= truth <= estimate.high for estimate in found]
    over_patients, naive, drawn = hits / (runs, runs, 120)
    assert 0.92 <= over_patients <= 0.98
    assert 0.88 <= drawn <= 0.99
    assert naive < 0.85


def test_a_thousand_slides_are_resampled_in_about_a_second():
    positive, score = table(1000, decimals=6)
    patients = [str(i // 2) for i in range(1000)]
    started = time.process_time()
    assert auroc_interval(positive, score, patients).resamples == 2000
    assert average_precision_interval(positive, score, patients).resamples == 2000
    assert time.process_time() - started < 2.5


def test_macro_auroc_is_scikit_learns_one_versus_rest():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 90)
    outputs = rng.dirichlet(np.ones(4), 90) + 0.3 * np.eye(4)[truth]
    outputs /= outputs.sum(axis=1, keepdims=True)
    found = macro_auroc(truth, outputs, [str(i // 2) for i in range(90)])
    assert found.value == pytest.approx(roc_auc_score(truth, outputs, multi_class="ovr", average="macro"))
    assert found.low < found.value < found.high


def test_of_two_classes_the_macro_auroc_is_that_of_the_last():
    positive, score = table(50)
    patients = [str(i) for i in range(50)]
    found = macro_auroc(positive.astype(int), np.stack([-score, score], axis=1), patients, seed=3)
    assert found == auroc_interval(positive, score, patients, seed=3)


def test_average_precision_encloses_its_value_and_is_scikit_learns():
    positive, score = table(200)
    found = average_precision_interval(positive, score, [str(i // 3) for i in range(200)])
    assert found.value == average_precision(positive, score) == pytest.approx(average_precision_score(positive, score))
    assert found.low < found.value < found.high


def test_the_curves_are_scikit_learns():
    positive, score = table(50)
    expected = sklearn_roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(positive, score), expected[:2])
    precision, recall, _ = sklearn_precision_recall_curve(positive, score)
    np.testing.assert_allclose(precision_recall_curve(positive, score), (recall[::-1], precision[::-1]))


@pytest.mark.parametrize(
    ("positive", "score", "patients", "value", "reason"),
    [
        ([], [], "", None, "not both"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "abc", None, "not both"),
        ([0, 0, 1, 1], [1, 2, 3, 4], "abcd", 1.0, "every positive outranks every negative"),
        ([0, 0, 1, 1], [4, 3, 2, 1], "abcd", 0.0, "every negative outranks every positive"),
        ([0, 0, 1, 1], [5, 5, 5, 5], "abcd", 0.5, "all scores are equal"),
    ],
)
def test_scores_without_an_interval_say_why(positive, score, patients, value, reason):
    positive, score = np.array(positive, bool), np.array(score, float)
    for found in (auroc_interval(positive, score, list(patients)), auroc_delong(positive, score, list(patients))):
        assert found.value == value
        assert found.low is None
        assert reason in found.reason


@pytest.mark.parametrize(
    ("patients", "reason"),
    [("aaaaa", "a single patient|fewer than two patients"), ("aaaab", "most resamples|fewer than two patients")],
)
def test_too_few_patients_give_a_value_but_no_interval(patients, reason):
    positive, score = np.array([0, 1, 0, 1, 0], bool), np.array([1, 2, 3, 4, 2.5])
    for figure in (auroc_interval, auroc_delong):
        found = figure(positive[: len(patients)], score, list(patients))
        assert found.value == pytest.approx(4 / 6)
        if found.low is None:
            assert any(part in found.reason for part in reason.split("|"))
        else:  # the bootstrap may draw the patient with both kinds in most resamples
            assert figure is auroc_interval


@pytest.mark.parametrize("figure", [average_precision_interval, auroc_interval])
def test_one_class_has_neither_figure_nor_curve(figure):
    positive, score = np.ones(4, bool), np.arange(4.0)
    assert figure(positive, score, list("abcd")).value is None
    assert roc_curve(positive, score) == precision_recall_curve(positive, score) == ((), ())
    assert auroc(positive, score) is average_precision(positive, score) is None


def test_a_class_without_slides_leaves_no_macro_auroc():
    found = macro_auroc(np.array([0, 1, 1]), np.eye(3), ["a", "b", "c"])
    assert found.value is None
    assert "class 2" in found.reason


@pytest.mark.parametrize(
    ("score", "message"), [([0.1, np.nan, 0.2], "NaN or infinity"), ([0.1, 0.2], "one of each per slide")]
)
def test_scores_that_are_no_numbers_or_do_not_fit_are_refused(score, message):
    with pytest.raises(SpecError, match=message):
        auroc(np.array([True, False, True]), np.array(score))
