"""Thresholds are chosen as their rule says, and what they are worth is told with the doubt that is left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from mil.evaluation.operating import Rule, cross_fitted_threshold, decisions, operating_point, proportion, threshold
from wsi.errors import SpecError

FIGURES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "f1", "balanced_accuracy")
RULES = (Rule("youden"), Rule("sensitivity", 0.9), Rule("specificity", 0.9))


def table(slides=300, seed=0, gain=1.5):
    rng = np.random.default_rng(seed)
    positive = rng.random(slides) < 0.4
    return positive, (rng.normal(size=slides) + gain * positive).round(1), [str(i) for i in range(slides)]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=25),
    st.sampled_from([0.5, 0.8, 0.9, 1.0]),
)
def test_thresholds_are_the_best_of_all_there_are(rows, at):
    positive, score = (np.array(column) for column in zip(*rows, strict=True))
    if positive.all() or not positive.any():
        assert threshold(positive, score, Rule("youden")) is None
        return
    table = {
        cut: ((score >= cut)[positive].mean(), (score < cut)[~positive].mean()) for cut in [*np.unique(score), 6.0]
    }
    best = max(sum(pair) for pair in table.values())
    youden = threshold(positive, score, Rule("youden"))
    assert sum(table[youden]) == pytest.approx(best)
    at_sensitivity = threshold(positive, score, Rule("sensitivity", at))
    assert at_sensitivity == max(cut for cut, (hit, _) in table.items() if hit >= at - 1e-9)
    at_specificity = threshold(positive, score, Rule("specificity", at))
    wanted = min(cut for cut, (_, rejected) in table.items() if rejected >= at - 1e-9)
    assert (score >= at_specificity).tolist() == (score >= wanted).tolist()


@pytest.mark.parametrize("rule", [*RULES, Rule("given", 0.7)], ids=lambda rule: rule.kind)
def test_figures_are_scikit_learns_and_lie_in_their_intervals(rule):
    positive, score, patients = table()
    found = operating_point(positive, score, patients, rule)
    called = score >= found.thresholds[0]
    assert ((found.tn, found.fp), (found.fn, found.tp)) == tuple(map(tuple, confusion_matrix(positive, called)))
    assert found.sensitivity.value == pytest.approx(recall_score(positive, called))
    assert found.specificity.value == pytest.approx(recall_score(~positive, ~called))
    assert found.ppv.value == pytest.approx(precision_score(positive, called))
    assert found.npv.value == pytest.approx(precision_score(~positive, ~called))
    assert found.f1.value == pytest.approx(f1_score(positive, called))
    assert found.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(positive, called))
    assert found.accuracy.value == pytest.approx((called == positive).mean())
    assert found.prevalence == pytest.approx(positive.mean())
    for name in FIGURES:
        estimate = getattr(found, name)
        assert estimate.low < estimate.value < estimate.high
    assert found.optimistic == (rule.kind != "given")


def test_a_slide_per_patient_gives_wilsons_interval_and_says_so():
    positive, score, patients = table()
    found = operating_point(positive, score, patients, Rule("given", 1.0))
    assert found.method.startswith("Wilson")
    expected = proportion_confint(found.tp, found.tp + found.fn, method="wilson")
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(expected)


def test_several_slides_per_patient_give_the_bootstrap_and_say_so():
    positive, score, patients = table()
    copies = (np.tile(positive, 4), np.tile(score, 4), patients * 4)
    once, copied = (operating_point(*rows, Rule("given", 1.0)) for rows in ((positive, score, patients), copies))
    assert copied.method.startswith("bootstrap")
    width = once.sensitivity.high - once.sensitivity.low
    assert copied.sensitivity.high - copied.sensitivity.low == pytest.approx(width, abs=0.02)


def test_a_perfect_share_over_patients_still_leaves_doubt():
    found = proportion(np.ones(20, bool), np.ones(20, bool), [str(i // 4) for i in range(20)])
    assert (found.value, found.high) == (1.0, pytest.approx(1.0))
    assert found.low == pytest.approx(proportion_confint(5, 5, method="wilson")[0])


def test_the_interval_of_a_share_covers_the_truth_over_patients_and_the_naive_one_does_not():
    rng, hits, runs = np.random.default_rng(8), np.zeros(2), 200
    for run in range(runs):
        chance = np.repeat(rng.beta(1.6, 0.4, size=50), 6)  # mean 0.8; patients differ
        success, everyone = rng.random(300) < chance, np.ones(300, bool)
        for k, patients in enumerate(([str(i // 6) for i in range(300)], [str(i) for i in range(300)])):
            found = proportion(success, everyone, patients, seed=run)
            hits[k] += found.low <= 0.8 <= found.high
    over_patients, naive = hits / runs
    assert 0.89 <= over_patients <= 0.99
    assert naive < 0.8


def test_predictive_values_at_a_stated_prevalence_follow_bayes():
    positive, score, patients = table()
    found = operating_point(positive, score, patients, Rule("given", 1.0), prevalence=0.05)
    sensitivity, specificity = found.sensitivity.value, found.specificity.value
    ill, well = 0.05 * sensitivity, 0.95 * (1 - specificity)
    assert found.ppv.value == pytest.approx(ill / (ill + well))
    assert found.npv.value == pytest.approx(0.95 * specificity / (0.95 * specificity + 0.05 * (1 - sensitivity)))
    assert found.ppv.low < found.ppv.value < found.ppv.high
    same = operating_point(positive, score, patients, Rule("given", 1.0), prevalence=float(positive.mean()))
    assert same.ppv.value == pytest.approx(found.tp / (found.tp + found.fp))


def test_a_threshold_of_other_folds_is_not_chosen_on_the_slides_it_judges():
    positive, score, patients = table()
    folds = np.arange(300) % 5
    cuts = cross_fitted_threshold(positive, score, folds, Rule("youden"))
    for fold in range(5):
        expected = threshold(positive[folds != fold], score[folds != fold], Rule("youden"))
        assert set(cuts[folds == fold]) == {expected}
    found = operating_point(positive, score, patients, Rule("youden"), folds)
    assert not found.optimistic
    assert len(found.thresholds) == 5
    judged = decisions(positive, score >= cuts, patients)
    assert all(getattr(found, name) == getattr(judged, name) for name in FIGURES)


def test_choosing_on_the_same_slides_flatters_and_choosing_on_other_folds_does_not():
    rng, same, crossed = np.random.default_rng(3), [], []
    for _ in range(200):  # scores that say nothing: Youden's index is 0
        positive, score, folds = rng.random(40) < 0.5, rng.random(40), np.arange(40) % 5
        for cuts, into in (
            (threshold(positive, score, Rule("youden")), same),
            (cross_fitted_threshold(positive, score, folds, Rule("youden")), crossed),
        ):
            into.append(balanced_accuracy_score(positive, score >= cuts))
    assert np.mean(same) > 0.57
    assert np.mean(crossed) < 0.53


@pytest.mark.parametrize("folds", [None, np.arange(4) % 2])
def test_one_class_alone_has_no_threshold(folds):
    found = operating_point(np.ones(4, bool), np.arange(4.0), list("abcd"), Rule("youden"), folds)
    assert found.thresholds == ()
    assert "not both positives and negatives" in found.reason
    assert found.left_out == 4
    assert all(getattr(found, name).value is None for name in FIGURES)


def test_one_class_alone_at_a_given_threshold_has_the_figures_it_can_have():
    found = operating_point(np.ones(4, bool), np.arange(4.0), list("abcd"), Rule("given", 2))
    assert found.sensitivity.value == 0.5
    assert found.specificity.value is found.balanced_accuracy.value is None
    assert found.specificity.reason == "no slide to take a share of"


def test_a_fold_whose_others_lack_a_kind_is_left_out_and_counted():
    positive, score = np.array([1, 0, 0, 0, 0], bool), np.array([0.9, 0.1, 0.2, 0.3, 0.8])
    found = operating_point(positive, score, list("abcde"), Rule("youden"), np.array([0, 0, 1, 1, 1]))
    assert found.left_out == 2  # without fold 0 there is no positive
    assert (found.tn, found.fp) == (3, 0)


def test_no_slides_at_all_raise_nothing():
    found = operating_point(np.zeros(0, bool), np.zeros(0), [], Rule("youden"))
    assert found.accuracy.value is None
    assert found.prevalence is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rule("best"), "'best' is unknown"),
        (lambda: Rule("sensitivity"), "every other rule one"),
        (lambda: Rule("youden", 0.5), "youden takes no value"),
        (lambda: Rule("specificity", 1.2), "more than 0 and at most 1"),
        (lambda: Rule("given", float("inf")), "finite"),
        (lambda: operating_point(*table(), Rule("youden"), prevalence=1.0), "share between 0 and 1"),
        (lambda: cross_fitted_threshold(*table()[:2], np.zeros(3), Rule("youden")), "one for each"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, message):
    with pytest.raises(SpecError, match=message):
        build()
