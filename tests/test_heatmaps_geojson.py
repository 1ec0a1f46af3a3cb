"""Tiles for QuPath: its rules, stable ids, equal bytes, and nothing lost on the way back."""

import gzip
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatmaps import Heatmap, build_heatmap, check_qupath, read_geojson, write_geojson
from heatmaps.geojson import TileFilter, class_names, part_of, plan_geojson
from wsi.errors import SpecError, StoreError


def make_heatmap(n: int = 25, **changes: Any) -> Heatmap:
    rng = np.random.default_rng(n)
    fields: dict[str, Any] = {
        "slide_id": "slide-1",
        "name": "tumor softmax",
        "class_name": "tumor",
        "scores": rng.random(n, np.float32),
        "xy": np.stack([np.arange(n) % 100 * 224, np.arange(n) // 100 * 224], axis=1).astype(np.int64),
        "span_px": 224,
        "measurements": {"attention": rng.random(n, np.float32) / n},
        "failed_xy": np.array([[0, 22_400], [224, 22_400]], np.int64),
    }
    return Heatmap(**{**fields, **changes})


def load(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data, parse_constant=pytest.fail)


def assert_equal(one: Heatmap, two: Heatmap) -> None:
    assert (one.slide_id, one.name, one.class_name, one.span_px, one.limits) == (
        two.slide_id, two.name, two.class_name, two.span_px, two.limits,
    )  # fmt: skip
    for a, b in ((one.scores, two.scores), (one.xy, two.xy), (one.failed_xy, two.failed_xy)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert list(one.measurements) == list(two.measurements)
    for name in one.measurements:
        np.testing.assert_array_equal(one.measurements[name], two.measurements[name])


@pytest.mark.parametrize("suffix", [".geojson.gz", ".geojson", ".json"])
def test_every_feature_is_a_tile_as_qupath_wants_it(tmp_path, suffix):
    heatmap = make_heatmap()
    path = tmp_path / f"slide-1{suffix}"
    assert write_geojson(heatmap, path) == 27
    assert check_qupath(path) == 27

    content = load(path)
    assert content["type"] == "FeatureCollection"
    for feature, (x, y) in zip(content["features"], [*heatmap.xy.tolist(), *heatmap.failed_xy.tolist()], strict=True):
        assert feature["type"] == "Feature"
        assert UUID(feature["id"]).version == 8
        assert UUID(feature["id"]).variant == "specified in RFC 4122"
        ring = [[x, y], [x + 224, y], [x + 224, y + 224], [x, y + 224], [x, y]]
        assert feature["geometry"] == {"type": "Polygon", "coordinates": [ring]}
        assert all(type(value) is int for point in feature["geometry"]["coordinates"][0] for value in point)
        assert feature["properties"]["objectType"] == "tile"
        colour = feature["properties"]["classification"]["color"]
        assert len(colour) == 3
        assert all(type(part) is int and 0 <= part <= 255 for part in colour)
        assert feature["properties"]["classification"]["name"]
    for feature, score, attention in zip(
        content["features"], heatmap.scores, heatmap.measurements["attention"], strict=False
    ):
        measured = feature["properties"]["measurements"]
        assert {name: np.float32(value) for name, value in measured.items()} == {
            "tumor softmax": score, "attention": attention,
        }  # fmt: skip
        assert all(math.isfinite(value) for value in measured.values())


def test_a_tile_without_data_is_grey_and_has_no_score(tmp_path):
    write_geojson(make_heatmap(), tmp_path / "a.geojson")
    lost = load(tmp_path / "a.geojson")["features"][-2:]
    for feature in lost:
        assert feature["properties"]["classification"] == {"name": "no data", "color": [150, 150, 150]}
        assert "measurements" not in feature["properties"]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, "tumor 0.0 to 0.1"),
        (0.1, "tumor 0.1 to 0.2"),  # an edge belongs to the step above, also where float32 rounds it down
        (0.7, "tumor 0.7 to 0.8"),
        (0.69999, "tumor 0.6 to 0.7"),
        (1.0, "tumor 0.9 to 1.0"),  # but the last step has both its edges
        (1.0000001, "tumor 0.9 to 1.0"),  # a float32 softmax may be a hair over 1
    ],
)
def test_a_score_is_in_the_class_that_its_printed_value_says(tmp_path, score, expected):
    heatmap = make_heatmap(1, scores=np.array([score], np.float32))
    write_geojson(heatmap, tmp_path / "a.geojson")
    assert load(tmp_path / "a.geojson")["features"][0]["properties"]["classification"]["name"] == expected


def test_a_class_has_one_colour_on_every_slide_whatever_its_scores(tmp_path):
    colours: dict[str, set[tuple[int, ...]]] = {}
    for i, scores in enumerate((np.linspace(0, 1, 50), np.linspace(0.4, 0.6, 50))):
        write_geojson(make_heatmap(50, scores=scores.astype(np.float32)), tmp_path / f"{i}.geojson")
        for feature in load(tmp_path / f"{i}.geojson")["features"]:
            classification = feature["properties"]["classification"]
            colours.setdefault(classification["name"], set()).add(tuple(classification["color"]))
    assert len(colours) == 11
    assert all(len(seen) == 1 for seen in colours.values())
    assert len(set.union(*colours.values())) == 11


@pytest.mark.parametrize(
    ("limits", "bins", "expected"),
    [
        ((0, 1), 4, ["0.00 to 0.25", "0.25 to 0.50", "0.50 to 0.75", "0.75 to 1.00"]),
        ((-1, 1), 2, ["-1.0 to 0.0", "0.0 to 1.0"]),
        ((0, 0.002), 2, ["0.000 to 0.001", "0.001 to 0.002"]),
    ],
)
def test_class_names_say_their_edges_exactly_enough(limits, bins, expected):
    heatmap = make_heatmap(1, limits=limits, scores=np.zeros(1, np.float32), class_name="a: b\nc")
    assert class_names(heatmap, bins) == [f"a b c {text}" for text in expected]  # a colon would split the class


def test_the_same_tile_keeps_its_id_and_equal_heatmaps_are_equal_files(tmp_path):
    heatmap = make_heatmap()
    write_geojson(heatmap, tmp_path / "a.geojson.gz")
    first = (tmp_path / "a.geojson.gz").read_bytes()
    assert first[3:8] == bytes(5)  # neither a name nor the hour in gzip's header
    write_geojson(make_heatmap(), tmp_path / "a.geojson.gz")
    write_geojson(make_heatmap(), tmp_path / "other name.geojson.gz")
    assert (tmp_path / "a.geojson.gz").read_bytes() == first
    assert (tmp_path / "other name.geojson.gz").read_bytes() == first

    def ids(**changes: Any) -> list[str]:
        write_geojson(make_heatmap(**changes), tmp_path / "b.geojson")
        return [feature["id"] for feature in load(tmp_path / "b.geojson")["features"]]

    assert ids() == ids(scores=np.zeros(25, np.float32))  # a new score is no new object
    assert not set(ids()) & set(ids(slide_id="slide-2"))
    assert not set(ids()) & set(ids(name="attention of another model"))
    assert not set(ids()) & set(ids(span_px=225))


def test_tiles_at_the_ends_of_the_largest_slides_have_ids_of_their_own(tmp_path):
    far = 2**31 - 226
    xy = np.array([[0, 2**30], [1, 0], [far, 0], [0, far], [far, far], [2**30, 0], [0, 1]], np.int64)
    write_geojson(make_heatmap(7, xy=xy, failed_xy=np.empty((0, 2), np.int64)), tmp_path / "a.geojson")
    assert check_qupath(tmp_path / "a.geojson") == 7
    np.testing.assert_array_equal(read_geojson(tmp_path / "a.geojson").xy, xy)


def test_a_threshold_leaves_out_low_tiles_but_never_those_without_data(tmp_path):
    heatmap = make_heatmap(200)
    count = write_geojson(heatmap, tmp_path / "a.geojson", tiles=TileFilter(min_score=0.5))
    assert count == np.count_nonzero(heatmap.scores >= 0.5) + 2 == check_qupath(tmp_path / "a.geojson")
    back = read_geojson(tmp_path / "a.geojson")
    np.testing.assert_array_equal(back.scores, heatmap.scores[heatmap.scores >= 0.5])


numbers = st.floats(0, 1, width=32)
names = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() and text != "other")


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(numbers, max_size=30),
    name=names,
    slide_id=names,
    span_px=st.integers(1, 5000),
    suffix=st.sampled_from((".geojson", ".geojson.gz")),
)
def test_what_was_written_is_read_back_exactly(tmp_path_factory, scores, name, slide_id, span_px, suffix):
    path = tmp_path_factory.mktemp("heatmap") / f"a{suffix}"
    values = np.array(scores, np.float32)
    places = np.random.default_rng(len(scores)).choice(2**20, (len(scores) + 1, 2), replace=False).astype(np.int64)
    heatmap = make_heatmap(
        slide_id=slide_id, name=name, class_name=name, scores=values, xy=places[1:], span_px=span_px,
        measurements={"other": values * 1e-7}, failed_xy=places[:1],
    )  # fmt: skip
    write_geojson(heatmap, path)
    assert check_qupath(path) == len(scores) + 1
    assert_equal(read_geojson(path), heatmap)


@pytest.mark.parametrize("n", [0, 1, 8192, 8193])
def test_chunks_join_without_a_seam(tmp_path, n):
    heatmap = make_heatmap(n, failed_xy=np.empty((0, 2), np.int64))
    assert write_geojson(heatmap, tmp_path / "a.geojson.gz") == n == len(load(tmp_path / "a.geojson.gz")["features"])
    assert_equal(read_geojson(tmp_path / "a.geojson.gz"), heatmap)


def test_another_tools_bare_list_of_tiles_is_read(tmp_path):
    ring = [[10.0, 20.0], [10.0, 30.0], [20.0, 30.0], [20.0, 20.0], [10.0, 20.0]]
    properties = {"objectType": "detection", "measurements": {"prob": 0.25, "area": 100}}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    path = tmp_path / "their slide.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps([feature]).encode()))
    heatmap = read_geojson(path)
    assert (heatmap.slide_id, heatmap.name, heatmap.span_px, heatmap.limits) == ("their slide", "prob", 10, (0.0, 1.0))
    assert heatmap.xy.tolist() == [[10, 20]]
    assert heatmap.scores.tolist() == [0.25]
    assert heatmap.measurements["area"].tolist() == [100]
    with pytest.raises(SpecError, match="outside limits"):
        read_geojson(path, name="area")  # a number outside (0, 1) is not taken for a score


def broken(**changes: Any) -> list[Any]:
    """One sound feature, with changes by dotted path; None removes."""
    feature: dict[str, Any] = {
        "type": "Feature",
        "id": "8f3c1f0e-30c1-4d6b-9a54-2f1f2d0c7a11",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]},
        "properties": {
            "objectType": "tile",
            "classification": {"name": "a", "color": [1, 2, 3]},
            "measurements": {"s": 0.5},
        },
    }
    for place, value in changes.items():
        *parents, last = place.split("__")
        target = feature
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return [feature]


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (broken(id="patch_1"), "no UUID"),
        (broken(id=None), "no UUID"),
        (broken() + broken(), "not the only one"),
        (broken(type="Tile"), "not of type Feature"),
        (broken(properties__objectType="patch"), "objectType"),
        (broken(properties__classification__color=None), "has no color"),
        (broken(properties__classification="Tumor"), "no classification with a color"),
        (broken(properties__classification__color=[1, 2, 300]), "not integers"),
        (broken(properties__classification__color=[0.1, 0.2, 0.3]), "not integers"),
        (broken(properties__classification__name="Tumor: high"), "colon"),
        (
            broken() + broken(id="8f3c1f0e-30c1-4d6b-9a54-2f1f2d0c7a12", properties__classification__color=[9, 9, 9]),
            "two colors",
        ),
        (broken(geometry__coordinates=[[[0, 0], [4, 0], [4, 4], [0, 4]]]), "not closed"),
        (broken(geometry__coordinates=[[[0, 0], [4.5, 0], [4, 4], [0, 0]]]), "not two integers"),
        (broken(geometry__type="Point"), "no Polygon"),
        (broken(geometry={"type": "MultiPolygon", "coordinates": []}), "without polygons"),
        (broken(geometry={"type": "MultiPolygon", "coordinates": [[[[0, 0], [4, 0], [4, 4], [0, 4]]]]}), "not closed"),
        (broken(properties__measurements={"s": "NaN"}), "not a finite number"),
        (broken(properties__measurements={"s": True}), "not a finite number"),
        (broken(properties__measurements={"s": float("nan")}), "not JSON"),
        (broken(properties__metadata={"k": 1}), "metadata"),
        (broken(properties__isLocked="yes"), "isLocked"),
    ],
)
def test_the_check_finds_each_broken_rule(tmp_path, features, problem):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(features))
    with pytest.raises(StoreError, match=problem):
        check_qupath(path)


def test_the_check_lets_a_sound_file_pass(tmp_path):
    (tmp_path / "a.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": {"a": [1]}, "features": broken()})
    )
    assert check_qupath(tmp_path / "a.geojson") == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[{}",
        "[1,]",
        "nonsense",
        '{"type":"FeatureCollection","features":[]} more',
        '"' + "[" * 9,
        "[" * 99_999,
    ],
)
def test_what_is_no_json_is_refused_with_the_files_name(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(StoreError, match=r"a\.geojson"):
        check_qupath(tmp_path / "a.geojson")


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "a.geojson.gz"
    write_geojson(make_heatmap(2000), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="damaged"):
        read_geojson(path)


def test_a_file_name_that_qupath_does_not_read_is_refused(tmp_path):
    with pytest.raises(SpecError, match="QuPath does not read"):
        write_geojson(make_heatmap(), tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_real_qupath_exports_are_streamed_as_json_reads_them(data_dir):
    from heatmaps.geojson_read import stream_json

    for path in sorted((data_dir / "annotations" / "qupath").iterdir()):
        content = json.loads(path.read_text())
        whole = content if isinstance(content, list) else content.get("features", [])
        assert [value for key, value in stream_json(path) if key == "features"] == whole


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scores": np.zeros(24, np.float32)}, "25 tiles"),
        ({"scores": np.zeros(25)}, "float64"),
        ({"scores": np.full(25, np.nan, np.float32)}, "not finite"),
        ({"scores": np.full(25, 1.5, np.float32)}, "outside limits"),
        ({"limits": (1.0, 0.0)}, "limits"),
        ({"limits": (0.0, math.inf)}, "limits"),
        ({"xy": np.zeros((25, 2), np.int32)}, "int32"),
        ({"xy": np.zeros((25, 2), np.int64)}, "two tiles at one place"),
        ({"failed_xy": np.zeros((1, 2), np.int64)}, "two tiles at one place"),
        ({"failed_xy": np.array([[-1, 0]])}, "outside the slide"),
        ({"measurements": {"tumor softmax": np.zeros(25, np.float32)}}, "own name"),
        ({"measurements": {"a": np.full(25, np.inf, np.float32)}}, "not finite"),
        ({"span_px": 0}, "0 px"),
        ({"class_name": " "}, "empty"),
    ],
)
def test_a_heatmap_that_does_not_fit_is_refused(changes, problem):
    with pytest.raises(SpecError, match=problem):
        make_heatmap(**changes)


def test_tiles_that_are_not_ok_have_a_place_but_no_score():
    heatmap = build_heatmap(
        "s", {"tumor": [0.1, np.nan, 0.9], "attention": [0.5, np.nan, 0.5]}, [[0, 0], [5, 0], [10, 0]], 5, "tumor",
        ok=[True, False, True],
    )  # fmt: skip
    assert heatmap.scores.tolist() == [np.float32(0.1), np.float32(0.9)]
    assert heatmap.xy.tolist() == [[0, 0], [10, 0]]
    assert heatmap.failed_xy.tolist() == [[5, 0]]
    assert heatmap.measurements["attention"].tolist() == [0.5, 0.5]
    with pytest.raises(SpecError, match="one number per tile"):
        build_heatmap("s", {"tumor": [0.1]}, [[0, 0], [5, 0]], 5, "tumor")


def test_the_highest_tiles_are_chosen_among_those_that_pass(tmp_path):
    shown = make_heatmap(50)
    chosen = TileFilter(min_score=0.2, max_score=0.9, top_k=7).chosen(shown)
    inside = np.flatnonzero((shown.scores >= 0.2) & (shown.scores <= 0.9))
    wanted = sorted(sorted(inside.tolist(), key=lambda row: -shown.scores[row])[:7])
    assert chosen.tolist() == wanted
    assert plan_geojson(shown, TileFilter(top_k=7)).objects == 9
    assert write_geojson(shown, tmp_path / "a.geojson", tiles=TileFilter(top_k=7)) == 9
    equal = make_heatmap(5, scores=np.full(5, 0.5, np.float32))
    assert TileFilter(top_k=2).chosen(equal).tolist() == [0, 1]
    with pytest.raises(SpecError):
        TileFilter(top_k=0)


def test_a_large_file_is_cut_into_bands_that_hold_every_tile_once(tmp_path):
    shown, path = make_heatmap(1000), tmp_path / "a.geojson.gz"
    assert plan_geojson(shown, max_objects=300).files == 4
    assert write_geojson(shown, path, max_objects=300) == 1002
    parts = [part_of(path, number) for number in range(1, 5)]
    assert sorted(tmp_path.iterdir()) == parts
    assert parts[0].name == "a.part-01.geojson.gz"
    assert sum(check_qupath(part) for part in parts) == 1002
    read = [read_geojson(part) for part in parts]
    assert all(above.xy[:, 1].max() <= below.xy[:, 1].min() for above, below in pairwise(read))
    places = np.concatenate([one.xy for one in read])
    np.testing.assert_array_equal(places[np.lexsort(places.T)], shown.xy[np.lexsort(shown.xy.T)])
    ids = [feature["id"] for part in parts for feature in load(part)["features"]]
    write_geojson(shown, path, max_objects=500)
    assert sorted(tmp_path.iterdir()) == parts[:2]
    write_geojson(shown, path)
    assert list(tmp_path.iterdir()) == [path]
    assert sorted(feature["id"] for feature in load(path)["features"]) == sorted(ids)


def test_the_plan_says_about_how_large_the_file_will_be(tmp_path):
    rng = np.random.default_rng(1)
    measured = {"attention rank": rng.random(20_000, np.float32), "attention x tiles": rng.random(20_000, np.float32)}
    xy = np.stack([np.arange(20_000) % 200 * 224, np.arange(20_000) // 200 * 224], axis=1).astype(np.int64)
    shown = make_heatmap(20_000, measurements=measured, xy=xy, failed_xy=np.empty((0, 2), np.int64))
    write_geojson(shown, tmp_path / "a.geojson.gz")
    assert (tmp_path / "a.geojson.gz").stat().st_size == pytest.approx(plan_geojson(shown).packed_bytes, rel=0.25)


def test_classes_follow_the_display_range_and_say_where_it_ends(tmp_path):
    shown = make_heatmap(200)
    names = class_names(shown, 4, (0.2, 0.6))
    assert names == ["tumor up to 0.3", "tumor 0.3 to 0.4", "tumor 0.4 to 0.5", "tumor 0.5 and more"]
    assert class_names(shown, 2, (0.0, 0.5)) == ["tumor 0.00 to 0.25", "tumor 0.25 and more"]
    write_geojson(shown, tmp_path / "a.geojson", display=(0.2, 0.6), bins=4)
    assert check_qupath(tmp_path / "a.geojson") == 202
    for feature in load(tmp_path / "a.geojson")["features"][:200]:
        score = feature["properties"]["measurements"]["tumor softmax"]
        step = int(np.searchsorted(np.float32([0.3, 0.4, 0.5]), np.float32(score), side="right"))
        assert feature["properties"]["classification"]["name"] == names[step]
    assert_equal(read_geojson(tmp_path / "a.geojson"), shown)
