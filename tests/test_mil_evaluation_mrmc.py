"""The analysis of variance of reader studies gives the published figures of a published study."""

import numpy as np
import pytest

from mil.evaluation.mrmc import COVARIANCES, mrmc
from wsi.errors import SpecError

# Van Dyke et al. (RSNA 1993): cine against spin-echo MRI for aortic dissection, five readers, ratings 1 to 5 of 69
# cases without and 45 with disease; the public example of the MRMC literature. A pair is one case: spin-echo, cine.
VAN_DYKE = (
    "13 23 23 12 52 12 12 12 13 12 11 13 41 12 12 12 12 12 12 11 11 11 31 11 34 12 11 23 11 42 12 11 14 13 12 33 11 22"
    " 13 21 12 12 22 33 33 11 31 11 13 33 33 11 11 13 14 11 12 24 22 11 12 14 11 34 34 22 11 11 11"
    " 55 53 55 55 45 55 55 55 44 55 55 55 45 34 44 23 43 55 55 55 55 55 55 55 13 55 45 43 55 45 55 55 34 54 55 55 15 13"
    " 55 55 55 45 45 55 11",
    "23 32 22 22 22 22 22 22 23 32 22 22 52 22 22 21 32 22 22 22 21 22 22 22 43 22 22 22 22 32 22 21 22 22 21 22 22 22"
    " 22 22 23 21 22 22 23 22 22 22 22 22 22 22 22 22 23 22 22 43 32 22 22 32 22 22 22 22 21 22 22"
    " 55 33 55 55 55 55 55 45 22 55 55 55 43 44 24 22 24 55 54 55 55 55 54 55 22 45 32 33 55 45 55 53 22 44 22 55 25 22"
    " 55 55 55 55 35 55 22",
    "22 24 22 22 32 52 13 12 22 22 41 21 41 23 22 22 32 22 21 22 11 21 32 21 44 11 11 35 21 22 11 11 22 21 22 42 12 21"
    " 12 42 12 21 11 13 22 21 21 21 22 23 33 21 11 13 22 12 11 22 23 12 13 54 11 42 24 12 21 12 21"
    " 55 42 55 55 55 55 55 55 55 55 55 55 53 45 24 31 54 55 55 55 55 55 55 55 22 55 23 23 55 55 55 54 23 55 55 55 25 23"
    " 54 55 55 55 55 55 21",
    "12 12 11 11 11 11 33 11 12 11 11 11 11 12 12 11 11 11 12 11 21 11 11 11 23 12 11 12 11 22 11 11 11 11 12 12 11 11"
    " 12 11 11 11 11 11 12 11 12 11 32 31 12 12 11 11 11 11 11 12 11 12 11 11 11 33 12 13 12 11 11"
    " 55 54 55 55 55 55 55 55 54 55 55 55 54 55 55 15 55 55 55 55 55 55 55 55 54 55 45 54 44 45 55 55 35 55 55 55 15 23"
    " 55 55 55 55 55 55 55",
    "32 52 13 21 12 12 12 12 21 22 22 12 21 11 11 12 22 22 11 12 32 22 21 12 13 12 12 23 12 11 22 11 12 22 32 12 21 21"
    " 12 11 12 31 31 33 22 11 12 12 23 13 12 11 12 12 12 12 11 32 42 12 22 33 11 22 13 23 11 11 31"
    " 55 22 55 24 55 55 55 55 15 54 45 55 43 54 23 23 33 55 55 55 55 55 55 45 12 45 41 33 23 22 15 53 12 55 14 55 15 13"
    " 53 55 55 35 55 55 23",
)
POSITIVE = np.arange(114) >= 69


def van_dyke():
    """Ratings (2 treatments, 5 readers, 114 cases)."""
    return np.array([[[int(d) for d in case] for case in reader.split()] for reader in VAN_DYKE]).transpose(2, 0, 1)


# What follows are the figures of OR-DBM MRMC 2.51 (Schartz, Hillis, Pesce & Berbaum) for this study.
def test_van_dyke_with_random_readers_and_cases():
    found = mrmc(POSITIVE, van_dyke())
    assert np.array(found.auroc) == pytest.approx(
        np.array(
            [
                [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066],
                [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169],
            ]
        ),
        abs=5e-9,
    )
    parts = found.components
    assert (parts.ms_treatment, parts.ms_reader, parts.ms_treatment_reader) == pytest.approx(
        (0.00479617, 0.00383620, 0.00055103), abs=5e-9
    )
    assert (parts.error, parts.cov1, parts.cov2, parts.cov3) == pytest.approx(
        (0.00080229, 0.00034661, 0.00034407, 0.00023903), abs=5e-9
    )
    assert (parts.reader, parts.treatment_reader) == pytest.approx((0.00153500, 0.00020040), abs=5e-9)
    assert (found.statistic, found.ddf, found.p) == pytest.approx((4.46, 15.26, 0.0517), abs=0.005)
    assert found.p == pytest.approx(0.0517, abs=5e-5)
    (difference,) = found.differences
    assert (difference.estimate.value, difference.estimate.low, difference.estimate.high) == pytest.approx(
        (-0.04380, -0.08796, 0.00036), abs=5e-6
    )
    assert difference.p == pytest.approx(found.p)
    assert np.array([(e.value, e.low, e.high) for e in found.treatments]) == pytest.approx(
        np.array([(0.89703704, 0.82522360, 0.96885048), (0.94083736, 0.89413783, 0.98753689)]), abs=5e-9
    )


def test_van_dyke_with_fixed_readers():
    found = mrmc(POSITIVE, van_dyke(), readers="fixed")
    assert (found.statistic, found.df, found.ddf) == (pytest.approx(5.47595, abs=5e-6), 1, None)
    assert found.p == pytest.approx(0.0193, abs=5e-5)
    estimate = found.differences[0].estimate
    assert (estimate.low, estimate.high) == pytest.approx((-0.08049, -0.00711), abs=5e-6)
    assert np.array([(e.low, e.high) for e in found.treatments]) == pytest.approx(
        np.array([(0.84943008, 0.94464399), (0.90795637, 0.97371835)]), abs=1e-7
    )


def test_van_dyke_with_fixed_cases():
    found = mrmc(POSITIVE, van_dyke(), cases="fixed")
    assert (found.statistic, found.ddf, found.p) == pytest.approx((8.70, 4, 0.0420), abs=0.005)
    estimate = found.differences[0].estimate
    assert (estimate.low, estimate.high) == pytest.approx((-0.08502, -0.00258), abs=5e-6)
    assert np.array([(e.low, e.high) for e in found.treatments]) == pytest.approx(
        np.array([(0.82809808, 0.96597599), (0.89598936, 0.98568536)]), abs=5e-9
    )


def test_one_reader_at_a_time_is_the_published_single_reader_analysis():
    published = [
        (-0.07818, 0.02182),
        (-0.09809, 0.00501),
        (-0.07904, 0.04330),
        (-0.06014, 0.00764),
        (-0.18651, -0.01381),
    ]
    for reader, interval in enumerate(published):
        found = mrmc(POSITIVE, van_dyke()[:, reader : reader + 1], readers="fixed")
        estimate = found.differences[0].estimate
        assert (estimate.low, estimate.high) == pytest.approx(interval, abs=1.1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_ways_to_estimate_the_covariance_agree(covariance):
    found = mrmc(POSITIVE, van_dyke(), covariance=covariance)
    assert found.p == pytest.approx(0.0517, abs=0.004)
    assert found.components.error == pytest.approx(0.00080229, rel=0.06)


@pytest.mark.parametrize("covariance", ["jackknife", "delong"])
def test_cases_seen_twice_tell_nothing_new_about_their_patients(covariance):
    once = mrmc(POSITIVE, van_dyke(), covariance=covariance)
    twice = np.tile(van_dyke(), 2)
    patients = [str(i % 114) for i in range(228)]
    by_patient = mrmc(np.tile(POSITIVE, 2), twice, patients, covariance=covariance)
    fooled = mrmc(np.tile(POSITIVE, 2), twice, covariance=covariance)
    assert by_patient.components.error == pytest.approx(once.components.error)
    assert by_patient.p == pytest.approx(once.p)
    assert fooled.components.error < 0.6 * once.components.error


def test_equal_treatments_are_rejected_about_as_often_as_promised():
    rng, rejected = np.random.default_rng(5), 0
    for _ in range(300):
        positive = np.arange(60) >= 30
        case, reader = rng.normal(size=60), rng.normal(0, 0.3, size=(1, 4, 1))
        score = case + positive * (1.2 + reader) + 0.7 * rng.normal(size=(2, 4, 60)) + 0.4 * rng.normal(size=(2, 1, 60))
        rejected += mrmc(positive, score, covariance="delong").p < 0.05
    assert 0.02 <= rejected / 300 <= 0.085


def test_one_treatment_alone_has_its_interval_but_no_comparison():
    both, alone = mrmc(POSITIVE, van_dyke()), mrmc(POSITIVE, van_dyke()[:1])
    assert alone.treatments[0].low == pytest.approx(both.treatments[0].low)
    assert alone.p is None
    assert alone.differences == ()


def test_fixed_cases_need_no_second_patient_of_a_kind():
    ratings = np.random.default_rng(0).normal(size=(2, 3, 9))
    assert mrmc(np.arange(9) == 0, ratings, cases="fixed").p is not None


def test_three_treatments_are_compared_in_pairs_and_as_a_whole():
    ratings = np.concatenate([van_dyke(), van_dyke()[:1]])
    found = mrmc(POSITIVE, ratings)
    assert [(d.first, d.second) for d in found.differences] == [(0, 1), (0, 2), (1, 2)]
    assert found.df == 2
    assert found.differences[1].estimate.value == pytest.approx(0)
    assert found.differences[1].p == pytest.approx(1)


@pytest.mark.parametrize(
    ("positive", "ratings", "reason"),
    [
        (np.zeros(9, bool), np.arange(36.0).reshape(2, 2, 9), "not both positives and negatives"),
        (np.arange(9) == 0, np.arange(36.0).reshape(2, 2, 9), "fewer than two patients"),
        (np.arange(9) > 4, np.arange(18.0).reshape(1, 2, 9), "single treatment"),
        (np.arange(9) > 4, np.arange(18.0).reshape(2, 1, 9), "single reader"),
        (np.arange(9) > 4, np.ones((2, 2, 9)), "error term is estimated as zero"),
        (np.zeros(0, bool), np.ones((2, 2, 0)), "not both positives and negatives"),
    ],
)
def test_a_study_without_an_answer_says_why(positive, ratings, reason):
    found = mrmc(positive, ratings)
    assert found.p is None
    assert reason in found.reason
    assert all(estimate.low is None for estimate in found.treatments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readers": "both"}, "'both' is unknown"),
        ({"readers": "fixed", "cases": "fixed"}, "nothing is random"),
        ({"covariance": "magic"}, "choose one of jackknife"),
        ({"ratings": np.ones((2, 114))}, "treatments, readers, cases"),
        ({"ratings": np.where(np.arange(114) == 3, np.nan, van_dyke())}, "NaN"),
        ({"patients": ["a"]}, "1 for 114 cases"),
    ],
)
def test_a_study_that_is_set_up_wrongly_is_refused(change, message):
    with pytest.raises(SpecError, match=message):
        mrmc(**{"positive": POSITIVE, "ratings": van_dyke(), **change})
