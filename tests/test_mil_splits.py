"""Folds: one patient, one fold; classes and sites spread evenly; a partition in a file is the one that was drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mil.bag import Bag
from mil.crossval import cross_validate
from mil.spec import TaskSpec, TrainSpec
from mil.split_files import read_partition, write_partition
from mil.splits import Strata, check_leakage, draw_partition, make_splits, merge_rare, validation_part, who
from wsi.errors import ManifestError, SpecError, StoreError


def bag(slide_id, patient_id=None, case_id=None, identity="", label="tumour", tiles=1, **columns):
    return Bag(
        np.random.default_rng(0).normal(size=(tiles, 2)).astype(np.float32),
        np.zeros((tiles, 2), np.int64),
        256,
        (slide_id,),
        label,
        patient_id,
        case_id,
        identity,
        columns=columns,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.booleans()), min_size=12, max_size=60), st.integers(2, 5))
def test_a_patient_lies_in_one_fold_whatever_the_cohort(rows, folds):
    patients = [f"p{patient}" for patient, _ in rows]
    labels = ["tumour" if positive else "normal" for _, positive in rows]
    try:
        fold_of = make_splits(patients, labels, folds, seed=0)
    except SpecError:
        assume(False)
    assert set(fold_of) <= set(range(folds))
    for patient in set(patients):
        assert len({fold for fold, name in zip(fold_of, patients, strict=True) if name == patient}) == 1
    for fold in range(folds):
        assert {label for label, other in zip(labels, fold_of, strict=True) if other != fold} == {"tumour", "normal"}


def test_classes_are_spread_evenly_and_the_seed_decides():
    patients, labels = [f"p{i}" for i in range(40)], ["tumour"] * 10 + ["normal"] * 30
    fold_of = make_splits(patients, labels, 5, seed=1)
    assert np.bincount(fold_of[:10]).tolist() == [2] * 5
    assert np.bincount(fold_of[10:]).tolist() == [6] * 5
    assert (fold_of == make_splits(patients, labels, 5, seed=1)).all()
    assert (fold_of != make_splits(patients, labels, 5, seed=2)).any()


def test_a_patient_with_slides_of_two_labels_stays_together():
    patients = [f"p{i // 2}" for i in range(24)]
    labels = ["tumour", "normal"] * 8 + ["normal"] * 8
    fold_of = make_splits(patients, labels, 4, seed=0)
    assert (fold_of[::2] == fold_of[1::2]).all()


@pytest.mark.parametrize(
    ("patients", "labels", "folds", "message"),
    [
        (["a", "b", "c", "d", "e"], ["x", "x", "x", "y", "y"], 3, "class 'y' has 2 patient"),
        (["a", "b", "c", "c", "c"], ["x", "x", "y", "y", "y"], 2, "class 'y' has 1 patient"),
        (["a", "b"], ["x", "x"], 2, "one class"),
    ],
)
def test_a_cohort_too_small_for_its_folds_is_refused(patients, labels, folds, message):
    with pytest.raises(SpecError, match=message):
        make_splits(patients, labels, folds, seed=0)


def test_the_validation_part_is_by_patient_and_has_every_class():
    patients, labels = [f"p{i // 2}" for i in range(40)], ["tumour", "tumour", "normal", "normal"] * 10
    part = validation_part(patients, labels, seed=0)
    assert not {p for p, held in zip(patients, part, strict=True) if held} & {
        p for p, held in zip(patients, part, strict=True) if not held
    }
    assert {label for label, held in zip(labels, part, strict=True) if held} == {"tumour", "normal"}
    assert part.mean() == pytest.approx(0.2, abs=0.06)


def test_with_one_patient_of_a_class_nothing_is_held_back():
    assert not validation_part(["a", "b", "c"], ["x", "x", "y"], seed=0).any()


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (bag("s1", patient_id="p"), bag("s2", patient_id="p"), "patient"),
        (bag("s1", case_id="c"), bag("s2", case_id="c"), "case"),
        (bag("s1", "p", identity="ab"), bag("s2", "q", identity="ab"), "slide content"),
        (bag("s1", "p"), bag("s1", "q"), "slide"),
    ],
)
def test_whatever_two_folds_share_is_called_a_leak(first, second, shared):
    check_leakage([first, second], np.array([0, 0]))
    with pytest.raises(SpecError, match=f"shares its {shared} with s1"):
        check_leakage([first, second], np.array([0, 1]))


def test_bags_that_share_anything_belong_together_also_through_a_third():
    names = who([bag("s1", "p"), bag("s2", "q", "c"), bag("s3", "p", "c"), bag("s4", "r"), bag("s5")])
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


def test_bags_of_which_nothing_is_known_do_not_leak():
    check_leakage([bag("s1"), bag("s2")], np.array([0, 1]))


# Partitions


def cohort(patients=24, sites=("a", "b")):
    """Two slides of each patient; label and site are independent."""
    rows = [(i, ("normal", "tumour")[i % 2], sites[i // 2 % len(sites)]) for i in range(patients)]
    return [bag(f"s{i}-{k}", f"p{i}", label=label, site=site) for i, label, site in rows for k in (0, 1)]


def labels(bags):
    return [str(each.label) for each in bags]


def test_repeats_are_different_partitions_and_the_first_is_that_of_the_seed():
    bags = cohort()
    drawn = draw_partition(bags, labels(bags), 4, 3, seed=5)
    assert drawn.folds_of.shape == (3, 48)
    assert drawn.folds_of.dtype == np.int64
    assert (drawn.folds, drawn.repeats, drawn.seed) == (4, 3, 5)
    assert (drawn.folds_of[0] == make_splits(who(bags), labels(bags), 4, 5)).all()
    assert (drawn.folds_of[0] != drawn.folds_of[1]).any()
    assert (drawn.folds_of[1] != draw_partition(bags, labels(bags), 4, 3, seed=6).folds_of[0]).any()
    assert drawn.tested_by(7) == tuple(4 * repeat + fold for repeat, fold in enumerate(drawn.folds_of[:, 7]))


def test_sites_are_spread_evenly_over_folds_too():
    bags = cohort(patients=40, sites=("a", "a", "a", "b"))
    fold_of = draw_partition(bags, labels(bags), 5, 1, 0, Strata(("site",))).folds_of[0]
    for site, label in (("a", "tumour"), ("b", "tumour"), ("a", "normal"), ("b", "normal")):
        mine = [each.columns["site"] == site and each.label == label for each in bags]
        assert np.ptp(np.bincount(fold_of[mine], minlength=5)) <= 2, (site, label)  # a patient more or less


def test_a_combination_too_rare_for_the_folds_keeps_its_label_and_is_named():
    bags = [*cohort(), bag("rare", "p-rare", label="tumour", site="far away")]
    drawn = draw_partition(bags, labels(bags), 4, 1, 0, Strata(("site",)))
    assert len(drawn.notes) == 1
    assert "tumour / far away" in drawn.notes[0]
    with pytest.raises(SpecError, match="stratify: no bag has anything in column 'scanner'"):
        draw_partition(bags, labels(bags), 4, 1, 0, Strata(("scanner",)))


def test_na_is_no_site_of_its_own():
    bags = [replace(each, columns={"site": "NA" if i % 4 == 0 else ""}) for i, each in enumerate(cohort())]
    with pytest.raises(SpecError, match="no bag has anything in column 'site'"):
        draw_partition(bags, labels(bags), 3, 1, 0, Strata(("site",)))


def test_strata_that_are_bands_are_merged_where_too_rare_and_classes_are_refused():
    bags = cohort()
    strata = ["band 1"] * 20 + ["band 2"] * 24 + ["band 3"] * 4
    with pytest.raises(SpecError, match="class 'band 3' has 2 patient"):
        draw_partition(bags, strata, 4, 1, 0)
    drawn = draw_partition(bags, strata, 4, 1, 0, Strata(merge=True))
    assert drawn.notes == ("strata with fewer patients than folds are one: band 3",)
    assert sorted(set(drawn.folds_of[0])) == [0, 1, 2, 3]
    with pytest.raises(SpecError, match="24 patient"):
        merge_rare(who(bags), strata, 25)


def test_bands_with_a_single_patient_do_not_hinder_a_validation_part():
    patients = [f"p{i}" for i in range(20)]
    strata = ["band 1"] * 10 + ["band 2"] * 9 + ["band 3"]
    assert not validation_part(patients, strata, 0).any()
    held = validation_part(patients, strata, 0, merge=True)
    assert held.sum() in (3, 4, 5)


# Files


@pytest.fixture
def written(tmp_path):
    bags = cohort()
    drawn = draw_partition(bags, labels(bags), 4, 2, 3)
    mark = write_partition(tmp_path, drawn, bags, labels(bags), ("label",))
    return tmp_path, bags, drawn, mark


def test_a_partition_survives_the_trip_through_its_file(written):
    folder, bags, drawn, mark = written
    read = read_partition(folder, bags[::-1])
    assert (read.folds_of[:, ::-1] == drawn.folds_of).all()
    assert (read.seed, read.notes, read.mark) == (3, (), mark)
    assert (folder / "splits.csv").read_text().splitlines()[0] == "bag,patient_id,truth,fold_0,fold_1"
    facts = json.loads((folder / "splits.json").read_text())
    assert (facts["schema"], facts["sha256"], facts["strata"]) == ("splits/1", mark, ["label"])


def test_an_edited_file_is_refused_and_one_without_companion_is_someone_elses(written):
    folder, bags, drawn, _ = written
    table = folder / "splits.csv"
    table.write_text(table.read_text().replace("s0-0,p0,normal", "s0-0,p0,tumour"))
    with pytest.raises(StoreError, match="was changed since it was written"):
        read_partition(folder, bags)
    (folder / "splits.json").unlink()
    read = read_partition(table, bags)
    assert (read.folds_of == drawn.folds_of).all()
    assert read.seed is None
    assert "is not known" in read.notes[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda path: path.write_text("{"), "is damaged"), (lambda path: path.write_text("{}"), "is damaged")],
)
def test_a_damaged_companion_is_refused(written, damage, message):
    damage(written[0] / "splits.json")
    with pytest.raises(StoreError, match=message):
        read_partition(written[0], written[1])


BAGS = [bag("s1", "p1"), bag("s2", "p1"), bag("s3", "p3", identity="ab"), bag("s4", "p4", "c4")]


@pytest.mark.parametrize(
    ("others", "table", "message"),
    [
        ([], "slide_id,fold\ns1,0\ns2,1\ns3,1\ns4,0\n", "s2 shares its patient with s1, but lies in 1, the other in 0"),
        ([bag("s5", "p5", identity="ab")], "s1,0\ns2,0\ns3,1\ns4,0\ns5,0\n", "s5 shares its slide content with s3"),
        ([bag("s5", "p5", "c4")], "s1,0\ns2,0\ns3,1\ns4,0\ns5,1\n", "s5 shares its case with s4"),
        ([bag("s5", "p5"), replace(bag("s5", "p6"), case_id="x")], "s1,0\n", "no row for s2 and 4 more"),
        ([], "s1,0\ns2,0\ns3,1\n", "no row for s4"),
        ([], "s1,0\ns2,0\ns3,1\ns4,1\ns9,1\n", "line 6 names 's9', which is no slide to train on"),
        ([], "s1,0\ns2,0\ns3,1\ns4,1\ns4,0\n", "line 6: s4 already lies in 1"),
        ([], "s1,0\ns2,0\ns3,0\ns4,0\n", "a column's folds are 0"),
        ([], "s1,0\ns2,0\ns3,2\ns4,2\n", "a column's folds are 0, 2"),
        ([], "s1,0\ns2,0\ns3,x\ns4,2\n", "says '0'"),
        ([], "slide_id,split\ns1,train\ns2,train\ns3,train\ns4,val\n", "no bag for test"),
        (
            [],
            "slide_id,split\ns1,train\ns2,test\ns3,train\ns4,val\n",
            "s2 shares its patient with s1, but lies in test",
        ),
        ([], "slide_id,split\ns1,val\ns2,train\ns3,test\ns4,train\n", "lies in train, the other in val"),
        ([], "name,fold\ns1,0\n", "has the columns name, fold"),
        ([], "slide_id,part\ns1,0\n", "has the columns slide_id, part"),
        ([], "s1,0,0\n", "is no table"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused_by_name(tmp_path, others, table, message):
    path = tmp_path / "folds.csv"
    path.write_text(table if table.startswith(("slide_id", "name")) else f"slide_id,fold\n{table}")
    with pytest.raises(ManifestError, match=message):
        read_partition(path, [*BAGS, *others])


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is missing"):
        read_partition(tmp_path / "none.csv", BAGS)


def test_one_column_of_folds_names_patients_or_cases_as_well(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("patient_id,fold\np1,0\np3,1\np4,0\n")
    assert read_partition(path, BAGS).folds_of.tolist() == [[0, 0, 1, 0]]


def test_a_bag_without_tiles_needs_no_row_and_takes_no_part(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("slide_id,fold\ns1,0\ns2,0\ns3,1\ns4,1\n")
    assert read_partition(path, [bag("glass", tiles=0), *BAGS]).folds_of.shape == (1, 4)


def test_slides_of_one_case_bag_must_be_told_alike(tmp_path):
    two = replace(BAGS[0], slide_ids=("s1", "s2"), slide_of=np.zeros(1, np.int32))
    path = tmp_path / "folds.csv"
    path.write_text("slide_id,fold\ns1,0\ns2,0\ns3,1\ns4,1\n")
    assert read_partition(path, [two, *BAGS[2:]]).folds_of.tolist() == [[0, 1, 1]]
    path.write_text("slide_id,fold\ns1,0\ns2,1\ns3,1\ns4,1\n")
    with pytest.raises(ManifestError, match=r"s1\+s2 already lies in 0"):
        read_partition(path, [two, *BAGS[2:]])


@pytest.fixture
def fixed(tmp_path):
    bags = cohort(patients=40)
    part = {f"p{i}": ("train", "val", "test")[(i >= 20) + (i >= 30)] for i in range(40)}
    path = tmp_path / "fixed.csv"
    rows = "".join(f"{each.name},{part[each.patient_id]}\n" for each in bags)
    path.write_text(f"slide_id,split\n{rows}")
    return path, bags


def test_a_fixed_division_is_one_fold_that_round_trips(fixed, tmp_path):
    path, bags = fixed
    read = read_partition(path, bags)
    assert (read.folds, read.repeats) == (1, 1)
    assert np.bincount(read.folds_of[0] + 1).tolist() == [60, 20]
    assert read.validation.sum() == 20
    write_partition(tmp_path / "own", read, bags, labels(bags))
    again = read_partition(tmp_path / "own", bags)
    assert (again.folds_of == read.folds_of).all()
    assert (again.validation == read.validation).all()


def test_a_fixed_division_trains_one_network_that_speaks_of_the_test_part_alone(fixed):
    path, bags = fixed
    model = cross_validate(bags, TrainSpec(head="mean", hidden=4, epochs=2, splits=str(path)))
    assert len(model.weights) == 1
    assert [row.folds for row in model.cohort] == [()] * 60 + [(0,)] * 20
    assert [row.logits is None for row in model.cohort] == [True] * 60 + [False] * 20
    assert (model.folds[0]["training_bags"], model.folds[0]["validation_bags"]) == (40, 20)
    assert model.metrics["raw"]["bags"] == 20
    assert model.calibrator.method == "platt"
    assert any("validation part" in note for note in model.metrics["notes"])
    assert model.folds_without(bags[0]) == ()  # it was seen
    assert model.folds_without(bags[-1]) == (0,)


def test_a_model_names_the_table_of_its_folds_whoever_made_it(tmp_path):
    bags = [bag(f"s{i}", f"p{i}", label=("normal", "tumour")[i % 2]) for i in range(8)]
    spec = TrainSpec(head="mean", folds=2, epochs=1, calibrate="none")
    model = cross_validate(bags, spec, resume=tmp_path / "state")
    assert model.partition == cross_validate(bags, spec).partition
    assert model.partition == json.loads((tmp_path / "state" / "splits.json").read_text())["sha256"]
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("slide_id,fold\n" + "".join(f"{row.bag},{row.folds[0]}\n" for row in model.cohort))
    again = cross_validate(bags, replace(spec, splits=str(theirs)))
    assert again.partition == model.partition
    assert again.cohort == model.cohort


def test_a_training_part_of_one_class_or_without_an_event_is_refused(tmp_path):
    bags = [
        bag(f"s{i}", label=("normal", "tumour")[i >= 6], time=str(i + 1), event=str(int(i >= 6))) for i in range(12)
    ]
    path = tmp_path / "fixed.csv"
    rows = "".join(f"s{i},{'test' if i >= 6 else 'train'}\n" for i in range(12))
    path.write_text(f"slide_id,split\n{rows}")
    spec = TrainSpec(head="mean", epochs=1, splits=str(path))
    with pytest.raises(SpecError, match="network 0 would be trained without a bag of class 'tumour'"):
        cross_validate(bags, spec)
    with pytest.raises(SpecError, match="network 0 would be trained without an event"):
        cross_validate(bags, replace(spec, task=TaskSpec("cox")))
    path.write_text(rows.join(["slide_id,split\n", ""]).replace("s0,train", "s0,val").replace("s6,test", "s6,train"))
    with pytest.raises(SpecError, match="the validation part of network 0 has no event"):
        cross_validate(bags, replace(spec, task=TaskSpec("cox")))
