"""A planted shift is flagged whichever way it points; the cohort's own slides are flagged at the nominal rate."""

import numpy as np
import pytest

from mil.evaluation.outliers import Outliers, fit_outliers
from wsi.errors import SpecError

DIM = 300


def slides(n, seed=0, noise=0.05):
    """Vectors of a cohort that varies in ten directions, and hardly in the other 290."""
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))[0]
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 10)) * np.linspace(3, 1, 10) @ basis[:10] + noise * rng.normal(size=(n, DIM)), basis


def people(n):
    return [f"p{k}" for k in range(n)]


@pytest.mark.parametrize("n", [60, 400])  # fewer than dimensions, and more
def test_new_slides_of_the_same_cohort_are_flagged_at_about_the_nominal_rate(n):
    rates = [
        fit_outliers(slides(n, seed)[0], people(n), 0.9).flags(slides(300, 1000 + seed)[0]).mean() for seed in range(10)
    ]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("direction", [9, 50])  # one the cohort varies in, and one it never does
def test_a_planted_shift_is_flagged(direction):
    found = fit_outliers(slides(90)[0], people(90))
    fresh, basis = slides(200, seed=5)
    shifted = fresh + 9 * basis[direction]
    assert found.flags(fresh).mean() < 0.06
    assert found.flags(shifted).mean() > 0.95
    assert np.median(found.chance(shifted)) == pytest.approx(1 / 91)
    assert found.chance(fresh).mean() == pytest.approx(0.5, abs=0.12)


def test_the_distance_is_mahalanobis_where_the_components_span_everything():
    from scipy.spatial.distance import mahalanobis
    from sklearn.covariance import LedoitWolf

    vectors = np.random.default_rng(0).normal(size=(600, 4)) * [1, 2, 3, 4] + 7
    found = fit_outliers(vectors, people(600), explained=1)
    fitted = LedoitWolf().fit(vectors)
    theirs = [mahalanobis(row, fitted.location_, fitted.precision_) for row in vectors[:20]]
    np.testing.assert_allclose(found.distance(vectors[:20]), theirs, rtol=1e-6)


def test_a_patient_with_many_slides_does_not_vouch_for_himself():
    vectors, basis = slides(60)
    crowd = vectors[:1] + 0.01 * np.random.default_rng(1).normal(size=(8, DIM)) + 4 * basis[200]
    together = fit_outliers(np.vstack([vectors, crowd]), [*people(60), *["x"] * 8])
    apart = fit_outliers(np.vstack([vectors, crowd]), people(68))
    assert together.left_out[-8:].min() > 1.4 * together.left_out[-9]  # left out as one, the odd patient's are far
    assert apart.left_out.max() < 0.9 * together.left_out[-8:].min()


def test_the_share_of_strange_tiles_is_measured():
    tiles, basis = slides(900, seed=3)
    found = fit_outliers(tiles, [f"p{k // 30}" for k in range(900)])
    slide = slides(200, seed=4)[0]
    slide[:50] += 12 * basis[100]
    assert found.share_beyond(slide) == pytest.approx(0.25, abs=0.03)


def test_the_state_survives_a_file(tmp_path):
    vectors = slides(40)[0]
    found = fit_outliers(vectors, people(40))
    np.savez(tmp_path / "outliers.npz", **found.state())
    with np.load(tmp_path / "outliers.npz") as stored:
        again = Outliers.from_state(stored)
    np.testing.assert_array_equal(again.distance(vectors), found.distance(vectors))
    assert again.threshold == found.threshold
    assert found.components.shape == (9, DIM)


@pytest.mark.filterwarnings("error")
def test_copies_of_few_slides_give_finite_distances():
    vectors = np.repeat(slides(4)[0], 10, axis=0)
    found = fit_outliers(vectors, people(40))
    assert np.isfinite(found.distance(vectors)).all()
    assert not found.flags(vectors).any()


@pytest.mark.parametrize(
    ("vectors", "patients", "message"),
    [
        (slides(5)[0], people(5), "12 vectors"),
        (slides(20)[0], ["a", "b"] * 10, "3 patients"),
        (np.ones((20, 4)), people(20), "equal"),
        (np.full((20, 4), np.nan), people(20), "NaN"),
        (slides(20)[0], people(19), "one for each"),
    ],
)
def test_a_cohort_that_has_no_spread_is_refused(vectors, patients, message):
    with pytest.raises(SpecError, match=message):
        fit_outliers(vectors, patients)


def test_embeddings_of_another_backbone_are_refused():
    with pytest.raises(SpecError, match="backbone of the training cohort"):
        fit_outliers(slides(20)[0], people(20)).distance(np.zeros((1, 7)))
