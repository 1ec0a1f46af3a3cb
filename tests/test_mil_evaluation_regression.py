"""Regression figures are those of scikit-learn and scipy, their intervals those of repeated resamples."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mil.evaluation.estimate import bootstrap_weights
from mil.evaluation.regression import judge_regression
from wsi.errors import SpecError

NAMES = ("mae", "rmse", "r2", "pearson", "spearman", "concordance", "bias", "limits_low", "limits_high")


def cohort(n=80, seed=0):
    rng = np.random.default_rng(seed)
    measured = np.round(rng.normal(50, 10, n))
    return np.round(measured * 0.8 + 12 + rng.normal(0, 5, n)), measured, [f"p{k // 2}" for k in range(n)]


def by_libraries(x, y):
    """The same figures, each of a library or by its definition."""
    error, lin = x - y, np.cov(x, y, ddof=0)
    return {
        "mae": mean_absolute_error(y, x),
        "rmse": root_mean_squared_error(y, x),
        "r2": r2_score(y, x),
        "pearson": stats.pearsonr(x, y).statistic,
        "spearman": stats.spearmanr(x, y).statistic,
        "concordance": 2 * lin[0, 1] / (lin[0, 0] + lin[1, 1] + (x.mean() - y.mean()) ** 2),
        "bias": error.mean(),
        "limits_low": error.mean() - 1.959964 * error.std(ddof=1),
        "limits_high": error.mean() + 1.959964 * error.std(ddof=1),
    }


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_libraries(name):
    x, y, patients = cohort()
    assert getattr(judge_regression(x, y, patients, 10), name).value == pytest.approx(
        by_libraries(x, y)[name], abs=1e-5
    )


def test_intervals_are_those_of_patients_drawn_again():
    x, y, patients = cohort(n=40)
    found = judge_regression(x, y, patients, resamples=150, seed=4)
    drawn = []
    for row in next(iter(bootstrap_weights(patients, 150, 4))).astype(int):
        again = np.repeat(np.arange(40), row)
        drawn.append(by_libraries(x[again], y[again]))
    for name in NAMES:
        theirs = np.percentile([figures[name] for figures in drawn], [2.5, 97.5])
        figure = getattr(found, name)
        np.testing.assert_allclose([figure.low, figure.high], theirs, atol=1e-5)


def test_a_shift_lowers_agreement_but_not_correlation():
    _, y, patients = cohort()
    found = judge_regression(y + 20, y, patients, 50)
    assert found.pearson.value == found.spearman.value == pytest.approx(1)
    assert found.concordance.value < 0.5
    assert found.r2.value < 0
    assert (found.bias.value, found.limits_low.value) == (20, 20)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("x", "y", "name", "reason"),
    [
        ([], [], "mae", "no slides"),
        ([1.0, 2, 3], [5.1, 5.1, 5.1], "r2", "all measurements are equal"),
        ([0.1, 0.1, 0.1], [1.0, 2, 3], "spearman", "all predictions are equal"),
        ([1.0], [2.0], "limits_high", "single slide"),
        ([5.0, 5, 5], [5.0, 5, 5], "concordance", "not defined"),
    ],
)
def test_degenerate_tables_give_reasons(x, y, name, reason):
    found = judge_regression(np.array(x), np.array(y), [f"p{k}" for k in range(len(x))], 20)
    assert getattr(found, name).value is None
    assert reason in getattr(found, name).reason
    assert not x or found.mae.value is not None
    json.dumps(found.as_dict())


@pytest.mark.filterwarnings("error")
def test_resamples_without_spread_are_left_out():
    x, y = np.array([0.1, 0.1, 0.1, 0.7]), np.array([0.3, 0.3, 0.3, 0.9])
    found = judge_regression(x, y, list("abcd"), 2000).pearson
    assert found.value == pytest.approx(1)
    assert found.resamples == pytest.approx(2000 * (1 - 0.75**4 - 0.25**4), abs=90)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.array([1.0, 2]), np.array(["3", "4"]), "no numbers"),
        (np.array([1.0, np.nan]), np.array([1.0, 2]), "NaN"),
        (np.array([1.0]), np.array([1.0, 2]), "one prediction"),
    ],
)
def test_what_are_no_numbers_is_refused(x, y, message):
    with pytest.raises(SpecError, match=message):
        judge_regression(x, y, ["a", "b"])
