import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling import TileSpec, Tissue, TissueSpec, plan_grid, tissue_fraction
from tiling.grid import block_order, draw, plan_scales, tile_origins
from wsi import Level, SlideError, SpecError


def everything(width: int, height: int, scale: int = 16) -> Tissue:
    mask = np.ones((-(-height // scale), -(-width // scale)), bool)
    return Tissue(mask, scale, 0.0)


def pyramid(width: int, height: int, mpp: float | None, *downsamples: float) -> list[Level]:
    return [Level(int(width / d), int(height / d), d, mpp and mpp * d) for d in (1, *downsamples)]


@pytest.mark.parametrize(
    ("extent", "span", "stride", "expected"),
    [
        (10, 4, 4, [0, 4]),  # the ragged edge is dropped
        (12, 4, 4, [0, 4, 8]),  # an exact fit keeps the last tile
        (10, 4, 3, [0, 3, 6]),  # overlap
        (10, 4, 6, [0, 6]),  # gaps
        (4, 4, 4, [0]),
        (3, 4, 4, []),  # a slide smaller than a tile has none
    ],
)
def test_tiles_lie_wholly_inside_the_slide(extent, span, stride, expected):
    assert tile_origins(extent, span, stride).tolist() == expected


@pytest.mark.parametrize(
    ("base_mpp", "downsamples", "wanted", "level", "span"),
    [
        (0.5, (), 0.5, 0, 256),
        (0.499, (), 0.5, 0, 256),  # 0.2 % off: read as it is
        (0.25, (4,), 0.5, 0, 512),  # between two levels: from the finer
        (0.25, (2, 4), 0.5, 1, 512),
        (0.25, (2.0001, 4), 0.5, 1, 512),  # scanners' levels are rarely exact
        (0.25, (4,), 1.0, 1, 1024),
        (0.23, (), 0.5, 0, 557),  # met by resampling: 0.23 * 557 / 256 = 0.5004
        (0.35, (), 0.5, 0, 366),
    ],
)
def test_the_target_scale_is_met_from_the_nearest_finer_level(base_mpp, downsamples, wanted, level, span):
    grid = plan_grid(pyramid(8192, 8192, base_mpp, *downsamples), TileSpec(mpp=wanted), everything(8192, 8192))
    assert (grid.level, grid.span_px) == (level, span)
    assert grid.mpp == pytest.approx(wanted, rel=0.01)
    assert grid.xy.dtype == np.int64


def test_up_sampling_and_a_missing_scale_are_refused():
    tissue = everything(4096, 4096)
    with pytest.raises(SpecError, match="finest level has 1"):
        plan_grid(pyramid(4096, 4096, 1.0), TileSpec(mpp=0.5), tissue)
    with pytest.raises(SlideError, match="pixel size"):
        plan_grid(pyramid(4096, 4096, None), TileSpec(mpp=0.5), tissue)


@given(
    st.integers(100, 5000), st.integers(100, 5000), st.sampled_from([0.2, 0.25, 0.5]),
    st.integers(16, 300), st.integers(8, 400), st.floats(0, 1),
)  # fmt: skip
def test_every_tile_lies_on_the_slide_once_and_holds_enough_tissue(width, height, mpp, tile, stride, least):
    rng = np.random.default_rng(width)
    mask = rng.random((-(-height // 16), -(-width // 16))) < 0.5
    spec = TileSpec(tile_px=tile, mpp=0.5, stride_px=stride, min_tissue=least)
    grid = plan_grid(pyramid(width, height, mpp), spec, Tissue(mask, 16, 0.0))
    assert (grid.xy >= 0).all()
    assert (grid.xy + grid.span_px <= [width, height]).all()
    assert len(np.unique(grid.xy, axis=0)) == len(grid)
    assert (grid.tissue >= np.float32(least) - 1e-6).all()
    assert np.allclose(tissue_fraction(mask, grid.xy, grid.span_px, 16), grid.tissue)


@pytest.mark.parametrize("span", [96, 100, 7])
@pytest.mark.parametrize("scale", [16, 1])
def test_tissue_fraction_is_the_mean_of_the_mask_in_level_0_pixels(span, scale):
    mask = np.random.default_rng(1).random((40, 60)) < 0.3
    level_0 = np.repeat(np.repeat(mask, scale, 0), scale, 1)
    xy = np.array([[0, 0], [32, 64], [480, 160], [13, 27], [3, 1]]) * scale // 16
    span = -(-span * scale // 16)
    expected = [level_0[y : y + span, x : x + span].mean() for x, y in xy]
    assert tissue_fraction(mask, xy, span, scale).tolist() == pytest.approx(expected, abs=1e-12)


def test_tissue_beyond_the_mask_is_none():
    mask = np.ones((4, 4), bool)
    assert tissue_fraction(mask, np.array([[-8, 0], [56, 56], [100, 0]]), 16, 16).tolist() == [0.5, 0.25, 0]


def test_a_tile_full_of_tissue_passes_the_strictest_limit():
    mask = np.ones((313, 313), bool)  # 100 / 32 mask pixels a tile: sums of fractions fall short of 1
    grid = plan_grid(pyramid(10_000, 10_000, 0.5), TileSpec(tile_px=100, min_tissue=1.0), Tissue(mask, 32, 0.0))
    assert len(grid) == 100 * 100


def test_neighbours_in_the_list_are_neighbours_on_the_slide():
    places = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).reshape(-1, 2)
    ordered = places[block_order(places)]
    for block in ordered.reshape(16, 256, 2):
        assert np.ptp(block, axis=0).tolist() == [15, 15]
    assert ordered[:17].tolist() == [[x, 0] for x in range(16)] + [[0, 1]]


def test_levels_that_the_decoder_makes_are_read_from_only_if_allowed():
    made = Level(4096, 4096, 2.0, 0.5, stored=False)
    levels = [Level(8192, 8192, 1.0, 0.25), made, Level(2048, 2048, 4.0, 1.0)]
    assert plan_grid(levels, TileSpec(), everything(8192, 8192)).level == 1
    strict = plan_grid(levels, TileSpec(cheap_levels=False), everything(8192, 8192))
    assert (strict.level, strict.span_px) == (0, 512)


def test_a_cap_draws_the_same_tiles_everywhere_and_keeps_their_order():
    levels, tissue = pyramid(8192, 8192, 0.5), everything(8192, 8192)
    everywhere = plan_grid(levels, TileSpec(), tissue)
    capped = plan_grid(levels, TileSpec(max_tiles=100, seed=7), tissue)
    assert (len(capped), capped.found, everywhere.found) == (100, 1024, None)
    where = [everywhere.xy.tolist().index(corner) for corner in capped.xy.tolist()]
    assert where == sorted(where)
    assert not np.array_equal(capped.xy, plan_grid(levels, TileSpec(max_tiles=100, seed=8), tissue).xy)
    assert plan_grid(levels, TileSpec(max_tiles=1024), tissue).found is None
    # PCG64's raw bits are fixed by its definition: these numbers hold on every machine and with every numpy
    assert draw(1000, 5, 0).tolist() == [11, 269, 850, 855, 921]


def test_a_cap_favours_no_place():
    counts = np.zeros(50)
    for seed in range(2000):
        counts[draw(50, 10, seed)] += 1
    assert counts.sum() == 20_000
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)  # five standard deviations of a binomial


@pytest.mark.parametrize(("mpp", "span"), [(0.25, 256), (0.5, 512), (1.0, 1024), (2.0, 2048), (0.35, 358)])
def test_grids_of_several_scales_share_their_centres(mpp, span):
    levels = pyramid(8192, 8192, 0.25, 2, 4)
    grid = plan_grid(levels, TileSpec(mpp=0.5), everything(8192, 8192))
    (other,) = plan_scales(grid, levels, [mpp])
    assert (other.span_px, len(other), other.spec.mpp) == (span, len(grid), mpp)
    assert other.mpp == pytest.approx(mpp, rel=0.01)
    centres = grid.xy + grid.span_px / 2, other.xy + span / 2
    assert np.array_equal(*centres)
    assert (other.xy.min() < 0) == (span > 512)  # what sticks out is kept
    assert other.spec.stride * mpp == pytest.approx(128, rel=0.01)  # 128 µm between tiles, as in the given grid


def test_centres_of_an_odd_and_an_even_span_differ_by_half_a_pixel():
    levels = pyramid(8192, 8192, 0.23)
    grid = plan_grid(levels, TileSpec(mpp=0.5), everything(8192, 8192))
    (other,) = plan_scales(grid, levels, [0.46])
    assert (grid.span_px, other.span_px) == (557, 512)
    assert np.abs(grid.xy + 557 / 2 - other.xy - 512 / 2).max() == 0.5


def test_a_scale_that_the_slide_does_not_have_is_refused():
    levels = pyramid(8192, 8192, 0.5)
    with pytest.raises(SpecError, match=r"finest level has 0\.5"):
        plan_scales(plan_grid(levels, TileSpec(), everything(8192, 8192)), levels, [0.25])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tile_px", 8),
        ("mpp", 0.0),
        ("stride_px", 0),
        ("min_tissue", 1.5),
        ("tolerance", 0.5),
        ("max_failed_tiles", -1),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(SpecError, match=f"tile.{field}"):
        TileSpec(**{field: value})


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_an_absurd_tissue_area_is_refused(value):
    with pytest.raises(SpecError, match="max_hole_um2"):
        TissueSpec(max_hole_um2=value)


def test_an_unknown_tissue_method_is_refused():
    with pytest.raises(SpecError, match="otsu"):
        TissueSpec(method="otzu")
