"""Training finds what was planted, nothing where nothing is, the same twice, and goes on where it was killed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mil.bag import Bag
from mil.crossval import cross_validate
from mil.evaluation.discrimination import auroc
from mil.heads import HEADS
from mil.spec import HeadSpec, TaskSpec, TrainSpec
from mil.tasks import make_task
from mil.train import DivergedError, Part, Run, Trainer, logits_of, train_one
from wsi.errors import BackboneError, ManifestError, SpecError, StoreError

DIM = 32
QUICK = TrainSpec(hidden=32, attention=16, folds=3, epochs=30, learning_rate=5e-3)
SHORT = TrainSpec(hidden=8, attention=4, folds=2, epochs=2)


def planted_cohort(slides=36, share=0.15, seed=0, strength=4.0):
    """Bags of two classes, and which tiles are planted: in "tumour" bags a share is shifted along one direction."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=DIM)
    direction *= strength / np.linalg.norm(direction)
    bags, truths = [], []
    for i in range(slides):
        tiles = int(rng.integers(30, 60))
        features = rng.normal(size=(tiles, DIM)) + 0.3 * rng.normal(size=DIM)  # each slide has its own stain
        truth = np.zeros(tiles, bool)
        if i % 2:
            truth[: max(2, round(share * tiles))] = True
        features[truth] += direction
        xy = np.stack([np.arange(tiles) % 7 * 256, np.arange(tiles) // 7 * 256], axis=1).astype(np.int64)
        label, patient = ("normal", "tumour")[i % 2], f"patient-{i // 4}-{i % 2}"  # two slides per patient
        bags.append(Bag(features.astype(np.float32), xy, 256, (f"slide-{i}",), label, patient))
        truths.append(truth)
    return bags, truths


def tensors(bag):
    return torch.from_numpy(bag.features)[None], torch.ones(1, bag.tiles, dtype=torch.bool)


def figure(model, name="AUROC", kind="raw"):
    return next(one for one in model.metrics[kind]["figures"] if one["name"] == name)


def same_weights(first, second):
    return all(
        np.array_equal(a[name], b[name]) for a, b in zip(first.weights, second.weights, strict=True) for name in a
    )


def parts(bags, spec=None):
    task = make_task(spec or TaskSpec(), bags)
    return Part(bags, task.truth(bags)), task


def head_of(task, head="abmil", **more):
    return HeadSpec(head, DIM, task.outputs, **{"hidden": 32, "attention": 16, **more})


@pytest.fixture(scope="module")
def trained():
    bags, truths = planted_cohort()
    return bags, truths, cross_validate(bags, QUICK)


def test_attention_finds_the_planted_tiles_on_slides_it_was_not_trained_on(trained):
    bags, truths, model = trained
    found = []
    for bag, truth, row in zip(bags, truths, model.cohort, strict=True):
        if truth.any():
            with torch.inference_mode():
                attention = model.network(row.folds[0])(*tensors(bag)).attention[0].numpy()
            found.append(auroc(truth, attention))
    assert np.mean(found) > 0.9


def test_out_of_fold_outputs_beat_chance_clearly(trained):
    estimate = figure(trained[2])
    assert estimate["value"] > 0.9
    assert estimate["low"] > 0.6
    assert figure(trained[2], kind="calibrated")["value"] > 0.85


def test_a_bags_logits_are_those_of_the_network_that_did_not_see_its_patient(trained):
    bags, _, model = trained
    for bag, row in zip(bags, model.cohort, strict=True):
        (fold,) = row.folds
        with torch.inference_mode():
            np.testing.assert_allclose(model.network(fold)(*tensors(bag)).logits[0], row.logits, rtol=1e-4, atol=1e-5)
        assert model.folds_without(bag) == (fold,)


def test_every_network_keeps_its_best_epoch_not_its_last(trained):
    for history in trained[2].folds:
        checks = history["validation_loss"]
        assert checks[history["best_epoch"]] < min(checks) + 0.003 + 1e-9
        assert history["epochs"] == len(checks) == len(history["training_loss"])
        assert history["training_bags"] + history["validation_bags"] + history["test_bags"] == 36


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns(head):
    bags, _ = planted_cohort(slides=40, share=0.5, strength=8.0)
    part, task = parts(bags)
    places, new = np.arange(24), np.arange(24, 40)  # other patients
    spec = TrainSpec(epochs=6, learning_rate=2e-3, batch=2, accumulate=1)
    network, history = train_one(part.at(places), part.at(new[:0]), task, head_of(task, head), spec, Run(0))
    assert history["training_loss"][-1] < history["training_loss"][0]
    assert auroc(part.truth[new] == 1, logits_of(network, part.at(new))[:, 1]) > 0.85


def test_with_shuffled_labels_nothing_is_learned():
    """A leak between training and test would show here as an AUROC well above one half."""
    bags, _ = planted_cohort(slides=60, strength=0.0)
    assert 0.2 < figure(cross_validate(bags, replace(QUICK, epochs=15)))["value"] < 0.7


def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_random_state_alone():
    bags, _ = planted_cohort(slides=18)
    spec = replace(SHORT, epochs=4, instances=20, instance_dropout=0.2, noise=0.1)
    torch.manual_seed(1)
    first = cross_validate(bags, spec)
    drawn = torch.rand(1)
    torch.manual_seed(99)
    second = cross_validate(bags, spec)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn
    assert [row.logits for row in first.cohort] == [row.logits for row in second.cohort]
    assert same_weights(first, second)
    other = cross_validate(bags, replace(spec, seed=1))
    assert [row.logits for row in first.cohort] != [row.logits for row in other.cohort]


def test_progress_hears_of_every_epoch():
    bags, _ = planted_cohort(slides=18)
    heard = []
    model = cross_validate(bags, replace(SHORT, folds=3, epochs=3), progress=lambda *news: heard.append(news))
    assert [news[:2] for news in heard] == [(fold, epoch) for fold in range(3) for epoch in range(3)]
    assert [news[2] for news in heard[:3]] == model.folds[0]["training_loss"]
    assert [news[3] for news in heard[:3]] == model.folds[0]["validation_loss"]


def test_repeats_are_other_partitions_and_a_bag_is_spoken_of_by_one_network_of_each():
    bags, _ = planted_cohort(slides=18)
    model = cross_validate(bags, replace(SHORT, repeats=2))
    assert len(model.weights) == 4
    assert [(history["repeat"], history["fold"]) for history in model.folds] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(len(row.folds) == 2 and row.folds[0] < 2 <= row.folds[1] for row in model.cohort)
    assert len({tuple(place - 2 * r for r, place in enumerate(row.folds)) for row in model.cohort}) > 2
    bag, row = bags[0], model.cohort[0]
    with torch.inference_mode():
        each = [model.network(place)(*tensors(bag)).logits[0].numpy() for place in row.folds]
    np.testing.assert_allclose(np.mean(each, axis=0), row.logits, rtol=1e-4, atol=1e-5)
    alone = cross_validate(bags, SHORT)
    assert same_weights(alone, replace(model, weights=model.weights[:2]))  # the first is what it is without repeats


# Interruption


class Killed(Exception):
    pass


def killer(place, epoch):
    def progress(*news):
        if news[:2] == (place, epoch):
            raise Killed

    return progress


LONGER = replace(SHORT, epochs=14, instances=20, noise=0.1)


@pytest.fixture(scope="module")
def uninterrupted():
    bags, _ = planted_cohort(slides=18)
    return bags, cross_validate(bags, LONGER)


@pytest.mark.parametrize("moment", [(0, 0), (0, 7), (1, 1), (1, 12)])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(uninterrupted, tmp_path, moment):
    bags, whole = uninterrupted
    with pytest.raises(Killed):
        cross_validate(bags, LONGER, progress=killer(*moment), resume=tmp_path)
    heard = []
    model = cross_validate(bags, LONGER, progress=lambda *news: heard.append(news[:2]), resume=tmp_path)
    assert heard[0] == (moment[0], (moment[1] + 1) // 5 * 5)  # a state is kept after every fifth epoch
    assert same_weights(model, whole)
    assert model.cohort == whole.cohort
    assert model.folds == whole.folds
    again = cross_validate(bags, LONGER, progress=killer(0, 0), resume=tmp_path)  # nothing is left to train
    assert same_weights(again, whole)


def test_a_training_whose_process_is_killed_goes_on(uninterrupted, tmp_path):
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
from test_mil_train import LONGER, cross_validate, planted_cohort
def progress(place, epoch, loss, check):
    if (place, epoch) == (1, 9):
        os.kill(os.getpid(), signal.SIGKILL)
cross_validate(planted_cohort(slides=18)[0], LONGER, progress=progress, resume={str(tmp_path)!r})
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    bags, whole = uninterrupted
    heard = []
    model = cross_validate(bags, LONGER, progress=lambda *news: heard.append(news[:2]), resume=tmp_path)
    assert heard[0] == (1, 10)
    assert same_weights(model, whole)


def test_another_setting_cohort_or_truth_never_goes_on_from_a_checkpoint(tmp_path):
    bags, _ = planted_cohort(slides=18)
    cross_validate(bags, SHORT, resume=tmp_path)
    relabelled = [replace(bag, label={"normal": "tumour", "tumour": "normal"}[bag.label]) for bag in bags]
    changed = [replace(bags[0], features=bags[0].features + 1), *bags[1:]]
    for others, spec in ((bags, replace(SHORT, learning_rate=1e-3)), (relabelled, SHORT), (changed, SHORT)):
        heard = []
        cross_validate(others, spec, progress=lambda *news, heard=heard: heard.append(news), resume=tmp_path)
        assert len(heard) == 4
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 4


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    bags, _ = planted_cohort(slides=18)
    cross_validate(bags, SHORT, resume=tmp_path)
    (kept,) = tmp_path.glob("*/network-0.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"network-0\.safetensors: is damaged"):
        cross_validate(bags, SHORT, resume=tmp_path)


# One network


def test_accumulated_batches_are_one_large_batch():
    bags = [replace(bag, features=bag.features[:20], xy=bag.xy[:20]) for bag in planted_cohort(slides=8)[0]]
    part, task = parts(bags)
    found = []
    for batch, accumulate in ((1, 8), (4, 2), (8, 1)):
        spec = TrainSpec(batch=batch, accumulate=accumulate, epochs=3, dropout=0.0)
        run = Run(seed=0)
        network, _ = train_one(part, part, task, head_of(task, dropout=0.0), spec, run)
        found.append(logits_of(network, part))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)


def test_validation_looks_at_every_tile_of_a_capped_bag():
    bags, _ = planted_cohort(slides=8)
    part, task = parts(bags)
    trainer = Trainer(part, task, head_of(task), TrainSpec(instances=3, dropout=0.0), "cpu")
    trainer.network.eval()
    with torch.inference_mode():
        logits = torch.cat([trainer.network(*tensors(bag)).logits for bag in bags])
    expected = task.loss(logits, task.targets(part.truth), trainer.weights)
    assert trainer.loss_of(part) == pytest.approx(float(expected), rel=1e-5)


def test_decay_is_on_matrices_alone():
    bags, _ = planted_cohort(slides=8)
    part, task = parts(bags)
    groups = Trainer(part, task, head_of(task), TrainSpec(weight_decay=0.3), "cpu").optimiser.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(weight.ndim > 1 for weight in groups[0]["params"])
    assert all(weight.ndim <= 1 for weight in groups[1]["params"])


def test_a_training_that_diverges_is_refused_with_the_setting_to_change():
    bags, _ = planted_cohort(slides=8)
    part, task = parts([replace(bag, features=bag.features * 1e3) for bag in bags])
    with pytest.raises(DivergedError, match=r"learning_rate: training diverged in epoch \d+"):
        train_one(part, part, task, head_of(task), TrainSpec(learning_rate=1e35, epochs=9), Run(0))


def test_bfloat16_learns_nearly_the_same():
    part, task = parts(planted_cohort(slides=16, share=0.5)[0])
    found = {}
    for precision in ("fp32", "bf16"):
        spec = TrainSpec(epochs=5, learning_rate=2e-3, precision=precision, dropout=0.0)
        network, history = train_one(part, part, task, head_of(task, dropout=0.0), spec, Run(0))
        found[history["precision"]] = logits_of(network, part)
        assert all(weight.dtype == torch.float32 for weight in network.parameters())
    assert 0 < np.abs(found["fp32"] - found["bf16"]).max() < 0.2 * np.abs(found["fp32"]).max()


def test_half_precision_is_for_cuda():
    bags, _ = planted_cohort(slides=18)
    with pytest.raises(SpecError, match="fp16 trains on CUDA only"):
        cross_validate(bags, replace(SHORT, precision="fp16"))


@pytest.mark.parametrize(
    "change", [{"class_weights": False}, {"focal": 2.0}, {"noise": 1.0}, {"instance_dropout": 0.5}, {"instances": 9}]
)
def test_settings_of_the_loss_and_of_augmentation_change_what_is_learned(change):
    part, task = parts([bag for i, bag in enumerate(planted_cohort(slides=12)[0]) if i % 2 == 0 or i < 4])
    spec = TrainSpec(epochs=2, dropout=0.0)
    each = [train_one(part, part, task, head_of(task), s, Run(0))[0] for s in (spec, replace(spec, **change))]
    assert not np.array_equal(*(logits_of(network, part) for network in each))


def test_views_are_drawn_in_training_alone():
    bags, _ = planted_cohort(slides=18)
    seen = [replace(bag, views=(bag.features + 50)[:, None]) for bag in bags]
    spec = replace(SHORT, views=True)
    part, task = parts(seen)
    trainer = Trainer(part, task, head_of(task), spec, "cpu")
    assert trainer.batch.views
    np.testing.assert_array_equal(logits_of(trainer.network, part), logits_of(trainer.network, Part(bags, part.truth)))
    each = [train_one(part, part, task, head_of(task), s, Run(0))[0] for s in (spec, replace(spec, views=False))]
    assert not np.array_equal(*(logits_of(network, part) for network in each))
    with pytest.raises(SpecError, match="hold one view"):
        cross_validate(bags, spec)
    with pytest.raises(SpecError, match="slide-1: only some bags"):
        cross_validate([seen[0], *bags[1:]], spec)


# Tasks


def with_columns(bags, columns):
    return [replace(bag, columns=columns(i, bag)) for i, bag in enumerate(bags)]


def survival_columns(i, bag):
    high = bag.label == "tumour"
    return {"time": f"{(40 if high else 200) + 7 * (i % 5)}", "event": "0" if i % 6 == 0 else "1"}


TASK_COLUMNS = [
    ("multilabel", lambda i, bag: {"y": "big" if bag.label == "tumour" else "-"}, "y"),
    ("regression", lambda i, bag: {"y": str(50.0 + 10 * (bag.label == "tumour") + 0.1 * i)}, "y"),
    ("ordinal", lambda i, bag: {"y": bag.label}, "y"),
    ("cox", survival_columns, "label"),
    ("survival", survival_columns, "label"),
]


@pytest.mark.parametrize(("name", "columns", "target"), TASK_COLUMNS, ids=[row[0] for row in TASK_COLUMNS])
def test_every_task_learns_what_was_planted(name, columns, target):
    bags = with_columns(planted_cohort(slides=36, share=0.5, strength=8.0)[0], columns)
    classes = ("normal", "tumour") if name == "ordinal" else ()
    spec = TrainSpec(
        task=TaskSpec(name, target, classes=classes, bins=3),
        hidden=16,
        attention=8,
        folds=2,
        epochs=12,
        learning_rate=1e-2,
        batch=4,
        accumulate=1,
    )
    model = cross_validate(bags, spec)
    outputs = model.task.activate(np.array([row.logits for row in model.cohort], np.float32))
    said = outputs[:, -1] if name == "ordinal" else outputs[:, 0]
    assert auroc(np.array([bag.label == "tumour" for bag in bags]), said) > 0.85
    assert model.metrics["raw"]["task"] == name
    assert (model.calibrator.method == "none") == (name != "multilabel")
    assert model.cohort[1].truth


def test_cox_compares_bags_in_batches_and_the_whole_validation_part():
    bags = with_columns(planted_cohort(slides=24)[0], survival_columns)
    part, task = parts(bags, TaskSpec("cox"))
    trainer = Trainer(part, task, head_of(task), TrainSpec(task=TaskSpec("cox")), "cpu")
    assert trainer.batch.size == 16
    joint = task.loss(torch.from_numpy(logits_of(trainer.network, part)), task.targets(part.truth))
    assert trainer.loss_of(part) == pytest.approx(float(joint), rel=1e-5)
    assert Trainer(*parts(bags), head_of(parts(bags)[1]), TrainSpec(), "cpu").batch.size == 1


def test_covariates_are_learned_beside_the_tiles():
    bags = [replace(bag, features=np.ones_like(bag.features)) for bag in planted_cohort(slides=24)[0]]  # say nothing
    aged = with_columns(bags, lambda i, bag: {"age": str(30 + 40 * (bag.label == "tumour") + i % 7)})
    spec = TrainSpec(head="mean", folds=2, epochs=8, learning_rate=2e-2, covariates=("age",))
    model = cross_validate(aged, spec)
    assert model.covariates.width == model.head.covariates == 1
    assert figure(model)["value"] == 1
    assert (model.outliers, model.metrics["notes"][0][:39]) == (None, "slides unlike the cohort cannot be told")


def test_several_backbones_are_fused_late():
    bags = [replace(bag, blocks=(20, 12)) for bag in planted_cohort(slides=18)[0]]
    model = cross_validate(bags, replace(SHORT, fusion="late"))
    assert model.head.blocks == (20, 12)
    assert len(model.network(0).heads) == 2


def test_the_positive_class_is_the_last_one_given():
    bags, _ = planted_cohort(slides=18)
    assert cross_validate(bags, SHORT, classes=("tumour", "normal")).classes == ("tumour", "normal")


def test_three_classes_train_and_are_judged():
    bags, _ = planted_cohort(slides=18)
    named = [
        Bag(bag.features + 3 * (i % 3 == 0), bag.xy, 256, bag.slide_ids, ("a", "b", "c")[i % 3])
        for i, bag in enumerate(bags)
    ]
    model = cross_validate(named, SHORT)
    assert len(model.cohort[0].logits) == 3
    assert model.metrics["raw"]["classes"] == ["a", "b", "c"]


# Bad input


def test_an_empty_bag_is_listed_but_neither_trained_on_nor_in_a_fold():
    bags, _ = planted_cohort(slides=18)
    empty = Bag(np.zeros((0, DIM), np.float32), np.zeros((0, 2), np.int64), 256, ("glass",), "normal")
    model = cross_validate([empty, *bags], SHORT)
    assert [row.folds == () for row in model.cohort] == [True] + [False] * 18
    assert model.cohort[0].logits is None
    assert model.metrics["raw"]["bags"] == 18


def test_a_cohort_of_empty_bags_is_refused():
    bags, _ = planted_cohort(slides=6)
    with pytest.raises(SpecError, match="none has any tiles"):
        cross_validate([replace(bag, features=bag.features[:0], xy=bag.xy[:0]) for bag in bags], SHORT)


@pytest.mark.parametrize("head", HEADS)
def test_a_bag_of_one_tile_is_trained_on_and_tested(head):
    bags, _ = planted_cohort(slides=6)
    part, task = parts([replace(bag, features=bag.features[:1], xy=bag.xy[:1]) for bag in bags])
    network, _ = train_one(part, part, task, head_of(task, head), TrainSpec(epochs=1), Run(0))
    assert np.isfinite(logits_of(network, part)).all()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda bag: replace(bag, label=None), ManifestError, "slide-0: has nothing in column 'label'"),
        (lambda bag: replace(bag, contract={"mpp": 1.0}, contract_hash="b"), BackboneError, "mpp"),
        (lambda bag: replace(bag, features=bag.features[:, :5]), BackboneError, "dim"),
        (lambda bag: replace(bag, features=bag.features * np.nan), StoreError, "NaN"),
    ],
)
def test_a_bad_bag_is_refused_by_name(spoil, error, message):
    bags, _ = planted_cohort(slides=18)
    with pytest.raises(error, match=message):
        cross_validate([spoil(bags[0]), *bags[1:]], SHORT)


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({"folds": 2}, lambda i: "normal", "one class"),
        ({"folds": 2}, lambda i: "normal" if i else "tumour", "class 'tumour' has 1 patient"),
        ({"folds": 30}, lambda i: "ab"[i % 2], "fewer than the 30 folds"),
        ({"head": "clam-sb", "task": TaskSpec("cox")}, lambda i: "a", "clam-sb needs one class per bag"),
        ({"stratify": ("site",)}, lambda i: "ab"[i % 2], "no bag has anything in column 'site'"),
    ],
)
def test_a_cohort_that_does_not_fit_its_settings_is_refused(change, labels, message):
    bags = with_columns(planted_cohort(slides=18)[0], survival_columns)
    relabelled = [replace(bag, label=labels(i), patient_id=None) for i, bag in enumerate(bags)]
    if "stratify" in change:
        relabelled = [replace(bag, columns={}) for bag in relabelled]
    with pytest.raises(SpecError, match=message):
        cross_validate(relabelled, replace(SHORT, **change))


def test_one_slide_under_two_names_never_lies_in_two_folds():
    bags, _ = planted_cohort(slides=24)
    twins = [replace(bag, slide_ids=(f"copy-{i}",), patient_id=f"q-{i}", identity=str(i)) for i, bag in enumerate(bags)]
    marked = [replace(bag, identity=str(i)) for i, bag in enumerate(bags)]
    rows = cross_validate([*marked, *twins], replace(SHORT, folds=3, epochs=1)).cohort
    assert [row.folds for row in rows[:24]] == [row.folds for row in rows[24:]]


@pytest.mark.parametrize(
    "wrong",
    [{"folds": 1}, {"dropout": 1.0}, {"learning_rate": 0.0}, {"epochs": 0}, {"hidden": 2.5}, {"weight_decay": -1}],
)
def test_a_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        TrainSpec(**wrong)


def test_real_breast_histology_bags_are_classified(data_dir):
    """UCSB breast cancer microarray: 58 cores, 708 features a patch."""
    table = np.load(data_dir / "mil_tabular" / "ucsb_breast.npz")
    bags = [
        Bag(
            table["X"][table["bag"] == i],
            np.zeros((int((table["bag"] == i).sum()), 2), np.int64),
            1,
            (f"core-{i}",),
            "malignant" if positive else "benign",
        )
        for i, positive in enumerate(table["bag_label"])
    ]
    assert figure(cross_validate(bags, TrainSpec(hidden=64, folds=3, epochs=8)))["value"] > 0.65
