"""Every group gets its figures, its doubt and its difference to the rest; small groups are counted, not judged."""

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from mil.evaluation.estimate import bootstrap
from mil.evaluation.operating import Rule, operating_point
from mil.evaluation.predictions import Predictions
from mil.evaluation.subgroups import subgroups
from wsi.errors import SpecError


def cohort(slides=400, seed=0, classes=2, worse_at="B", each=2):
    """Predictions that fail at one site; patients of `each` slides."""
    rng = np.random.default_rng(seed)
    patient = np.arange(slides) // each
    site = np.array(["A", "B", "C"])[patient % 3]
    truth = rng.integers(0, classes, slides)
    gain = np.where(site == worse_at, 0.0, 1.5)[:, None]
    raw = np.exp(rng.normal(size=(slides, classes)) + gain * np.eye(classes)[truth])
    age = rng.integers(30, 90, slides // each)[patient]
    return Predictions(
        task="classification",
        classes=tuple(f"c{i}" for i in range(classes)),
        ids=tuple(f"s{i}" for i in range(slides)),
        patients=tuple(f"p{i}" for i in patient),
        truth=truth,
        outputs=raw / raw.sum(axis=1, keepdims=True),
        columns={
            "site": tuple(site),
            "age": tuple(str(a) if a > 32 else "" for a in age),
            "sex": tuple(np.where(patient % 2 == 0, "f", "m")),
        },
    )


def test_a_group_has_scikit_learns_auroc_and_the_shares_at_the_common_threshold():
    table = cohort()
    found = subgroups(table, ["site"], threshold=0.4)
    assert found.threshold == 0.4
    for group in found.groups["site"]:
        mask = np.array(table.columns["site"]) == group.name
        positive, score = table.truth[mask] == 1, table.outputs[mask, 1]
        patients = np.array(table.patients)[mask].tolist()
        point = operating_point(positive, score, patients, Rule("given", 0.4))
        assert group.figures["AUROC"].estimate.value == pytest.approx(roc_auc_score(positive, score))
        assert group.figures["sensitivity"].estimate.value == pytest.approx(point.sensitivity.value)
        assert group.figures["specificity"].estimate.value == pytest.approx(point.specificity.value)
        assert (group.slides, group.patients) == (mask.sum(), len(set(patients)))
        assert group.prevalence == pytest.approx(positive.mean())
        for figure in group.figures.values():
            assert figure.estimate.low < figure.estimate.value <= figure.estimate.high


def test_every_slide_may_have_a_threshold_of_its_own_or_none():
    table = cohort()
    fold = np.arange(400) // 2 % 4
    cuts = np.array([0.3, 0.5, 0.7, np.nan])[fold]
    found = subgroups(table, ["site"], threshold=cuts)
    assert found.threshold is None
    assert subgroups(table, ["site"], threshold=np.where(fold == 3, np.nan, 0.4)).threshold == 0.4
    for group in found.groups["site"]:
        mask = (np.array(table.columns["site"]) == group.name) & (fold < 3)
        positive, called = table.truth[mask] == 1, table.outputs[mask, 1] >= cuts[mask]
        assert group.figures["sensitivity"].estimate.value == pytest.approx(called[positive].mean())
        assert group.figures["specificity"].estimate.value == pytest.approx((~called)[~positive].mean())


def test_the_site_where_the_model_fails_stands_out_and_a_harmless_column_does_not():
    found = subgroups(cohort(), ["site", "sex"])
    worst = {group.name: group.figures["AUROC"] for group in found.groups["site"]}
    assert worst["B"].difference.high < -0.2
    assert worst["B"].p_holm < 0.05
    assert all(figure.p_holm > 0.05 for group in found.groups["sex"] for figure in group.figures.values())


def test_the_p_values_of_all_columns_are_adjusted_together_and_counted():
    found = subgroups(cohort(), ["site", "sex"])
    figures = [f for group in found.groups["site"] for f in group.figures.values()]
    figures += found.groups["sex"][0].figures.values()
    assert found.tests == len(figures) == 3 * 3 + 3  # of two sexes, one against the other is one test
    expected = multipletests([f.p for f in figures], method="holm")[1]
    assert [f.p_holm for f in figures] == pytest.approx(expected.tolist())
    first, second = (group.figures["AUROC"] for group in found.groups["sex"])
    assert (first.p, first.p_holm) == (second.p, second.p_holm)
    assert second.difference.low == pytest.approx(-first.difference.high)


def test_groups_that_do_not_differ_are_seldom_said_to():
    said = 0
    for seed in range(25):
        found = subgroups(cohort(120, seed=seed, worse_at=""), ["site"])
        said += any(f.p_holm is not None and f.p_holm < 0.05 for g in found.groups["site"] for f in g.figures.values())
    assert said <= 4  # family-wise 5 % of 25, with room


def test_a_small_group_without_an_error_is_not_said_to_differ():
    """Its sensitivity is 1 in every resample: a bootstrap would find it better than the rest beyond doubt."""
    site = np.repeat(["few", "many"], [12, 88])
    called = np.ones(100) - 0.8 * (np.arange(100) % 10 == 9) * (site == "many")  # 1 of 10 is missed at `many`
    table = Predictions(
        task="classification",
        classes=("well", "ill"),
        ids=tuple(f"s{i}" for i in range(140)),
        patients=tuple(f"p{i}" for i in range(140)),
        truth=np.repeat([1, 0], [100, 40]),
        outputs=np.stack([1 - (c := np.append(called, np.full(40, 0.1))), c], axis=1),
        columns={"site": (*site, *np.resize(["few", "many"], 40))},
    )
    figure = subgroups(table).groups["site"][0].figures["sensitivity"]
    assert figure.estimate.value == 1.0
    assert figure.p > 0.2
    missed = int((called < 0.5).sum())
    low, high = confint_proportions_2indep(12, 12, 88 - missed, 88, method="newcomb", compare="diff")
    assert (figure.difference.low, figure.difference.high) == pytest.approx((low, high))
    assert low < 0 < high


def test_the_p_value_is_that_of_a_plain_permutation_test():
    rng = np.random.default_rng(6)
    error, site = np.abs(rng.normal(size=60)), np.repeat(["A", "B"], [25, 35])
    error[site == "A"] *= 1.5
    table = Predictions(
        "regression",
        (),
        tuple(f"s{i}" for i in range(60)),
        tuple(f"p{i}" for i in range(60)),
        np.zeros(60),
        error[:, None],
        columns={"site": tuple(site)},
    )
    found = subgroups(table, statistics={"MAE": lambda w: (w @ error) / w.sum(axis=1)})
    a, b = error[site == "A"], error[site == "B"]
    expected = permutation_test((a, b), lambda x, y: x.mean() - y.mean(), n_resamples=4000, rng=2).pvalue
    assert found.groups["site"][0].figures["MAE"].p == pytest.approx(expected, abs=0.02)


def test_a_small_group_is_counted_but_not_judged():
    table = cohort(200)
    sites = tuple("rare" if i < 18 else "common" for i in range(200))  # 9 patients
    found = subgroups(replace(table, columns={"site": sites}))
    common, rare = found.groups["site"]
    assert (rare.slides, rare.patients, rare.figures) == (18, 9, {})
    assert "9 patient(s), fewer than 10" in rare.reason
    assert common.figures["AUROC"].estimate.low is not None
    assert common.figures["AUROC"].difference.reason == "the rest has 9 patient(s), fewer than 10"
    assert found.tests == 0


def test_numbers_are_cut_at_quartiles_and_the_unknown_left_out():
    table = cohort()
    found = subgroups(table, ["age"])
    groups = found.groups["age"]
    assert len(groups) == 4
    assert groups[0].name.startswith("<")
    assert groups[-1].name.startswith(">=")
    assert found.unknown["age"] == sum(age == "" for age in table.columns["age"]) > 0
    assert sum(group.slides for group in groups) + found.unknown["age"] == len(table)
    counts = [group.patients for group in groups]
    assert max(counts) - min(counts) < 0.2 * sum(counts)


def test_given_edges_make_the_bands_and_few_numbers_stay_themselves():
    table = cohort()
    bands = subgroups(table, ["age"], edges={"age": [50, 70]}).groups["age"]
    assert [band.name for band in bands] == ["<50", "50 to <70", ">=70"]
    ages = [float(age) for age in table.columns["age"] if age]
    assert [band.slides for band in bands] == np.histogram(ages, [0, 50, 70, 200])[0].tolist()
    grades = tuple(str(i % 3 + 8) for i in range(len(table)))
    assert [g.name for g in subgroups(replace(table, columns={"grade": grades})).groups["grade"]] == ["8", "9", "10"]


def test_more_classes_get_the_macro_auroc():
    table = cohort(classes=3)
    found = subgroups(table, ["site"])
    assert found.threshold is None
    group = found.groups["site"][0]
    mask = np.array(table.columns["site"]) == group.name
    assert set(group.figures) == {"AUROC"}
    assert group.prevalence is None
    assert group.figures["AUROC"].estimate.value == pytest.approx(
        roc_auc_score(table.truth[mask], table.outputs[mask], multi_class="ovr")
    )


def test_ordinal_tasks_get_quadratic_kappa_and_labels_the_macro_auroc():
    table = replace(cohort(classes=3), task="ordinal")
    group = subgroups(table, ["site"]).groups["site"][1]
    mask = np.array(table.columns["site"]) == group.name
    expected = cohen_kappa_score(table.truth[mask], table.outputs[mask].argmax(axis=1), weights="quadratic")
    assert group.figures["quadratic kappa"].estimate.value == pytest.approx(expected)
    labels = replace(table, task="multilabel", truth=(table.outputs.round(1) > 0.3).astype(int))
    group = subgroups(labels, ["site"]).groups["site"][1]
    assert group.figures["AUROC"].estimate.value == pytest.approx(
        roc_auc_score(labels.truth[mask], labels.outputs[mask])
    )


def test_a_label_that_no_slide_has_does_not_take_the_others_figure_away():
    rng, site = np.random.default_rng(3), tuple("AB"[i % 2] for i in range(80))
    truth = np.stack([rng.integers(0, 2, 80), np.zeros(80, np.int64)], axis=1)
    outputs, ids = rng.random((80, 2)), tuple(f"s{i}" for i in range(80))
    table = Predictions("multilabel", ("a", "b"), ids, ids, truth, outputs, columns={"site": site})
    for group in subgroups(table, ["site"]).groups["site"]:
        mask = np.array(site) == group.name
        expected = roc_auc_score(truth[mask, 0], outputs[mask, 0])
        assert group.figures["AUROC"].estimate.value == pytest.approx(expected, abs=1e-12)
    nothing = subgroups(replace(table, truth=np.zeros_like(truth)), ["site"]).groups["site"]
    assert nothing[0].figures["AUROC"].estimate.reason == "it is not defined on these slides"


def test_any_statistic_serves_another_task():
    table = cohort()
    truth, guess = table.outputs[:, 1] * 10, table.outputs[:, 1] * 10 + np.random.default_rng(1).normal(size=400)
    regression = replace(table, task="regression", classes=(), truth=truth, outputs=guess[:, None])

    def error(weights):
        whole = weights.sum(axis=1)
        return np.divide(weights @ np.abs(guess - truth), whole, out=np.full(len(whole), np.nan), where=whole > 0)

    found = subgroups(regression, ["site"], statistics={"MAE": error})
    mask = np.array(table.columns["site"]) == "A"
    estimate = found.groups["site"][0].figures["MAE"].estimate
    expected = bootstrap(lambda w: error(w * mask), table.patients)
    assert estimate.value == pytest.approx(np.abs(guess - truth)[mask].mean())
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(SpecError, match="regression has no default figure"):
        subgroups(regression)


def test_a_group_of_one_class_is_not_judged_by_auroc_but_by_the_share_it_has():
    table = cohort()
    truth = np.where(np.array(table.columns["site"]) == "A", 1, table.truth)
    group = subgroups(replace(table, truth=truth), ["site"]).groups["site"][0]
    assert group.figures["AUROC"].estimate.value is None
    assert group.figures["AUROC"].p is None
    assert group.figures["specificity"].estimate.reason == "no slide to take a share of"
    assert group.figures["sensitivity"].estimate.low is not None


@pytest.mark.parametrize(
    ("columns", "groups"), [({"site": ("A",) * 40}, ["A"]), ({"site": ("",) * 40}, []), ({}, None)]
)
def test_columns_with_nothing_to_compare_raise_nothing(columns, groups):
    found = subgroups(replace(cohort(40), columns=columns))
    assert found.tests == 0
    if groups is not None:
        assert [group.name for group in found.groups["site"]] == groups
        assert all(
            f.difference.reason == "there is no other group" for g in found.groups["site"] for f in g.figures.values()
        )


def test_no_slides_raise_nothing():
    empty = Predictions("classification", ("a", "b"), (), (), np.zeros(0, int), np.zeros((0, 2)), columns={"site": ()})
    assert subgroups(empty).groups == {"site": ()}


def test_a_thousand_slides_and_four_sites_take_a_few_seconds():
    started = time.process_time()
    subgroups(cohort(1000), ["site"])
    assert time.process_time() - started < 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["scanner"]}, "no column 'scanner'"),
        ({"columns": ["age"], "edges": {"age": [70, 50]}}, "each above the last"),
        ({"columns": ["site"], "edges": {"site": [50]}}, "holds texts"),
    ],
)
def test_columns_and_edges_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        subgroups(cohort(40), **options)
