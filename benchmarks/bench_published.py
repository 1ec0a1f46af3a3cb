"""Heads on the six classical multiple-instance data sets, 10-fold five times, beside published figures.

Training is the library's own, with one setting for all data sets and heads, and all of a fold's training bags: nothing
is chosen on a test fold. Every finished run is kept in the output file, and a further call goes on from there.

python benchmarks/bench_published.py [--data DIR] [--out published.json] [--processes 2] [--report]
python benchmarks/bench_published.py --choose | --peek
python benchmarks/bench_published.py --candidate 3 --only musk1 --out musk1.json
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from mil.bag import Bag
from mil.crossval import fold_parts, gather
from mil.spec import TrainSpec
from mil.splits import Partition, draw_partition
from mil.train import Run, Trainer, logits_of, rate_at, train_one

DATA_SETS = ("musk1", "musk2", "elephant", "fox", "tiger", "ucsb_breast")
FOLDS, REPEATS = 10, 5
SHARED: Mapping[str, Any] = {
    "hidden": 128,
    "attention": 64,
    "batch": 32,
    "accumulate": 1,
    "instances": 128,
    "class_weights": False,  # the published figures are accuracies
    "precision": "fp32",
    "device": "cpu",
}
CANDIDATES: tuple[Mapping[str, Any], ...] = tuple(
    {"epochs": epochs, "learning_rate": rate, "dropout": dropout, "weight_decay": 1e-2}
    for epochs, rate in ((20, 1e-3), (20, 3e-3), (10, 3e-3))
    for dropout in (0.25, 0.5)
)
CHOSEN = 5  # the place in CANDIDATES of the one setting for all, by --choose
CHOICE_HEADS, CHOICE_FOLDS, CHOICE_SEED = ("abmil", "max"), 3, 100


class Published(NamedTuple):
    """An accuracy as printed, with what stands behind its ±."""

    value: float
    spread: float


def _row(heads: str, *figures: tuple[float, float]) -> dict[tuple[str, str], Published]:
    return {(name, heads): Published(*figure) for name, figure in zip(DATA_SETS, figures, strict=False)}


# Accuracies of Ilse, Tomczak & Welling, ICML 2018, table 1, who take mi-Net and MI-Net from Wang et al., Pattern
# Recognition 2018; of DSMIL from Li, Li & Eliceiri, CVPR 2021 (arXiv 2011.08939), table of the MIL benchmarks.
PUBLISHED: Mapping[tuple[str, str], Published] = {
    **_row("instance-max", (0.889, 0.039), (0.858, 0.049), (0.858, 0.037), (0.613, 0.035), (0.824, 0.034)),
    **_row("max", (0.887, 0.041), (0.859, 0.046), (0.862, 0.034), (0.622, 0.038), (0.830, 0.032)),
    **_row("abmil", (0.900, 0.050), (0.863, 0.042), (0.857, 0.027), (0.603, 0.029), (0.845, 0.018)),
    **_row("abmil-ungated", (0.892, 0.040), (0.858, 0.048), (0.868, 0.022), (0.615, 0.043), (0.839, 0.022)),
    **_row("dsmil", (0.932, 0.023), (0.930, 0.020), (0.925, 0.007), (0.729, 0.018), (0.869, 0.008)),
}
HEADS = ("instance-max", "max", "abmil", "abmil-ungated", "dsmil")


@dataclass(frozen=True, slots=True)
class Unit:
    """One run of ten folds: what is trained on what, with which setting."""

    path: Path
    head: str
    repeat: int
    setting: Mapping[str, Any]

    @property
    def key(self) -> str:
        return f"{self.path.stem}/{self.head}/{self.repeat}"

    @property
    def spec(self) -> TrainSpec:
        return TrainSpec(head=self.head, folds=FOLDS, repeats=REPEATS, **SHARED, **self.setting)


def bags_of(path: Path) -> list[Bag]:
    """The bags of one data set, in the order of their numbers.

    The file holds X float32 (n, d), bag int (n,), the bag of each instance, counted from 0, and bag_label (bags,), 0 or
    1. Instances have no positions.
    """
    with np.load(path) as arrays:
        features, bag, labels = (arrays[name] for name in ("X", "bag", "bag_label"))
    found = []
    for number, label in enumerate(labels):
        own = features[bag == number].astype(np.float32)
        nowhere = np.zeros((len(own), 2), np.int64)
        found.append(Bag(own, nowhere, 1, (f"{path.stem}-{number}",), label=str(int(label))))
    return found


def run(unit: Unit) -> dict[str, Any]:
    """Train and test one run: log odds of each bag by the network that did not see it, its fold, and the CPU time."""
    torch.set_num_threads(1)
    started = time.process_time()
    cohort = gather(bags_of(unit.path), unit.spec)
    strata = cohort.task.strata(cohort.part.truth)
    drawn = draw_partition(cohort.bags, strata, FOLDS, REPEATS, unit.spec.seed)
    partition = replace(drawn, validation=np.zeros(len(cohort.bags), bool))  # nobody is held back to stop by
    scores = np.full(len(cohort.bags), np.nan)
    for fold in range(FOLDS):
        place = unit.repeat * FOLDS + fold
        training, validation, test = fold_parts(cohort, partition, place)
        parts = cohort.part.at(training), cohort.part.at(validation)
        network, _ = train_one(*parts, cohort.task, cohort.head, unit.spec, Run(unit.spec.seed + place))
        logits = logits_of(network, cohort.part.at(test))
        scores[test] = logits[:, 1] - logits[:, 0]
    return {
        "scores": np.round(scores, 5).tolist(),
        "fold": drawn.folds_of[unit.repeat].tolist(),
        "truth": cohort.part.truth.tolist(),
        "cpu_s": round(time.process_time() - started, 2),
    }


def peeking_run(unit: Unit) -> float:
    """Accuracy of one run as DSMIL's published code reports it: the best of all epochs, each at its best threshold, of
    every test fold by itself. It says what those choices are worth, and is no estimate of anything.
    """
    torch.set_num_threads(1)
    cohort = gather(bags_of(unit.path), unit.spec)
    strata = cohort.task.strata(cohort.part.truth)
    folds = draw_partition(cohort.bags, strata, FOLDS, REPEATS, unit.spec.seed).folds_of[unit.repeat]
    best = np.zeros(FOLDS)
    for fold in range(FOLDS):
        training, test = (cohort.part.at(np.flatnonzero(part)) for part in (folds != fold, folds == fold))
        torch.manual_seed(unit.spec.seed + unit.repeat * FOLDS + fold)
        rng = np.random.default_rng(fold)
        trainer = Trainer(training, cohort.task, cohort.head, unit.spec, cohort.device)
        trainer.network.fit(torch.from_numpy(bag.features) for bag in training.bags)
        for epoch in range(unit.spec.epochs):
            trainer.set_rate(rate_at(unit.spec, epoch))
            trainer.run_epoch(rng)
            logits = logits_of(trainer.network, test)
            best[fold] = max(best[fold], peeking_accuracy(logits[:, 1] - logits[:, 0], test.truth.astype(int)))
    return float(best.mean())


def peek(folder: Path, processes: int) -> None:
    """Print DSMIL's accuracies under its own code's rule beside the published ones."""
    names = [name for name in DATA_SETS if (name, "dsmil") in PUBLISHED]
    units = [Unit(folder / f"{n}.npz", "dsmil", repeat, CANDIDATES[CHOSEN]) for n in names for repeat in range(REPEATS)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = np.array(list(pool.map(peeking_run, units))).reshape(len(names), REPEATS)
    print("| data set | best epoch and threshold of each test fold | published | ours is |\n|---|---|---|---|")
    for name, runs in zip(names, found, strict=True):
        theirs, sem = PUBLISHED[name, "dsmil"], runs.std(ddof=1) / np.sqrt(REPEATS)
        shown = f"{theirs.value:.3f} ± {theirs.spread:.3f} | {verdict(runs.mean(), theirs)}"
        print(f"| {name} | {runs.mean():.3f} ± {sem:.3f} | {shown} |")


# --- figures ----------------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """Of one head on one data set, over its runs; nan where one run is not enough.

    accuracy  mean over runs of the mean over folds; sd and sem over the runs' means
    fold_sem  standard error over the ten folds of a run, mean over runs
    auroc     of all bags of a run together, mean over runs; auroc_sd over the runs
    peeking   accuracy where each test fold is cut at the best threshold for itself, as DSMIL's published code does
    """

    runs: int
    accuracy: float
    sd: float
    sem: float
    fold_sem: float
    auroc: float
    auroc_sd: float
    peeking: float


def figures_of(runs: Sequence[Mapping[str, Any]]) -> Figures:
    """Figures of the finished runs, each as `run` returns it."""
    folds, areas, peeking = [], [], []
    for found in runs:
        scores, fold, truth = (np.asarray(found[name]) for name in ("scores", "fold", "truth"))
        parts = [(scores[fold == number], truth[fold == number]) for number in range(FOLDS)]
        folds.append([float(np.mean((score > 0) == true)) for score, true in parts])
        peeking.append(np.mean([peeking_accuracy(score, true) for score, true in parts]))
        areas.append(float(roc_auc_score(truth, scores)))
    means = np.mean(folds, axis=1)
    sd = float(np.std(means, ddof=1)) if len(runs) > 1 else float("nan")
    area_sd = float(np.std(areas, ddof=1)) if len(runs) > 1 else float("nan")
    fold_sem = float(np.mean(np.std(folds, axis=1, ddof=1)) / np.sqrt(FOLDS))
    spreads = sd, sd / np.sqrt(len(runs)), fold_sem
    return Figures(len(runs), float(means.mean()), *spreads, float(np.mean(areas)), area_sd, float(np.mean(peeking)))


def peeking_accuracy(scores: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """Accuracy at the threshold of the largest Youden index on these very bags: scores float (n,), truth 0 or 1 (n,).

    It says what that choice is worth, and is no estimate of anything.
    """
    if len(set(truth.tolist())) < 2:
        return float(np.mean((scores > 0) == truth))
    false_rate, true_rate, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    return float(np.mean((scores >= thresholds[np.argmax(true_rate - false_rate)]) == truth))


def verdict(value: float, published: Published) -> str:
    """Where a figure lies against a published one and its ±: inside, above or below."""
    if abs(value - published.value) <= published.spread + 5e-4:  # both are printed to three places
        return "inside"
    return "above" if value > published.value else "below"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """All finished runs as one table in Markdown."""
    lines = [
        "| data set | head | accuracy ± s.e.m. | s.d. of runs | s.e.m. of folds | AUROC ± s.d. | published | ours is | "
        "threshold chosen on the test fold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in DATA_SETS:
        for head in HEADS:
            runs = [found[key] for repeat in range(REPEATS) if (key := f"{name}/{head}/{repeat}") in found]
            if not runs:
                continue
            own, published = figures_of(runs), PUBLISHED.get((name, head))
            marked = head if own.runs == REPEATS else f"{head} ({own.runs} of {REPEATS} runs)"
            theirs = "none" if published is None else f"{published.value:.3f} ± {published.spread:.3f}"
            where = "" if published is None else verdict(own.accuracy, published)
            cells = [name, marked, f"{own.accuracy:.3f} ± {own.sem:.3f}", f"{own.sd:.3f}", f"{own.fold_sem:.3f}"]
            cells += [f"{own.auroc:.3f} ± {own.auroc_sd:.3f}", theirs, where, f"{own.peeking:.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# --- the setting ------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    path: Path
    head: str
    fold: int
    candidate: int


def validation_loss(trial: Trial) -> float:
    """Loss after the last epoch, in nats, on a fifth of a fold's training bags; its test bags are not looked at."""
    torch.set_num_threads(1)
    setting = CANDIDATES[trial.candidate]
    spec = TrainSpec(head=trial.head, folds=FOLDS, patience=setting["epochs"], seed=CHOICE_SEED, **SHARED, **setting)
    cohort = gather(bags_of(trial.path), spec)
    partition: Partition = draw_partition(cohort.bags, cohort.task.strata(cohort.part.truth), FOLDS, 1, spec.seed)
    training, validation, _ = fold_parts(cohort, partition, trial.fold)
    parts = cohort.part.at(training), cohort.part.at(validation)
    return float(
        train_one(*parts, cohort.task, cohort.head, spec, Run(spec.seed + trial.fold))[1]["validation_loss"][-1]
    )


def chosen_elsewhere(losses: NDArray[np.floating]) -> list[int]:
    """For each data set the candidate with the lowest geometric mean of the losses on the *other* data sets.

    losses  (data sets, candidates), in nats; their logarithms are averaged, so that no data set rules by its scale
    """
    logs = np.log(losses)
    return [int(np.argmin(logs.sum(axis=0) - own)) for own in logs]


def choose(folder: Path, processes: int) -> None:
    """Print every candidate's validation loss, and which one each data set would be given by all others."""
    trials = [
        Trial(folder / f"{name}.npz", head, fold, candidate)
        for name in DATA_SETS
        for head in CHOICE_HEADS
        for fold in range(CHOICE_FOLDS)
        for candidate in range(len(CANDIDATES))
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = np.array(list(pool.map(validation_loss, trials)))
    losses = found.reshape(len(DATA_SETS), -1, len(CANDIDATES)).mean(axis=1)
    print(f"| place and setting | {' | '.join(DATA_SETS)} | geometric mean |\n|---|{'---|' * (len(DATA_SETS) + 1)}")
    for place, (setting, column) in enumerate(zip(CANDIDATES, losses.T, strict=True)):
        told = ", ".join(f"{name} {value:g}" for name, value in setting.items())
        print(f"| {place}: {told} | {' | '.join(f'{loss:.3f}' for loss in [*column, np.exp(np.log(column).mean())])} |")
    for name, choice in zip(DATA_SETS, chosen_elsewhere(losses), strict=True):
        print(f"{name}: the other data sets choose {choice}")


# --- running ----------------------------------------------------------------------------------------------------------


def read_runs(out: Path, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Finished runs by their key. A file of runs with another setting ends the program."""
    if not out.exists():
        return {}
    kept = json.loads(out.read_text())
    if kept["setting"] != {**SHARED, **setting}:
        raise SystemExit(f"{out} holds runs with another setting; name another file, or remove it")
    runs: dict[str, Any] = kept["runs"]
    return runs


def write_runs(out: Path, setting: Mapping[str, Any], runs: Mapping[str, Any]) -> None:
    draft = out.with_name(f"{out.name}.{os.getpid()}")
    draft.write_text(json.dumps({"setting": {**SHARED, **setting}, "runs": runs}))
    draft.replace(out)


def finish(units: Sequence[Unit], processes: int) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Runs as they end, in whichever order."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run, unit): unit for unit in units}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def folder_of(given: Path | None) -> Path:
    """The folder of the six .npz files: as given, else `mil_tabular` of WSI_DATA, else of shared/data beside us."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = given or Path(os.environ.get("WSI_DATA", beside)) / "mil_tabular"
    missing = [name for name in DATA_SETS if not (folder / f"{name}.npz").is_file()]
    if missing:
        raise SystemExit(f"no {missing[0]}.npz in {folder}; give its folder with --data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the .npz files")
    parser.add_argument("--out", type=Path, default=Path("published.json"), help="finished runs, to go on from")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=DATA_SETS, default=DATA_SETS, help="these data sets alone")
    places = range(len(CANDIDATES))
    parser.add_argument("--candidate", type=int, choices=places, default=CHOSEN, help="another setting, by its place")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is finished")
    parser.add_argument("--choose", action="store_true", help="compare settings on inner validation parts instead")
    parser.add_argument("--peek", action="store_true", help="DSMIL under its published code's rule instead")
    given = parser.parse_args()
    folder = folder_of(given.data)
    if given.choose:
        choose(folder, given.processes)
        return
    if given.peek:
        peek(folder, given.processes)
        return
    setting = CANDIDATES[given.candidate]
    found = read_runs(given.out, setting)
    wanted = [
        Unit(folder / f"{name}.npz", head, repeat, setting)
        for repeat in range(REPEATS)  # whole tables first: an early end leaves fewer runs, not fewer heads
        for name in given.only
        for head in HEADS
    ]
    left = [] if given.report else [unit for unit in wanted if unit.key not in found]
    for unit, result in finish(left, given.processes) if left else ():
        found[unit.key] = result
        write_runs(given.out, setting, found)
        print(f"{len(found)} of {len(wanted)} runs: {unit.key}, {result['cpu_s']:.0f} s", flush=True)
    spent = sum(result["cpu_s"] for result in found.values())
    print(f"\n{table(found)}\n\n{len(found)} runs of {FOLDS} folds, {spent:.0f} s of CPU")


if __name__ == "__main__":
    main()
