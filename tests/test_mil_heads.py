"""Every head keeps the same promises."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mil.heads import HEADS, build_head
from mil.spec import HeadSpec
from wsi.errors import SpecError

DIM, TILES, CLASSES = 12, 9, 3
TARGET = torch.tensor([0, 1, 2, 0])
# A bias that shifts all scores, or all keys, alike cancels in the softmax: its gradient is rounding error or 0.
CANCELS = ("score.bias", "score.2.bias", "key.bias")


def make(name, outputs=CLASSES, **options):
    torch.manual_seed(0)
    return build_head(HeadSpec(name, DIM, outputs, hidden=16, attention=8, options=options)).eval()


VARIANTS = [
    ("clam-mb", {"subtyping": True, "k": 3}),
    ("dsmil", {"nonlinear": False, "value": True, "project": True}),
    ("dtfd", {"distil": "MaxMinS", "per_bag": 2}),
    ("acmil", {"branches": 1}),
    ("transformer-position", {"encoding": "alibi", "heads": 2}),
]


@pytest.fixture(params=[(name, {}) for name in HEADS] + VARIANTS, ids=lambda case: "-".join([case[0], *case[1]]))
def case(request):
    return request.param


@pytest.fixture
def head(case):
    return make(case[0], **case[1])


def bags(count=2, tiles=TILES, seed=1):
    """Features, mask (all real) and positions in tiles."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, tiles, DIM, generator=generator)
    xy = torch.randint(0, 20, (count, tiles, 2), generator=generator).float()
    return features, torch.ones(count, tiles, dtype=torch.bool), xy


def ragged():
    """Four bags of 9, 5, 1 and 5 tiles in one batch; padding holds large numbers, anywhere among them."""
    features, mask, xy = bags(4)
    for row, real in enumerate((range(9), (0, 2, 3, 5, 8), (4,), range(4, 9))):
        mask[row] = torch.tensor([place in real for place in range(TILES)])
    features[~mask], xy[~mask] = 50.0, 999.0
    return features, mask, xy


def assert_close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


def test_the_answer_has_the_promised_shapes(head):
    output = head(*bags())
    assert output.logits.shape == (2, CLASSES)
    assert output.attention.shape in ((2, TILES), (2, CLASSES, TILES))


def test_the_order_of_tiles_does_not_matter_unless_the_head_says_so(head):
    features, mask, xy = bags()
    order = torch.randperm(TILES, generator=torch.Generator().manual_seed(3))
    whole, shuffled = head(features, mask, xy), head(features[:, order], mask, xy[:, order])
    if head.order_free:
        assert_close(shuffled.logits, whole.logits)
        assert_close(shuffled.attention, whole.attention[..., order])
    else:
        assert (shuffled.logits - whole.logits).abs().max() > 1e-3


def test_only_a_head_that_says_so_reads_positions(head):
    features, mask, xy = bags()
    if head.needs_xy:
        with pytest.raises(SpecError, match="positions"):
            head(features, mask)
        assert (head(features, mask, xy.flip(1)).logits - head(features, mask, xy).logits).abs().max() > 1e-3
    else:
        assert torch.equal(head(features, mask).logits, head(features, mask, xy).logits)


def test_padding_changes_nothing_and_gets_no_attention(head):
    features, mask, xy = ragged()
    together = head(features, mask, xy)
    for row, real in enumerate(mask):
        alone = head(
            features[row : row + 1, real], torch.ones(1, int(real.sum()), dtype=torch.bool), xy[row, real][None]
        )
        assert_close(together.logits[row], alone.logits[0])
        assert_close(together.attention[row][..., real], alone.attention[0])
        assert (together.attention[row][..., ~real] == 0).all()


def test_a_batchs_loss_is_the_mean_of_its_bags_losses(head):
    features, mask, xy = ragged()
    together = head.training_loss(head(features, mask, xy), TARGET, cross_entropy)
    alone = []
    for row, real in enumerate(mask):
        output = head(
            features[row : row + 1, real], torch.ones(1, int(real.sum()), dtype=torch.bool), xy[row, real][None]
        )
        alone.append(head.training_loss(output, TARGET[row : row + 1], cross_entropy))
    assert_close(together, torch.stack(alone).mean())


def test_attention_sums_to_one_and_is_never_negative(head):
    features, mask, xy = bags(count=5)
    mask[:, 6:] = False
    for mode in (head.eval(), head.train()):
        attention = mode(features, mask, xy).attention
        assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
        assert (attention >= 0).all()


def test_a_bag_of_one_tile_works_in_training_too(head):
    features, mask, xy = bags(count=2, tiles=1)
    assert_close(
        head(features, mask, xy).attention.flatten(), torch.ones(2 * head(features, mask, xy).attention[0].numel())
    )
    loss = head.train().training_loss(head(features, mask, xy), TARGET[:2], cross_entropy)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in head.parameters() if weight.grad is not None)


def test_gradient_reaches_every_weight(head):
    output = head.train()(*bags(count=4, tiles=20))
    head.training_loss(output, TARGET, cross_entropy).backward()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert name.endswith(CANCELS) or weight.grad.abs().sum() > 0, name


def test_gradient_reaches_the_tiles(head):
    features, mask, xy = bags()
    head(features.requires_grad_(), mask, xy).logits[:, 0].sum().backward()
    assert (features.grad.abs().sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_are_taken(head, dtype):
    features, mask, xy = bags()
    given = head(features.to(dtype), mask, xy)
    assert given.logits.dtype == torch.float32
    assert_close(given.logits, head(features.to(dtype).float(), mask, xy).logits)


def test_bfloat16_autocast_stays_close_and_trains(head):
    features, mask, xy = ragged()
    with torch.autocast("cpu", torch.bfloat16):
        low = head(features, mask, xy)
        loss = head.training_loss(low, TARGET, cross_entropy)
    loss.backward()
    torch.testing.assert_close(low.logits.float(), head(features, mask, xy).logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(
        low.attention.sum(dim=-1).float(), torch.ones(low.attention.shape[:-1]), rtol=0, atol=0.01
    )


def test_an_answer_is_the_same_every_time(head):
    given = bags(tiles=40)
    torch.manual_seed(1)
    first = head(*given)
    torch.manual_seed(2)
    second = head(*given)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.attention, second.attention)


def test_weights_come_back_into_a_head_built_without_memory(case, head):
    with torch.device("meta"):
        empty = make(case[0], **case[1])
    assert all(weight.is_meta for weight in empty.parameters())
    empty.load_state_dict(head.state_dict(), strict=True, assign=True)
    assert torch.equal(empty(*bags()).logits, head(*bags()).logits)


@pytest.mark.parametrize("name", [name for name, kind in HEADS.items() if not kind.classes_only])
def test_one_output_serves_regression_and_hazards(name):
    head = make(name, outputs=1)
    loss = head.training_loss(
        head(*ragged()), torch.zeros(4), lambda logits, target: (logits[:, 0] - target).square().mean()
    )
    assert head(*ragged()).logits.shape == (4, 1)
    assert torch.isfinite(loss)


class Largest(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return answer


def test_no_matrix_of_tiles_by_tiles_is_ever_held(head):
    tiles = 3_000
    with Largest() as largest:
        output = head(*bags(count=1, tiles=tiles))
        head.training_loss(output, TARGET[:1], cross_entropy).backward()
    assert TILES < largest.entries < tiles**2 / 2


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("clam-sb", {"k": 0}, "k: 0 is not a whole number of at least 1"),
        ("clam-mb", {"instance_weight": 1.5}, r"1.5 is not a number in \[0, 1\]"),
        ("clam-sb", {"instance_loss": "hinge"}, "choose one of: svm, cross-entropy"),
        ("dtfd", {"distil": "mean"}, "choose one of: AFS, MaxS, MaxMinS"),
        ("dtfd", {"bags": True}, "bags: True is not a whole number"),
        ("acmil", {"mask_drop": 1}, "may leave a branch no tile"),
        ("acmil", {"branches": 0}, "branches: 0"),
        ("ilra", {"rank": 0}, "rank: 0"),
        ("ilra", {"heads": 5}, "16 does not split evenly into heads = 5"),
        ("transmil", {"heads": 3}, "give a multiple of 3"),
        ("wikg", {"k": 1.5}, "k: 1.5"),
        ("transformer", {"layers": 0}, "layers: 0"),
        ("transformer-position", {"encoding": "learned"}, "choose one of: sinusoidal, alibi"),
        ("abmil", {"k": 3}, "abmil has no option 'k'; it has none"),
        ("dsmil", {"k": 3}, "it knows nonlinear, value, project, average"),
    ],
)
def test_a_wrong_option_is_refused_and_named(name, options, match):
    with pytest.raises(SpecError, match=match):
        make(name, **options)


def test_clam_needs_two_classes():
    with pytest.raises(SpecError, match="one output"):
        make("clam-sb", outputs=1)


def test_sinusoids_need_a_width_they_divide():
    with pytest.raises(SpecError, match="18 does not split evenly"):
        build_head(HeadSpec("transformer-position", DIM, 2, hidden=18, options={"heads": 2}))


def test_an_unknown_head_is_refused_with_the_choices():
    with pytest.raises(SpecError, match="choose one of: abmil, abmil-ungated, mean, max, instance-max, clam-sb"):
        make("perceiver")
