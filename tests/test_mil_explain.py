"""Scores of tiles say what they are said to say, of every head."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mil.explain import METHODS, Asked, explain, extreme_tiles
from mil.heads import HEADS
from mil.network import Network
from mil.spec import HeadSpec, TaskSpec
from mil.tasks import task_from_dict
from wsi.errors import SpecError

DIM, TILES = 16, 30
TASK = task_from_dict(TaskSpec(), {"classes": ["normal", "tumour"]})
XY = np.stack([np.arange(TILES) % 6, np.arange(TILES) // 6], axis=1).astype(np.float32)


def network_of(head, outputs=2, seed=0, dim=DIM, **more):
    torch.manual_seed(seed)
    return Network(HeadSpec(head, dim, outputs, hidden=16, attention=8, dropout=0.0, **more)).eval()


def features_of(seed=0, tiles=TILES, planted=0):
    """Normal noise; the first `planted` tiles are shifted along one direction."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 1, (tiles, DIM)).astype(np.float32)
    found[:planted, :4] += 2.5
    return found


def logits_of(network, features, xy=XY):
    mask = torch.ones(1, len(features), dtype=torch.bool)
    with torch.inference_mode():
        return network(torch.from_numpy(features)[None], mask, torch.from_numpy(xy)[None]).logits


def rank_correlation(a, b):
    return float(spearmanr(a, b).statistic)


@cache
def trained(head, seed=0):
    """A network after forty steps on bags of which every other holds a tenth of planted tiles."""
    bags = torch.from_numpy(np.stack([features_of(100 + i, planted=3 * (i % 2)) for i in range(32)]))
    target, mask = torch.arange(32) % 2, torch.ones(32, TILES, dtype=torch.bool)
    xy = torch.from_numpy(XY).expand(32, -1, -1)
    network = network_of(head, seed=seed)
    network.fit(bags)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(40):
        output = network(bags, mask, xy)
        optimiser.zero_grad()
        network.training_loss(output, target, lambda logits, truth: TASK.loss(logits, truth)).backward()
        optimiser.step()
    assert TASK.loss(output.logits, target).item() < 0.3, "it has not learned"
    return network.eval()


# Every head


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_every_head_gives_a_map(head, method):
    network = network_of(head)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    scores = explain(network, TASK, features_of(), XY, Asked(method, 1))
    assert scores.shape == (TILES,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores.std() > 0 or (method == "attention" and head in ("mean", "linear"))
    np.testing.assert_array_equal(scores, explain(network, TASK, features_of(), XY, Asked(method, 1)))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_occlusion_is_the_bag_without_the_tile(head):
    """Against bags that truly lack it, which needs every head to ignore what is masked wherever it stands."""
    network, features = network_of(head), features_of()
    scores = explain(network, TASK, features, XY, Asked("occlusion", 1))
    whole = TASK.evidence(logits_of(network, features), 1)
    for tile in (0, 7, TILES - 1):
        left = np.delete(features, tile, axis=0), np.delete(XY, tile, axis=0)
        assert scores[tile] == pytest.approx(float(whole - TASK.evidence(logits_of(network, *left), 1)), abs=2e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_a_bag_of_one_tile_has_a_map(head, method):
    scores = explain(network_of(head), TASK, features_of(tiles=1), XY[:1], Asked(method, 1))
    assert scores.shape == (1,)
    assert np.isfinite(scores).all()


# Closed forms


def linear_network():
    network = network_of("linear")
    network.fit(torch.from_numpy(features_of(9))[None])
    with torch.no_grad():
        weight, bias = network.heads[0].classify.weight, network.heads[0].classify.bias
        slope = (weight[1] - weight[0]).numpy()
        return network, network.standardise(torch.from_numpy(features_of())).numpy() @ slope, float(bias[1] - bias[0])


def test_gradient_x_input_of_linear_mean_pooling():
    network, projected, bias = linear_network()
    scores = explain(network, TASK, features_of(), XY, Asked("gradient", 1))
    np.testing.assert_allclose(scores, projected / TILES, atol=1e-6)
    # Complete: scores and bias add up to the evidence.
    assert scores.sum() + bias == pytest.approx(float(TASK.evidence(logits_of(network, features_of()), 1)), abs=1e-5)


def test_occlusion_of_linear_mean_pooling():
    network, projected, _ = linear_network()
    scores = explain(network, TASK, features_of(), XY, Asked("occlusion", 1))
    expected = [projected.mean() - np.delete(projected, tile).mean() for tile in range(TILES)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_other_class_has_the_opposite_map():
    network = network_of("abmil")
    for method in ("gradient", "occlusion"):
        one, other = (explain(network, TASK, features_of(), XY, Asked(method, column)) for column in (0, 1))
        np.testing.assert_allclose(one, -other, atol=1e-6)
    one, other = (explain(network, TASK, features_of(), XY, Asked("instance", column)) for column in (0, 1))
    np.testing.assert_allclose(one + other, 1, atol=1e-6)


def test_attention_and_instance_are_the_networks_own():
    network, features = network_of("abmil"), features_of()
    mask = torch.ones(1, TILES, dtype=torch.bool)
    attention = network(torch.from_numpy(features)[None], mask).attention[0].detach()
    np.testing.assert_allclose(explain(network, TASK, features, XY, Asked("attention")), attention, atol=1e-7)
    alone = TASK.activate(np.concatenate([logits_of(network, features[i : i + 1], XY[:1]) for i in range(TILES)]))
    np.testing.assert_allclose(explain(network, TASK, features, XY, Asked("instance", 1)), alone[:, 1], atol=1e-6)


def test_attention_of_a_head_that_attends_for_each_output_is_the_columns():
    network, features = network_of("clam-mb"), features_of()
    attention = network(torch.from_numpy(features)[None], torch.ones(1, TILES, dtype=torch.bool)).attention[0]
    assert attention.shape == (2, TILES)
    for column in (0, 1):
        scores = explain(network, TASK, features, XY, Asked("attention", column))
        np.testing.assert_allclose(scores, attention[column].detach(), atol=1e-7)


@pytest.mark.parametrize(
    "task",
    [
        task_from_dict(TaskSpec("multilabel"), {"classes": ["a", "b"]}),
        task_from_dict(TaskSpec("ordinal"), {"classes": ["a", "b", "c"]}),
        task_from_dict(TaskSpec("regression"), {"mean": 5, "sd": 2, "low": 0, "high": 9}),
        task_from_dict(TaskSpec("cox"), {}),
        task_from_dict(TaskSpec("survival"), {"times": [1, 2], "end": 3}),
    ],
    ids=lambda task: task.name,
)
@pytest.mark.parametrize("method", METHODS)
def test_every_output_of_every_task_has_a_map(task, method):
    network = network_of("dsmil", outputs=task.outputs)
    for column in range(len(task.columns)):
        scores = explain(network, task, features_of(), XY, Asked(method, column))
        assert np.isfinite(scores).all()
        assert scores.std() > 0


def test_covariates_count_in_all_bags_alike():
    network = network_of("abmil", covariates=2)
    with torch.no_grad():
        network.covariates.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    known = [np.array([value, 0.0], np.float32) for value in (0, 1)]
    for method in ("gradient", "occlusion", "attention"):
        maps = [explain(network, TASK, features_of(), XY, Asked(method, 1, one)) for one in known]
        np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)  # they add to the log odds, whatever the tiles are
    alone = [explain(network, TASK, features_of(), XY, Asked("instance", 1, one)) for one in known]
    odds = [np.log(one / (1 - one)) for one in alone]
    np.testing.assert_allclose(odds[1] - odds[0], 3, atol=1e-3)


def test_late_fusion_is_explained_as_a_whole():
    network = network_of("abmil", blocks=(6, 10))
    for method in METHODS:
        assert np.isfinite(explain(network, TASK, features_of(), XY, Asked(method, 1))).all()


# Blocks and subsets


def test_blocks_are_left_out_together_and_share_their_drop():
    network, features = network_of("abmil"), features_of()
    scores = explain(network, TASK, features, XY, Asked("occlusion", 1, block=2))
    square = (XY // 2 == (1, 0)).all(axis=1)
    assert square.sum() == 4
    drop = TASK.evidence(logits_of(network, features), 1) - TASK.evidence(
        logits_of(network, features[~square], XY[~square]), 1
    )
    np.testing.assert_allclose(scores[square], float(drop) / 4, atol=1e-6)
    ragged = (XY // 2 == (0, 2)).all(axis=1)  # the last of five rows stands alone: two tiles
    assert ragged.sum() == 2
    assert np.ptp(scores[ragged]) == 0


def test_a_block_of_all_tiles_is_measured_against_the_mean_tile():
    network, features = network_of("abmil"), features_of()
    network.fit(torch.from_numpy(features_of(9))[None])
    scores = explain(network, TASK, features, XY, Asked("occlusion", 1, block=100))
    mean = network.mean.numpy()[None]
    drop = TASK.evidence(logits_of(network, features), 1) - TASK.evidence(logits_of(network, mean, XY[:1]), 1)
    np.testing.assert_allclose(scores, float(drop) / TILES, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_tiles_asked_for_are_scored(method):
    network, asked = network_of("abmil"), [4, 2, 19]
    whole = explain(network, TASK, features_of(), XY, Asked(method, 1))
    some = explain(network, TASK, features_of(), XY, Asked(method, 1, tiles=asked))
    np.testing.assert_allclose(some[asked], whole[asked], atol=1e-6)
    assert np.isnan(np.delete(some, asked)).all()


# Sanity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", ["abmil", "clam-sb", "acmil", "dtfd"])
def test_a_planted_tile_is_found(head, method):
    found = []
    for seed in range(8):
        scores = explain(trained(head), TASK, features_of(seed, planted=1), XY, Asked(method, 1))
        found.append(roc_auc_score(np.arange(TILES) < 1, scores))
    assert np.mean(found) > 0.9


def test_what_neighbours_say_alike_is_found_by_leaving_them_out_together():
    """Of three planted tiles in a row each stands in for the others: alone, none is missed much."""
    for seed in range(8):
        bag = features_of(seed, planted=3)
        alone = explain(trained("abmil"), TASK, bag, XY, Asked("occlusion", 1))
        together = explain(trained("abmil"), TASK, bag, XY, Asked("occlusion", 1, block=3))
        square = (XY < 3).all(axis=1)
        assert together[square].min() > together[~square].max()
        assert together[square].sum() > 1.5 * alone[square].sum()


@pytest.mark.parametrize("method", METHODS)
def test_a_map_depends_on_what_was_learned(method):
    """Adebayo et al. (2018): with random weights it is another; a second training finds the same again."""
    bags = [features_of(seed, planted=3) for seed in range(6)]
    maps = [explain(trained("abmil"), TASK, bag, XY, Asked(method, 1)) for bag in bags]
    again = [explain(trained("abmil", seed=1), TASK, bag, XY, Asked(method, 1)) for bag in bags]
    chance = [
        rank_correlation(mine, explain(network_of("abmil", seed=seed), TASK, bag, XY, Asked(method, 1)))
        for seed in range(20, 40)
        for mine, bag in zip(maps, bags, strict=True)
    ]
    assert abs(np.mean(chance)) < 0.2
    assert np.mean([rank_correlation(a, b) for a, b in zip(maps, again, strict=True)]) > 0.35


# Extreme tiles


def test_extreme_tiles_lie_apart():
    side, span = 40, 256
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    xy = (np.stack([x.ravel(), y.ravel()], axis=1) * span).astype(np.int64)
    near = np.hypot(x - 10, y - 10).ravel()
    scores = np.exp(-(near**2) / 50) - np.exp(-(np.hypot(x - 30, y - 30).ravel() ** 2) / 50)  # a hill and a pit
    high, low = extreme_tiles(scores, xy, span, k=5, spread=3)
    assert high[0] == near.argmin()
    assert (np.diff(scores[high]) <= 0).all()
    assert (np.diff(scores[low]) >= 0).all()
    chosen = np.concatenate([high, low])
    apart = np.abs(xy[chosen][:, None] - xy[chosen][None]).max(axis=2)
    assert len(set(chosen.tolist())) == 10
    assert (apart + np.eye(10) * 1e6).min() >= 3 * span


def test_extreme_tiles_of_a_small_slide_are_fewer():
    xy = np.array([[0, 0], [256, 0], [512, 0]])
    high, low = extreme_tiles(np.array([3.0, 2.0, 1.0]), xy, 256, k=10, spread=2)
    assert (high.tolist(), low.tolist()) == ([0, 2], [])
    high, low = extreme_tiles(np.array([3.0, np.nan, 1.0]), xy, 256, k=1, spread=2)
    assert (high.tolist(), low.tolist()) == ([0], [2])


def test_extreme_tiles_of_two_slides_do_not_exclude_each_other():
    xy, slide_of = np.zeros((2, 2), np.int64), np.array([0, 1])
    assert extreme_tiles(np.array([1.0, 2.0]), xy, 256, k=2, slide_of=slide_of)[0].tolist() == [1, 0]


# Bad input


def test_what_cannot_be_asked_is_refused():
    network = network_of("abmil")
    with pytest.raises(SpecError, match="choose attention, instance, gradient, occlusion"):
        Asked("saliency")
    with pytest.raises(SpecError, match="there is no output 2 among softmax_normal, softmax_tumour"):
        explain(network, TASK, features_of(), XY, Asked("gradient", 2))
    with pytest.raises(SpecError, match="less than one tile"):
        Asked("occlusion", block=0)
    with pytest.raises(SpecError, match="give at least one tile"):
        extreme_tiles(np.ones(2), np.zeros((2, 2), np.int64), 256, k=0)
    network.pool = lambda *bag: Network.pool(network, *bag)._replace(attention=None)
    with pytest.raises(SpecError, match="choose instance, gradient or occlusion"):
        explain(network, TASK, features_of(), XY, Asked("attention"))
