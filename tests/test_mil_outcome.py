"""What a cross-validation amounts to: calibrated by what fits, judged on what nothing was fitted on."""

from dataclasses import replace

import numpy as np
import pytest

from mil.bag import Bag
from mil.crossval import cross_validate
from mil.evaluation.abstain import abstain_threshold
from mil.evaluation.calibrators import cross_calibrated, fit_calibrator
from mil.evaluation.conformal import Conformal, ConformalSpec, fit_conformal
from mil.evaluation.rules import RuleSpec, fit_rules, patient_parts
from mil.outcome import Outcome, assess
from mil.spec import TaskSpec, TrainSpec
from mil.splits import Partition, who
from mil.tasks import make_task
from mil.train import Part
from wsi.errors import SpecError

DIM = 4
TINY = TrainSpec(head="mean", hidden=4, epochs=1, learning_rate=1e-2)


def bag(i, label="", patient=None, shift=0.0, **columns):
    rng = np.random.default_rng(i)
    features = (rng.normal(size=(3, DIM)) + shift).astype(np.float32)
    return Bag(features, np.zeros((3, 2), np.int64), 256, (f"s{i}",), label, patient or f"p{i}", columns=columns)


def cohort(slides=40, slides_each=1):
    """Every second patient is positive; their tiles are shifted a little."""
    positive = [(i // slides_each) % 2 for i in range(slides)]
    return [bag(i, "ab"[y], f"p{i // slides_each}", 0.5 * y) for i, y in enumerate(positive)]


def splits(tmp_path, texts, header="split"):
    path = tmp_path / "splits.csv"
    rows = "".join(f"s{i},{text}\n" for i, text in enumerate(texts))
    path.write_text(f"slide_id,{header}\n{rows}")
    return str(path)


def assessed(logits, truth, folds, patients=None, spec=TINY):
    """`assess` of made-up logits (n, 2)."""
    bags = [bag(i, "ab"[y], None if patients is None else patients[i]) for i, y in enumerate(truth)]
    task, partition = make_task(TaskSpec(), bags), Partition(np.asarray(folds)[None], 0)
    outcome = Outcome(len(bags), 2, partition)
    outcome.hear(0, np.arange(len(bags)), np.asarray(logits, np.float32))
    return assess(task, Part(bags, task.truth(bags)), who(bags), outcome, spec)


def auroc_of(judged):
    return next(one for one in judged["figures"] if one["name"] == "AUROC")["value"]


def made_up(n=60, seed=0):
    rng = np.random.default_rng(seed)
    truth, folds = np.arange(n) % 2, np.arange(n) // 2 % 3
    logits = rng.normal(size=(n, 2)) + 1.5 * np.eye(2)[truth]
    return logits.astype(np.float32).astype(np.float64), truth, folds


# calibration


def test_a_label_that_one_fold_alone_has_leaves_outputs_without_probabilities_and_the_model_whole(tmp_path):
    """Its networks are trained all the same: what follows must not cost them."""
    bags = [replace(one, columns={"y": "x;y" if i == 0 else "x" if i % 2 else "-"}) for i, one in enumerate(cohort(24))]
    path = splits(tmp_path, [i // 2 % 3 for i in range(24)], "fold")
    spec = replace(TINY, task=TaskSpec("multilabel", "y"), splits=path)
    model = cross_validate(bags, spec)
    assert (len(model.weights), model.calibrator.method) == (3, "none")
    assert "calibrated" not in model.metrics
    assert any("so that platt cannot be fitted: outputs are no prob" in note for note in model.metrics["notes"])


def test_what_cannot_be_fitted_without_a_fold_is_kept_as_the_simpler_that_can(tmp_path):
    """One class of three lies in a single fold: predictions of the cohort refit without it, as the figures did."""
    truth, folds = np.arange(45) % 3, np.arange(45) // 3 % 3
    folds[truth == 2] = 0
    rng = np.random.default_rng(0)
    bags = [bag(i, "abc"[y]) for i, y in enumerate(truth)]
    task, outcome = make_task(TaskSpec(), bags), Outcome(45, 3, Partition(folds[None], 0))
    outcome.hear(0, np.arange(45), rng.normal(size=(45, 3)).astype(np.float32) + np.eye(3, dtype=np.float32)[truth])
    found = assess(task, Part(bags, task.truth(bags)), who(bags), outcome, replace(TINY, calibrate="isotonic"))
    assert found.calibrator.method == "temperature"
    assert found.metrics["calibrated"]["bags"] == 45
    assert any("isotonic cannot be fitted: a temperature is fitted instead" in note for note in found.notes)


def test_patients_are_counted_and_not_their_slides():
    logits, truth, folds = made_up(36)
    assert assessed(logits, truth, folds).calibrator.method == "platt"
    few = [f"p{i % 6}" for i in range(36)]  # six patients, each of one class and one fold
    found = assessed(logits, truth, np.arange(36) % 6 // 2, few)
    assert found.calibrator.method == "none"
    assert any("6 patients held out are too few" in note for note in found.notes)


def test_a_reversed_ranking_is_said_and_not_turned_round():
    logits, truth, folds = made_up()
    found = assessed(-logits, truth, folds)
    assert found.calibrator.flat
    assert any("no better than by chance" in note for note in found.notes)
    assert auroc_of(found.metrics["raw"]) < 0.5


def test_calibrated_outputs_are_ranked_by_what_they_were_before():
    """Maps that differ from fold to fold would disturb the order of the pooled table."""
    logits, truth, folds = made_up()
    found = assessed(logits, truth, folds)
    pooled = cross_calibrated(logits, truth, folds, "platt")[:, 1]
    assert (np.diff(pooled[np.argsort(logits[:, 1] - logits[:, 0])]) < 0).any()
    assert auroc_of(found.metrics["calibrated"]) == auroc_of(found.metrics["raw"])


# rules


def test_rules_come_from_probabilities_that_their_calibrators_were_not_fitted_on():
    logits, truth, folds = made_up()
    people = [f"p{i}" for i in range(len(truth))]
    found = assessed(logits, truth, folds).conformal
    p = cross_calibrated(logits, truth, folds, "platt")
    assert found["sets"] == fit_conformal(p, truth, ConformalSpec(0.1), people).as_dict()
    assert found["abstain"] == abstain_threshold(p, truth, 0.1, people).as_dict()
    assert found == fit_rules(logits, truth, people, folds, "platt")


def test_the_rules_of_a_bag_of_the_cohort_know_nothing_of_its_fold():
    logits, truth, folds = made_up()
    people = [f"p{i}" for i in range(len(truth))]
    rest = folds != 0
    found = fit_rules(logits[rest], truth[rest], np.array(people)[rest].tolist(), folds[rest], "platt", RuleSpec(0.2))
    assert found["sets"]["alpha"] == 0.2
    assert found["sets"]["patients"] == [40, 40]
    p = cross_calibrated(logits[rest], truth[rest], folds[rest], "platt")
    expected = fit_conformal(p, truth[rest], ConformalSpec(0.2)).thresholds
    assert Conformal.from_dict(found["sets"]).thresholds == expected


def test_with_one_fold_or_a_class_in_one_alone_rules_come_from_all_bags():
    logits, truth, _ = made_up(20)
    people = [f"p{i}" for i in range(20)]
    p = fit_calibrator(logits, truth, "platt").apply(logits)
    expected = fit_conformal(p, truth, ConformalSpec(), people).as_dict()
    for folds in (np.zeros(20, int), truth):
        assert fit_rules(logits, truth, people, folds, "platt")["sets"] == expected


def test_rules_of_arrays_that_do_not_fit_are_refused():
    logits, truth, folds = made_up()
    with pytest.raises(SpecError, match="give one of each"):
        fit_rules(logits, truth, ["p"], folds, "platt")


def test_parts_of_held_out_bags_divide_no_patient():
    parts = patient_parts([f"p{i % 13}" for i in range(40)])
    assert set(parts.tolist()) == set(range(5))
    assert all(len(set(parts[k::13].tolist())) == 1 for k in range(13))


def test_the_test_part_of_a_fixed_division_only_tests(tmp_path):
    bags = cohort(60)
    path = splits(tmp_path, [("train", "val", "test")[i // 20] for i in range(60)])
    other = [replace(one, label="ba"[i % 2]) if i >= 40 else one for i, one in enumerate(bags)]
    spec = replace(TINY, splits=path)
    model, spoiled = cross_validate(bags, spec), cross_validate(other, spec)
    assert model.conformal["sets"]["patients"] == [20, 20]
    assert (model.conformal, model.calibrator) == (spoiled.conformal, spoiled.calibrator)
    assert auroc_of(model.metrics["raw"]) == pytest.approx(1 - auroc_of(spoiled.metrics["raw"]))
    assert any("thresholds of prediction sets" in note for note in model.metrics["notes"])


# training


def test_a_fold_that_cannot_be_learned_is_said_before_any_is_trained(tmp_path):
    bags = [bag(i, "b" if i >= 8 else "a") for i in range(12)]
    path, heard = splits(tmp_path, [i // 4 for i in range(12)], "fold"), []
    spec = replace(TINY, splits=path)
    with pytest.raises(SpecError, match="network 2 would be trained without a bag of class 'b'"):
        cross_validate(bags, spec, progress=lambda *news: heard.append(news), resume=tmp_path / "state")
    assert not heard
    assert not (tmp_path / "state").exists()


def test_log_hazards_of_several_networks_share_a_zero():
    """Cox's loss leaves it open: without one, out-of-fold risks of different networks are no table."""
    rng = np.random.default_rng(1)
    bags = [
        bag(i, shift=0.3 * (i % 2), time=str(1 + 100 * rng.random() / (1 + i % 2)), event=str(int(i % 3 > 0)))
        for i in range(60)
    ]
    spec = TrainSpec(task=TaskSpec("cox"), head="mean", hidden=8, folds=3, epochs=4, learning_rate=1e-2)
    model = cross_validate(bags, spec)
    risk, fold = np.array([row.logits[0] for row in model.cohort]), np.array([row.folds[0] for row in model.cohort])
    zero = np.array([float(weights["zero"][0]) for weights in model.weights])

    def far(values):
        """Largest distance of a fold's mean from that of all, in standard errors."""
        means = np.array([values[fold == k].mean() for k in range(3)])
        within = np.sqrt(np.mean([values[fold == k].var(ddof=1) / (fold == k).sum() for k in range(3)]))
        return np.abs(means - means.mean()).max() / within

    assert far(risk) < 2 < 4 < far(risk + zero[fold])
