"""Columns of a manifest become numbers, and what cannot is refused by name."""

import numpy as np
import pytest

from mil.bag import Bag, merge_bags
from mil.covariates import Covariates
from wsi.errors import ManifestError, SpecError, StoreError


def bag(name, **columns):
    return Bag(np.ones((1, 3), np.float32), np.zeros((1, 2), np.int64), 256, (name,), columns=columns)


def cohort():
    ages, sexes = ("50", "61.5", "", "70"), ("f", "m", "m", "f")
    grades = ("1", "2", "3", "2")
    rows = zip(ages, sexes, grades, strict=True)
    return [bag(f"s{i}", age=age, sex=sex, grade=grade) for i, (age, sex, grade) in enumerate(rows)]


def test_numbers_and_categories_are_told_apart():
    covariates = Covariates.of_cohort(("age", "sex", "grade"), cohort())
    assert covariates.names == ("age", "age missing", "sex=f", "sex=m", "grade")
    assert covariates.width == 5
    table = covariates.encode(cohort())
    assert table.dtype == np.float32
    np.testing.assert_array_equal(
        table, [[50, 0, 1, 0, 1], [61.5, 0, 0, 1, 2], [61.5, 1, 0, 1, 3], [70, 0, 1, 0, 2]]
    )  # where the age is missing stands the median of the others


def test_a_new_bag_is_encoded_by_what_the_cohort_fixed():
    covariates = Covariates.of_cohort(("age", "sex", "grade"), cohort())
    odd = bag("new", age="40", sex="x")
    np.testing.assert_array_equal(covariates.encode([odd]), [[40, 0, 0, 0, 2]])
    assert covariates.notes(odd) == (
        "sex 'x' did not occur in the cohort, taken as missing",
        "grade is missing, taken as 2",
    )
    assert covariates.notes(cohort()[0]) == ()
    assert covariates.encode([]).shape == (0, 5)


def test_the_numbers_of_one_bag_do_not_depend_on_the_others():
    covariates = Covariates.of_cohort(("age", "sex"), cohort())
    alone = np.concatenate([covariates.encode([one]) for one in cohort()])
    np.testing.assert_array_equal(alone, covariates.encode(cohort()))


def test_covariates_travel_as_plain_values():
    covariates = Covariates.of_cohort(("age", "sex"), cohort())
    assert Covariates.from_dict(covariates.as_dict()) == covariates
    with pytest.raises(StoreError, match="missing or misshapen"):
        Covariates.from_dict({"columns": [{"name": "age"}]})


def test_a_label_or_case_is_a_column_like_any_other():
    bags = [Bag(np.ones((1, 3), np.float32), np.zeros((1, 2), np.int64), 256, (n,), label=n) for n in "ab"]
    assert Covariates.of_cohort(("label",), bags).names == ("label=a", "label=b")


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["", "", ""], SpecError, "no bag has anything in column 'x'"),
        (["5", "5.0", "5"], SpecError, "says the same of every bag"),
        (["f", "f", "f"], SpecError, "says the same of every bag"),
        (
            [str(i) for i in range(11)] + ["unknown"],
            ManifestError,
            "s11: column 'x' says 'unknown', which is no number",
        ),
        ([f"name {i}" for i in range(11)], ManifestError, "11 distinct texts; give numbers"),
    ],
)
def test_a_column_that_teaches_nothing_is_refused(texts, error, message):
    with pytest.raises(error, match=message):
        Covariates.of_cohort(("x",), [bag(f"s{i}", x=text) for i, text in enumerate(texts)])


def test_na_is_a_gap_and_neither_a_category_nor_a_text_among_numbers():
    bags = [bag("s0", age="50", sex="f"), bag("s1", age="70", sex="m"), bag("s2", age="NA", sex="NaN")]
    covariates = Covariates.of_cohort(("age", "sex"), bags)
    assert covariates.names == ("age", "age missing", "sex=f", "sex=m")
    np.testing.assert_array_equal(covariates.encode(bags[2:]), [[60, 1, 0, 0]])
    assert covariates.notes(bags[2])[0] == "age is missing, taken as 60"


def test_a_column_named_twice_is_refused():
    with pytest.raises(SpecError, match="named twice"):
        Covariates.of_cohort(("age", "age"), cohort())


def test_a_text_where_a_number_belongs_is_refused_at_prediction():
    covariates = Covariates.of_cohort(("age",), cohort())
    with pytest.raises(ManifestError, match="new: column 'age' says 'sixty', which is no number"):
        covariates.encode([bag("new", age="sixty")])


def test_slides_of_one_patient_must_agree():
    merged = merge_bags([bag("s0", age="50"), bag("s1", age="51")])
    with pytest.raises(ManifestError, match=r"s0\+s1: its slides differ in column 'age': 50 \| 51"):
        Covariates.of_cohort(("age",), [*cohort(), merged])
