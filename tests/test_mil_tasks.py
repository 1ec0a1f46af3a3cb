"""Every task reads its truth, lowers its loss in the right direction, and says what it means."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from statsmodels.duration.hazard_regression import PHReg

from mil.bag import Bag, merge_bags
from mil.spec import TASKS as NAMES
from mil.spec import TaskSpec
from mil.tasks import TASKS, make_task, task_from_dict
from mil.tasks.cox import partial_likelihood
from wsi.errors import ManifestError, SpecError, StoreError

SPECS = {
    "classification": TaskSpec(),
    "multilabel": TaskSpec("multilabel", "genes"),
    "ordinal": TaskSpec("ordinal", classes=("low", "mid", "high")),
    "regression": TaskSpec("regression", "age"),
    "cox": TaskSpec("cox"),
    "survival": TaskSpec("survival", bins=3),
}


def bag(name="s", **columns):
    features, xy = np.ones((2, 3), np.float32), np.zeros((2, 2), np.int64)
    label = columns.pop("label", None)
    return Bag(features, xy, 256, (name,), label=label, columns=columns)


def cohort(count=48):
    rng = np.random.default_rng(0)
    return [
        bag(
            f"s{i}",
            label=("low", "mid", "high")[i % 3],
            genes=("a;b", "b", "-", "a", "c; a")[i % 5],
            age=f"{rng.normal(60, 12):.1f}",
            time=f"{rng.exponential(700) + 1:.0f}",
            event=("1", "0", "true")[i % 3],
        )
        for i in range(count)
    ]


@pytest.fixture(params=NAMES)
def task(request):
    return make_task(SPECS[request.param], cohort())


def random_logits(task, count=48, seed=0):
    return torch.randn(count, task.outputs, generator=torch.Generator().manual_seed(seed))


def test_the_table_of_tasks_is_that_of_the_specs():
    assert tuple(TASKS) == NAMES
    assert all(name == kind.name for name, kind in TASKS.items())


def test_a_task_travels_as_plain_values(task):
    again = task_from_dict(task.spec, task.as_dict())
    assert vars(again) == vars(task)
    for name in task.as_dict():
        with pytest.raises(StoreError, match="missing or misshapen"):
            task_from_dict(task.spec, {key: value for key, value in task.as_dict().items() if key != name})


def test_outputs_have_the_promised_shapes_and_limits(task):
    output = task.activate(random_logits(task).numpy() * 0.7)
    assert output.shape == (48, len(task.columns))
    assert output.dtype == np.float32
    drawn = [row[task.drawn(row)] for row in output]
    assert np.mean([task.limits[0] <= value <= task.limits[1] for value in drawn]) > 0.9
    assert len(task.strata(task.truth(cohort()))) == 48
    assert all(isinstance(task.said(row), str) for row in output)


def test_extreme_logits_stay_finite(task):
    targets = task.targets(task.truth(cohort()))
    for size in (-80.0, 80.0):
        logits = torch.full((48, task.outputs), size, requires_grad=True)
        task.loss(logits, targets).backward()
        assert torch.isfinite(logits.grad).all()
        assert np.isfinite(task.activate(np.full((4, task.outputs), size))).all()


def test_gradient_is_the_slope_of_the_loss(task):
    truth = task.truth(cohort())
    targets, weights = task.targets(truth), task.weights(truth)
    logits = random_logits(task).requires_grad_()
    task.loss(logits, targets, weights).backward()
    way = random_logits(task, seed=1)
    ends = [task.loss(logits.detach() + step * way, targets, weights) for step in (0.01, -0.01)]
    assert float(ends[0] - ends[1]) / 0.02 == pytest.approx(float((logits.grad * way).sum()), abs=2e-4)


def test_following_the_gradient_finds_the_truth(task):
    """Free logits, one for each bag, end where the output says the truth."""
    truth = task.truth(cohort())
    targets = task.targets(truth)
    logits = torch.zeros(48, task.outputs, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    first = task.loss(logits, targets).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = task.loss(logits, targets)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.35 * first
    output = task.activate(logits.detach().numpy())
    if task.name in ("classification", "ordinal"):
        assert (output.argmax(axis=1) == truth).all()
    elif task.name == "multilabel":
        assert ((output > 0.5) == truth).all()
    elif task.name == "regression":
        np.testing.assert_allclose(output[:, 0], truth, atol=0.5)
    else:  # the higher the risk, the earlier the event
        least = 0.97 if task.name == "cox" else 0.87  # within an interval of time `survival` tells no order
        assert concordance_index(truth[:, 0], -output[:, 0], truth[:, 1]) > least


def test_evidence_is_the_log_odds_of_the_output_or_the_number_itself(task):
    logits = random_logits(task, 20)
    output = task.activate(logits.numpy()).astype(np.float64)
    for column, name in enumerate(task.columns):
        evidence = task.evidence(logits, column).numpy()
        chance = name not in ("value", "risk")
        expected = np.log(output[:, column] / (1 - output[:, column])) if chance else output[:, column]
        if task.name == "regression":
            expected = (expected - task.middle) / task.spread
        np.testing.assert_allclose(evidence, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["ordinal", "regression", "cox", "survival"])
def test_tasks_without_a_focal_loss_say_so(name):
    task = make_task(SPECS[name], cohort())
    with pytest.raises(SpecError, match="has no focal loss"):
        task.loss(random_logits(task), task.targets(task.truth(cohort())), focal=2.0)


def test_reading_and_activating_need_no_torch():
    code = """
        import sys, numpy as np
        from mil.spec import TaskSpec
        from mil.tasks import task_from_dict
        task = task_from_dict(TaskSpec("ordinal"), {"classes": ["a", "b"]})
        task.said(task.activate(np.zeros((1, 1)))[0])
        print("torch" in sys.modules or "scipy" in sys.modules)
    """
    script = "\n".join(line.strip() for line in code.strip().splitlines())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Classes


def test_classes_are_sorted_unless_their_order_is_given():
    bags = [bag(f"s{i}", label=label) for i, label in enumerate(["tumour", "normal"])]
    assert make_task(TaskSpec(), bags).classes == ("normal", "tumour")
    task = make_task(TaskSpec(classes=("tumour", "normal")), bags)
    assert task.truth(bags).tolist() == [0, 1]
    assert task.columns == ("softmax_tumour", "softmax_normal")
    assert task.drawn(np.array([0.9, 0.1])) == 1  # a map of two classes is of the positive one, whichever is larger


def test_softmax_cross_entropy_of_two_bags_by_hand():
    bags = [bag("s0", label="a"), bag("s1", label="b")]
    task = make_task(TaskSpec(), bags)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # softmax 1/4 and 3/4
    targets = task.targets(task.truth(bags))
    expected = [-math.log(1 / 4), -math.log(3 / 4)]
    assert float(task.loss(logits, targets)) == pytest.approx(sum(expected) / 2)
    focal = (3 / 4) ** 2 * expected[0] + (1 / 4) ** 2 * expected[1]
    assert float(task.loss(logits, targets, focal=2.0)) == pytest.approx(focal / 2, rel=1e-5)
    np.testing.assert_allclose(task.activate(logits.numpy()), [[0.25, 0.75]] * 2)
    assert task.said(np.array([0.25, 0.75])) == "b"


def test_class_weights_hold_in_a_batch_of_one():
    bags = [bag(f"s{i}", label="rare" if i == 0 else "usual") for i in range(4)]
    task = make_task(TaskSpec(), bags)
    truth = task.truth(bags)
    weights = task.weights(truth)
    np.testing.assert_allclose(weights, [2, 2 / 3])
    assert weights[truth].mean() == pytest.approx(1)
    one = [float(task.loss(torch.zeros(1, 2), torch.tensor([i]), weights)) for i in (0, 1)]
    assert one[0] == pytest.approx(3 * one[1])


def test_a_class_that_a_training_part_lacks_gets_no_weight():
    task = make_task(SPECS["classification"], cohort())
    np.testing.assert_allclose(task.weights(np.array([0, 0, 0, 1])), [2 / 3, 2, 0])


# Several labels


def test_labels_are_divided_by_semicolons_and_a_dash_is_none():
    task = make_task(SPECS["multilabel"], cohort())
    assert task.classes == ("a", "b", "c")
    assert task.truth(cohort()[:5]).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert task.said(np.array([0.6, 0.2, 0.5])) == "a;c"
    assert task.said(np.array([0.4, 0.2, 0.1])) == "-"
    assert task.said(task.truth(cohort()[2:3])[0]) == cohort()[2].value("genes")


def test_weighted_labels_by_hand():
    task = make_task(SPECS["multilabel"], cohort())
    truth = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]])
    weights = task.weights(truth)
    np.testing.assert_allclose(weights, [[2 / 3, 1, 1], [2, 1, 0]], rtol=1e-6)  # the last label never holds here
    loss = task.loss(torch.zeros(4, 3), task.targets(truth), weights)
    assert float(loss) == pytest.approx(math.log(2))  # weights have mean 1
    logits = torch.full((1, 3), math.log(3))  # sigmoid 3/4
    expected = (-math.log(3 / 4) - 2 * math.log(1 / 4)) / 3
    assert float(task.loss(logits, torch.tensor([[1.0, 0, 0]]))) == pytest.approx(expected)
    focal = ((1 / 4) ** 2 * -math.log(3 / 4) - 2 * (3 / 4) ** 2 * math.log(1 / 4)) / 3
    assert float(task.loss(logits, torch.tensor([[1.0, 0, 0]]), focal=2.0)) == pytest.approx(focal, rel=1e-5)


def test_strata_of_labels_are_the_rare_ones_and_no_tiny_remainders():
    task = make_task(SPECS["multilabel"], cohort())
    truth = np.array([[1, 0, 1]] * 3 + [[1, 1, 0]] * 20 + [[1, 0, 0]] * 2 + [[0, 0, 0]] * 12)
    assert task.strata(truth) == ["c"] * 3 + ["b"] * 22 + ["-"] * 12


# Grades


def test_corn_by_hand():
    """Shi, Cao & Raschka (2021): conditional chances 0.8 and 0.25 give 0.2, 0.6 and 0.2."""
    task = make_task(SPECS["ordinal"], cohort())
    logits = np.log([[0.8 / 0.2, 0.25 / 0.75]])
    np.testing.assert_allclose(task.activate(logits), [[0.2, 0.6, 0.2]], rtol=1e-6)
    assert task.said(task.activate(logits)[0]) == "mid"
    for grade, chance in enumerate((0.2, 0.6, 0.2)):
        loss = task.loss(torch.tensor(logits), torch.tensor([grade]))
        assert float(loss) == pytest.approx(-math.log(chance), rel=1e-5)


def test_chances_of_grades_are_a_distribution_for_any_logits():
    task = make_task(SPECS["ordinal"], cohort())
    output = task.activate(np.random.default_rng(0).normal(0, 20, (500, 2)))
    assert (output >= 0).all()
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-6)


def test_the_order_of_grades_must_be_given():
    with pytest.raises(SpecError, match="needs the order of its classes"):
        make_task(TaskSpec("ordinal"), cohort())


# Numbers


def test_a_number_keeps_its_unit_outside_and_loses_it_inside():
    bags = [bag(f"s{i}", age=str(value)) for i, value in enumerate((10, 20, 30, 40))]
    task = make_task(SPECS["regression"], bags)
    targets = task.targets(task.truth(bags))
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1)
    np.testing.assert_allclose(task.activate(targets.numpy()[:, None])[:, 0], (10, 20, 30, 40), rtol=1e-6)
    assert task.limits == (10, 40)
    off = targets[:, None] + torch.tensor([[0.5], [0.0], [3.0], [0.0]])
    assert float(task.loss(off, targets)) == pytest.approx((0.5 * 0.5**2 + 3 - 0.5) / 4)
    assert task.said(np.array([23.456])) == "23"  # a standard deviation of 11 needs no decimals


def test_bands_of_a_number_are_equal_and_follow_its_order():
    task = make_task(SPECS["regression"], cohort())
    truth = np.random.default_rng(5).normal(60, 12, 48)
    bands = np.array(task.strata(truth))
    assert [int((bands == name).sum()) for name in sorted(set(bands))] == [12, 12, 12, 12]
    assert truth[bands == "band 1"].max() < truth[bands == "band 2"].min()
    assert set(task.strata(truth[:15])) == {"band 1"}
    equal = np.repeat([1.0, 2.0], [15, 25])
    assert len(set(zip(task.strata(equal), equal, strict=True))) == 2  # equal numbers are never parted


# Survival


def ties(count=60, seed=3):
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 12, count).astype(float)  # five of a time: ties matter
    return torch.from_numpy(rng.normal(0, 1, count)).float(), torch.from_numpy(time), rng.random(count) < 0.6


def test_breslow_by_hand():
    """Times 1, 2, 2 (both events) and 3 (censored), hazards 1, 2, 3 and 4."""
    log_hazard = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    time, event = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    breslow = -(math.log(1 / 10) + math.log(2 / 9) + math.log(3 / 9)) / 3
    efron = -(math.log(1 / 10) + math.log(2 * 3 / 9 / (9 - 2.5))) / 3
    assert float(partial_likelihood(log_hazard, time, event, "breslow")) == pytest.approx(breslow)
    assert float(partial_likelihood(log_hazard, time, event)) == pytest.approx(efron)


@pytest.mark.parametrize("method", ["efron", "breslow"])
def test_cox_agrees_with_statsmodels(method):
    log_hazard, time, event = ties()
    mine = log_hazard.clone().requires_grad_()
    loss = partial_likelihood(mine, time, torch.from_numpy(event), method)
    loss.backward()
    reference = PHReg(time.numpy(), np.eye(60), status=event, ties=method)  # a coefficient for each bag
    assert float(loss.detach()) == pytest.approx(-reference.loglike(log_hazard.numpy()) / event.sum(), rel=1e-5)
    np.testing.assert_allclose(mine.grad, -reference.score(log_hazard.numpy()) / event.sum(), atol=1e-6)


def test_cox_agrees_with_lifelines():
    pandas = pytest.importorskip("pandas")
    x, time, event = ties()
    fitted = CoxPHFitter().fit(pandas.DataFrame({"x": x, "time": time, "event": event}), "time", "event")
    loss = partial_likelihood(x * float(fitted.params_["x"]), time, torch.from_numpy(event))
    assert float(loss) == pytest.approx(-fitted.log_likelihood_ / event.sum(), rel=1e-5)


def test_cox_knows_no_reference_and_no_order_of_bags():
    log_hazard, time, event = ties()
    event = torch.from_numpy(event)
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    whole = partial_likelihood(log_hazard, time, event)
    torch.testing.assert_close(partial_likelihood(log_hazard + 50, time, event), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(partial_likelihood(log_hazard[shuffle], time[shuffle], event[shuffle]), whole)


def test_a_batch_without_event_teaches_nothing_and_breaks_nothing():
    task = make_task(SPECS["cox"], cohort())
    logits = torch.randn(4, 1, requires_grad=True)
    loss = task.loss(logits, torch.tensor([[5.0, 0], [6, 0], [7, 0], [8, 0]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()
    with pytest.raises(SpecError, match="choose efron or breslow"):
        partial_likelihood(logits[:, 0], torch.ones(4), torch.ones(4), "exact")


@pytest.mark.parametrize("name", ["cox", "survival"])
def test_a_higher_risk_is_an_earlier_event(name):
    task = make_task(SPECS[name], cohort())
    truth = np.array([[50.0, 1.0], [3000.0, 1.0]])
    targets = task.targets(truth)
    hasty, late = torch.full((task.outputs,), 2.0), torch.full((task.outputs,), -2.0)
    right, wrong = torch.stack([hasty, late]), torch.stack([late, hasty])
    assert task.loss(right, targets) < task.loss(wrong, targets)
    risk = task.activate(right.numpy())[:, task.columns.index("risk")]
    assert risk[0] > risk[1]
    assert concordance_index(truth[:, 0], -risk, truth[:, 1]) == 1


def follow_up(times, events):
    pairs = zip(times, events, strict=True)
    return [bag(f"s{i}", time=str(time), event=str(event)) for i, (time, event) in enumerate(pairs)]


def test_intervals_end_at_quantiles_of_events_and_hold_some_each():
    bags = follow_up([1, 2, 3, 4, 5, 6, 100], [1, 1, 1, 1, 1, 1, 0])
    task = make_task(SPECS["survival"], bags)
    assert task.times == (2, 4)
    assert task.columns == ("risk", "survival_2", "survival_4")
    lived, event = task.targets(task.truth(bags)).T.tolist()
    assert lived == [0, 0, 1, 1, 2, 2, 3]  # an event at an interval's end is in it; after the last event all are lived
    assert event == [1, 1, 1, 1, 1, 1, 0]


def test_half_an_interval_counts_as_lived_by_the_censored():
    """Gensheimer & Narasimhan (2019), equation 3."""
    bags = follow_up([1, 2, 3, 4, 5, 6], [1] * 6)
    task = make_task(SPECS["survival"], bags)
    lived = task.targets(np.array([[0.9, 0], [1.0, 0], [2.5, 0], [3.0, 0], [4.9, 0], [5.0, 0], [5.0, 1]]))[:, 0]
    assert lived.tolist() == [0, 1, 1, 2, 2, 3, 2]


def test_discrete_hazards_by_hand():
    task = make_task(SPECS["survival"], follow_up([1, 2, 3, 4, 5, 6], [1] * 6))
    hazards = np.array([[0.1, 0.5, 0.75]])
    logits = np.log(hazards / (1 - hazards))
    np.testing.assert_allclose(task.activate(logits), [[-(0.9 + 0.45 + 0.1125), 0.9, 0.45]], rtol=1e-6)
    for row, likelihood in [([1.0, 1.0], 0.9 * 0.5), ([2.0, 0.0], 0.45), ([0.0, 0.0], 1), ([3.0, 0.0], 0.1125)]:
        loss = task.loss(torch.tensor(logits), torch.tensor([row]))
        assert float(loss) == pytest.approx(-math.log(likelihood), rel=1e-5, abs=1e-6)


def test_the_discrete_loss_is_that_of_mcat_where_intervals_are_whole():
    """NLLSurvLoss of MCAT and PORPOISE, alpha 0: c is 1 for the censored, y the interval."""
    rng = np.random.default_rng(1)
    logits, y = torch.from_numpy(rng.normal(size=(50, 3))).float(), torch.from_numpy(rng.integers(0, 3, (50, 1)))
    c = torch.from_numpy(rng.integers(0, 2, (50, 1))).float()
    hazards = torch.sigmoid(logits)
    padded = torch.cat([torch.ones(50, 1), torch.cumprod(1 - hazards, dim=1)], dim=1)
    uncensored = -(1 - c) * (torch.log(padded.gather(1, y)) + torch.log(hazards.gather(1, y)))
    mcat = (uncensored - c * torch.log(padded.gather(1, y + 1))).mean()
    task = make_task(SPECS["survival"], cohort())
    targets = torch.cat([y + c, 1 - c], dim=1).float()  # MCAT: the censored have lived the interval they are in
    torch.testing.assert_close(task.loss(logits, targets), mcat)


def test_events_too_much_alike_cannot_be_binned():
    with pytest.raises(SpecError, match="many are at one time"):
        make_task(SPECS["survival"], follow_up([5, 5, 5, 5, 9, 8], [1, 1, 1, 1, 0, 0]))


def test_few_censored_are_no_stratum():
    task = make_task(SPECS["cox"], cohort())
    assert task.strata(task.truth(cohort())).count("censored") == 16
    assert set(task.strata(np.array([[1.0, 1]] * 20 + [[1.0, 0]] * 3))) == {"event"}


# Bad input


def spoiled(**columns):
    good = cohort()
    return [*good, bag("odd", **{"label": "mid", **good[0].columns, **columns})]


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("classification", {"label": None}, "odd: has nothing in column 'label'"),
        ("multilabel", {"genes": " "}, "odd: has nothing in column 'genes'"),
        ("multilabel", {"genes": "-;a"}, "odd: column 'genes' says '-;a'"),
        ("ordinal", {"label": "huge"}, "odd: column 'label' says 'huge', which is none of low, mid, high"),
        ("regression", {"age": "old"}, "odd: column 'age' says 'old', which is no number"),
        ("regression", {"age": "12,5"}, "odd: column 'age' says '12,5', which is no number"),
        ("regression", {"age": "nan"}, "odd: has nothing in column 'age'"),
        ("classification", {"label": "NA"}, "odd: has nothing in column 'label'"),
        ("multilabel", {"genes": "N/A"}, "odd: has nothing in column 'genes'"),
        ("survival", {"event": "<NA>"}, "odd: has nothing in column 'event'"),
        ("cox", {"time": "0"}, "odd: column 'time' says 0, but a time to event is greater than 0"),
        ("survival", {"time": "-3"}, "odd: column 'time' says -3"),
        ("cox", {"time": "inf"}, "odd: column 'time' says 'inf', which is no number"),
        ("survival", {"event": "dead"}, "odd: column 'event' says 'dead'; give 1 or true"),
        ("cox", {"event": ""}, "odd: has nothing in column 'event'"),
    ],
)
def test_truth_that_cannot_be_read_is_refused_by_name(name, columns, message):
    with pytest.raises(ManifestError, match=message):
        make_task(SPECS[name], spoiled(**columns))


@pytest.mark.parametrize(
    ("spec", "columns", "message"),
    [
        (TaskSpec(), {"label": "a"}, r"all bags are of one class \(a\)"),
        (TaskSpec(classes=("a", "b")), {"label": "a"}, "all bags are of one class"),
        (TaskSpec("ordinal", classes=("a", "b")), {"label": "a"}, "all bags are of one class"),
        (TaskSpec("multilabel"), {"label": "-"}, "no bag has any label"),
        (TaskSpec("multilabel"), {"label": "a"}, "every bag has the label 'a'"),
        (TaskSpec("multilabel", classes=("a", "b")), {"label": "a"}, "every bag has the label 'a'"),
        (TaskSpec("regression"), {"label": "3"}, "the same for every bag"),
        (TaskSpec("cox"), {"time": "3", "event": "0"}, r"0 event\(s\) among 6 bags"),
        (TaskSpec("survival", bins=8), {"time": "3", "event": "1"}, "needs at least 8 events"),
    ],
)
def test_a_cohort_that_teaches_nothing_is_refused(spec, columns, message):
    with pytest.raises(SpecError, match=message):
        make_task(spec, [bag(f"s{i}", **columns) for i in range(6)])


def test_a_class_that_no_bag_has_is_refused():
    bags = [bag(f"s{i}", label="ab"[i % 2]) for i in range(4)]
    with pytest.raises(SpecError, match="no bag is of class 'c'"):
        make_task(TaskSpec(classes=("a", "b", "c")), bags)


def test_slides_of_one_bag_must_agree_on_the_truth():
    merged = merge_bags([bag("s0", age="3"), bag("s1", age="4")])
    with pytest.raises(ManifestError, match=r"s0\+s1: its slides differ in column 'age': 3 \| 4"):
        make_task(SPECS["regression"], [*cohort(), merged])
