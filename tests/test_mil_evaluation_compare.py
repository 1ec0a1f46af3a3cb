"""Two models on the same slides: tests agree with second implementations and hold their level over patients."""

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import permutation_test as scipy_permutation_test
from sklearn.metrics import roc_auc_score

from mil.evaluation.compare import (
    compare_auroc,
    compare_decisions,
    compare_statistic,
    p_permuted,
    p_two_sided,
    shuffled_groups,
)
from mil.evaluation.discrimination import weighted_auroc
from wsi.errors import SpecError


def models(slides=150, seed=0, gain=(1.2, 0.7), patients=None):
    """Labels and two correlated scores of the same slides."""
    rng = np.random.default_rng(seed)
    positive, shared = rng.random(slides) < 0.4, rng.normal(size=slides)
    first, second = (0.6 * shared + 0.8 * rng.normal(size=slides) + g * positive for g in gain)
    return positive, first, second, [str(i) for i in range(slides)] if patients is None else patients


def delong_by_pairs(positive, first, second):
    """z of DeLong's test from its definition, over all pairs."""
    v10, v01 = [], []
    for score in (first, second):
        x, y = score[positive][:, None], score[~positive][None]
        wins = (x > y) + 0.5 * (x == y)
        v10.append(wins.mean(axis=1))
        v01.append(wins.mean(axis=0))
    covariance = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
    apart = np.mean(v10[0]) - np.mean(v10[1])
    return apart, np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def test_delongs_test_is_that_of_its_definition():
    positive, first, second, _ = models()
    found = compare_auroc(positive, first, second)
    apart, error = delong_by_pairs(positive, first, second)
    assert found.first == pytest.approx(roc_auc_score(positive, first))
    assert found.difference.value == pytest.approx(apart)
    assert (found.difference.high - found.difference.low) / (2 * 1.959964) == pytest.approx(error)
    assert (found.p < 0.05) == (found.difference.low > 0)
    assert found.method == "DeLong, paired"


def test_delong_and_the_paired_bootstrap_agree_also_over_patients():
    patients = [str(i // 3) for i in range(300)]
    positive, first, second, _ = models(300, patients=patients)
    computed = compare_auroc(positive, first, second, patients)
    drawn = compare_statistic(
        lambda w: weighted_auroc(positive, first, w), lambda w: weighted_auroc(positive, second, w), patients
    )
    assert "Obuchowski" in computed.method
    assert drawn.difference.value == pytest.approx(computed.difference.value)
    assert (drawn.difference.low, drawn.difference.high) == pytest.approx(
        (computed.difference.low, computed.difference.high), abs=0.012
    )
    assert drawn.p == pytest.approx(computed.p, abs=0.01)


def test_swapping_the_models_turns_the_difference_about():
    positive, first, second, patients = models()
    there, back = compare_auroc(positive, first, second), compare_auroc(positive, second, first)
    assert (back.difference.low, back.difference.high) == pytest.approx((-there.difference.high, -there.difference.low))
    assert back.p == pytest.approx(there.p)
    f, g = (lambda w: weighted_auroc(positive, first, w)), (lambda w: weighted_auroc(positive, second, w))
    there, back = compare_statistic(f, g, patients), compare_statistic(g, f, patients)
    assert back.p == there.p
    assert back.difference.low == pytest.approx(-there.difference.high)


def test_equal_models_are_told_apart_about_as_often_as_promised_over_patients_and_too_often_without():
    rng, runs, rejected = np.random.default_rng(2), 400, np.zeros(2)
    patients = np.repeat(np.arange(40), 5).astype(str).tolist()
    for _ in range(runs):
        positive = np.repeat(rng.random(40) < 0.5, 5)
        first, second = (positive + np.repeat(rng.normal(size=40), 5) + 0.3 * rng.normal(size=200) for _ in range(2))
        rejected += [compare_auroc(positive, first, second, who).p < 0.05 for who in (patients, None)]
    over_patients, naive = rejected / runs
    assert 0.02 <= over_patients <= 0.09
    assert naive > 0.2


def test_mcnemars_test_is_the_binomial_on_slides_only_one_calls_right():
    positive, first, second, patients = models()
    a, b = first > 0.6, second > 0.6
    only_first, only_second = ((a == positive) & (b != positive)).sum(), ((a != positive) & (b == positive)).sum()
    found = compare_decisions(positive, a, b, patients)
    assert found.p == pytest.approx(binomtest(int(only_first), int(only_first + only_second)).pvalue)
    assert found.method == "McNemar, exact"
    assert found.difference.value == pytest.approx((only_first - only_second) / len(positive))


def test_clustered_decisions_agree_with_flipping_whole_patients():
    rng = np.random.default_rng(9)
    patients = np.repeat(np.arange(60), 3)
    positive = rng.random(180) < 0.5
    ease = np.repeat(rng.random(60) < 0.3, 3)
    first = np.where(rng.random(180) < 0.85, positive, ~positive)
    second = np.where((rng.random(180) < 0.8) & ~ease, positive, ~positive)
    found = compare_decisions(positive, first, second, patients.astype(str).tolist())
    gain = np.bincount(patients, weights=(first == positive).astype(float) - (second == positive))
    flipped = scipy_permutation_test(
        (gain, np.zeros(60)), lambda x, y: x.sum() - y.sum(), permutation_type="samples", n_resamples=4000, rng=1
    )
    assert "clustered" in found.method
    assert found.p == pytest.approx(flipped.pvalue, abs=0.01)
    assert found.difference.low < found.difference.value < found.difference.high


def test_non_inferiority_is_the_interval_above_the_margin():
    positive, first, second, patients = models(400, gain=(1.0, 1.0))
    for margin in (0.005, 0.2):
        computed = compare_auroc(positive, first, second, margin=margin)
        drawn = compare_statistic(
            lambda w: weighted_auroc(positive, first, w),
            lambda w: weighted_auroc(positive, second, w),
            patients,
            margin,
        )
        decided = compare_decisions(positive, first > 0.5, second > 0.5, patients, margin)
        for found in (computed, drawn, decided):
            assert found.non_inferior == (found.difference.low > -margin) == (found.p_inferior < 0.025)
            assert found.non_inferior == (margin == 0.2)


def test_any_figure_can_be_compared():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=120)
    good, poor = truth + 0.3 * rng.normal(size=120), truth + 0.9 * rng.normal(size=120)

    def less(guess):  # negative mean absolute error: larger is better
        return lambda w: -(w @ np.abs(guess - truth)) / w.sum(axis=1)

    found = compare_statistic(less(good), less(poor), [str(i // 2) for i in range(120)])
    assert found.difference.low > 0
    assert found.p == pytest.approx(2 / 2001)  # the least that 2000 resamples can show


def test_no_difference_at_all_is_certain_and_has_no_interval():
    positive, first, _, patients = models()
    figure = lambda w: weighted_auroc(positive, first, w)  # noqa: E731
    assert compare_auroc(positive, first, np.exp(first)).p == 1.0
    assert compare_statistic(figure, figure, patients).difference.low is None
    found = compare_decisions(positive, first > 0, first > 0, patients)
    assert (found.difference.value, found.p) == (0.0, 1.0)
    assert "right on the same slides" in found.difference.reason


@pytest.mark.parametrize(
    ("positive", "patients", "reason"),
    [
        ([1, 1, 1], ["a", "b", "c"], "not both"),
        ([], [], "not both"),
        ([1, 0, 0], ["a", "a", "a"], "fewer than two patients"),
        ([1, 0, 0], ["a", "b", "c"], "fewer than two patients"),
    ],
)
def test_what_cannot_be_compared_says_why(positive, patients, reason):
    positive, score = np.array(positive, bool), np.arange(float(len(positive)))
    found = compare_auroc(positive, score, -score, patients, margin=0.1)
    assert found.p is found.non_inferior is found.difference.low is None
    assert reason in found.difference.reason
    for other in (
        compare_statistic(lambda w: weighted_auroc(positive, score, w), lambda w: 0 * w.sum(axis=1), patients),
        compare_decisions(positive[:1], positive[:1], ~positive[:1], patients[:1]),
    ):
        assert other.p is None
        assert other.difference.reason


def test_p_counts_one_more_than_it_sees():
    assert p_two_sided(np.array([1.0, 2, 3, np.nan])) == pytest.approx(2 * 1 / 4)
    assert p_two_sided(np.array([-1.0, 1])) == 1.0


@pytest.mark.parametrize("straddling", [False, True])
def test_groups_dealt_anew_keep_their_mix_and_their_patients(straddling):
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(40), 3)
    kinds = (rng.random(120) < 0.5).astype(int) if straddling else np.repeat(rng.integers(0, 2, 40), 3)
    group = rng.integers(0, 3, 120) if straddling else np.repeat(rng.integers(0, 3, 40), 3)
    group[patients == 7] = -1
    dealt = np.concatenate(list(shuffled_groups(group, patients.astype(str).tolist(), kinds)))
    assert dealt.shape == (2000, 120)
    assert (dealt[:, patients == 7] == -1).all()
    mix = np.bincount(3 * kinds[group >= 0] + group[group >= 0], minlength=6)
    for row in dealt[::100]:
        assert (np.bincount(3 * kinds[row >= 0] + row[row >= 0], minlength=6) == mix).all()
        if not straddling:
            assert all(len(set(row[patients == p])) == 1 for p in range(40))
    moved = (dealt != group).mean(axis=0)[patients != 7]
    assert moved.mean() > 0.4


def test_no_slides_deal_no_groups():
    empty = np.zeros(0, int)
    assert all(rows.shape[1] == 0 for rows in shuffled_groups(empty, [], empty))


def test_a_permutation_p_is_not_defined_without_a_difference():
    assert p_permuted(float("nan"), np.zeros(5)) is None
    assert p_permuted(0.5, np.array([np.nan, np.nan, 0.1])) is None
    assert p_permuted(0.5, np.array([0.1, -0.6, 0.2])) == 0.5


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan"), float("inf")])
def test_a_margin_is_a_loss_above_zero(margin):
    with pytest.raises(SpecError, match="margin"):
        compare_auroc(*models()[:3], margin=margin)
