"""Survival figures are those of lifelines, of torchsurv and of counting by hand; more risk always means earlier."""

import warnings

import numpy as np
import pytest

from mil.evaluation.survival import auc_at, brier_at, c_index, followed, integrated_brier, uno_c
from mil.evaluation.survival_groups import horizon_calibration, risk_groups
from wsi.errors import SpecError


def cohort(n=120, seed=0, ties=False):
    """Risks, truth (n, 2) and the chance to live past `t` that the times were drawn from."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    life, lost = rng.exponential(np.exp(-risk)), rng.exponential(2.0, n)
    time, event = np.minimum(life, lost), life <= lost
    if ties:
        time, risk = np.ceil(time * 3), np.round(risk)
    return risk, np.stack([time, event], axis=1), lambda t: np.exp(-np.exp(risk)[:, None] * t)


def people(n):
    return [f"p{k}" for k in range(n)]


def of(truth, patients=None):
    return followed(np.asarray(truth, float), patients or people(len(truth)))


@pytest.mark.parametrize("ties", [False, True])
def test_harrells_c_is_that_of_lifelines(ties):
    from lifelines.utils import concordance_index

    risk, truth, _ = cohort(ties=ties)
    found = c_index(risk, of(truth), resamples=200)
    assert found.value == pytest.approx(concordance_index(truth[:, 0], -risk, truth[:, 1]), abs=1e-12)
    assert found.low < found.value < found.high


def test_a_patient_drawn_twice_counts_as_two():
    from lifelines.utils import concordance_index

    from mil.evaluation.estimate import bootstrap_weights

    risk, truth, _ = cohort(n=40, ties=True)
    patients = [f"p{k // 2}" for k in range(40)]
    values = []
    for row in next(iter(bootstrap_weights(patients, 200, 3))).astype(int):
        again = np.repeat(np.arange(40), row)
        values.append(concordance_index(truth[again, 0], -risk[again], truth[again, 1]))
    found = c_index(risk, of(truth, patients), resamples=200, seed=3)
    assert [found.low, found.high] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist(), abs=1e-12)


def test_more_risk_means_earlier():
    truth = [(1, 1), (2, 1), (3, 0)]
    assert c_index(np.array([3.0, 2, 1]), of(truth)).value == 1
    assert c_index(np.array([1.0, 2, 3]), of(truth)).value == 0
    assert auc_at(np.array([3.0, 2, 1]), of(truth), 1.5).value == 1


def test_pairs_by_hand():
    # comparable: (1, 2), (1, 3), (1, 4) and at time 3 the event with the censored; the censored at 2 starts no pair
    truth = [(1, 1), (2, 0), (3, 1), (3, 0)]
    assert c_index(np.array([2.0, 2, 3, 1]), of(truth)).value == pytest.approx((0.5 + 0 + 1 + 1) / 4)


@pytest.fixture(scope="module")
def torchsurv():
    import torch
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    risk, truth, alive = cohort()
    time, event = torch.tensor(truth[:, 0]), torch.tensor(truth[:, 1] > 0)
    at = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
    weight, weight_at = get_ipcw(event, time).double(), get_ipcw(event, time, at).double()  # computed in float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        brier = BrierScore()
        return {
            "uno": float(ConcordanceIndex()(torch.tensor(risk), event, time, weight=weight)),
            "auc": Auc()(
                torch.tensor(risk), event, time, weight=weight, new_time=at, weight_new_time=weight_at
            ).tolist(),
            "brier": brier(
                torch.tensor(alive(at.numpy())), event, time, new_time=at, weight=weight, weight_new_time=weight_at
            ).tolist(),
            "integrated": float(brier.integral()),
        }


def test_unos_c_is_that_of_torchsurv(torchsurv):
    risk, truth, _ = cohort()
    found = uno_c(risk, of(truth), resamples=100)
    assert found.value == pytest.approx(torchsurv["uno"], abs=1e-6)
    assert found.low < found.value < found.high


def test_auc_at_times_is_that_of_torchsurv(torchsurv):
    risk, truth, _ = cohort()
    found = [auc_at(risk, of(truth), t, resamples=100) for t in (0.3, 0.6, 1.0)]
    assert [figure.value for figure in found] == pytest.approx(torchsurv["auc"], abs=1e-6)
    assert all(figure.low < figure.value < figure.high for figure in found)


def test_brier_and_its_integral_are_those_of_torchsurv(torchsurv):
    _, truth, alive = cohort()
    times = np.array([0.3, 0.6, 1.0])
    found = [brier_at(alive(t)[:, 0], of(truth), t, resamples=50).value for t in times]
    assert found == pytest.approx(torchsurv["brier"], abs=1e-6)
    whole = integrated_brier(alive(times), of(truth), times, resamples=50)
    assert whole.value == pytest.approx(torchsurv["integrated"], abs=1e-6)
    assert whole.low < whole.value < whole.high


def test_without_censoring_they_are_auroc_and_mean_squared_error():
    from sklearn.metrics import brier_score_loss, roc_auc_score

    risk, truth, alive = cohort()
    truth[:, 1] = 1
    died = truth[:, 0] <= 0.6
    assert auc_at(risk, of(truth), 0.6, resamples=2).value == pytest.approx(roc_auc_score(died, risk))
    found = brier_at(alive(0.6)[:, 0], of(truth), 0.6, resamples=2).value
    assert found == pytest.approx(brier_score_loss(~died, alive(0.6)[:, 0]))
    assert uno_c(risk, of(truth), resamples=2).value == pytest.approx(c_index(risk, of(truth), resamples=2).value)


def test_weights_by_hand():
    # censored at 2 of two left: G is 1 up to 2 and 1/2 from then on, so the event at 3 weighs twice
    truth = [(1, 1), (2, 0), (3, 1)]
    assert brier_at(np.array([0.5, 0.5, 0.5]), of(truth), 3).value == pytest.approx((0.25 + 2 * 0.25) / 3)
    assert brier_at(np.array([0.1, 0.5, 0.8]), of(truth), 1.5).value == pytest.approx((0.01 + 0.25 + 0.04) / 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ([(0, 1), (2, 1), (3, 0)], "not above 0"),
        ([(1, 0), (2, 0), (3, 0)], "no event"),
        ([(1, 0), (2, 0), (3, 1)], "no two bags"),
        ([], "no slides"),
    ],
)
def test_what_cannot_be_compared_gives_a_reason(truth, reason):
    given = followed(np.asarray(truth, float).reshape(-1, 2), people(len(truth)))
    risk = np.arange(len(truth), dtype=float)
    for figure in (c_index(risk, given, 20), uno_c(risk, given, None, 20)):
        assert figure.value is None
        assert reason in figure.reason
    if reason != "no two bags":
        assert reason in risk_groups(risk, given).reason
        assert horizon_calibration(risk * 0, given, 1.0) == ()


@pytest.mark.filterwarnings("error")
def test_times_outside_the_follow_up_give_a_reason():
    risk, truth, alive = cohort(n=30)
    last = np.argmax(truth[:, 0])
    truth[last, 1] = 0
    beyond = float(truth[last, 0]) + 1
    assert "nobody followed longer" in auc_at(risk, of(truth), beyond, 20).reason
    assert "no event until" in auc_at(risk, of(truth), 1e-9, 20).reason
    assert "nobody is followed beyond" in brier_at(alive(beyond)[:, 0], of(truth), beyond, 20).reason


def test_groups_are_those_of_lifelines_and_the_median_parts_them():
    from lifelines import KaplanMeierFitter
    from lifelines.statistics import logrank_test

    risk, truth, _ = cohort()
    found = risk_groups(risk, of(truth))
    high = risk >= np.median(risk)
    time, event = truth.T
    test = logrank_test(time[high], time[~high], event[high], event[~high])
    assert found.p_value == pytest.approx(test.p_value)
    assert found.statistic == pytest.approx(test.test_statistic)
    low, upper = found.curves
    assert (low.name, upper.name, low.bags) == ("low", "high", 60)
    fit = KaplanMeierFitter().fit(time[high], event[high])
    assert upper.median == fit.median_survival_time_ < (low.median or np.inf)
    assert upper.survival[5] == pytest.approx(float(fit.predict(upper.times[5])))
    assert upper.at_risk[0] == 60
    assert all(a <= b <= c for a, b, c in zip(low.low, low.survival, low.high, strict=True))


def test_given_cuts_make_groups_and_one_group_has_no_test():
    risk, truth, _ = cohort()
    assert [curve.name for curve in risk_groups(risk, of(truth), (-1, 0, 1)).curves] == [
        "group 1",
        "group 2",
        "group 3",
        "group 4",
    ]
    alone = risk_groups(risk, of(truth), (99,))
    assert (alone.reason, alone.p_value, len(alone.curves)) == ("all bags are in one group", None, 1)


def test_right_survival_chances_lie_on_the_diagonal_at_the_horizon():
    _, truth, alive = cohort(n=2000)
    points = horizon_calibration(alive(0.6)[:, 0], of(truth), 0.6, groups=4)
    assert sum(point.bags for point in points) == 2000
    for point in points:
        assert point.low < point.predicted < point.high
        assert point.predicted == pytest.approx(point.observed, abs=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: followed(np.array([[1.0, 2.0]]), ["a"]), "0 is censored"),
        (lambda: followed(np.array([1.0, 2.0]), ["a", "b"]), "time, event"),
        (lambda: c_index(np.array([np.nan]), of([(1, 1)])), "NaN"),
        (lambda: brier_at(np.array([1.5]), of([(1, 1)]), 1), "outside"),
        (lambda: integrated_brier(np.full((1, 2), 0.5), of([(1, 1)]), (2, 1)), "ascend"),
        (lambda: risk_groups(np.array([1.0]), of([(1, 1)]), (2, 1)), "ascend"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(SpecError, match=message):
        call()


def test_bootstrap_of_a_cohort_of_five_hundred_is_quick():
    import time

    risk, truth, _ = cohort(n=500)
    start = time.process_time()
    c_index(risk, of(truth))
    assert time.process_time() - start < 10  # 0.1 s is usual; a loop over resamples takes minutes


def test_a_perfect_order_is_not_said_to_be_certain():
    risk, truth, _ = cohort(n=30)
    perfect = -truth[:, 0]
    for found in (
        c_index(perfect, of(truth), resamples=200),
        uno_c(perfect, of(truth), resamples=200),
        auc_at(perfect, of(truth), float(np.median(truth[:, 0])), resamples=200),
        c_index(-perfect, of(truth), resamples=200),
    ):
        assert min(found.value, 1 - found.value) == pytest.approx(0, abs=1e-12)
        assert (found.low, found.high) == (None, None)
        assert "same in every resample" in found.reason
    assert c_index(risk, of(truth), resamples=200).low is not None


def test_risks_of_folds_are_not_compared_with_each_other():
    """Each fold's network has a zero of its own: shifting a fold's risks changes nothing, and pairs are its own."""
    from lifelines.utils import concordance_index

    risk, truth, _ = cohort(ties=True)
    fold, everybody = np.arange(120) % 3, of(truth)
    parted, time = followed(truth, people(120), fold), float(np.median(truth[:, 0]))
    shifted = risk + 5.0 * fold
    for figure in (c_index, uno_c, lambda *given, **more: auc_at(*given, time, **more)):
        one, other = (figure(given, parted, resamples=200) for given in (risk, shifted))
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)
        assert abs(figure(shifted, everybody, resamples=200).value - one.value) > 0.1
    own = [truth[fold == k] for k in range(3)]
    pairs = [comparable_pairs(part) for part in own]
    each = [concordance_index(part[:, 0], -risk[fold == k], part[:, 1]) for k, part in enumerate(own)]
    assert c_index(shifted, parted, resamples=2).value == pytest.approx(np.average(each, weights=pairs), abs=1e-12)
    with pytest.raises(SpecError, match="folds: shape"):
        followed(truth, people(120), fold[:3])


def test_groups_of_risk_are_not_groups_of_folds():
    risk, truth, _ = cohort()
    fold = np.arange(120) % 3
    parted = followed(truth, people(120), fold)
    shifted = risk_groups(risk + 5.0 * fold, parted)
    plain = risk_groups(risk, parted)
    assert [curve.bags for curve in shifted.curves] == [60, 60]
    assert (shifted.curves, shifted.p_value) == (plain.curves, plain.p_value)
    np.testing.assert_allclose(shifted.cuts, [np.median(risk[fold == k]) + 5 * k for k in range(3)])
    assert shifted.p_value < 1e-3 < risk_groups(risk + 5.0 * fold, of(truth)).p_value


def comparable_pairs(truth):
    time, event = truth.T
    later = (time[None] > time[:, None]) | ((time[None] == time[:, None]) & (event[None] == 0))
    return int((later & (event[:, None] == 1)).sum())
