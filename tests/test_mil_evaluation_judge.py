"""A judgement says what scikit-learn and lifelines say, of every task, and never fails on a poor table."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.evaluation.judge import CURVES, JudgeSpec, compare, judge
from mil.evaluation.judge_cases import cohort, worst_cases
from mil.evaluation.judge_parts import part
from mil.evaluation.operating import Rule
from mil.evaluation.predictions import TASKS, Predictions
from tests.judged import table, value
from wsi.errors import SpecError

FIGURE = {"name", "of", "better", "value", "low", "high", "resamples", "reason", "method", "unit"}


@pytest.fixture(scope="module")
def breast() -> Predictions:
    """Wisconsin breast cancer (569 patients, in scikit-learn), out-of-fold probabilities of a logistic regression."""
    features, benign = load_breast_cancer(return_X_y=True)
    malignant, rule = 1 - benign, StratifiedKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    outputs = cross_val_predict(model, features, malignant, cv=rule, method="predict_proba")
    folds = np.zeros(len(malignant), np.int64)
    for number, (_, held) in enumerate(rule.split(features, malignant)):
        folds[held] = number
    ids = tuple(f"c{i}" for i in range(len(malignant)))
    return Predictions("classification", ("benign", "malignant"), ids, ids, malignant, outputs, folds)


@pytest.fixture(scope="module")
def judged(breast) -> dict[str, Any]:
    return judge(breast)


def test_figures_of_a_public_data_set_are_scikit_learns(breast, judged):
    truth, p = breast.truth, breast.outputs[:, 1]
    called = breast.outputs.argmax(axis=1)
    for name, expected in {
        "AUROC": roc_auc_score(truth, p),
        "AUROC (DeLong)": roc_auc_score(truth, p),
        "AUPRC": average_precision_score(truth, p),
        "prevalence": truth.mean(),
        "accuracy": accuracy_score(truth, called),
        "balanced accuracy": balanced_accuracy_score(truth, called),
        "F1 (macro)": f1_score(truth, called, average="macro"),
        "kappa": cohen_kappa_score(truth, called),
    }.items():
        assert value(judged, name) == pytest.approx(expected, abs=1e-12), name
    calibration = {"figures": judged["calibration"]["figures"]}
    assert value(calibration, "Brier score") == pytest.approx(brier_score_loss(truth, p))
    assert value(calibration, "negative log-likelihood") == pytest.approx(log_loss(truth, p))
    assert judged["confusion"]["counts"] == confusion_matrix(truth, called).tolist()
    assert judged["headline"]["name"] == "AUROC"
    assert (judged["positive"], judged["bags"], judged["patients"]) == ("malignant", 569, 569)
    # published for such models: AUROC of 0.99 and more (Street, Wolberg & Mangasarian 1993: 97.5 % accuracy)
    assert value(judged, "accuracy") == pytest.approx(0.975, abs=0.01)


def test_folds_are_judged_one_by_one(breast, judged):
    expected = [roc_auc_score(breast.truth[breast.folds == k], breast.outputs[breast.folds == k, 1]) for k in range(5)]
    assert judged["per_fold"] == pytest.approx(expected)
    assert judged["mean_of_folds"] == pytest.approx(np.mean(expected))


def test_a_fold_without_both_classes_is_left_out_of_the_mean():
    given = table("classification", classes=2)
    truth = np.where(given.folds == 0, 0, given.truth)
    found = judge(replace(given, truth=truth))
    assert found["per_fold"][0] is None
    assert found["mean_of_folds"] == pytest.approx(np.mean(found["per_fold"][1:]))


def test_thresholds_of_a_fold_come_from_the_others():
    given = table("classification", classes=2, bags=1)
    first = judge(given)["operating_points"][1]
    assert not first["optimistic"]
    assert first["chosen"] == "for each fold on the other folds"
    flipped = np.where(given.folds == 0, 1 - given.truth, given.truth)
    second = judge(replace(given, truth=flipped))["operating_points"][1]
    assert second["thresholds"][0] == first["thresholds"][0]
    assert second["thresholds"][1:] != first["thresholds"][1:]


def test_thresholds_chosen_on_the_judged_bags_are_said_to_flatter():
    options = JudgeSpec(rules=(Rule("sensitivity", 0.9), Rule("given", 0.5)))
    found = judge(table("classification", classes=2, folds=0), options=options)
    assert (found["folds"], found["per_fold"], found["mean_of_folds"]) == ([], [], None)
    chosen, given = found["operating_points"]
    assert chosen["optimistic"]
    assert "flatter" in chosen["chosen"]
    assert chosen["figures"][0]["value"] >= 0.9
    assert (given["optimistic"], given["thresholds"]) == (False, [0.5])
    called = table("classification", classes=2, folds=0).outputs[:, 1] >= 0.5
    assert given["counts"]["tp"] + given["counts"]["fp"] == called.sum()


def test_scores_that_only_rank_are_ranked_and_no_more():
    shares = table("classification", classes=2)
    logit = np.log(shares.outputs[:, 1] / shares.outputs[:, 0])
    scores = judge(replace(shares, outputs=np.stack([-logit, logit], axis=1)), options=JudgeSpec(("site",)))
    assert value(scores, "AUROC") == pytest.approx(value(judge(shares), "AUROC"))
    assert (scores["calibration"], scores["conformal"], scores["confusion"]) == ({}, {}, None)
    assert not scores["curves"]["reliability"] + scores["curves"]["decision"]
    assert not [f for f in scores["figures"] if f["name"] in ("accuracy", "kappa")]
    assert any("rank" in note for note in scores["notes"])
    assert "on the other folds" in scores["subgroups"][0]["threshold_is"]


def test_several_classes_are_judged_one_against_the_rest():
    given = table("classification")
    found = judge(given)
    macro = roc_auc_score(given.truth, given.outputs, multi_class="ovr")
    assert found["headline"]["value"] == pytest.approx(macro)
    assert value(found, "AUPRC", "b") == pytest.approx(average_precision_score(given.truth == 1, given.outputs[:, 1]))
    assert [curve["of"] for curve in found["curves"]["roc"]] == ["a", "b", "c"]
    assert found["operating_points"] == []


def test_an_order_is_judged_by_its_distances():
    given = table("ordinal")
    called, found = given.outputs.argmax(axis=1), judge(given)
    assert found["headline"]["name"] == "quadratic kappa"
    assert found["headline"]["value"] == pytest.approx(cohen_kappa_score(given.truth, called, weights="quadratic"))
    assert value(found, "MAE") == pytest.approx(mean_absolute_error(given.truth, called))
    held = given.folds == 1
    expected = cohen_kappa_score(given.truth[held], called[held], weights="quadratic")
    assert found["per_fold"][1] == pytest.approx(expected)


def test_labels_are_judged_one_by_one_and_on_average():
    given = table("multilabel")
    found = judge(given)
    assert found["headline"]["value"] == pytest.approx(roc_auc_score(given.truth, given.outputs, average="macro"))
    assert value(found, "AUROC", "y") == pytest.approx(roc_auc_score(given.truth[:, 1], given.outputs[:, 1]))
    expected = f1_score(given.truth, given.outputs >= 0.5, average="macro")
    assert value(found, "F1 at 0.5") == pytest.approx(expected)
    assert value(found, "all labels right at 0.5") == accuracy_score(given.truth, given.outputs >= 0.5)
    brier = [f["value"] for f in found["calibration"]["figures"] if f["name"] == "Brier score"]
    assert brier == pytest.approx([brier_score_loss(given.truth[:, c], given.outputs[:, c]) for c in (0, 1)])


def test_a_label_that_all_or_none_have_is_in_no_mean():
    given = table("multilabel")
    found = judge(replace(given, truth=given.truth * np.array([0, 1])))
    assert found["headline"]["value"] == pytest.approx(value(found, "AUROC", "y"))
    assert any("x: not judged" in note for note in found["notes"])


def test_numbers_are_judged_as_scikit_learn_does():
    given = table("regression")
    found = judge(given)
    assert found["headline"]["value"] == pytest.approx(r2_score(given.truth, given.outputs[:, 0]))
    assert value(found, "MAE") == pytest.approx(mean_absolute_error(given.truth, given.outputs[:, 0]))
    held = given.folds == 2
    assert found["per_fold"][2] == pytest.approx(r2_score(given.truth[held], given.outputs[held, 0]))


@pytest.mark.parametrize("task", ["cox", "survival"])
def test_times_are_ordered_as_lifelines_says(task):
    given = table(task)
    found, (time, event) = judge(replace(given, folds=given.folds if task == "survival" else None)), given.truth.T
    assert value(found, "c-index", "Harrell") == pytest.approx(concordance_index(time, -given.outputs[:, 0], event))
    held = given.folds == 0
    expected = concordance_index(time[held], -given.outputs[held, 0], event[held])
    assert judge(given)["per_fold"][0] == pytest.approx(expected)
    low, high = found["curves"]["kaplan_meier"]
    assert (low["of"], high["of"]) == ("low risk", "high risk")
    assert np.interp(0.5, low["x"], low["y"]) > np.interp(0.5, high["x"], high["y"])
    assert all(earlier >= later for earlier, later in pairwise(high["y"]))
    assert low["p"] < 0.001
    assert bool(found["calibration"]) == (task == "survival")
    horizons = [f["of"] for f in found["figures"] if f["name"] == "AUC at a time"]
    assert horizons == [f"{t:.4g}" for t in np.quantile(time[event > 0], [0.25, 0.5, 0.75])]
    one = judge(given, options=JudgeSpec(horizons=(0.5,)))
    assert value(one, "AUC at a time", "0.5, within folds" if task == "cox" else "0.5") > 0.6


def test_overconfident_outputs_are_better_after_a_temperature_of_other_folds():
    rng = np.random.default_rng(3)
    true_logit = rng.normal(0, 1.5, 300)
    truth = (rng.random(300) < 1 / (1 + np.exp(-true_logit))).astype(np.int64)
    p = 1 / (1 + np.exp(-4 * true_logit))
    given = replace(table("classification", 300, classes=2, bags=1), truth=truth, outputs=np.stack([1 - p, p], axis=1))
    found = judge(given)["calibration"]
    before, after = {"figures": found["figures"]}, found["recalibrated"]
    assert value(before, "calibration slope") == pytest.approx(0.25, abs=0.08)
    assert value(after, "calibration slope") == pytest.approx(1, abs=0.3)
    assert value(after, "ECE") < 0.5 * value(before, "ECE")
    assert "the other folds" in after["method"]
    few = table("classification", 30, classes=2, bags=1)
    assert judge(replace(few, calibrated=True))["calibration"]["recalibrated"] is None


def test_sets_keep_their_promise_and_abstaining_lowers_the_risk():
    found = judge(table("classification", 300, bags=1), options=JudgeSpec(alpha=0.2, risk=0.2))["conformal"]
    assert value(found, "coverage", "promised 80%") == pytest.approx(0.8, abs=0.05)
    assert found["fitted_on"] == "the other folds"
    silent = found["abstain"]
    assert 0 < value(silent, "answered") < 1
    assert value(silent, "wrong", "of those answered, at most 20% promised") <= 0.2
    assert value(silent, "wrong without abstaining") > 0.2


@pytest.mark.parametrize("change", [{"folds": None}, {"folds": np.arange(120) % 2}])
def test_without_folds_that_keep_patients_whole_halves_of_the_patients_serve(change):
    found = judge(replace(table("classification"), **change))
    assert found["conformal"]["fitted_on"] == "the other half of the patients"
    assert any("more than one fold" in note for note in found["notes"]) == (change["folds"] is not None)


@pytest.mark.parametrize("task", TASKS)
def test_groups_of_a_column_are_judged_for_every_task(task):
    given = table(task)
    site, age = judge(given, options=JudgeSpec(("site", "age")))["subgroups"]
    assert [group["name"] for group in site["groups"]] == ["x", "y"]
    assert len(age["groups"]) == 4
    assert f"{site['tests']} tests" in site["multiplicity"]
    name = site["groups"][0]["figures"][0]["name"]
    alone = judge(part(given, np.array(given.columns["site"]) == "x"))
    assert site["groups"][0]["figures"][0]["value"] == pytest.approx(alone["headline"]["value"])
    assert name == alone["headline"]["name"]
    for group in (*site["groups"], *age["groups"]):
        for figure in group["figures"]:
            assert figure["p_holm"] is None or figure["p_holm"] >= figure["p"]


def test_a_group_of_a_column_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match=r"no column 'scanner'.*site, age"):
        judge(table("classification"), options=JudgeSpec(("scanner",)))


@pytest.mark.parametrize("task", TASKS)
def test_two_models_are_compared_whatever_the_order_of_their_bags(task):
    good = table(task)
    noise = np.random.default_rng(5).normal(size=good.outputs.shape)
    outputs = good.outputs.copy()
    if task in ("cox", "survival", "regression"):
        outputs[:, :1] += 20 * noise[:, :1]
    else:
        outputs = np.abs(noise) + 0.01
        outputs = outputs / outputs.sum(axis=1, keepdims=True)
    bad = part(replace(good, outputs=outputs), np.random.default_rng(1).permutation(120)[:110])
    found = compare(good, bad)
    assert (found["bags"], found["only_first"], found["only_second"]) == (110, 10, 0)
    for row in found["figures"]:
        assert row["difference"]["value"] == pytest.approx(row["first"] - row["second"])
        better = row["difference"]["value"] * (-1 if row["difference"]["better"] == "lower" else 1)
        assert better > 0, row["name"]
    assert found["figures"][0]["p"] < 0.01
    same = compare(good, good)
    assert all(row["difference"]["value"] == 0 for row in same["figures"])


def test_models_of_other_truths_tasks_or_bags_are_not_compared():
    given = table("classification", classes=2)
    with pytest.raises(SpecError, match="different truths"):
        compare(given, replace(given, truth=1 - given.truth))
    with pytest.raises(SpecError, match="one task and the same classes"):
        compare(given, table("classification"))
    with pytest.raises(SpecError, match="share no bag"):
        compare(given, replace(given, ids=tuple(f"other{i}" for i in range(120))))


def poor(kind: str, task: str) -> Predictions:
    if kind in ("none", "one", "one patient", "ten"):
        n, bags = {"none": (0, 1), "one": (1, 1), "one patient": (6, 6), "ten": (10, 1)}[kind]
        return table(task, n, bags, folds=2 if n > 1 else 0)
    given = table(task, 30, bags=1)
    if kind == "one truth":
        flat = np.zeros_like(given.truth)
        if task in ("cox", "survival"):
            flat[:, 0] = given.truth[:, 0]  # times, and never an event
        return replace(given, truth=flat)
    return replace(given, outputs=np.full_like(given.outputs, 1 / given.outputs.shape[1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["none", "one", "one patient", "ten", "one truth", "one answer"])
def test_a_poor_table_gives_reasons_and_never_fails(task, kind):
    found = judge(poor(kind, task), options=JudgeSpec(("site",)))
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found

    def walk(node: Any) -> None:
        if isinstance(node, dict) and set(node) >= FIGURE:
            assert node["low"] is not None or node["reason"], node
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(inner)

    walk(found)


@pytest.mark.parametrize("task", TASKS)
def test_the_frame_is_the_same_for_every_task(task, judged):
    found = judge(table(task, 60))
    assert set(found) == set(judged)
    assert set(found["curves"]) == set(CURVES)
    assert found["headline"] == found["figures"][0]
    assert all(set(figure) == FIGURE for figure in found["figures"])
    assert judge(table(task, 30)) == judge(table(task, 30)), "the same seed gives the same figures"


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"risk": 1.0}, {"prevalence": 0.0}, {"horizons": (-1.0,)}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(SpecError, match=next(iter(change))):
        JudgeSpec(**change)


def test_the_worst_errors_come_first():
    given = table("classification", classes=2, bags=1)
    cases = worst_cases(given, most=5)
    places = [int(case["id"][1:]) for case in cases]
    own = given.outputs[np.arange(120), given.truth]
    assert places == np.argsort(own)[:5].tolist()
    assert all(case["truth"] != case["said"] for case in cases)
    numbers = table("regression")
    first = int(worst_cases(numbers)[0]["id"][1:])
    assert first == np.abs(numbers.outputs[:, 0] - numbers.truth).argmax()
    assert worst_cases(table("cox")) == []
    assert worst_cases(replace(given, outputs=np.eye(2)[given.truth])) == []


@pytest.mark.parametrize("task", TASKS)
def test_the_cohort_counts_bags_and_patients(task):
    truth, site, age = cohort(table(task), ("site", "age"))
    assert truth["column"] == "truth"
    for counts in (truth, site, age):
        assert sum(row["bags"] for row in counts["rows"]) == 120
    assert site["rows"] == [{"name": "x", "bags": 60, "patients": 30}, {"name": "y", "bags": 60, "patients": 30}]
    assert age["rows"][0]["name"] == "20 to 79, median 49.5"


def test_an_interval_without_width_is_none():
    sets = judge(replace(table("classification", 40, bags=1), outputs=np.full((40, 3), 1 / 3)))["conformal"]["figures"]
    (size,) = (figure for figure in sets if figure["name"] == "classes in a set")
    assert (size["value"], size["low"]) == (3, None)
    assert "same in every resample" in size["reason"]
