"""Contracts side by side: what differs is seen, on 80 columns, and what to do about it is possible."""

import re
from dataclasses import replace

import pytest

from embedding import find_backbone, make_contract
from embedding.contract import contract_name, explain_mismatch, side_by_side
from embedding.spec import EmbedSpec, StainSpec
from tiling import TileSpec

OURS = make_contract(
    find_backbone("lunit-vits16"), "ab" * 32, TileSpec(tile_px=224, mpp=0.5), EmbedSpec("lunit-vits16")
)
THEIRS = {
    "origin": "trident", "backbone": "trident-uni_v1", "encoder": "uni_v1", "level": "tile", "dim": 1024,
    "dtype": "float32", "tile_px": 256, "mpp": 0.5, "mpp_source": "told", "facts": {}, "hash": "1a2b3c4d5e6f",
}  # fmt: skip


def changed(**values: object) -> dict[str, object]:
    return {**OURS, **values, "hash": "0123456789ab"}


def rows(table: str) -> dict[str, list[str]]:
    """Marked rows: key → the two values."""
    split = [line.removeprefix("≠ ").split() for line in table.splitlines() if line.startswith("≠ ")]
    return {key: values for key, *values in split}


LONG = "x" * 60


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ("ab" * 31 + "cd", "ab" * 32),
        (f"{LONG}patches{LONG}", f"{LONG}pixels{LONG}"),
        (LONG, LONG + "y"),
        (list(range(40)), [*range(39), 0]),
        ("short", LONG),
        (None, LONG),
    ],
)
def test_values_are_cut_where_they_do_not_hide_the_difference_and_the_table_fits_a_terminal(value, other):
    table = side_by_side(changed(weights_sha256=value), changed(weights_sha256=other))
    (line,) = (line for line in table.splitlines() if line.startswith("≠"))
    middle = line.index("  ", 2)
    left, right = line[middle:].strip().split("  ", 1)
    assert left.strip("… ") != right.strip("… ")
    assert max(map(len, table.splitlines())) <= 80


def test_of_what_is_equal_only_the_best_known_is_shown_and_the_rest_is_counted():
    lines = [line.split() for line in side_by_side(OURS, changed(tile_px=256)).splitlines()]
    keys = [line[1] if line[0] == "≠" else line[0] for line in lines[1:-1]]
    assert keys == ["hash", "tile_px", "backbone", "weights_sha256", "pooling", "precision", "mpp"]
    assert lines[-1][0] == "and"
    stated = sum(len(value) if isinstance(value, dict) else 1 for value in OURS.values())
    assert len(keys) + int(lines[-1][1]) == stated


@pytest.mark.parametrize(
    ("found", "wanted", "told", "remedy"),
    [
        (OURS, THEIRS, contract_name(THEIRS), r"make them with TRIDENT .*wsi convert FILES --to run.*wsi predict"),
        (THEIRS, OURS, "≠ origin", r"wsi run` with --model"),
        (THEIRS, {**THEIRS, "origin": "clam"}, "≠ origin", r"wsi convert` that CLAM made"),
        (OURS, changed(weights_sha256="cd" * 32), "≠ weights_sha256", r"name their file with --weights"),
        (OURS, changed(tile_px=256, weights_sha256="cd" * 32), "≠ tile_px", r"wsi run` with --model"),
    ],
)
def test_the_remedy_is_one_that_the_user_has(found, wanted, told, remedy):
    problem, advice = explain_mismatch(found, wanted)
    assert told in problem
    assert re.search(remedy, advice)
    if "origin" in wanted and "origin" not in found:
        assert "≠" not in problem  # no setting of ours would mend it


def test_another_tools_contract_beside_ours_is_compared_in_what_both_state():
    table = side_by_side(THEIRS, OURS)
    assert rows(table).keys() == {"origin", "backbone", "dim", "dtype", "tile_px"}
    assert "more that only one of them states" in table


def test_a_stain_that_only_one_was_normalised_to_is_a_difference():
    spec = replace(EmbedSpec("lunit-vits16"), stain=StainSpec(method="reinhard"))
    stained = make_contract(find_backbone("lunit-vits16"), "ab" * 32, TileSpec(tile_px=224, mpp=0.5), spec)
    assert rows(side_by_side(OURS, stained))["stain.method"] == ["–", "reinhard"]
