"""A search finds better settings within the training part, the same twice, and never sees the test part."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

from mil.bag import Bag
from mil.crossval import cross_validate, fold_parts, gather
from mil.heads import HEADS
from mil.model import load_model, save_model
from mil.predict import predict
from mil.search import SETTINGS, SPACE, Between, apply_choice, search
from mil.spec import HeadSpec, TaskSpec, TrainSpec
from mil.splits import Partition
from mil.tasks import make_task
from mil.train import Part, Run
from wsi.errors import SpecError

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

SPEC = TrainSpec(head="abmil", hidden=8, attention=4, folds=2, epochs=4, search=4, learning_rate=1e-3)
RATES = {"learning_rate": Between(1e-5, 1e-1, log=True)}


def cohort(bags=36, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Bag(
            (rng.normal(size=(6, 4)) + 0.8 * (i % 2)).astype(np.float32),
            np.zeros((6, 2), np.int64),
            1,
            (f"s{i}",),
            ("a", "b")[i % 2],
        )
        for i in range(bags)
    ]


def halves(bags):
    task = make_task(TaskSpec(), bags)
    part = Part(bags, task.truth(bags))
    places = np.arange(len(bags))
    return (part.at(places[: len(bags) // 2]), part.at(places[len(bags) // 2 :])), task


def found(spec=SPEC, space=None, seed=0, bags=None):
    parts, task = halves(bags or cohort())
    head = spec.head_spec(4, task.outputs)
    return search(parts, task, head, spec, Run(seed), space)


def test_the_same_seed_finds_the_same_and_another_does_not():
    first = found()
    assert first == found()
    assert first["trials"] != found(seed=1)["trials"]
    assert set(first["chosen"]) == set(SPACE)
    assert len(first["trials"]) == 4


def test_the_best_of_the_trials_is_chosen_and_the_first_are_the_settings_as_they_are():
    told = found(replace(SPEC, search=6, epochs=8), RATES)
    complete = [trial for trial in told["trials"] if trial["state"] == "complete"]
    assert told["loss"] == min(trial["loss"] for trial in complete)
    assert told["trials"][0]["values"] == {"learning_rate": 1e-3}
    assert told["loss"] < told["trials"][0]["loss"]  # 1e-3 is too slow for 8 epochs
    assert told["chosen"]["learning_rate"] > 1e-3


def test_what_is_tried_can_be_given_as_a_recipe_gives_it():
    space = {"head": ["mean", "max"], "dropout": {"low": 0.0, "high": 0.5}, "hidden": {"low": 4, "high": 9}}
    told = found(space=space)
    for trial in told["trials"]:
        values = trial["values"]
        assert values["head"] in ("mean", "max")
        assert 0 <= values["dropout"] <= 0.5
        assert isinstance(values["hidden"], int)
        assert 4 <= values["hidden"] <= 9


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"folds": [2, 3]}, "'folds' is no setting"),
        ({"class_weights": [True, False]}, "'class_weights' is no setting"),  # its losses are not comparable
        ({"learning_rate": 0.1}, "is no range"),
        ({"learning_rate": Between(0.1, 0.01)}, "is no range"),
        ({"learning_rate": Between(0.0, 0.01, log=True)}, "is no range"),
        ({"hidden": []}, "is no range"),
        ({"head": ["nobody"]}, "no head 'nobody'"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, message):
    with pytest.raises(SpecError, match=message):
        found(space=space)


def test_a_trial_that_diverges_counts_for_nothing_and_nothing_but_such_is_refused():
    told = found(space={"learning_rate": [1e-3, 1e35]}, spec=replace(SPEC, search=6))
    assert told["chosen"] == {"learning_rate": 1e-3}
    assert {trial["state"] for trial in told["trials"] if trial["values"]["learning_rate"] > 1} <= {"fail", "pruned"}
    with pytest.raises(SpecError, match="none of 4 trials came to an end"):
        found(space={"learning_rate": [1e35]})


def test_without_a_validation_part_nothing_can_be_compared():
    (training, validation), task = halves(cohort())
    with pytest.raises(SpecError, match="too small to hold back"):
        search((training, validation.at(np.arange(0))), task, SPEC.head_spec(4, 2), SPEC, Run(0))


def test_a_missing_optuna_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r"optuna is missing; pip install 'slidestream\[search\]'"):
        found()


def test_a_choice_changes_settings_and_head_and_another_head_leaves_options_behind():
    spec, head = replace(SPEC, head="clam-sb", head_options={"k": 3}), HeadSpec("clam-sb", 4, 2, options={"k": 3})
    chosen, shaped = apply_choice(spec, head, {"hidden": 32, "learning_rate": 0.01})
    assert (chosen.hidden, chosen.learning_rate, shaped.hidden, shaped.options) == (32, 0.01, 32, {"k": 3})
    chosen, shaped = apply_choice(spec, head, {"head": "mean"})
    assert (chosen.head, chosen.head_options, shaped.name, shaped.options) == ("mean", {}, "mean", {})
    assert set(SPACE) <= set(SETTINGS)
    assert "clam-sb" in HEADS


@pytest.fixture(scope="module")
def nested():
    bags = cohort()
    return bags, cross_validate(bags, SPEC)


def test_every_network_has_a_search_of_its_own_which_is_kept(nested):
    _, model = nested
    assert len(model.folds) == 2
    for history in model.folds:
        assert set(history["search"]["chosen"]) == set(SPACE)
        assert history["head"]["hidden"] == history["search"]["chosen"]["hidden"]
    assert model.folds[0]["search"]["trials"] != model.folds[1]["search"]["trials"]


def test_networks_of_different_heads_make_one_model_that_survives_its_folder(tmp_path):
    space = {"head": ["mean", "max"], "hidden": {"low": 4, "high": 64}}
    bags = cohort(24)
    model = cross_validate(bags, replace(SPEC, search=2, search_space=space))
    assert model.head_of(0) != model.head_of(1)
    save_model(model, tmp_path / "searched")
    loaded = load_model(tmp_path / "searched")
    assert [loaded.head_of(place) for place in (0, 1)] == [model.head_of(place) for place in (0, 1)]
    for bag, row in zip(bags, loaded.cohort, strict=True):
        np.testing.assert_allclose(
            predict(loaded, bag).output, model.task.activate(np.array([row.logits]))[0], atol=1e-5
        )


def test_a_search_never_sees_the_test_part(nested):
    """With other labels in the test part of the first network, it is the same to the bit."""
    bags, model = nested
    fold_of = np.array([row.folds[0] for row in model.cohort])
    partition = Partition(fold_of[None], 0)
    honest = fold_parts(gather(bags, SPEC), partition, 0)
    rng = np.random.default_rng(1)
    spoiled = [
        replace(bag, label=str(rng.choice(["a", "b"]))) if fold == 0 else bag
        for bag, fold in zip(bags, fold_of, strict=True)
    ]
    assert [bag.label for bag in spoiled] != [bag.label for bag in bags]
    for mine, others in zip(honest, fold_parts(gather(spoiled, SPEC), partition, 0), strict=True):
        assert (mine == others).all()
    found_on = []
    for cohort_ in (gather(bags, SPEC), gather(spoiled, SPEC)):
        training, validation, _ = fold_parts(cohort_, partition, 0)
        parts = (cohort_.part.at(training), cohort_.part.at(validation))
        found_on.append(search(parts, cohort_.task, cohort_.head, SPEC, Run(0)))
    assert found_on[0] == found_on[1] == model.folds[0]["search"]


def test_a_killed_search_is_not_done_twice(nested, tmp_path):
    bags, whole = nested

    def progress(*news):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(bags, SPEC, progress=progress, resume=tmp_path)
    (kept,) = tmp_path.glob("*/search-0.json")
    written = kept.stat().st_mtime_ns
    model = cross_validate(bags, SPEC, resume=tmp_path)
    assert kept.stat().st_mtime_ns == written
    assert model.folds == whole.folds
    assert [row.logits for row in model.cohort] == [row.logits for row in whole.cohort]


def test_a_search_is_quiet_and_leaves_optunas_loudness_alone(monkeypatch):
    heard = logging.Handler()
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(heard, "emit", records.append)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(heard)
    try:
        found(space=RATES)
    finally:
        logging.getLogger("optuna").removeHandler(heard)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert not records


def test_a_setting_that_is_left_to_the_task_can_be_searched_between_numbers():
    assert SPEC.batch is None
    chosen = found(space={"batch": Between(1, 3)})["chosen"]
    assert chosen["batch"] in (1, 2, 3)
