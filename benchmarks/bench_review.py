"""Does it help to choose which regions people look at? A curve of AUROC over the number of reviewed regions.

    python benchmarks/bench_review.py RUN MANIFEST [--repeats 10] [--counts 10 20 40 80] [--by mixed …] [-o FILE]

RUN holds embeddings of a synthetic cohort (`wsi.synthetic`), MANIFEST its slides with their truth maps. For each
repetition patients are divided: a few with a slide label, of which the first model is trained; a pool without; and
those that only test. Of all slides but those of the test, regions are suggested by each strategy and at random, grown
alike; a simulated reviewer, who knows the truth, accepts or relabels each, or rejects one that holds some tumour but
less than half; and the model is trained again with them beside the same slide labels. Figures are of the test: AUROC of
tiles (at least half tumour against none) and of slides. Differences are paired: strategy less random of the same
repetition and number, with a bootstrap interval over repetitions. Repetitions divide one cohort anew: the interval is
of this cohort's divisions and trainings, and says nothing of other cohorts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import shape

from jobs.folder import RunFolder
from jobs.manifest import SlideRecord, read_source
from jobs.region_bags import tiles_inside
from jobs.review.suggest import suggest
from jobs.review.suggestions import Suggestion
from mil.active import ChoiceSpec
from mil.bag import Bag, load_bag
from mil.crossval import cross_validate
from mil.evaluation.discrimination import auroc
from mil.model import TrainedModel
from mil.predict import predict
from mil.spec import TrainSpec
from wsi.synthetic import read_truth, tile_truth

SPEC = TrainSpec(hidden=64, attention=32, folds=3, epochs=20, batch=4, accumulate=1, calibrate="none", device="cpu")
LABELLED = 3  # patients of each class with a slide label
TESTED = 0.45  # share of all other patients
CLEAR = 0.5  # share of tumour from which on the reviewer says tumour


@dataclass(frozen=True, eq=False)
class Known:
    """A slide: its bag with its label, and the share of tumour in each tile (n,)."""

    record: SlideRecord
    bag: Bag
    share: NDArray[np.float32]


def load(run: Path, manifest: str) -> list[Known]:
    from embedding.store import open_embeddings

    (place,) = (run / "embeddings").iterdir()
    found = []
    for record in read_source(manifest):
        bag = load_bag(open_embeddings(place / f"{record.slide_id}.zarr"), record.label, record.patient_id)
        found.append(Known(record, bag, tile_truth(read_truth(Path(record.path)), bag.xy, bag.span_px)))
    return found


def divide(cohort: Sequence[Known], seed: int) -> tuple[set[str], set[str]]:
    """Patients with a label, and those that test."""
    rng, labelled, tested = np.random.default_rng(seed), set[str](), set[str]()
    for label in sorted({one.record.label for one in cohort if one.record.label}):
        patients = sorted({one.record.patient_id for one in cohort if one.record.label == label})
        order = [patients[i] for i in rng.permutation(len(patients))]
        rest = order[LABELLED:]
        labelled |= set(order[:LABELLED])
        tested |= set(rest[: round(TESTED * len(rest))])
    return labelled, tested


def reviewed(suggestions: Sequence[Suggestion], cohort: Mapping[str, Known]) -> list[Bag]:
    """What the simulated reviewer makes of the suggestions: bags of regions with their true class."""
    bags = []
    for number, one in enumerate(suggestions):
        known = cohort[one.slide_id]
        tiles = tiles_inside(shape(one.geometry), known.bag.xy, known.bag.span_px)
        share = float(known.share[tiles].mean())
        if 0.1 < share < CLEAR:
            continue  # rejected: it is neither
        part = replace(known.bag, features=known.bag.features[tiles], xy=known.bag.xy[tiles])
        bags.append(replace(part, label="tumor" if share >= CLEAR else "normal", region=f"{one.slide_id} {number}"))
    return bags


def figures(model: TrainedModel, test: Sequence[Known]) -> dict[str, float]:
    said = [predict(model, one.bag) for one in test]
    share, scores = np.concatenate([one.share for one in test]), np.concatenate([one.scores[:, -1] for one in said])
    clear = (share >= CLEAR) | (share == 0)
    slides = np.array([float(one.output[-1]) if one.output is not None else np.nan for one in said])
    truth = np.array([one.record.label == "tumor" for one in test])
    return {"tile": auroc(share[clear] >= CLEAR, scores[clear]), "slide": auroc(truth, slides)}


def repetition(run: Path, manifest: str, seed: int, counts: Sequence[int], ways: Sequence[str]) -> list[dict[str, Any]]:
    """All figures of one division of the patients."""
    import torch

    torch.set_num_threads(1)
    cohort = load(run, manifest)
    by_id = {one.record.slide_id: one for one in cohort}
    labelled, tested = divide(cohort, seed)
    test = [one for one in cohort if one.record.patient_id in tested]
    bags = [one.bag for one in cohort if one.record.patient_id in labelled]
    spec = replace(SPEC, seed=seed)
    first = cross_validate(bags, spec)
    rows: list[dict[str, Any]] = [{"seed": seed, "by": "none", "k": 0, "regions": 0, **figures(first, test)}]
    records = [one.record for one in cohort if one.record.patient_id not in tested]
    for by in ("random", *ways):
        for count in counts:
            with tempfile.TemporaryDirectory() as draft:
                folder = RunFolder(Path(draft))
                (folder.root / "embeddings").symlink_to((run / "embeddings").absolute())
                chosen = suggest(folder, first, records, ChoiceSpec(count, by, seed=seed)).suggestions
            regions = reviewed(chosen, by_id)
            model = cross_validate([*bags, *regions], spec)
            tumour = sum(bag.label == "tumor" for bag in regions)
            facts = {"seed": seed, "by": by, "k": count, "regions": len(regions), "tumour": tumour}
            rows.append({**facts, **figures(model, test)})
    return rows


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over repetitions."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (10_000, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def table(rows: Sequence[Mapping[str, Any]], counts: Sequence[int], ways: Sequence[str]) -> list[str]:
    """The curve: a line for each strategy and number, and how it differs from random."""
    seeds = sorted({row["seed"] for row in rows})
    at = {(row["seed"], row["by"], row["k"]): row for row in rows}
    lines = [f"{'by':<13}{'k':>4}{'tumour':>8}   {'tiles AUROC':<13}{'less random':<26}{'slides AUROC':<14}less random"]
    start = [interval(np.array([at[seed, "none", 0][what] for seed in seeds]))[0] for what in ("tile", "slide")]
    lines.append(f"{'no regions':<13}{0:>4}{'':>8}   {start[0]:<13.3f}{'':<26}{start[1]:<14.3f}")
    for by in ("random", *ways):
        for count in counts:
            ours = [at[seed, by, count] for seed in seeds]
            tumour = np.mean([row["tumour"] for row in ours])
            cells = []
            for what, width in (("tile", 13), ("slide", 14)):
                values = np.array([row[what] for row in ours])
                other = np.array([at[seed, "random", count][what] for seed in seeds])
                mean, low, high = interval(values - other)
                said = "" if by == "random" else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
                cells.append(f"{values.mean():<{width}.3f}{said:<26}")
            lines.append(f"{by:<13}{count:>4}{tumour:>8.1f}   {''.join(cells)}".rstrip())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("manifest")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--by", nargs="+", default=["mixed", "uncertainty", "disagreement", "diversity"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, help="figures of every training, JSON lines")
    asked = parser.parse_args()
    started, rows = time.monotonic(), list[dict[str, Any]]()
    with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
        work = [
            pool.submit(repetition, asked.run, asked.manifest, seed, asked.counts, asked.by)
            for seed in range(asked.repeats)
        ]
        for one in work:
            rows += one.result()
            if asked.out is not None:
                asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n".join(table(rows, asked.counts, asked.by)))
    print(f"{asked.repeats} repetitions, {len(rows)} trainings, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
