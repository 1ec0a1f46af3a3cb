"""The plan of a batch: every pixel inside the slide is moved exactly once, each tile is decoded once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi import Level, Region, SpecError
from wsi.formats.tilewise import BadTile, Grid, fill_patches, plan_pieces, stream_patches
from wsi.geometry import shape_to_read

sides = st.integers(1, 70)
corners = st.lists(st.tuples(st.integers(-90, 160), st.integers(-90, 160)), max_size=12)


@given(width=sides, height=sides, tile_width=sides, tile_height=sides, rows=sides, cols=sides, corners=corners)
def test_a_batch_equals_cutting_each_patch_from_the_whole_picture(
    width, height, tile_width, tile_height, rows, cols, corners
):
    grid = Grid.of(width, height, tile_width, tile_height)
    across = -(-width // tile_width)
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    padded = np.pad(picture, ((0, tile_height), (0, tile_width), (0, 0)), constant_values=77)  # no pixel of the slide
    decoded: list[int] = []

    def decode(tile: int, into: NDArray[np.uint8]) -> None:
        decoded.append(tile)
        y, x = tile // across * tile_height, tile % across * tile_width
        into[...] = padded[y : y + tile_height, x : x + tile_width]

    xy = np.array(corners, np.int64).reshape(-1, 2)
    out = np.zeros((len(xy), rows, cols, 3), np.uint8)
    ok, faults = fill_patches(plan_pieces(xy, (rows, cols), grid), grid, decode, out)
    assert ok.all()
    assert not faults
    assert len(decoded) == len(set(decoded))
    streamed = np.zeros_like(out)
    ok, _ = stream_patches(plan_pieces(xy, (rows, cols), grid), grid, decode, (rows, cols), streamed.__setitem__)
    assert ok.all()
    assert np.array_equal(streamed, out)
    canvas = np.full((height + 500, width + 500, 3), 255, np.uint8)
    canvas[200 : 200 + height, 200 : 200 + width] = picture
    for (x, y), patch in zip(corners, out, strict=True):
        assert np.array_equal(patch, canvas[200 + y : 200 + y + rows, 200 + x : 200 + x + cols])


def test_only_the_patches_of_a_bad_tile_are_not_ok():
    def decode(tile: int, into: NDArray[np.uint8]) -> None:
        if tile == 1:
            raise BadTile("torn")
        into[...] = tile

    grid = Grid.of(40, 20, 10, 10)
    out = np.zeros((4, 10, 10, 3), np.uint8)
    plan = plan_pieces(np.array([[0, 0], [5, 0], [10, 0], [20, 5]]), (10, 10), grid)
    ok, faults = fill_patches(plan, grid, decode, out)
    assert ok.tolist() == [True, False, False, True]
    assert faults == [(1, "torn")]
    taken: dict[int, NDArray[np.uint8]] = {}
    streamed_ok, streamed_faults = stream_patches(
        plan, grid, decode, (10, 10), lambda number, pixels: taken.update({number: pixels.copy()})
    )
    assert (streamed_ok.tolist(), streamed_faults) == (ok.tolist(), faults)
    assert sorted(taken) == [0, 3]
    assert all(np.array_equal(taken[number], out[number]) for number in taken)


@pytest.mark.parametrize(
    ("region", "level", "problem"),
    [
        (Region(0, 0, 100_000, 100_000), 0, "read at once"),
        (Region(0, 0, 0, 5), 0, "no area"),
        (Region(0, 0, 5, -5), 0, "no area"),
        (Region(0, 0, 5, 5), -1, "levels 0 to 1"),
        (Region(0, 0, 5, 5), 2, "levels 0 to 1"),
        (Region(10**19, 0, 5, 5), 0, "no slide reaches"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_allocated(region, level, problem):
    levels = [Level(1000, 1000, 1.0, 0.5), Level(500, 500, 2.0, 1.0)]
    with pytest.raises(SpecError, match=problem):
        shape_to_read(region, levels, level)
