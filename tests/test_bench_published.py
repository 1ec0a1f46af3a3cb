"""The parts of the benchmark against published figures: what it reads, judges, and does not train twice."""

import numpy as np
import pytest
import torch

from benchmarks import bench_published as bench

SETTING = bench.CANDIDATES[bench.CHOSEN]


@pytest.fixture(autouse=True)
def threads():
    """A run sets torch to one thread, and with another number of threads networks round otherwise."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cohort_file(folder, name="musk1", bags=24, dim=4):
    """A data set of two well separated classes, in the format of the real ones."""
    rng = np.random.default_rng(0)
    label = np.arange(bags, dtype=np.uint8) % 2
    bag = np.repeat(np.arange(bags, dtype=np.int32), rng.integers(1, 5, bags))
    features = rng.standard_normal((len(bag), dim)).astype(np.float32) + 4 * label[bag][:, None]
    np.savez(folder / f"{name}.npz", X=features, bag=bag, bag_label=label)
    return folder / f"{name}.npz"


def test_bags_are_those_of_the_file(tmp_path):
    path = cohort_file(tmp_path)
    arrays = np.load(path)
    bags = bench.bags_of(path)
    assert [bag.label for bag in bags] == [str(label) for label in arrays["bag_label"]]
    assert [bag.tiles for bag in bags] == np.bincount(arrays["bag"]).tolist()
    np.testing.assert_array_equal(np.concatenate([bag.features for bag in bags]), arrays["X"])


def test_every_bag_is_judged_once_by_a_network_that_did_not_see_it(tmp_path, monkeypatch):
    unit = bench.Unit(cohort_file(tmp_path), "abmil", 1, {**SETTING, "epochs": 4})
    taught, original = [], bench.train_one

    def watched(training, validation, *rest):
        taught.append(({bag.name for bag in training.bags}, len(validation)))
        return original(training, validation, *rest)

    monkeypatch.setattr(bench, "train_one", watched)
    found = bench.run(unit)
    fold, names = np.array(found["fold"]), [bag.name for bag in bench.bags_of(unit.path)]
    assert len(taught) == bench.FOLDS
    for number, (seen, held_back) in enumerate(taught):
        assert held_back == 0
        assert seen == {name for name, own in zip(names, fold, strict=True) if own != number}
    assert np.isfinite(found["scores"]).all()
    assert bench.figures_of([found]).auroc > 0.95
    assert bench.run(unit)["scores"] == found["scores"]  # the same seed


def test_the_best_of_all_epochs_and_thresholds_is_never_worse_than_the_last_at_one_half(tmp_path):
    arrays = dict(np.load(cohort_file(tmp_path)))
    np.random.default_rng(1).shuffle(arrays["bag_label"])  # nothing to be learned: what is above one half is choice
    np.savez(tmp_path / "musk1.npz", **arrays)
    unit = bench.Unit(tmp_path / "musk1.npz", "dsmil", 0, {**SETTING, "epochs": 2})
    assert bench.peeking_run(unit) > bench.figures_of([bench.run(unit)]).accuracy + 0.1


def test_repeats_are_different_partitions(tmp_path):
    path = cohort_file(tmp_path)
    setting = {**SETTING, "epochs": 1}
    first, second = (bench.run(bench.Unit(path, "max", repeat, setting))["fold"] for repeat in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("value", "expected"), [(0.86, "inside"), (0.9, "inside"), (0.94, "inside"), (0.95, "above"), (0.85, "below")]
)
def test_a_figure_lies_inside_above_or_below_a_published_range(value, expected):
    assert bench.verdict(value, bench.Published(0.9, 0.04)) == expected


def test_a_threshold_chosen_on_the_test_fold_flatters():
    scores, truth = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0, 0, 1, 1])  # all over 0: half of them are wrong
    assert bench.peeking_accuracy(scores, truth) == 1
    run = {"scores": np.tile(scores, 10), "truth": np.tile(truth, 10), "fold": np.repeat(np.arange(10), 4)}
    figures = bench.figures_of([run, run])
    assert (figures.accuracy, figures.peeking, figures.auroc, figures.sd) == (0.5, 1, 1, 0)


def test_figures_of_folds_and_runs_by_hand():
    truth, fold = np.tile([0, 1], 10), np.repeat(np.arange(10), 2)
    right = np.where(truth == 1, 1.0, -1.0)
    wrong = right.copy()
    wrong[:2] *= -1  # the first fold is all wrong
    runs = [{"scores": scores, "truth": truth, "fold": fold} for scores in (right, wrong)]
    figures = bench.figures_of(runs)
    assert figures.accuracy == pytest.approx(0.95)
    assert figures.sd == pytest.approx(np.std([1, 0.9], ddof=1))
    assert figures.sem == pytest.approx(np.std([1, 0.9], ddof=1) / np.sqrt(2))
    assert figures.fold_sem == pytest.approx(np.mean([0, np.std([0] + [1] * 9, ddof=1) / np.sqrt(10)]))


def test_a_setting_is_chosen_on_the_other_data_sets():
    losses = np.array([[0.1, 0.9], [0.6, 0.5], [0.6, 0.5]])  # the first alone would take setting 0
    assert bench.chosen_elsewhere(losses) == [1, 0, 0]


def test_finished_runs_are_kept_and_runs_of_another_setting_refused(tmp_path):
    out = tmp_path / "runs.json"
    assert bench.read_runs(out, SETTING) == {}
    bench.write_runs(out, SETTING, {"musk1/abmil/0": {"scores": [1.0], "cpu_s": 2.0}})
    assert bench.read_runs(out, SETTING) == {"musk1/abmil/0": {"scores": [1.0], "cpu_s": 2.0}}
    with pytest.raises(SystemExit, match="another setting"):
        bench.read_runs(out, {**SETTING, "epochs": 1})


def test_the_table_marks_what_is_not_finished():
    run = {"scores": [1.0, -1.0] * 10, "truth": [1, 0] * 10, "fold": [i // 2 for i in range(20)], "cpu_s": 1.0}
    found = {f"musk1/abmil/{repeat}": run for repeat in range(5)} | {"ucsb_breast/max/0": run}
    lines = bench.table(found).splitlines()[2:]
    assert len(lines) == 2
    assert lines[0].startswith("| musk1 | abmil | 1.000 ± 0.000 |")
    assert "| 0.900 ± 0.050 | above |" in lines[0]
    assert "max (1 of 5 runs)" in lines[1]
    assert "| none |" in lines[1]


def test_real_data_sets_have_the_known_sizes(data_dir):
    sizes = {
        name: (len(bags := bench.bags_of(data_dir / "mil_tabular" / f"{name}.npz")), sum(bag.tiles for bag in bags))
        for name in bench.DATA_SETS
    }
    assert sizes == {
        "musk1": (92, 476),  # Dietterich, Lathrop & Lozano-Perez 1997, and Andrews et al. 2003
        "musk2": (102, 6598),
        "elephant": (200, 1391),
        "fox": (200, 1320),
        "tiger": (200, 1220),
        "ucsb_breast": (58, 2002),
    }
