"""Regions teach the networks that do not hold their patient back, and no figure is made of them."""

from dataclasses import replace

import numpy as np
import pytest

from mil.bag import Bag
from mil.beside import beside_cohort
from mil.crossval import cross_validate, fold_parts, gather
from mil.evaluation.discrimination import auroc
from mil.model import load_model, save_model
from mil.predict import predict
from mil.spec import TaskSpec, TrainSpec
from mil.splits import draw_partition
from wsi.errors import SpecError

from .test_mil_train import DIM, planted_cohort, same_weights

QUICK = TrainSpec(hidden=16, attention=8, folds=3, epochs=8, learning_rate=5e-3)


def region(bag: Bag, tiles, label: str, **facts) -> Bag:
    part = replace(bag, features=bag.features[tiles], xy=bag.xy[tiles], label=label)
    return replace(part, region=f"{bag.name} {label}", **facts)


@pytest.fixture(scope="module")
def cohort():
    bags, truths = planted_cohort(slides=24)
    regions = [region(bag, truth, "tumour") for bag, truth in zip(bags, truths, strict=True) if truth.any()]
    stranger = replace(bags[1], slide_ids=("other",), patient_id="other")
    return bags, [*regions, region(stranger, slice(0, 3), "normal")]


def test_no_network_learns_from_a_patient_by_whom_it_is_judged_or_stopped(cohort):
    bags, regions = cohort
    spec = replace(QUICK, repeats=2)
    gathered = gather(bags, spec)
    partition = draw_partition(bags, [bag.label for bag in bags], 3, 2, 0)
    beside = beside_cohort(regions, gathered, partition)
    used = 0
    for place in range(6):
        parts = fold_parts(gathered, partition, place)
        held = {bags[i].group for i in np.concatenate(parts[1:])}
        seen = {beside.part.bags[i].group for i in beside.seen_by(partition, place, parts)}
        trained = {bags[i].group for i in parts[0]} & {one.group for one in regions}
        assert not seen & held
        assert seen - {"other"} == trained
        used += "other" in seen
    assert used == 4  # one fold a repeat knows nothing of a patient who has no bag


def test_a_model_remembers_its_regions_and_predicts_their_slides_held_out(cohort, tmp_path):
    bags, regions = cohort
    model = cross_validate([*bags, *regions], QUICK)
    assert len(model.cohort) == len(bags)
    assert len(model.regions) == len(regions)
    assert any("13 drawn regions of 13 slides" in note for note in model.metrics["notes"])
    other = replace(bags[1], slide_ids=("other",), patient_id="other")
    assert predict(model, other).origin.startswith("held-out fold")
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.regions == model.regions
    assert again.mark == model.mark
    assert same_weights(model, cross_validate([*bags, *regions], QUICK))


def test_regions_teach_which_tiles_are_meant():
    """Bags of two classes that differ in two ways; what is drawn says which of them is the finding."""
    bags, truths = planted_cohort(slides=24, strength=2.0)
    shift = np.zeros(DIM, np.float32)
    shift[0] = 1.5
    confused = [replace(bag, features=bag.features + shift * (bag.label == "tumour")) for bag in bags]
    drawn = [
        region(bag, where, label)
        for bag, truth in zip(confused, truths, strict=True)
        for where, label in ((truth, "tumour"), (~truth, "normal"))
        if truth.any()
    ]
    inside = np.concatenate([truth for truth in truths if truth.any()])
    figures = []
    for learnt in ([], drawn):
        model = cross_validate([*confused, *learnt], QUICK)
        scores = [predict(model, bag).scores[:, 1] for bag, truth in zip(confused, truths, strict=True) if truth.any()]
        figures.append(auroc(inside, np.concatenate(scores)))
    assert figures[1] > figures[0] + 0.05


def test_what_cannot_be_learnt_from_regions_is_refused(cohort):
    bags, regions = cohort
    with pytest.raises(SpecError, match="of class 'necrosis'"):
        cross_validate([*bags, region(bags[0], slice(0, 3), "necrosis")], QUICK)
    numbers = [replace(bag, columns={"age": str(number)}) for number, bag in enumerate(bags)]
    with pytest.raises(SpecError, match="cannot teach regression"):
        cross_validate([*numbers, *regions], replace(QUICK, task=TaskSpec("regression", target="age")))
