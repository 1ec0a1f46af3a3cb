"""The loop closes: regions that were suggested and reviewed teach a model more than as many that were drawn at random.

The cohort is planted in the space of embeddings, where the truth of every tile is known: tumour lies in nests of some
tiles, of two kinds, of which slides with a label show one only; and some slides hold normal tissue that looks like it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import shape

from embedding.store import open_embeddings, write_embeddings
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.region_bags import tiles_inside
from jobs.review import Review
from jobs.review.suggest import suggest
from mil.active import ChoiceSpec
from mil.bag import load_bag
from mil.crossval import cross_validate
from mil.evaluation.discrimination import auroc
from mil.predict import predict
from mil.spec import TrainSpec

pytestmark = pytest.mark.heavy

DIM, SIDE, SPAN_PX = 16, 12, 256
LABELLED, POOL, TESTED = 40, 20, 20
ROUNDS, REGIONS = 2, 10  # reviewed twice, so many each time
COHORTS = 6
CONTRACT = {"backbone": "planted", "hash": "0123456789abcdef", "dim": DIM}
SPEC = TrainSpec(
    hidden=16, attention=8, folds=3, epochs=20, learning_rate=2e-3, accumulate=1, calibrate="none", device="cpu"
)
PLACE = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Planted:
    """Slides of a run folder, and which tiles of each are tumour."""

    folder: RunFolder
    records: list[SlideRecord]
    tumour: dict[str, np.ndarray]

    def bag(self, record):
        store = open_embeddings(self.folder.embeddings("planted-01234567", record.slide_id))
        return load_bag(store, record.label, record.patient_id)


def plant(root: Path, seed: int) -> Planted:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    tumour = {"seen": 3.0 * axes[0] + 1.5 * axes[1], "new": 1.5 * axes[0] + 3.0 * axes[2]}
    mimic, tissues = 2.5 * axes[0] + 3.0 * axes[3], 0.8 * rng.normal(size=(4, DIM))
    planted = Planted(RunFolder(root), [], {})
    for number in range(LABELLED + POOL + TESTED):
        positive, later = number % 2 == 1, number >= LABELLED
        kinds = rng.choice(4, p=rng.dirichlet(np.ones(4)), size=len(PLACE))
        features, truth = rng.normal(size=(len(PLACE), DIM)) + tissues[kinds], np.zeros(len(PLACE), bool)
        if positive:
            truth = nest(rng)
            features[truth] = (
                rng.normal(size=(truth.sum(), DIM)) + tumour["new" if later and rng.random() < 0.5 else "seen"]
            )
        if later and rng.random() < 0.5:
            lookalike = nest(rng) & ~truth
            features[lookalike] = rng.normal(size=(lookalike.sum(), DIM)) + mimic
        keep(planted, f"slide-{number:02d}", "tumour" if positive else "normal", features, truth)
    return planted


def nest(rng: np.random.Generator) -> np.ndarray:
    """Sixteen tiles, fewer at the slide's edge."""
    off = PLACE - rng.integers(1, SIDE - 1, 2)
    return ((off >= -1) & (off <= 2)).all(axis=1)


def keep(planted: Planted, name: str, label: str, features: np.ndarray, truth: np.ndarray) -> None:
    with write_embeddings(planted.folder.embeddings("planted-01234567", name), len(PLACE), (DIM,), "float32") as writer:
        writer.write(features.astype(np.float32)[:, None], np.ones(len(PLACE), bool))
        facts = {"slide_id": name, "contract": CONTRACT, "span_px": SPAN_PX, "fingerprint": name, "identity": name}
        writer.finish(PLACE.astype(np.int64) * SPAN_PX, facts)
    planted.records.append(SlideRecord(name, Path(name), name, name, label))
    planted.tumour[name] = truth


def reviewed(planted: Planted, model, by: str, seed: int) -> list:
    """One round: regions are suggested, and a reviewer who knows the truth gives those of one tissue their class.

    Of both, a region is rejected. What was reviewed is kept in the run's log, so that it is not suggested again.
    """
    records = planted.records[: LABELLED + POOL]
    by_id = {record.slide_id: record for record in records}
    bags = []
    found = suggest(planted.folder, model, records, ChoiceSpec(REGIONS, by, seed=seed)).suggestions
    review = Review(planted.folder.review, dict.fromkeys(by_id), ("normal", "tumour"))
    for one in found:
        bag = planted.bag(by_id[one.slide_id])
        tiles = tiles_inside(shape(one.geometry), bag.xy, bag.span_px)
        share = planted.tumour[one.slide_id][tiles].mean()
        told = {"event": f"{by}-{seed}-{one.id}", "who": "truth", "id": one.id}
        if share not in (0, 1):
            review.act(one.slide_id, {**told, "action": "region-reject"})
            continue
        label = "tumour" if share else "normal"
        review.act(one.slide_id, {**told, "action": "region-relabel", "label": label})
        part = replace(bag, features=bag.features[tiles], xy=bag.xy[tiles], region=one.id)
        bags.append(replace(part, label=label))
    return bags


def taught(planted: Planted, first, by: str, seed: int) -> float:
    """AUROC of the model after all rounds; what is suggested in each is by what the one before taught."""
    root = planted.folder.root
    own = replace(planted, folder=RunFolder(root / by))
    own.folder.root.mkdir()
    (own.folder.root / "embeddings").symlink_to(planted.folder.root / "embeddings")
    bags = [planted.bag(record) for record in planted.records[:LABELLED]]
    spec, regions = replace(SPEC, seed=seed), []
    model = first
    for place in range(ROUNDS):
        regions += reviewed(own, model, by, seed + 100 * place)
        if by != "random" or place == ROUNDS - 1:  # nothing in between is asked of random ones
            model = cross_validate([*bags, *regions], spec)
    return tile_auroc(model, planted)


def tile_auroc(model, planted: Planted) -> float:
    """Of the tiles of patients whose slides nobody labelled or reviewed."""
    test = planted.records[LABELLED + POOL :]
    scores = np.concatenate([predict(model, planted.bag(record)).scores[:, 1] for record in test])
    return auroc(np.concatenate([planted.tumour[record.slide_id] for record in test]), scores)


def test_suggested_regions_teach_more_than_random_ones(tmp_path):
    rows = []
    for seed in range(20, 20 + COHORTS):
        planted = plant(tmp_path / str(seed), seed)
        bags = [planted.bag(record) for record in planted.records[:LABELLED]]
        first = cross_validate(bags, replace(SPEC, seed=seed))
        rows.append((tile_auroc(first, planted), *(taught(planted, first, by, seed) for by in ("mixed", "random"))))
    before, suggested, drawn = np.array(rows).T
    gain = suggested - drawn
    picks = np.random.default_rng(0).integers(0, COHORTS, (5000, COHORTS))
    low, high = np.percentile(gain[picks].mean(axis=1), [2.5, 97.5])
    shown = f"AUROC of tiles {before.mean():.3f} → {suggested.mean():.3f} suggested, {drawn.mean():.3f} random; "
    shown += f"gain {gain.mean():.3f} ({low:.3f} to {high:.3f})"
    print(shown)
    # the interval is looked at in benchmarks; here a machine that rounds otherwise must not decide
    assert gain.mean() > 0, shown
    assert suggested.mean() > before.mean() + 0.01, shown
