"""The bank of flips and quarter turns."""

import pytest
import torch

from embedding.views import views


@pytest.mark.parametrize("count", range(1, 9))
def test_a_patch_has_as_many_different_views_side_by_side_the_first_as_it_is(count):
    patches = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    seen = views(patches, count).reshape(2, count, 3, 4, 4)
    assert torch.equal(seen[:, 0], patches)
    for patch, own in zip(patches, seen, strict=True):
        assert len({tuple(view.flatten().tolist()) for view in own}) == count
        assert all(torch.equal(view.flatten().sort().values, patch.flatten()) for view in own)


def test_the_order_is_the_documented_one():
    a, b, c, d = range(4)
    seen = views(torch.tensor([[a, b], [c, d]]).expand(1, 3, 2, 2), 8)[:, 0].tolist()
    assert seen == [
        [[a, b], [c, d]],  # as it is
        [[b, a], [d, c]],  # mirrored left to right
        [[c, d], [a, b]],  # top to bottom
        [[d, c], [b, a]],  # half a turn
        [[a, c], [b, d]],  # transposed
        [[c, a], [d, b]],  # a quarter turn to the right
        [[b, d], [a, c]],  # a quarter turn to the left
        [[d, b], [c, a]],  # the other diagonal
    ]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_views_of_a_view_are_the_same_set(count):
    patch = torch.rand(1, 3, 5, 5)
    wanted = {tuple(view.flatten().tolist()) for view in views(patch, count)}
    for view in views(patch, count):
        assert {tuple(again.flatten().tolist()) for again in views(view[None], count)} == wanted


@pytest.mark.parametrize(
    ("count", "shape", "said"),
    [(0, (1, 3, 4, 4), "1 to 8"), (9, (1, 3, 4, 4), "1 to 8"), (5, (1, 3, 4, 6), "square")],
)
def test_what_has_no_such_views_is_refused(count, shape, said):
    with pytest.raises(ValueError, match=said):
        views(torch.zeros(shape), count)
