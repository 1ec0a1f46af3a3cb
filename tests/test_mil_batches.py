"""Batches are what was asked for, the same whatever the timing, and nothing is left running behind them."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from mil.bag import Bag
from mil.batches import BatchSpec, batches
from wsi.errors import SpecError

DIM = 6
pytestmark = pytest.mark.filterwarnings("error")  # torch's, of memory that may not be written, too


def bag(tiles, name="a", views=0, dtype=np.float16, seed=0):
    """Row i of a bag holds i in its first column (exact in float16), so that a drawn tile is known again."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(tiles, DIM)).astype(dtype)
    features[:, 0] = np.arange(tiles)
    others = np.stack([features + dtype(1000 * (v + 1)) for v in range(views)], axis=1) if views else None
    xy = np.stack([np.arange(tiles), 3 * np.arange(tiles)], axis=1).astype(np.int64) * 256
    return Bag(features, xy, 256, (name,), views=others)


def cohort(*tiles):
    return [bag(count, f"s{i}", seed=i) for i, count in enumerate(tiles)]


def made(bags, order, seed=0, **settings):
    return list(batches(bags, order, BatchSpec(**settings), np.random.default_rng(seed)))


def drawn(batch, place=0):
    """Numbers of the real tiles of one bag of a batch."""
    return batch.features[place, batch.mask[place], 0].tolist()


@pytest.mark.parametrize("prefetch", [0, 1, 3, 50])
def test_bags_come_in_the_order_asked_for_padded_to_the_longest(prefetch):
    bags = cohort(5, 3, 7, 2)
    found = made(bags, [2, 1, 1, 3, 0], size=2, prefetch=prefetch, positions=True)
    assert [batch.index.tolist() for batch in found] == [[2, 1], [1, 3], [0]]
    assert [tuple(batch.features.shape) for batch in found] == [(2, 7, DIM), (2, 3, DIM), (1, 5, DIM)]
    for batch in found:
        assert batch.mask.dtype is torch.bool
        for place, index in enumerate(batch.index):
            count = bags[index].tiles
            assert batch.mask[place].tolist() == [True] * count + [False] * (batch.mask.shape[1] - count)
            expected = torch.from_numpy(bags[index].features).float()
            assert torch.equal(batch.features[place, :count], expected)
            assert torch.equal(batch.xy[place, :count], torch.from_numpy(bags[index].positions()))
            assert not batch.features[place, count:].any()
            assert not batch.xy[place, count:].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [np.float16, np.float32])
def test_features_are_cast_once_to_the_type_asked_for(dtype, stored):
    one = bag(9, dtype=stored)
    (batch,) = made([one], [0], dtype=dtype)
    assert batch.features.dtype is getattr(torch, dtype)
    assert torch.equal(batch.features[0], torch.from_numpy(one.features).to(batch.features.dtype))
    assert batch.xy is None


def test_tiles_are_drawn_anew_without_replacement_and_in_the_order_of_the_file():
    bags = cohort(40, 5)
    found = made(bags, [0, 0, 1], instances=10, positions=True)
    first, second, small = (drawn(batch) for batch in found)
    for tiles in (first, second):
        assert len(tiles) == 10
        assert tiles == sorted(set(tiles))
    assert first != second
    assert small == [0, 1, 2, 3, 4]
    assert found[0].xy[0, :, 0].tolist() == first  # positions go with their tiles


def test_every_tile_has_the_same_chance():
    counts = np.zeros(12)
    for batch in made(cohort(12), [0] * 2000, instances=3):
        counts[np.int64(drawn(batch))] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations


def test_instance_dropout_leaves_out_its_share_and_never_the_last_tile():
    kept = [len(drawn(batch)) for batch in made(cohort(100), [0] * 200, instance_dropout=0.3)]
    assert abs(np.mean(kept) - 70) < 2
    assert len(set(kept)) > 5  # each tile by chance on its own
    assert [len(drawn(batch)) for batch in made(cohort(2), [0] * 30, instance_dropout=0.99)] == [1] * 30


def test_dropout_applies_to_the_tiles_that_were_drawn():
    kept = [len(drawn(batch)) for batch in made(cohort(100), [0] * 100, instances=10, instance_dropout=0.5)]
    assert max(kept) <= 10
    assert abs(np.mean(kept) - 5) < 1


@pytest.mark.parametrize("instances", [None, 20])
def test_each_tile_shows_one_of_its_views(instances):
    one = bag(30, views=2, dtype=np.float32)
    seen = set()
    for batch in made([one], [0] * 20, views=True, instances=instances):
        values = batch.features[0, :, 0].long()
        view, tile = values // 1000, values % 1000
        assert tile.tolist() == sorted(set(tile.tolist()))
        stack = np.concatenate([one.features[:, None], one.views], axis=1)
        assert np.array_equal(batch.features[0].numpy(), stack[tile, view])
        seen |= set(view.tolist())
    assert seen == {0, 1, 2}
    plain = np.concatenate([batch.features[0, :, 0] for batch in made([one], [0], views=False)])
    assert plain.max() < 1000


def test_bags_with_and_without_views_share_a_batch():
    (batch,) = made([bag(4, views=1), bag(4, "b")], [0, 1], size=2, views=True, seed=3)
    assert drawn(batch, 1) == [0, 1, 2, 3]


def test_the_same_seed_draws_the_same_whatever_the_timing_and_the_caller_draws():
    bags, order, settings = cohort(50, 30, 80), [0, 1, 2] * 4, {"instances": 7, "instance_dropout": 0.2}

    def run(prefetch, pause):
        rng = np.random.default_rng(5)
        found, own = [], []
        for batch in batches(bags, order, BatchSpec(**settings, prefetch=prefetch), rng):
            found.append(drawn(batch))
            own.append(rng.integers(1000))
            time.sleep(pause)
        return found, own

    assert run(0, 0) == run(1, 0) == run(3, 0.002) == run(20, 0)


def test_another_seed_and_another_epoch_draw_other_tiles():
    rngs = [np.random.default_rng(0), np.random.default_rng(1)]
    spec = BatchSpec(instances=5)
    epochs = [[drawn(batch) for batch in batches(cohort(50), [0], spec, rng)] for rng in (*rngs, *rngs)]
    assert len({tuple(tiles) for (tiles,) in epochs}) == 4


def test_the_callers_numbers_do_not_depend_on_where_it_stops():
    rngs = [np.random.default_rng(1) for _ in range(3)]
    for rng, stop in zip(rngs, (0, 2, 6), strict=True):
        stream = batches(cohort(9), [0] * 6, BatchSpec(instances=3), rng)
        for _ in range(stop):
            next(stream)
        stream.close()
    assert len({int(rng.integers(1 << 40)) for rng in rngs}) == 1


def loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_no_more_batches_are_made_than_were_asked_for_ahead():
    made_rows = []
    stream = batches(
        cohort(4), [0] * 20, BatchSpec(prefetch=3), np.random.default_rng(0), lambda rows: made_rows.append(1) or rows
    )
    next(stream)
    deadline = time.monotonic() + 10
    while len(made_rows) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made_rows) == 4  # the one in use, and three
    stream.close()


def test_closing_early_ends_the_thread():
    stream = batches(cohort(4), [0] * 100, BatchSpec(), np.random.default_rng(0))
    next(stream)
    assert len(loaders()) == 1
    stream.close()
    assert not loaders()


def test_batches_that_nobody_will_ask_for_are_not_made():
    started = []

    def slowly(rows):
        started.append(1)
        time.sleep(0.02)
        return rows

    stream = batches(cohort(4), [0] * 100, BatchSpec(prefetch=50), np.random.default_rng(0), slowly)
    next(stream)
    stream.close()
    assert len(started) < 10


def test_a_consumer_that_fails_leaves_no_thread_behind():
    def consume():
        for _ in batches(cohort(4), [0] * 100, BatchSpec(), np.random.default_rng(0)):
            assert loaders()
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        consume()
    gc.collect()  # the traceback held the generator
    assert not loaders()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_fails_in_the_thread_reaches_the_consumer_in_its_turn(prefetch):
    calls = []

    def prepare(rows):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return rows

    stream = batches(cohort(4), [0] * 8, BatchSpec(prefetch=prefetch), np.random.default_rng(0), prepare)
    next(stream), next(stream)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert not loaders()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("in_place", [True, False])
def test_what_prepares_vectors_sees_real_tiles_in_float32(dtype, in_place):
    seen = []

    def prepare(rows):
        seen.append(rows.dtype)
        return rows.sub_(3).mul_(0.5) if in_place else (rows - 3) * 0.5

    bags = cohort(700, 90)  # the first is longer than a block of the small one
    (batch,) = batches(bags, [0, 1], BatchSpec(size=2, dtype=dtype), np.random.default_rng(0), prepare)
    for place, count in enumerate((700, 90)):
        expected = ((torch.from_numpy(bags[place].features).float() - 3) * 0.5).to(batch.features.dtype)
        assert torch.equal(batch.features[place, :count], expected)
    assert not batch.features[1, 90:].any()
    assert set(seen) == {torch.float32}


def test_long_bags_are_cast_block_by_block_without_a_seam(monkeypatch):
    monkeypatch.setattr("mil.batches._BLOCK", 8 * DIM)
    one = bag(61, views=1, dtype=np.float32)
    for settings in ({}, {"instances": 37}, {"views": True}):
        (whole,) = made([one], [0], **settings)
        tiles = whole.features[0, :, 0].long() % 1000
        stack = np.stack([one.features, one.views[:, 0]])
        assert np.array_equal(whole.features[0].numpy(), stack[whole.features[0, :, 0].long() // 1000, tiles])
        assert len(tiles) == settings.get("instances", 61)


def test_memory_that_may_not_be_written_is_left_alone():
    one = bag(9)
    one.features.flags.writeable = False
    before = one.features.copy()
    (batch,) = batches([one], [0], BatchSpec(dtype="float16"), np.random.default_rng(0), lambda rows: rows.zero_())
    assert not batch.features.any()
    batch.features.fill_(7)
    assert np.array_equal(one.features, before)


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("instances", [None, 4])
def test_batches_never_share_memory_with_a_bag(stored, dtype, instances):
    one = bag(9, dtype=stored, views=1)
    before, views = one.features.copy(), one.views.copy()
    for settings in ({}, {"views": True}):
        spec = BatchSpec(dtype=dtype, instances=instances, **settings)
        (batch,) = batches([one], [0], spec, np.random.default_rng(0), lambda rows: rows.zero_())
        batch.features.fill_(7)
    assert np.array_equal(one.features, before)
    assert np.array_equal(one.views, views)


def test_a_bag_without_tiles_is_a_programming_error_at_once():
    with pytest.raises(ValueError, match="s1 has no tiles"):
        batches(cohort(3, 0), [0, 1], BatchSpec(), np.random.default_rng(0))
    assert len(made(cohort(3, 0), [0])) == 1  # left out of the order it does no harm


def test_bags_of_different_vectors_do_not_share_a_batch():
    other = Bag(np.zeros((2, 4), np.float16), np.zeros((2, 2), np.int64), 256, ("b",))
    with pytest.raises(ValueError, match=r"a \(6\) and b \(4\) differ"):
        made([bag(3), other], [0, 1], size=2)


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"instances": 0}, {"instance_dropout": 1.0}, {"dtype": "int8"}, {"prefetch": -1}]
)
def test_settings_that_make_no_batches_are_refused(settings):
    with pytest.raises(SpecError):
        BatchSpec(**settings)


def test_another_device_is_sent_what_was_asked_for():
    spec = BatchSpec(size=2, positions=True, dtype="bfloat16", device="meta")
    (batch,) = batches(cohort(4, 9), [0, 1], spec, np.random.default_rng(0), lambda rows: rows * 2)
    assert {tensor.device.type for tensor in (batch.features, batch.mask, batch.xy)} == {"meta"}
    assert (batch.features.shape, batch.features.dtype) == ((2, 9, DIM), torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_an_accelerator_are_those_on_the_cpu():
    bags, order, settings = cohort(50, 30, 80), [0, 1, 2, 0], {"size": 2, "instances": 40, "positions": True}
    mean = torch.linspace(-1, 1, DIM)
    there = batches(
        bags, order, BatchSpec(**settings, device="cuda"), np.random.default_rng(2), lambda x: x.sub_(mean.to(x.device))
    )
    here = batches(bags, order, BatchSpec(**settings), np.random.default_rng(2), lambda x: x.sub_(mean))
    for ours, theirs in zip(there, here, strict=True):
        assert ours.features.is_cuda
        assert torch.equal(ours.features.cpu(), theirs.features)
        assert torch.equal(ours.mask.cpu(), theirs.mask)
        assert torch.equal(ours.xy.cpu(), theirs.xy)
