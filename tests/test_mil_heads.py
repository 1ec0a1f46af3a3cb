"""Every head keeps the same promises."""

import pytest
import torch

from mil import HEADS, HeadSpec, build_head
from wsi.errors import SpecError

DIM, TILES, CLASSES = 12, 9, 3


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    return build_head(HeadSpec(request.param, DIM, CLASSES, hidden=16, attention=8)).eval()


def bags(count=2, tiles=TILES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, tiles, DIM, generator=generator), torch.ones(count, tiles, dtype=torch.bool)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_answer_has_the_promised_shapes(head):
    logits, attention = head(*bags())
    assert logits.shape == (2, CLASSES)
    assert attention.shape == (2, TILES)


def test_the_order_of_tiles_does_not_matter(head):
    features, mask = bags()
    order = torch.randperm(TILES, generator=torch.Generator().manual_seed(3))
    whole, shuffled = head(features, mask), head(features[:, order], mask)
    assert_close(shuffled.logits, whole.logits)
    assert_close(shuffled.attention, whole.attention[:, order])


def test_padding_changes_nothing_and_gets_no_attention(head):
    features, mask = bags()
    padded = torch.cat([features, 50 * torch.ones(2, 4, DIM)], dim=1)
    whole = head(features, mask)
    longer = head(padded, torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1))
    assert_close(longer.logits, whole.logits)
    assert_close(longer.attention[:, :TILES], whole.attention)
    assert (longer.attention[:, TILES:] == 0).all()


def test_attention_sums_to_one_and_is_never_negative(head):
    features, mask = bags(count=5)
    mask[:, 6:] = False
    attention = head(features, mask).attention
    assert_close(attention.sum(dim=1), torch.ones(5))
    assert (attention >= 0).all()


def test_a_bag_of_one_tile_works(head):
    logits, attention = head(*bags(count=1, tiles=1))
    assert torch.isfinite(logits).all()
    assert_close(attention, torch.ones(1, 1))


def test_gradient_reaches_every_weight(head):
    torch.nn.functional.cross_entropy(head.train()(*bags(count=4)).logits, torch.tensor([0, 1, 2, 0])).backward()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        # attention's last bias shifts all scores alike and so cancels in the softmax
        assert name == "score.bias" or weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_are_taken(head, dtype):
    features, mask = bags()
    given = head(features.to(dtype), mask)
    assert given.logits.dtype == torch.float32
    torch.testing.assert_close(given.logits, head(features, mask).logits, rtol=0.05, atol=0.05)


def test_bfloat16_autocast_stays_close(head):
    features, mask = bags()
    with torch.autocast("cpu", torch.bfloat16):
        low = head(features, mask)
    torch.testing.assert_close(low.logits.float(), head(features, mask).logits, rtol=0.05, atol=0.05)


def test_gated_attention_is_the_papers_equation():
    head = build_head(HeadSpec("abmil", DIM, CLASSES, hidden=16, attention=8)).eval()
    features, mask = bags(count=1)
    hidden = torch.relu(features[0] @ head.project[0].weight.T + head.project[0].bias)
    value = torch.tanh(hidden @ head.value.weight.T + head.value.bias)
    gate = torch.sigmoid(hidden @ head.gate.weight.T + head.gate.bias)
    raw = ((value * gate) @ head.score.weight.T + head.score.bias).squeeze(1).exp()
    weights = raw / raw.sum()
    pooled = sum(weight * row for weight, row in zip(weights, hidden, strict=True))
    output = head(features, mask)
    assert_close(output.attention[0], weights)
    assert_close(output.logits[0], pooled @ head.classify[1].weight.T + head.classify[1].bias)


def test_mean_pooling_attends_evenly():
    features, mask = bags(count=1)
    mask[0, 3:] = False
    assert_close(build_head(HeadSpec("mean", DIM, 2)).eval()(features, mask).attention[0, :3], torch.full((3,), 1 / 3))


def test_max_pooling_shares_the_maximum_of_equal_tiles():
    features = torch.randn(1, 1, DIM).repeat(1, 4, 1)
    attention = build_head(HeadSpec("max", DIM, 2)).eval()(features, torch.ones(1, 4, dtype=torch.bool)).attention
    assert_close(attention, torch.full((1, 4), 0.25))


def test_an_unknown_head_is_refused_with_the_choices():
    with pytest.raises(SpecError, match="choose one of: abmil, mean, max"):
        build_head(HeadSpec("transmil", DIM, 2))
