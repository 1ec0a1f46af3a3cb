"""A run's predictions are judged as those of a model that has not seen the bags, nor been calibrated on them."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from jobs.evaluation import predictions_of, with_locked_thresholds
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.prediction_table import as_cell, write_predictions
from mil.bag import Bag
from mil.covariates import Column, Covariates
from mil.crossval import cross_validate
from mil.evaluation.calibrators import METHODS, cross_calibrated, fit_calibrator
from mil.evaluation.judge import JudgeSpec, judge
from mil.evaluation.operating import Rule, threshold
from mil.predict import apply_network, held_out_cohort, predict
from mil.spec import TrainSpec
from wsi.errors import StoreError

CONTRACT = {"backbone": "lite", "mpp": 1.0}


def bag_of(record, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(0.6 * (record.label == "malignant"), 1, (6, 5)).astype(np.float32)
    xy = rng.integers(0, 9000, (6, 2))
    return Bag(features, xy, 512, (record.slide_id,), record.label, record.patient_id, None, "", CONTRACT, "c0ffee")


@pytest.fixture(scope="module")
def records():
    return [SlideRecord(f"s{i}", f"s{i}.svs", f"c{i}", f"p{i}", ("benign", "malignant")[i % 2]) for i in range(24)]


@pytest.fixture(scope="module")
def bags(records):
    return [bag_of(record, seed) for seed, record in enumerate(records)]


@pytest.fixture(scope="module")
def model(bags):
    return cross_validate(bags, TrainSpec(hidden=8, attention=4, folds=3, repeats=2, epochs=8, learning_rate=5e-3))


def rows_of(records, bags, model):
    """The rows of these slides in the table of predictions."""
    rows = {}
    for record, bag in zip(records, bags, strict=True):
        said = predict(model, bag)
        numbers = dict(zip(model.task.columns, said.output, strict=True))
        numbers |= {f"probability_{name}": p for name, p in zip(model.classes, said.probability, strict=True)}
        rows[record.slide_id] = {"origin": said.origin, **{name: f"{value:.6f}" for name, value in numbers.items()}}
    return rows


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_bags_of_the_cohort_are_judged_by_calibrators_of_the_other_folds(records, bags, model, method):
    logits = np.array([row.logits for row in model.cohort])
    folds, truth = np.array([row.folds[0] for row in model.cohort]), np.arange(24) % 2
    fitted = replace(model, calibrator=fit_calibrator(logits, truth, method))
    judged = predictions_of(records, rows_of(records, bags, fitted), fitted)
    np.testing.assert_allclose(judged.outputs, cross_calibrated(logits, truth, folds, method), atol=1e-5)
    np.testing.assert_array_equal(judged.folds, folds)
    flattering = np.mean((fitted.calibrator.apply(logits)[:, 1] - truth) ** 2)
    assert np.mean((judged.outputs[:, 1] - truth) ** 2) > flattering


def test_figures_of_a_run_over_its_cohort_are_those_of_the_training(records, bags, model):
    judged = predictions_of(records, rows_of(records, bags, model), model)
    brier = next(row for row in model.metrics["calibrated"]["calibration"]["figures"] if row["name"] == "Brier score")
    assert np.mean((judged.outputs[:, 1] - judged.truth) ** 2) == pytest.approx(brier["value"], abs=1e-5)


def test_a_new_patient_keeps_the_models_own_calibration_and_a_further_slide_does_not(records, bags, model):
    new = SlideRecord("n", "n.svs", "cn", "pn", "benign")
    further = SlideRecord("s0-b", "s0-b.svs", "c0", "p0", "benign")
    asked, slides = [new, further], [bag_of(new, 90), bag_of(further, 91)]
    rows = rows_of(asked, slides, model)
    judged = predictions_of(asked, rows, model)
    assert judged.folds is None
    assert f"{judged.outputs[0, 1]:.6f}" == rows["n"]["probability_malignant"]
    fold, truth = model.cohort[0].folds[0], np.arange(24) % 2
    rest = np.array([row.folds[0] for row in model.cohort]) != fold
    logits = np.array([row.logits for row in model.cohort])
    other = fit_calibrator(logits[rest], truth[rest], model.calibrator.method)
    said = predict(model, slides[1])
    answers = [
        apply_network(model.network(k), slides[1].features, slides[1].positions()) for k in model.cohort[0].folds
    ]
    assert said.origin == f"held-out folds {', '.join(map(str, model.cohort[0].folds))}"
    together = np.mean([answer.logits for answer in answers], axis=0)[None]
    np.testing.assert_allclose(judged.outputs[1], other.apply(together)[0], atol=1e-5)


def test_slides_of_a_patient_that_were_predicted_apart_are_not_judged_as_one_bag(records, bags, model):
    patients = replace(model, training=replace(model.training, level="patient"))
    pair = [records[0], SlideRecord("s0-b", "s0-b.svs", "c0-b", "p0", "benign")]
    rows = rows_of(pair, [bags[0], bag_of(pair[1], 91)], model)
    with pytest.raises(StoreError, match=r"^s0-b: it was predicted beside other slides than s0"):
        predictions_of(pair, rows, patients)
    rows["s0-b"] = rows["s0"]
    assert len(predictions_of(pair, rows, patients).outputs) == 1


@pytest.mark.parametrize(
    ("value", "cell"),
    [("-0.530000", "-0.530000"), ("-1e-7", "-1e-7"), ("-1+2", "'-1+2"), ("=A1", "'=A1"), (None, ""), (-0.5, -0.5)],
)
def test_formulas_are_texts_in_a_table_and_numbers_are_numbers(value, cell):
    assert as_cell(value) == cell


def test_a_formula_stays_a_text_when_other_slides_are_added_to_the_table(records, model, tmp_path):
    for record in records[:2]:
        write_predictions([record], model, RunFolder(tmp_path), {record.slide_id: "=1+1"})
    text = RunFolder(tmp_path).predictions(model.name).read_text()
    assert text.count(",'=1+1") == 2


def test_a_model_that_is_used_or_speaks_otherwise_has_another_mark(model):
    assert model.outliers is not None
    folds = tuple({**fold, "head": asdict(replace(model.head, options={"other": 1}))} for fold in model.folds)
    others = [
        replace(model, folds=folds),
        replace(model, covariates=Covariates((Column("age", 50.0),))),
        replace(model, outliers=None),
        replace(model, training=replace(model.training, level="patient")),
    ]
    assert len({one.mark for one in [model, *others]}) == 5


def test_new_slides_are_judged_at_the_thresholds_of_the_training_cohort(records, bags, model):
    """Thresholds that are chosen on the slides they are judged on flatter."""
    rows = rows_of(records, bags, model)
    within = predictions_of(records, rows, model)
    assert with_locked_thresholds(model, within, None) == (JudgeSpec(), [])  # its own folds choose for each other
    outputs = np.linspace(0.01, 0.99, 24)[:, None] * [-1, 1] + [1, 0]
    new = replace(within, folds=None, outputs=outputs, scores=None)
    assert with_locked_thresholds(model, new, None) == (JudgeSpec(), [])  # a fixed division's own test part
    others = tuple(f"new-{name}" for name in new.ids)
    new = replace(new, ids=others, patients=others)
    options, told = with_locked_thresholds(model, new, JudgeSpec(rules=(Rule("youden"), Rule("given", 0.3))))
    probabilities, truth = held_out_cohort(model)
    assert truth.tolist() == [i % 2 for i in range(24)]
    chosen = threshold(truth == 1, probabilities[:, 1], Rule("youden"))
    assert options.rules == (Rule("given", chosen), Rule("given", 0.3))
    assert "youden chose on the training cohort" in told[0]
    points = judge(new, options=options)["operating_points"]
    assert [point["optimistic"] for point in points] == [False, False]
