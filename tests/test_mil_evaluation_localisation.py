"""Overlap, distances, tile figures and FROC are those of plain counting and of CAMELYON16's own evaluation."""

import json

import numpy as np
import pytest
import shapely
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from mil.evaluation.detection import IGNORED, MISSED, Candidates, froc, hits_in_mask, hits_in_polygons
from mil.evaluation.localisation import mean_over_slides, overlap, tile_auroc, tiles_against_regions
from wsi.errors import SpecError


def blob(seed, shape=(60, 70)):
    """A random smooth mask."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(4):
        row, col, radius = rng.integers(5, 55), rng.integers(5, 65), rng.integers(3, 14)
        mask |= (rows - row) ** 2 + (cols - col) ** 2 < radius**2
    return mask


def slow_hd95(a, b):
    """Straight from the definition: all pairs of boundary pixels, neighbours looked up one by one."""

    def boundary(mask):
        points = []
        for row, col in np.argwhere(mask):
            near = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
            whole = all(0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and mask[r, c] for r, c in near)
            points += [] if whole else [(row, col)]
        return np.array(points)

    distances = cdist(boundary(a), boundary(b))
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


# masks


@pytest.mark.parametrize("seed", range(5))
def test_overlap_is_that_of_counting_all_pairs(seed):
    a, b = blob(seed), blob(seed + 100)
    found = overlap(a, b, mpp=0.5)
    marked, drawn = set(map(tuple, np.argwhere(a))), set(map(tuple, np.argwhere(b)))
    assert found.dice == pytest.approx(2 * len(marked & drawn) / (len(marked) + len(drawn)))
    assert found.iou == pytest.approx(len(marked & drawn) / len(marked | drawn))
    assert found.hd95_um == pytest.approx(slow_hd95(a, b) * 0.5)
    assert overlap(b, a, 0.5) == found


def test_overlap_by_hand():
    a, b = np.zeros((10, 40), bool), np.zeros((10, 40), bool)
    a[2:6, 2:6], b[2:6, 12:16] = True, True
    found = overlap(a, b, mpp=2.0)
    assert (found.dice, found.iou, found.hd95_um) == (0, 0, 20)
    assert overlap(a, a, 2.0).hd95_um == 0
    assert overlap(a, a, 2.0).dice == 1


def test_one_stray_pixel_in_a_hundred_is_forgiven():
    a = np.zeros((200, 200), bool)
    a[20:80, 20:80] = True
    b = a.copy()
    b[190, 190] = True
    assert overlap(a, b, 1).hd95_um == 0


def test_empty_masks_follow_the_convention():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert (overlap(empty, empty, 1).dice, overlap(empty, empty, 1).reason) == (None, "both masks are empty")
    one = overlap(full, empty, 1)
    assert (one.dice, one.iou, one.hd95_um, one.reason) == (0, 0, None, "the annotated mask is empty")
    assert overlap(empty, full, 1).reason == "the predicted mask is empty"


def test_means_leave_out_slides_without_a_figure():
    found = mean_over_slides([0.2, None, 0.6], ["a", "b", "c"], 200)
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.6))
    assert mean_over_slides([None], ["a"]).reason == "it is not defined on any slide"
    assert mean_over_slides([], []).value is None


# tiles


def polygons():
    ragged = shapely.Point(300, 280).buffer(150).difference(shapely.Point(320, 300).buffer(60))
    return [ragged, shapely.box(380, 250, 600, 420), shapely.Polygon([(50, 50), (200, 200), (200, 50), (50, 200)])]


@pytest.mark.parametrize("grid", [True, False])
def test_the_share_of_a_tile_in_regions_is_exact(grid):
    rng = np.random.default_rng(0)
    if grid:
        xy = np.stack(np.meshgrid(np.arange(0, 700, 64), np.arange(0, 500, 48)), -1).reshape(-1, 2)
    else:
        xy = rng.integers(0, 600, (300, 2))
    whole = shapely.union_all(shapely.make_valid(polygons()))
    exact = [whole.intersection(shapely.box(x, y, x + 64, y + 64)).area / 64**2 for x, y in xy]
    found = tiles_against_regions(xy, 64, polygons())
    np.testing.assert_allclose(found, exact, atol=1e-9)
    assert 0 < np.mean(found) < 1


def test_no_regions_or_no_tiles_is_no_share():
    assert tiles_against_regions(np.array([[0, 0], [5, 5]]), 10, []).tolist() == [0, 0]
    assert tiles_against_regions(np.zeros((0, 2), int), 10, polygons()).shape == (0,)


def planted(slides=8, seed=0):
    rng = np.random.default_rng(seed)
    inside = [rng.random(rng.integers(30, 60)) < 0.3 for _ in range(slides)]
    return [np.round(truth * 0.8 + rng.normal(size=len(truth)), 1) for truth in inside], inside


def test_tile_auroc_is_that_of_scikit_learn():
    scores, inside = planted()
    patients = [f"p{k // 2}" for k in range(8)]
    found = tile_auroc(scores, inside, patients, 300)
    assert found.pooled.value == pytest.approx(roc_auc_score(np.concatenate(inside), np.concatenate(scores)))
    own = [roc_auc_score(truth, score) for truth, score in zip(inside, scores, strict=True)]
    assert found.per_slide == pytest.approx(own)
    assert found.mean.value == pytest.approx(np.mean(own))
    assert found.pooled.low < found.pooled.value < found.pooled.high


def test_its_interval_is_that_of_patients_drawn_again():
    from mil.evaluation.estimate import bootstrap_weights

    scores, inside = planted()
    patients = [f"p{k // 2}" for k in range(8)]
    drawn = []
    for row in next(iter(bootstrap_weights(patients, 100, 7))).astype(int):
        again = np.repeat(np.arange(8), row)
        drawn.append(
            roc_auc_score(np.concatenate([inside[k] for k in again]), np.concatenate([scores[k] for k in again]))
        )
    found = tile_auroc(scores, inside, patients, 100, 7).pooled
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())


@pytest.mark.filterwarnings("error")
def test_slides_without_regions_have_no_auroc_of_their_own():
    found = tile_auroc(
        [np.array([0.1, 0.9]), np.array([0.3])], [np.array([False, True]), np.array([False])], ["a", "b"]
    )
    assert found.per_slide == (1.0, None)
    nothing = tile_auroc([np.array([0.3])], [np.array([False])], ["a"])
    assert "no tile is inside" in nothing.pooled.reason
    assert tile_auroc([], [], []).mean.value is None


# lesions


def camelyon16(slides):
    """The challenge's Evaluation_FROC.py, computeFROC, in its own order of steps."""
    alarms = [score for one in slides for score in one.score[one.hit == MISSED]]
    finds = [
        one.score[one.hit == lesion].max()
        for one in slides
        for lesion in range(one.lesions)
        if (one.hit == lesion).any()
    ]
    rates, sensitivities = [], []
    for threshold in sorted({*alarms, *finds}):
        rates.append(sum(score >= threshold for score in alarms) / len(slides))
        sensitivities.append(sum(score >= threshold for score in finds) / sum(one.lesions for one in slides))
    rates.append(0)
    sensitivities.append(0)
    return np.mean(np.interp((0.25, 0.5, 1, 2, 4, 8), rates[::-1], sensitivities[::-1]))


def searched(seed, slides=12):
    rng, found = np.random.default_rng(seed), []
    for number in range(slides):
        lesions, m = int(rng.integers(0, 4)), int(rng.integers(0, 25))
        hit = rng.integers(IGNORED, lesions, m)
        found.append(Candidates(np.round(rng.random(m) + 0.3 * (hit >= 0), 2), hit, lesions, f"p{number}"))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_froc_is_that_of_camelyon16(seed):
    slides = searched(seed)
    found = froc(slides, 50)
    assert found.score.value == pytest.approx(camelyon16(slides))
    assert np.mean(found.at) == pytest.approx(found.score.value)
    assert (np.diff(found.sensitivity) >= 0).all()
    json.dumps(found.as_dict())


def test_the_scores_interval_is_that_of_patients_drawn_again():
    from mil.evaluation.estimate import bootstrap_weights

    slides = searched(1)
    rows = next(iter(bootstrap_weights([one.patient for one in slides], 60, 5))).astype(int)
    drawn = [camelyon16([slides[k] for k in np.repeat(np.arange(len(slides)), row)]) for row in rows]
    found = froc(slides, 60, 5).score
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())


def test_froc_by_hand():
    one = Candidates(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, MISSED, 0, 1, IGNORED]), 3, "a")
    found = froc([one, Candidates(np.zeros(0), np.zeros(0, int), 0, "b")], 20)
    assert found.false_positives == (0, 0, 0.5, 0.5)
    assert found.sensitivity == (0, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found.at == pytest.approx((1 / 3, *[2 / 3] * 5))


def test_detections_fall_into_lesions_drawn_or_labelled():
    drawn = [shapely.box(0, 0, 100, 100), shapely.box(80, 0, 200, 100)]
    xy = np.array([[10, 10], [90, 50], [150, 50], [100, 300], [20, 390], [15, 60]])
    cells = [shapely.box(0, 50, 20, 70), shapely.box(0, 380, 50, 400)]
    assert hits_in_polygons(xy, drawn, cells).tolist() == [0, 0, 1, MISSED, IGNORED, 0]
    assert hits_in_polygons(xy, []).tolist() == [MISSED] * 6
    labels = np.zeros((20, 20), int)
    labels[:10, :10], labels[:10, 10:], labels[19] = 1, 2, 3
    assert hits_in_mask(xy, labels, 10.0, ignored=(3,)).tolist() == [0, 0, 1, MISSED, MISSED, 0]
    assert hits_in_mask(np.array([[5.0, 199.9], [-1, 5], [5, 200]]), labels, 10, (3,)).tolist() == [-2, -1, -1]


@pytest.mark.filterwarnings("error")
def test_cohorts_without_lesions_or_detections_give_reasons():
    nothing = Candidates(np.zeros(0), np.zeros(0, int), 0, "a")
    assert froc([]).score.reason == "there are no slides"
    assert froc([nothing]).score.reason == "there is no lesion"
    silent = froc([Candidates(np.zeros(0), np.zeros(0, int), 2, "a"), nothing], 50)
    assert silent.score.value == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap(np.ones((2, 2), bool), np.ones((3, 2), bool), 1), "one size"),
        (lambda: overlap(np.ones((2, 2)), np.ones((2, 2)), 1), "give bool"),
        (lambda: tiles_against_regions(np.zeros((1, 2), int), 0, []), "span above 0"),
        (lambda: tile_auroc([np.ones(2)], [np.ones(3, bool)], ["a"]), "each tile"),
        (lambda: froc([Candidates(np.ones(1), np.array([2]), 2, "a")]), "lesion's index"),
        (lambda: hits_in_polygons(np.array([[np.nan, 1]]), []), "level-0"),
        (lambda: mean_over_slides([0.5], []), "one for each"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(SpecError, match=message):
        call()
