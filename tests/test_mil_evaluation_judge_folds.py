"""What a cross-validation's table is ranked by, which folds choose its thresholds, and what its figures leave out."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mil.evaluation.judge import JudgeSpec, compare, judge
from mil.evaluation.judge_parts import part
from mil.evaluation.operating import Rule
from mil.evaluation.predictions import TASKS
from tests.judged import table, value
from wsi.errors import SpecError


def test_risks_of_cox_networks_are_compared_within_folds_for_their_zeros_are_arbitrary():
    given = table("cox", 240)
    shifted = replace(given, outputs=given.outputs + 5.0 * given.folds[:, None])
    found, moved = judge(given, options=JudgeSpec(("site",))), judge(shifted, options=JudgeSpec(("site",)))
    for name, of in (("c-index", "Harrell"), ("c-index", "Uno, weighted for censoring")):
        assert value(moved, name, f"{of}, within folds") == pytest.approx(value(found, name, f"{of}, within folds"))
    for one, other in zip(moved["figures"], found["figures"], strict=True):
        assert [one[k] for k in ("value", "low", "high")] == pytest.approx([other[k] for k in ("value", "low", "high")])
    one, other = (found_["subgroups"][0]["groups"][0]["figures"][0] for found_ in (moved, found))
    assert (one["of"], one["value"], one["p"]) == ("within folds", pytest.approx(other["value"]), other["p"])
    curves, others = moved["curves"]["kaplan_meier"], found["curves"]["kaplan_meier"]
    assert [curve["y"] for curve in curves] == [curve["y"] for curve in others]
    assert len(curves[0]["cuts"]) == 3
    pooled = judge(replace(shifted, folds=None))
    assert pooled["headline"]["value"] < found["headline"]["value"] - 0.1, "the pooled ranking is of folds"
    (row,) = compare(given, shifted)["figures"]
    assert (row["of"], row["difference"]["value"]) == ("within folds", pytest.approx(0, abs=1e-12))
    one_model = compare(given, replace(shifted, folds=None, outputs=given.outputs))["figures"][0]
    assert one_model["difference"]["value"] == pytest.approx(0, abs=1e-12), "both on the pairs that both can compare"


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_bags_are_ranked_by_outputs_before_calibration_and_probabilities_are_of_those_after(task):
    raw = table(task, classes=2, bags=1)
    bent = raw.outputs ** (
        1 + 2.0 * raw.folds[:, None]
    )  # monotone in each fold, another in each: the pool is disturbed
    bent = bent / bent.sum(axis=1, keepdims=True) if task == "classification" else bent
    both, options = replace(raw, outputs=bent, scores=raw.outputs, calibrated=True), JudgeSpec(("site",))
    before, after, found = (judge(given, options=options) for given in (raw, replace(both, scores=None), both))
    for name in ("AUROC", "AUROC (DeLong)", "AUPRC") if task == "classification" else ("AUROC", "AUPRC"):
        of = "b" if task == "classification" else "mean of 2 labels"
        assert value(found, name, of) == value(before, name, of) != value(after, name, of)
    assert found["curves"]["roc"] == before["curves"]["roc"]
    assert found["curves"]["precision_recall"] == before["curves"]["precision_recall"]
    assert found["per_fold"] == before["per_fold"]
    assert found["calibration"] == after["calibration"] != before["calibration"]
    assert found["curves"]["decision"] == after["curves"]["decision"]
    assert found["operating_points"] == after["operating_points"]
    groups, expected = (one["subgroups"][0]["groups"][0]["figures"][0] for one in (found, before))
    assert (groups["name"], groups["value"]) == ("AUROC", expected["value"])
    assert any("rank by the outputs before calibration" in note for note in found["notes"])
    assert compare(both, raw)["figures"][0]["difference"]["value"] == 0
    kept = part(both, np.arange(50))
    np.testing.assert_array_equal(kept.ranking, raw.outputs[:50])


@pytest.mark.parametrize("scores", [np.zeros((119, 2)), np.zeros((120, 3)), np.full((120, 2), np.nan)])
def test_scores_that_do_not_fit_the_outputs_are_refused(scores):
    with pytest.raises(SpecError, match="scores"):
        replace(table("classification", classes=2), scores=scores)
    with pytest.raises(SpecError, match="0 repeats"):
        replace(table("classification"), repeats=0)


@pytest.mark.parametrize("task", TASKS)
def test_what_pooling_folds_leaves_out_is_said(task):
    given = table(task)
    (note,) = [note for note in judge(given)["notes"] if "variation of training" in note]
    assert note.startswith("the outputs of the models of 3 folds ")
    assert ("one ranking" in note) == (task not in ("cox", "regression"))
    assert note in compare(given, given)["notes"]
    assert any("mean over 4 repeats" in note for note in judge(replace(given, repeats=4))["notes"])
    alone = replace(given, folds=None)
    assert not [note for note in judge(alone)["notes"] if "variation" in note]
    assert compare(alone, alone)["notes"] == []


def test_folds_that_divide_patients_choose_no_thresholds():
    given = replace(table("classification", classes=2), folds=np.arange(120) % 2)
    found, alone = judge(given, options=JudgeSpec(("site",))), judge(replace(given, folds=None))
    for point, expected in zip(found["operating_points"], alone["operating_points"], strict=True):
        assert point["optimistic"]
        assert (point["thresholds"], point["chosen"]) == (expected["thresholds"], expected["chosen"])
    assert "flatters" in found["subgroups"][0]["threshold_is"]
    assert any("may have seen the patient" in note for note in found["notes"])


@pytest.mark.parametrize(
    "rules", [(), (Rule("youden"),), (Rule("specificity", 0.9), Rule("youden")), (Rule("given", 0.2),)]
)
def test_groups_are_judged_by_the_decisions_of_the_whole(rules):
    rare = table("classification", 400, classes=2, bags=1)
    truth = (np.arange(400) % 11 == 0).astype(np.int64)  # few are positive, and few outputs reach one half
    p = 1 / (1 + np.exp(3 - 2 * truth - np.random.default_rng(1).normal(size=400)))
    rare = replace(rare, truth=truth, outputs=np.stack([1 - p, p], axis=1), folds=np.arange(400) // 2 % 4)
    found = judge(rare, options=JudgeSpec(("site",), **({"rules": rules} if rules else {})))
    if not rules:
        found["subgroups"] = judge(rare, options=JudgeSpec(("site",), rules=()))["subgroups"]
    (groups,) = found["subgroups"]
    point = found["operating_points"][0]["counts"]
    shares = {"sensitivity": (truth == 1, point["tp"]), "specificity": (truth == 0, point["tn"])}
    for name, (kind, hits) in shares.items():
        called = 0.0
        for group in groups["groups"]:
            inside = np.array(rare.columns["site"]) == group["name"]
            called += next(f["value"] for f in group["figures"] if f["name"] == name) * (inside & kind).sum()
        assert called == pytest.approx(hits), "groups together are the whole"
    expected = {"specificity": "specificity of at least 0.9", "given": "0.2"}
    assert expected.get(rules[0].kind if rules else "", "largest Youden index") in groups["threshold_is"]
    assert groups["threshold"] == (0.2 if rules and rules[0].kind == "given" else None)


def test_a_fold_that_lacks_a_rare_label_is_judged_by_the_others():
    given = table("multilabel")
    truth = given.truth.copy()
    truth[given.folds == 1, 0] = 0
    held, found = given.folds == 1, judge(replace(given, truth=truth))
    assert found["per_fold"][1] == pytest.approx(roc_auc_score(truth[held, 1], given.outputs[held, 1]))
    truth[held] = 0
    assert judge(replace(given, truth=truth))["per_fold"][1] is None


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_two_models_may_name_their_classes_in_another_order(task):
    given = table(task)
    order = [1, 0] if task == "multilabel" else [2, 0, 1]
    truth = given.truth[:, order] if task == "multilabel" else np.array([1, 2, 0])[given.truth]
    names = tuple(given.classes[k] for k in order)
    turned = replace(given, classes=names, truth=truth, outputs=given.outputs[:, order], scores=given.outputs[:, order])
    assert judge(turned)["headline"]["value"] == pytest.approx(judge(given)["headline"]["value"])
    found = compare(given, turned)
    assert found["figures"] == compare(given, given)["figures"]
    with pytest.raises(SpecError, match="the same classes"):
        compare(table("ordinal"), replace(table("ordinal"), classes=("c", "b", "a")))
