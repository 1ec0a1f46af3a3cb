"""A model's folder comes back as it was saved, or is refused; nobody is predicted by a model that has seen him."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mil import Bag, TrainSpec, cross_validate, load_bag, load_model, predict, save_model
from mil.evaluation.calibrators import cross_calibrated, fit_calibrator
from mil.evaluation.rules import RuleSpec, fit_rules
from mil.model import CohortRow
from mil.predict import apply_network, rules_for
from wsi.errors import BackboneError, SpecError, StoreError

DIM = 6
CONTRACT = {"backbone": "lite", "mpp": 1.0, "transform": {"size": 224, "mean": [0.5, 0.5]}}


def make_bag(slide_id, label=None, patient_id=None, tiles=7, identity="", seed=0):
    rng = np.random.default_rng(abs(seed))
    features = rng.normal(size=(tiles, DIM)).astype(np.float32)
    xy = rng.integers(0, 9000, (tiles, 2))
    return Bag(features, xy, 512, (slide_id,), label, patient_id, None, identity, CONTRACT, "c0ffee")


@pytest.fixture(scope="module")
def bags():
    return [
        make_bag(f"s{i}", ("benign", "malignant")[i % 2], f"p{i}", identity=f"print-{i}", seed=i) for i in range(12)
    ]


@pytest.fixture(scope="module")
def model(bags):
    return cross_validate(bags, TrainSpec(hidden=8, attention=4, folds=3, epochs=2))


@pytest.fixture
def folder(model, tmp_path):
    save_model(model, tmp_path / "models" / "demo")
    return tmp_path / "models" / "demo"


def test_a_saved_model_comes_back_the_same(model, folder):
    back = load_model(folder)
    for field in (
        "classes",
        "head",
        "training",
        "contract_hash",
        "cohort",
        "span_px",
        "versions",
        "calibrator",
        "mark",
    ):
        assert getattr(back, field) == getattr(model, field), field
    assert (back.task.spec, back.task.as_dict()) == (model.task.spec, model.task.as_dict())
    assert back.partition == model.partition
    assert back.conformal == model.conformal
    assert back.outliers.threshold == model.outliers.threshold
    assert back.contract == json.loads(json.dumps(CONTRACT))
    assert json.dumps(back.metrics) == json.dumps(model.metrics)
    for a, b in zip(model.weights, back.weights, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_it_predicts_the_same_after_the_trip(model, folder):
    new = make_bag("new", seed=77)
    before, after = predict(model, new), predict(load_model(folder), new)
    np.testing.assert_array_equal(before.probability, after.probability)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_the_folder_holds_a_config_and_one_weights_file_per_fold_and_no_drafts(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "outliers.safetensors", *(f"fold-{fold}.safetensors" for fold in range(3))}
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]
    assert json.loads((folder / "config.json").read_text())["schema"] == "model/2"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def flip_a_byte(folder):
    path = folder / "fold-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "fold-1.safetensors: is damaged"),
        (lambda folder: (folder / "fold-2.safetensors").unlink(), "fold-2.safetensors: is missing"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"schema": "mod'), "is damaged: no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "does not describe a model"),
        (lambda folder: edit(folder, lambda c: c.update(schema="model/3")), "newer than this version"),
        (lambda folder: edit(folder, lambda c: c.update(schema="model/1")), "older than this version"),
        (lambda folder: edit(folder, lambda c: c.update(schema="patches/1")), "does not describe a model"),
        (lambda folder: edit(folder, lambda c: c["task"].pop("classes")), "missing or misshapen"),
        (
            lambda folder: edit(folder, lambda c: c["weights"][0].update(file="../demo/fold-0.safetensors")),
            "is missing",
        ),
    ],
)
def test_a_damaged_or_newer_folder_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(StoreError, match=message):
        load_model(folder)


def test_weights_of_another_head_are_refused(folder):
    edit(folder, lambda config: config["head"].update(hidden=9))
    with pytest.raises(StoreError, match="do not fit the head"):
        predict(load_model(folder), make_bag("new"))


def test_a_training_patient_is_predicted_by_the_one_model_that_did_not_see_him(model, bags):
    for bag, row in zip(bags, model.cohort, strict=True):
        prediction = predict(model, bag)
        assert prediction.origin == f"held-out fold {row.folds[0]}"
        np.testing.assert_allclose(prediction.output, model.task.activate(np.array([row.logits]))[0], rtol=1e-5)


def test_a_new_patient_gets_the_mean_of_all_folds(model):
    new = make_bag("new", patient_id="p-new", seed=50)
    prediction = predict(model, new)
    each = [apply_network(model.network(fold), new.features, new.positions()) for fold in range(3)]
    assert prediction.origin == "mean of 3 folds"
    logits = np.stack([answer.logits for answer in each])
    np.testing.assert_allclose(prediction.output, model.task.activate(logits.mean(axis=0)[None])[0], rtol=1e-5)
    together = model.calibrator.apply(logits.mean(axis=0)[None])[0]  # as it was calibrated, and not a mean of each
    np.testing.assert_allclose(prediction.probability, together, rtol=1e-5)
    np.testing.assert_allclose(prediction.attention, np.mean([answer.attention for answer in each], axis=0), rtol=1e-6)


def test_repeats_are_calibrated_at_prediction_as_they_were_when_judged(bags):
    """Of several networks that did not see a patient, the mean logit is calibrated, by bags of other folds."""
    repeated = cross_validate(bags, TrainSpec(hidden=8, attention=4, folds=3, repeats=2, epochs=2))
    logits, truth = np.array([row.logits for row in repeated.cohort]), np.arange(12) % 2
    folds = [row.folds[0] for row in repeated.cohort]
    for method in ("temperature", "platt"):
        judged = cross_calibrated(logits, truth, folds, method)
        model = replace(repeated, calibrator=fit_calibrator(logits, truth, method))
        for i, bag in enumerate(bags):
            prediction = predict(model, bag)
            np.testing.assert_allclose(prediction.output, model.task.activate(logits[i : i + 1])[0], rtol=1e-4)
            np.testing.assert_allclose(prediction.probability, judged[i], rtol=1e-4)
        assert not np.allclose(judged, model.calibrator.apply(logits), rtol=1e-3)


def test_sets_of_the_cohorts_own_bags_come_from_the_other_folds(model, bags):
    logits, truth = np.array([row.logits for row in model.cohort]), np.arange(12) % 2
    folds, patients = (
        np.array([row.folds[0] for row in model.cohort]),
        np.array([row.patient_id for row in model.cohort]),
    )
    own = fit_rules(logits, truth, patients.tolist(), folds, "temperature", RuleSpec(0.3, 0.2))
    ruled = replace(model, calibrator=fit_calibrator(logits, truth, "temperature"), conformal=own)
    rest = folds != folds[0]
    others = fit_rules(
        logits[rest], truth[rest], patients[rest].tolist(), folds[rest], "temperature", RuleSpec(0.3, 0.2)
    )
    assert rules_for(ruled, (int(folds[0]),)) == others != own
    assert rules_for(ruled, (0, 1, 2)) == own  # a new slide
    said = predict(ruled, bags[0])
    least = others["sets"]["thresholds"]
    inside = 1 - said.probability <= [2 if one is None else one + 1e-12 for one in least]
    assert said.chosen == tuple(name for name, held in zip(model.classes, inside, strict=True) if held)
    assert rules_for(replace(model, conformal={}), (0,)) == {}


def test_without_a_rule_that_keeps_its_promise_it_is_not_said_that_the_model_is_sure(model):
    sets = {"alpha": 0.1, "score": "lac", "by_class": False, "thresholds": [0.9, 0.9], "patients": [9, 9]}
    new = make_bag("new", patient_id="p-new", seed=50)
    said = [
        predict(replace(model, conformal={"sets": sets, "abstain": {"threshold": threshold}}), new).abstains
        for threshold in (None, 0.0, 1.1)
    ]
    assert said == [None, False, True]
    assert predict(replace(model, conformal={}), new).abstains is None


@pytest.mark.parametrize(
    ("bag", "held_out"),
    [
        (make_bag("another-slide", patient_id="p4", seed=60), True),  # the patient's second slide
        (make_bag("renamed", patient_id="someone", identity="print-4", seed=4), True),  # the file under a new name
        (make_bag("s4", seed=4), True),  # without a manifest only the slide's name is known
        (make_bag("s4", patient_id="s4", seed=4), True),  # a manifest without patients: the slide stands for itself
        (make_bag("s4", patient_id="someone", identity="other", seed=61), False),  # another hospital's slide s4
        (make_bag("s99", patient_id="p99", identity="other", seed=62), False),
    ],
)
def test_whoever_may_have_been_in_training_is_held_out(model, bag, held_out):
    fold = model.cohort[4].folds[0]
    assert predict(model, bag).origin == (f"held-out fold {fold}" if held_out else "mean of 3 folds")


def test_a_slide_that_every_model_has_seen_in_part_is_refused(model):
    other = next(row for row in model.cohort if row.folds != model.cohort[0].folds)
    with pytest.raises(SpecError, match="every network of the model has seen something of it"):
        predict(model, make_bag("mixed", patient_id="p0", identity=other.identity))


def test_tile_scores_are_what_the_model_says_of_that_tile_alone(model):
    new = make_bag("new", tiles=5, seed=51)
    prediction = predict(model, new)
    assert prediction.scores.shape == (5, 2)
    assert prediction.scores.dtype == prediction.attention.dtype == np.float32
    assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)
    for i in range(5):
        alone = Bag(
            new.features[i : i + 1], new.xy[i : i + 1], 512, ("new",), contract=CONTRACT, contract_hash="c0ffee"
        )
        np.testing.assert_allclose(predict(model, alone).output, prediction.scores[i], rtol=1e-5)
    np.testing.assert_array_equal(prediction.xy, new.xy)
    assert (prediction.span_px, prediction.tiles, prediction.status) == (512, 5, "done")


def test_tile_scores_of_a_large_slide_are_those_of_its_parts(model):
    new = make_bag("new", tiles=9_000, seed=52)
    part = replace(new, features=new.features[4_000:4_200], xy=new.xy[4_000:4_200])
    np.testing.assert_allclose(predict(model, new).scores[4_000:4_200], predict(model, part).scores, rtol=1e-5)


def test_an_empty_bag_is_predicted_as_empty(model):
    prediction = predict(model, make_bag("glass", tiles=0))
    assert (prediction.status, prediction.output, prediction.predicted, prediction.tiles) == ("empty", None, None, 0)
    assert prediction.scores.shape == (0, 2)


def test_embeddings_of_another_contract_are_refused_and_both_are_named(model):
    other = {**CONTRACT, "backbone": "uni", "transform": {"size": 256, "mean": (0.5, 0.5)}}
    bag = make_bag("new")
    with pytest.raises(BackboneError) as caught:
        predict(model, replace(bag, contract=other, contract_hash="beef"))
    text = str(caught.value)
    assert "uni (beef)" in text
    assert "lite (c0ffee)" in text
    assert "transform.size 256 instead of 224" in text
    assert "mean" not in text.split("differing")[1]
    assert "mpp" not in text


def test_predicting_leaves_torchs_random_state_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    predict(model, make_bag("new"))
    assert torch.rand(1) == expected


def test_a_bag_takes_only_the_tiles_that_could_be_read():
    store = SimpleNamespace(
        slide_id="s1",
        embeddings=np.arange(12, dtype=np.float16).reshape(4, 3),
        xy=np.array([[0, 0], [8, 0], [16, 0], [24, 0]]),
        ok=np.array([True, False, True, True]),
        span_px=8,
        contract=CONTRACT,
        contract_hash="c0ffee",
        identity="f1",
    )
    bag = load_bag(store, "benign", "p1")
    assert bag.features.dtype == np.float16  # as stored: the network makes them float32
    assert bag.features[:, 0].tolist() == [0, 6, 9]
    assert bag.xy[:, 0].tolist() == [0, 16, 24]
    assert (bag.slide_ids, bag.label, bag.patient_id, bag.identity) == (("s1",), "benign", "p1", "f1")
    store.embeddings = np.zeros((4, 2, 2, 3), np.float16)
    with pytest.raises(BackboneError, match=r"a vector for each patch token.*--variant"):
        load_bag(store)


def test_a_name_that_is_no_plain_folder_is_refused(model, tmp_path):
    with pytest.raises(SpecError, match="no name"):
        save_model(model, tmp_path / "..")


def test_a_row_of_an_empty_bag_survives_the_trip(model, tmp_path):
    row = CohortRow("glass", ("glass",), None, None, "", "benign", 0, (), None)
    save_model(replace(model, cohort=(*model.cohort, row)), tmp_path / "m")
    assert load_model(tmp_path / "m").cohort[-1] == row
