"""Heads that pool tiles by weights do what their papers say: the equations written out again, tile by tile."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mil.heads import build_head, dsmil_from_reference
from mil.heads.clam import ClamSB
from mil.spec import HeadSpec

DIM, TILES, CLASSES = 6, 11, 3


def make(name, outputs=CLASSES, **options):
    torch.manual_seed(0)
    return build_head(HeadSpec(name, DIM, outputs, hidden=8, attention=5, options=options)).eval()


def bag(tiles=TILES, dim=DIM, count=1, seed=1):
    features = torch.randn(count, tiles, dim, generator=torch.Generator().manual_seed(seed))
    return features, torch.ones(count, tiles, dtype=torch.bool)


def weights(head):
    """The head's weights as float64 arrays by name."""
    return {name: value.numpy().astype(float) for name, value in head.state_dict().items()}


def linear(x, weight, name):
    return x @ weight[f"{name}.weight"].T + weight.get(f"{name}.bias", 0.0)


def softmax(x, axis=0):
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(x, weight, name):
    """Gated scores (n, K) of tiles (n, H)."""
    value = np.tanh(linear(x, weight, f"{name}.value.0"))
    return linear(value * sigmoid(linear(x, weight, f"{name}.gate.0")), weight, f"{name}.score")


def same(tensor, expected, tolerance=1e-5):
    np.testing.assert_allclose(tensor.detach().numpy(), expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["abmil", "abmil-ungated"])
def test_attention_is_the_papers_equation(name):
    head, (features, mask) = make(name), bag()
    weight = weights(head)
    hidden = np.maximum(linear(features[0].numpy(), weight, "project.0"), 0)
    inner = np.tanh(linear(hidden, weight, "value"))
    if name == "abmil":
        inner = inner * sigmoid(linear(hidden, weight, "gate"))
    raw = np.exp(linear(inner, weight, "score"))[:, 0]
    attention = raw / raw.sum()
    pooled = sum(share * row for share, row in zip(attention, hidden, strict=True))
    output = head(features, mask)
    same(output.attention[0], attention)
    same(output.logits[0], linear(pooled, weight, "classify.1"))


def test_mean_pooling_and_the_probe_attend_evenly():
    features, mask = bag()
    mask[0, 4:] = False
    for name in ("mean", "linear"):
        same(make(name)(features, mask).attention[0], [0.25] * 4 + [0] * 7)
    head = make("linear")
    same(head(features, mask).logits[0], linear(features[0, :4].mean(0).numpy(), weights(head), "classify"))


def test_max_pooling_shares_the_maximum_of_equal_tiles():
    features = torch.randn(1, 1, DIM).repeat(1, 4, 1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    same(make("max")(features, mask).attention, [[0.25] * 4])
    same(make("instance-max")(features, mask).attention, [[[0.25] * 4] * CLASSES])


def test_the_strongest_tile_of_each_output_speaks():
    head, (features, mask) = make("instance-max"), bag()
    weight = weights(head)
    tiles = linear(np.maximum(linear(features[0].numpy(), weight, "project.0"), 0), weight, "classify")
    output = head(features, mask)
    same(output.logits[0], tiles.max(axis=0))
    assert output.attention[0].argmax(dim=1).tolist() == tiles.argmax(axis=0).tolist()
    assert (output.attention.sum(dim=2) == output.attention.amax(dim=2)).all()


def test_smooth_top_1_svm_by_hand():
    head = ClamSB(HeadSpec("clam-sb", DIM, 2))
    loss = head._loss(torch.tensor([0.2, -0.5]), 1)
    assert loss.item() == pytest.approx(math.log(math.exp(0.2 + 1 + 0.5) + 1))


def clam_instance_loss(head, hidden, attention, label, subtyping):
    """The authors' loop over classes for one bag; hidden (n, H), attention (K, n)."""
    weight = weights(head)
    order = [np.argsort(-row, kind="stable") for row in attention]
    total, n = 0.0, len(hidden)
    for c in range(CLASSES):
        classify = {
            "i.weight": weight["instance.weight"][2 * c : 2 * c + 2],
            "i.bias": weight["instance.bias"][2 * c :][:2],
        }
        rank = order[c if len(order) > 1 else 0]
        if c == label:
            cases = [(i, 1) for i in rank[: min(head.k, (n + 1) // 2)]] + [(i, 0) for i in rank[-min(head.k, n // 2) :]]
        elif subtyping:
            cases = [(i, 0) for i in rank[: min(head.k, n)]]
        else:
            continue
        losses = []
        for i, truth in cases:
            logits = linear(hidden[i], classify, "i")
            if head.instance_loss == "svm":
                logits = logits + (np.arange(2) != truth)
                losses.append(np.log(np.exp(logits).sum()) - logits[truth])
            else:
                losses.append(cross_entropy(torch.tensor(logits)[None], torch.tensor([truth])).item())
        total += np.mean(losses)
    return total / CLASSES if subtyping else total


@pytest.mark.parametrize("tiles", [11, 3])
@pytest.mark.parametrize(
    "options", [{}, {"subtyping": True}, {"instance_loss": "cross-entropy", "instance_weight": 0.4}]
)
@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
def test_clam_pools_and_supervises_tiles_as_its_authors_do(name, options, tiles):
    head, (features, mask) = make(name, k=3, **options), bag(tiles)
    weight = weights(head)
    hidden = np.maximum(linear(features[0].numpy(), weight, "project.0"), 0)
    attention = softmax(gated(hidden, weight, "attend")).T  # (K, n)
    pooled = np.broadcast_to(attention @ hidden, (CLASSES, 8))
    logits = (pooled * weight["classify.weight"]).sum(axis=1) + weight["classify.bias"]
    output = head(features, mask)
    same(output.logits[0], logits)
    same(output.attention[0], attention if name == "clam-mb" else attention[0])
    for label in range(CLASSES):
        target = torch.tensor([label])
        share = options.get("instance_weight", 0.3)
        instances = clam_instance_loss(head, hidden, attention, label, options.get("subtyping", False))
        expected = (1 - share) * cross_entropy(output.logits, target).item() + share * instances
        assert head.training_loss(output, target, cross_entropy).item() == pytest.approx(expected, rel=1e-5)


def test_a_tile_alone_is_positive_evidence_only():
    head, (features, mask) = make("clam-sb", k=8, instance_weight=1.0), bag(tiles=1)
    output = head(features, mask)
    expected = cross_entropy(output.extra["top"][0, 2] + torch.tensor([1.0, 0.0]), torch.tensor([1]))
    loss = head.training_loss(output, torch.tensor([2]), cross_entropy)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def dsmil_streams(features, state):
    """Both streams' logits and the attention (n, C) of one bag, from the authors' weights; all numpy, float64."""
    scores = linear(features, state, "i_classifier.fc.0")  # n x C
    query = np.tanh(linear(np.maximum(linear(features, state, "b_classifier.q.0"), 0), state, "b_classifier.q.2"))
    critical = scores.argmax(axis=0)
    attention = softmax(query @ query[critical].T / np.sqrt(query.shape[1]))  # n x C
    embedding = attention.T @ features  # C x D: values are the embeddings themselves
    bag = [
        sum(kernel[c] @ embedding[c] for c in range(len(embedding))) + bias
        for kernel, bias in zip(state["b_classifier.fcc.weight"], state["b_classifier.fcc.bias"], strict=True)
    ]
    return scores.max(axis=0), np.array(bag), attention


def test_dsmil_is_the_authors_forward_on_their_camelyon16_weights(data_dir):
    state = torch.load(data_dir / "weights" / "dsmil_c16_aggregator.pth", weights_only=True, map_location="cpu")
    head = dsmil_from_reference(state)
    features, mask = bag(tiles=300, dim=512)
    features = features.relu()  # as the embeddings they were trained on
    instance, whole, attention = dsmil_streams(
        features[0].numpy().astype(float), {name: value.numpy().astype(float) for name, value in state.items()}
    )
    output = head(features, mask)
    assert len(head.state_dict()) == len(state)
    same(output.extra["instance"][0], instance, 1e-4)
    same(output.logits[0], whole, 1e-4)
    same(output.attention[0], attention.T, 1e-6)
    assert np.ptp(attention) > 1e-4  # not merely uniform, and far beyond the tolerance


@pytest.mark.parametrize("average", [True, False])
def test_dsmil_averages_its_streams_and_their_losses(average):
    head, (features, mask) = make("dsmil", average=average), bag()
    weight = {
        f"{theirs}.{kind}": weights(head)[f"{own}.{kind}"]
        for own, theirs in head.REFERENCE_KEYS.items()
        for kind in ("weight", "bias")
    }
    instance, whole, _ = dsmil_streams(features[0].numpy().astype(float), weight)
    output, target = head(features, mask), torch.tensor([2])
    same(output.logits[0], (instance + whole) / 2 if average else whole)
    expected = sum(cross_entropy(torch.tensor(one)[None], target) for one in (instance, whole)) / 2
    assert head.training_loss(output, target, cross_entropy).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dsmils_options_add_the_layers_they_name():
    plain = dict(make("dsmil").named_parameters())
    assert plain["query.0.weight"].shape == (5, DIM)
    changed = dict(make("dsmil", nonlinear=False, value=True, project=True).named_parameters())
    assert changed["project.0.weight"].shape == (8, DIM)
    assert changed["query.weight"].shape == (5, 8)
    assert changed["value.1.weight"].shape == (8, 8)


def dtfd_by_hand(head, hidden, groups):
    """Logits of both tiers and attention (n,) of one bag dealt into `groups`, lists of tiles."""
    weight, attention = weights(head), np.zeros(len(hidden))
    distilled, sources, first = [], [], []
    for group in groups:
        tiles, share = hidden[group], softmax(gated(hidden[group], weight, "attend"))[:, 0]
        first.append(linear(share @ tiles, weight, "classify_bag"))
        activation = softmax((share[:, None] * tiles) @ weight["classify_bag.weight"].T, axis=1)[:, -1]
        falling = np.argsort(-activation, kind="stable")
        if head.distil == "AFS":
            distilled.append(share @ tiles)
            sources.append(dict(zip(group, share, strict=True)))
        else:
            chosen = [*falling[: head.per_bag]] + ([*falling[-head.per_bag :]] if head.distil == "MaxMinS" else [])
            distilled += [tiles[i] for i in chosen]
            sources += [{group[i]: 1.0} for i in chosen]
    again = softmax(gated(np.stack(distilled), weight, "attend_again"))[:, 0]
    for part, source in zip(again, sources, strict=True):
        for tile, share in source.items():
            attention[tile] += part * share
    return linear(again @ np.stack(distilled), weight, "classify.1"), np.stack(first), attention


@pytest.mark.parametrize(("distil", "per_bag"), [("AFS", 1), ("MaxS", 1), ("MaxS", 2), ("MaxMinS", 1), ("MaxMinS", 2)])
@pytest.mark.parametrize("tiles", [11, 5])  # 5: pseudo-bags of 2, 1, 1, 1
def test_dtfd_distils_pseudo_bags_as_its_paper_says(distil, per_bag, tiles):
    head, (features, mask) = make("dtfd", bags=4, distil=distil, per_bag=per_bag), bag(tiles)
    weight = weights(head)
    hidden = np.maximum(linear(features[0].numpy(), weight, "project.0"), 0)
    order = np.argsort(-gated(hidden, weight, "attend")[:, 0], kind="stable")
    logits, first, attention = dtfd_by_hand(head, hidden, [order[start::4].tolist() for start in range(4)])
    output, target = head(features, mask), torch.tensor([1])
    same(output.logits[0], logits)
    same(output.extra["pseudo"][0], first)
    same(output.attention[0], attention)
    expected = cross_entropy(torch.tensor(logits)[None], target) + cross_entropy(torch.tensor(first), target.repeat(4))
    assert head.training_loss(output, target, cross_entropy).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dtfd_deals_every_tile_once_and_anew_in_training():
    head = make("dtfd", bags=4)
    score = torch.linspace(0, 1, 11).expand(2, -1)
    place, real = head.train()._deal(score)
    assert [sorted(row[keep].tolist()) for row, keep in zip(place, real, strict=True)] == [list(range(11))] * 2
    assert real.sum(dim=2).tolist() == [[3, 3, 3, 2]] * 2
    assert not torch.equal(place, head._deal(score)[0])
    assert torch.equal(head.eval()._deal(score)[0], head._deal(score)[0])


def test_dtfds_second_tier_does_not_train_the_first():
    head, (features, mask) = make("dtfd"), bag()
    head.train()(features, mask).logits.sum().backward()
    trained = {name for name, weight in head.named_parameters() if weight.grad is not None}
    assert {name.partition(".")[0] for name in trained} == {"attend_again", "classify"}


def test_acmil_is_the_mean_of_branches_that_are_judged_each():
    head, (features, mask) = make("acmil", branches=3), bag()
    weight = weights(head)
    hidden = np.maximum(linear(features[0].numpy(), weight, "project.0"), 0)
    attention = softmax(gated(hidden, weight, "attend")).T  # (M, n)
    branches = np.stack([linear(row @ hidden, weight, f"branches.{i}.1") for i, row in enumerate(attention)])
    logits = linear(attention.mean(axis=0) @ hidden, weight, "classify.1")
    output, target = head(features, mask), torch.tensor([1])
    same(output.attention[0], attention.mean(axis=0))
    same(output.extra["branches"][0], branches)
    same(output.logits[0], logits)
    cosine = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(attention) for b in attention[i + 1 :]
    ]
    expected = cross_entropy(torch.tensor(logits)[None], target) + np.mean(cosine)
    expected += cross_entropy(torch.tensor(branches), target.repeat(3))
    assert head.training_loss(output, target, cross_entropy).item() == pytest.approx(expected.item(), rel=1e-5)


def test_acmil_loses_the_said_share_of_each_branchs_strongest_tiles():
    head = make("acmil", branches=4, top=10, mask_drop=0.6)
    score = torch.rand(3, 4, 120)
    mask = torch.ones(3, 120, dtype=torch.bool)
    mask[1, 70:] = False
    mask[2, 9:] = False
    lost = head._lost(score, mask)
    assert lost.sum(dim=2).tolist() == [[6] * 4, [4] * 4, [0] * 4]  # int(0.6 x 10), int(0.6 x 70 // 10), nothing
    for row, (tiles, strongest) in enumerate([(120, 10), (70, 7)]):
        least = score[row, :, :tiles].topk(strongest).values[:, -1:]
        assert not lost[row].logical_and((score[row] < least) | ~mask[row]).any()
    assert not torch.equal(lost, head._lost(score, mask))
    lost = head.train()(*bag(tiles=120)).extra["attention"] == 0
    assert lost.sum(dim=2).tolist() == [[6] * 4]


def test_acmil_with_nothing_to_lose_trains_as_it_predicts():
    head = build_head(HeadSpec("acmil", DIM, 2, dropout=0.0, options={"top": 0}))
    assert torch.equal(head.train()(*bag()).logits, head.eval()(*bag()).logits)
