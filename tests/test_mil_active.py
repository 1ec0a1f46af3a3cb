"""What is chosen to be looked at: the unsure, the disputed and the unseen; of no slide too much, and nothing twice."""

import numpy as np
import pytest

from mil.active import Candidates, ChoiceSpec, choose, disagreement, entropy, region_about, shortlist, told
from wsi.errors import SpecError


def candidates(count=60, slides=3, seed=0, **given) -> Candidates:
    rng = np.random.default_rng(seed)
    slide = np.arange(count) % slides
    facts = {
        "features": rng.normal(size=(count, 4)).astype(np.float32),
        "uncertainty": rng.random(count),
        "disagreement": rng.random(count),
        "slide": slide,
        "patient": slide,
        "place": np.stack([np.arange(count) // slides * 3, np.zeros(count, int)], axis=1),  # all far enough apart
        "reviewed": np.zeros((0, 4), np.float32),
    }
    return Candidates(**{**facts, **given})


def test_entropy_is_one_at_the_decision_and_zero_for_the_sure():
    assert entropy(np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])) == pytest.approx([1.0, 0.0, 0.469], abs=1e-3)
    assert entropy(np.full((1, 4), 0.25)) == pytest.approx([1.0])


def test_networks_that_are_unsure_alike_do_not_disagree():
    alike = np.full((3, 1, 2), 0.5)
    apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert disagreement(alike) == pytest.approx([0.0])
    assert disagreement(apart) == pytest.approx([1.0])
    assert np.isnan(disagreement(alike[:1])).all()


def test_the_most_unsure_and_the_most_disputed_are_first():
    tiles = candidates()
    assert choose(tiles, ChoiceSpec(5, "uncertainty"))[0] == tiles.uncertainty.argmax()
    assert choose(tiles, ChoiceSpec(5, "disagreement"))[0] == tiles.disagreement.argmax()


def test_tiles_that_one_network_alone_may_speak_of_are_chosen_by_doubt_or_not_at_all():
    lone = np.where(np.arange(60) < 30, np.nan, 0.1)
    tiles = candidates(disagreement=lone)
    assert (choose(tiles, ChoiceSpec(30, "disagreement", per_slide=30)) >= 30).all()
    assert (choose(tiles, ChoiceSpec(30, "mixed", per_slide=30)) < 30).any()


@pytest.mark.parametrize("by", ["mixed", "diversity"])
def test_each_of_several_kinds_of_tissue_is_chosen_before_any_twice(by):
    rng = np.random.default_rng(1)
    kind = np.arange(60) % 6
    features = (10 * np.eye(6)[kind] + 0.1 * rng.normal(size=(60, 6))).astype(np.float32)
    tiles = candidates(features=features, reviewed=features[:1], uncertainty=np.ones(60), disagreement=np.ones(60))
    assert sorted(kind[choose(tiles, ChoiceSpec(5, by))].tolist()) == [1, 2, 3, 4, 5]  # the first kind was reviewed


def test_every_other_choice_is_likely_of_the_positive_class():
    likely = np.random.default_rng(2).random(60)
    tiles = candidates(outputs=np.stack([1 - likely, likely], axis=1))
    chosen = choose(tiles, ChoiceSpec(10, "mixed", per_slide=9))
    assert likely[chosen[::2]].min() > np.median(likely)


def test_of_a_slide_and_a_patient_no_more_are_chosen_than_asked():
    tiles = candidates(slides=4, patient=np.arange(60) % 4 // 3)  # three slides of one patient
    chosen = choose(tiles, ChoiceSpec(60, "uncertainty", per_slide=2))
    assert np.bincount(tiles.slide[chosen]).max() == 2
    assert np.bincount(tiles.patient[chosen]).tolist() == [4, 2]


def test_neighbours_of_a_chosen_tile_are_not_chosen_beside_it():
    place = np.stack([np.arange(60), np.zeros(60, int)], axis=1)
    tiles = candidates(slides=1, place=place)
    chosen = np.sort(choose(tiles, ChoiceSpec(60, "random", per_slide=60)))
    assert np.diff(place[chosen, 0]).min() == 3


@pytest.mark.parametrize("by", ["mixed", "uncertainty", "disagreement", "diversity", "random"])
def test_the_same_choice_is_made_twice(by):
    first, again = (choose(candidates(), ChoiceSpec(10, by, seed=3)) for _ in range(2))
    assert len(set(first.tolist())) == 10
    assert first.tolist() == again.tolist()


def test_of_a_large_slide_the_informative_and_some_others_are_kept():
    values = np.arange(1000) / 1000
    kept = shortlist(values, 100, np.random.default_rng(0))
    assert len(set(kept.tolist())) == 100
    assert set(range(950, 1000)) <= set(kept.tolist())
    assert (kept < 900).sum() > 30


def test_a_region_is_the_tile_with_those_beside_it_that_look_like_it():
    place = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [5, 5]])
    features = np.array([[0.0], [9.0], [1.0], [2.0], [0.0]])
    alike = np.array([True, True, True, False, True])
    assert region_about(0, place, features, alike, 3).tolist() == [0, 2, 1]
    assert region_about(0, place, features, alike, 2).tolist() == [0, 2]


def test_the_reason_is_said_in_words():
    scores = {"uncertainty": 0.98, "disagreement": float("nan")}
    assert told(scores, "mixed") == "the model is undecided (entropy 0.98 of 1), unlike the other choices"
    assert told({"uncertainty": 1.0, "disagreement": 0.4}, "disagreement") == "its networks disagree (0.40 of 1)"


@pytest.mark.parametrize(("given", "problem"), [({"by": "luck"}, "unknown"), ({"count": 0}, "out of range")])
def test_settings_that_are_none_are_refused(given, problem):
    with pytest.raises(SpecError, match=problem):
        ChoiceSpec(**given)
