"""A cohort comes back from its files bit for bit; what is cut short, damaged or stale is noticed."""

import json
import sys
import weakref

import numpy as np
import pytest

from mil.bag import Bag
from mil.batches import BatchSpec, batches
from mil.cohort import cohort_mark, mapped_cohort, open_cohort, write_cohort
from wsi.errors import BackboneError, SpecError, StoreError

DIM = 5


def bag(tiles, name="s", views=0, dtype=np.float16, **facts):
    rng = np.random.default_rng([tiles, *map(ord, name)])
    features = rng.normal(size=(tiles, DIM)).astype(dtype)
    xy = rng.integers(-(1 << 40), 1 << 40, size=(tiles, 2))
    others = rng.normal(size=(tiles, views, DIM)).astype(dtype) if views else None
    facts = {"slide_ids": (name,), "contract": {"backbone": "b", "mean": [0.5]}, "contract_hash": "c0ffee"} | facts
    return Bag(features, xy, 512, views=others, **facts)


def merged(name="m"):
    """Of two slides, with everything that a bag can hold."""
    known = {"label": "tumour", "patient_id": "p1", "case_id": "c1", "identity": "ab+cd"}
    slide_of = np.array([0, 0, 1, 1, 1, 0, 1], np.int32)
    columns = {"site": "Genève", "age": "61", "path": "odd\udcff"}  # a file name that is no text
    return bag(7, name, views=2, slide_ids=("x", "y"), slide_of=slide_of, columns=columns, **known)


def assert_same(found, given):
    for name in ("features", "xy", "slide_of", "views"):
        mine, theirs = getattr(found, name), getattr(given, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype, name
            assert np.array_equal(mine, theirs), name
    for name in ("span_px", "slide_ids", "label", "patient_id", "case_id", "identity", "contract_hash", "blocks"):
        assert getattr(found, name) == getattr(given, name), name
    assert dict(found.contract) == dict(given.contract)
    assert dict(found.columns) == dict(given.columns)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bags_come_back_bit_for_bit_in_their_order(tmp_path, dtype):
    given = [bag(4, "a", dtype=dtype, label="x"), bag(0, "none", dtype=dtype), bag(1, "b", dtype=dtype)]
    given[0].features[0] = [0.0, -0.0, np.finfo(dtype).tiny / 2, np.finfo(dtype).max, 1 / 3]  # subnormal and greatest
    write_cohort(tmp_path / "cohort", given)
    found = open_cohort(tmp_path / "cohort", verify=True)
    for mine, theirs in zip(found, given, strict=True):
        assert_same(mine, theirs)
        assert mine.features.tobytes() == theirs.features.tobytes()


def test_merged_bags_and_views_come_back_too(tmp_path):
    given = [bag(3, "a"), merged(), bag(2, "b", views=1), bag(0, "c", slide_ids=("p", "q"))]
    write_cohort(tmp_path / "cohort", given)
    found = open_cohort(tmp_path / "cohort", verify=True)
    for mine, theirs in zip(found[:3], given, strict=False):
        assert_same(mine, theirs)
    assert (found[3].tiles, found[3].slide_ids) == (0, ("p", "q"))
    assert np.array_equal(found[1].positions(), given[1].positions())


def test_features_are_parts_of_a_map_that_nobody_can_write_to(tmp_path):
    write_cohort(tmp_path / "cohort", [bag(3, "a"), bag(4, "b")])
    for found in open_cohort(tmp_path / "cohort"):
        for array in (found.features, found.xy):
            assert isinstance(array, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_the_files_are_what_the_docstring_says(tmp_path):
    given = [bag(3, "a"), merged()]
    write_cohort(tmp_path / "cohort", given, mark="m")
    read = {path.stem: path.read_bytes() for path in (tmp_path / "cohort").iterdir()}
    assert sorted(read) == ["cohort", "features", "offsets", "slide_of", "views", "xy"]
    assert np.frombuffer(read["offsets"], "<i8").tolist() == [0, 3, 10]
    features = np.frombuffer(read["features"], "<f2").reshape(-1, DIM)
    assert np.array_equal(features, np.concatenate([one.features for one in given]))
    content = json.loads(read["cohort"])
    assert (content["schema"], content["mark"], content["bags"][1]["label"]) == ("cohort/1", "m", "tumour")


def test_a_cohort_feeds_the_loader_as_bags_in_memory_do(tmp_path):
    given = [bag(30, "a", views=1), merged(), bag(9, "b")]
    write_cohort(tmp_path / "cohort", given)
    spec = BatchSpec(size=2, instances=5, views=True, positions=True)
    runs = [
        list(batches(bags, [2, 0, 1, 1], spec, np.random.default_rng(0)))
        for bags in (given, open_cohort(tmp_path / "cohort"))
    ]
    for ours, theirs in zip(*runs, strict=True):
        assert (ours.features == theirs.features).all()
        assert (ours.xy == theirs.xy).all()


def test_writing_holds_one_bag_at_a_time(tmp_path):
    alive = []

    def make():
        for number in range(5):
            assert not any(reference() is not None for reference in alive)
            one = bag(10, str(number))
            alive.append(weakref.ref(one.features))
            yield one
            del one

    write_cohort(tmp_path / "cohort", make())
    assert len(alive) == len(open_cohort(tmp_path / "cohort")) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["features", "views"])
def test_nan_and_infinity_are_refused_by_name(tmp_path, value, where):
    bad = bag(6, "bad", views=1)
    getattr(bad, where)[5, ..., 2] = value  # after the bag's own check, as in a mapped file
    write_cohort(tmp_path / "cohort", [bag(2)])
    with pytest.raises(StoreError, match="bad: its embeddings hold NaN or infinity"):
        write_cohort(tmp_path / "cohort", [bag(3, "a"), bad])
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]  # no draft, and the older one is whole
    assert open_cohort(tmp_path / "cohort", verify=True)[0].tiles == 2


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def make():
        yield bag(3)
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="gone"):
        write_cohort(tmp_path / "cohort", make())
    assert not list(tmp_path.iterdir())


def test_bags_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(BackboneError, match="contract"):
        write_cohort(tmp_path / "cohort", [bag(3), bag(3, "other", contract={"backbone": "z"}, contract_hash="f00")])
    with pytest.raises(StoreError, match="other: its embeddings are float32"):
        write_cohort(tmp_path / "cohort", [bag(3), bag(3, "other", dtype=np.float32)])
    with pytest.raises(StoreError, match=r"other.*parts of \[2, 3\]"):
        write_cohort(tmp_path / "cohort", [bag(3), bag(3, "other", blocks=(2, 3))])
    with pytest.raises(SpecError, match="no bags"):
        write_cohort(tmp_path / "cohort", [])


@pytest.mark.parametrize("name", ["features", "views", "xy", "slide_of", "offsets"])
@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_files_of_another_size_are_noticed_when_opened(tmp_path, name, change):
    write_cohort(tmp_path / "cohort", [bag(3, "a"), merged()])
    path = tmp_path / "cohort" / f"{name}.bin"
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if change == "shorter" else data + b"\0")
    with pytest.raises(StoreError, match=name):
        open_cohort(tmp_path / "cohort")


@pytest.mark.parametrize("name", ["features", "views", "xy", "slide_of"])
def test_a_flipped_bit_is_found_and_its_slide_named(tmp_path, name):
    write_cohort(tmp_path / "cohort", [bag(3, "a"), merged()])
    path = tmp_path / "cohort" / f"{name}.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_cohort(tmp_path / "cohort")
    with pytest.raises(StoreError, match=rf"the {name} of x\+y are damaged"):
        open_cohort(tmp_path / "cohort", verify=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not sound JSON"), ("[]", "schema is None"), ('{"schema": "cohort/9"}', "schema is cohort/9")],
)
def test_a_description_that_is_not_ours_is_refused(tmp_path, text, problem):
    write_cohort(tmp_path / "cohort", [bag(3)])
    (tmp_path / "cohort" / "cohort.json").write_text(text)
    with pytest.raises(StoreError, match=problem):
        open_cohort(tmp_path / "cohort")
    with pytest.raises(StoreError, match="there is no cohort"):
        open_cohort(tmp_path / "elsewhere")


def test_offsets_that_do_not_ascend_are_refused(tmp_path):
    write_cohort(tmp_path / "cohort", [bag(3, "a"), bag(2, "b")])
    np.array([0, 6, 5], "<i8").tofile(tmp_path / "cohort" / "offsets.bin")
    with pytest.raises(StoreError, match="do not ascend"):
        open_cohort(tmp_path / "cohort")


def test_a_stale_or_damaged_cohort_is_written_again_and_a_sound_one_is_not(tmp_path):
    folder, made = tmp_path / "cohort", []

    def make(tiles):
        made.append(tiles)
        return [bag(tiles)]

    def tiles_of(mark, tiles):
        return mapped_cohort(folder, mark, lambda: make(tiles))[0].tiles

    assert tiles_of("one", 3) == 3
    assert tiles_of("one", 4) == 3
    assert made == [3]
    with pytest.raises(StoreError, match="other embeddings"):
        open_cohort(folder, "two")
    assert tiles_of("two", 5) == 5
    (folder / "xy.bin").write_bytes(b"")
    assert tiles_of("two", 6) == 6
    assert made == [3, 5, 6]


def test_the_mark_changes_with_embeddings_their_order_and_the_manifest():
    rows = [{"label": "x"}, {"label": "y"}]
    marks = {
        cohort_mark(["a", "b"], rows, "slide"),
        cohort_mark(["b", "a"], rows, "slide"),
        cohort_mark(["a", "b2"], rows, "slide"),
        cohort_mark(["a", "b"], rows[::-1], "slide"),
        cohort_mark(["a", "b"], rows, "patient"),
        cohort_mark([["a", "b"]], rows, "slide"),
    }
    assert len(marks) == 6
    assert cohort_mark(["a", "b"], rows, "slide") in marks


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_pass_over_a_cohort_needs_little_memory_of_its_own(tmp_path):
    bags = (Bag(np.ones((4000, 256), np.float32), np.zeros((4000, 2), np.int64), 1, (f"s{i}",)) for i in range(24))
    write_cohort(tmp_path / "cohort", bags)  # 98 MB
    before = memory_mb("RssFile")
    found = open_cohort(tmp_path / "cohort")
    assert sum(one.tiles for one in found) == 96_000
    assert memory_mb("RssFile") - before < 10  # not a page of the vectors is read to open them
    before = memory_mb("RssAnon")
    stream = batches(found, range(24), BatchSpec(), np.random.default_rng(0))
    assert sum(float(batch.features[0, 0, 0]) for batch in stream) == 24
    assert memory_mb("RssAnon") - before < 40  # a few batches of 4 MB, never the cohort


def memory_mb(kind):
    """MiB of this process in memory: RssFile is mapped files, RssAnon its own."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(kind))
