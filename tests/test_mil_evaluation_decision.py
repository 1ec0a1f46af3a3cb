"""Net benefit is that of the paper and of dcurves."""

import numpy as np
import pytest

from mil.evaluation.decision import THRESHOLDS, decision_curve
from wsi.errors import SpecError


def cohort(n=300, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 2, n)
    return p, rng.random(n) < p, [f"p{k // 2}" for k in range(n)]


def test_net_benefit_is_that_of_dcurves():
    import pandas
    from dcurves import dca

    p, y, patients = cohort()
    table = dca(pandas.DataFrame({"y": y.astype(int), "p": p}), "y", ["p"], thresholds=np.array(THRESHOLDS))
    theirs = {name: part.sort_values("threshold").net_benefit.to_numpy() for name, part in table.groupby("model")}
    found = decision_curve(p, y, patients, resamples=2)
    np.testing.assert_allclose(found.model, theirs["p"], atol=1e-9)
    np.testing.assert_allclose(found.treat_all, theirs["all"], atol=1e-9)
    assert (theirs["none"] == 0).all()


def test_net_benefit_by_hand():
    found = decision_curve(np.array([0.1, 0.3, 0.6, 0.2]), np.array([0, 0, 1, 1]), list("abcd"), (0.25,), resamples=2)
    # treated: one right, one wrong at odds of 1 : 3
    assert found.model == (pytest.approx((1 - 1 / 3) / 4),)
    assert found.treat_all == (pytest.approx((2 - 2 / 3) / 4),)
    assert found.gain == (pytest.approx((1 - 1 / 3) / 4 - (2 - 2 / 3) / 4),)
    assert found.avoided == (pytest.approx(100 * (-2 / 3 / 4) / (1 / 3)),)


def test_bands_hold_the_curve_and_a_sound_model_gains_where_it_matters():
    p, y, patients = cohort(n=1000)
    found = decision_curve(p, y, patients, (0.2, 0.4, 0.6), resamples=400)
    for low, value, high, gain_low in zip(found.low, found.model, found.high, found.gain_low, strict=True):
        assert low < value < high
        assert gain_low > 0
    assert found.resamples == 400


def test_a_band_is_wider_when_slides_share_patients():
    p, y, _ = cohort(n=400)
    p, y = np.repeat(p[:100], 4), np.repeat(y[:100], 4)
    own = decision_curve(p, y, [str(k) for k in range(400)], (0.3,), resamples=500)
    shared = decision_curve(p, y, [str(k // 4) for k in range(400)], (0.3,), resamples=500)
    assert shared.high[0] - shared.low[0] > 1.6 * (own.high[0] - own.low[0])


@pytest.mark.filterwarnings("error")
def test_degenerate_cohorts_give_reasons():
    empty = decision_curve(np.zeros(0), np.zeros(0, bool), [])
    assert (empty.reason, empty.model, empty.prevalence) == ("there are no bags", (), None)
    alone = decision_curve(np.array([0.4, 0.6]), np.array([False, True]), ["a", "a"], (0.5,))
    assert alone.reason.startswith("a single patient")
    assert (alone.model, alone.low) == ((0.5,), ())
    idle = decision_curve(np.array([0.4, 0.6]), np.array([False, False]), ["a", "b"], (0.5,), resamples=10)
    assert idle.model == (-0.5,)


@pytest.mark.parametrize(
    ("p", "cuts", "message"),
    [([0.1, 0.2], (0.0, 0.5), "between 0 and 1"), ([0.1, 1.2], (0.5,), "outside"), ([np.nan, 0.2], (0.5,), "outside")],
)
def test_what_are_no_probabilities_is_refused(p, cuts, message):
    with pytest.raises(SpecError, match=message):
        decision_curve(np.array(p), np.array([True, False]), ["a", "b"], cuts)
