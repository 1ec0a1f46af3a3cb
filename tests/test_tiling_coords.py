"""Tile coordinates of other tools: round trips, their own readers' rules, and a real file and a real reader."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slides import ArraySlide, tissue_like
from tiling import TileGrid, TileSpec, Tissue, iter_patches, plan_grid
from tiling.coords import (
    SlideTiles,
    export_clam,
    export_trident,
    grid_from_coords,
    known_empty,
    read_coords,
    trident_magnification,
    write_clam,
    write_trident,
)
from wsi import Level, SlideError, SpecError, StoreError


def tiles(base=0.25, downsamples=(1, 4), slide_id="s1", made=(), **settings) -> SlideTiles:
    """A slide of 8,192 x 6,144 px with tissue on its left half; `made` are levels that the decoder makes."""
    steps = sorted({*downsamples, *made})
    levels = [Level(round(8192 / d), round(6144 / d), float(d), base * d, d not in made) for d in steps]
    mask = np.zeros((384, 512), bool)
    mask[:, :256] = True
    return SlideTiles(slide_id, plan_grid(levels, TileSpec(**settings), Tissue(mask, 16, 0.0)), levels)


@pytest.mark.parametrize("write", [write_trident, write_clam])
@pytest.mark.parametrize(
    ("mpp", "settings"),
    [(0.25, {}), (0.5, {}), (0.35, {}), (0.2465, {}), (0.2527, {}), (0.25, {"stride_px": 128}), (0.23, {"mpp": 1.0})],
)
def test_what_is_written_reads_back_as_the_same_grid(write, mpp, settings, tmp_path):
    slide = tiles(mpp, **settings)
    write(tmp_path / "a" / "x.h5", slide)
    coords = read_coords(tmp_path / "a" / "x.h5")
    assert coords.xy.dtype == np.int64
    assert np.array_equal(coords.xy, slide.grid.xy)
    assert coords.span_px == slide.grid.span_px
    again = grid_from_coords(slide.levels, coords, slide.grid.spec)
    assert (again.level, again.mpp, again.span_px) == (slide.grid.level, slide.grid.mpp, slide.grid.span_px)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.h5"]  # no draft is left


@pytest.mark.parametrize(
    ("mpp", "source", "target"),
    [
        (0.25, 40, 20),
        (0.2482, 40, 20),
        (0.2465, 40, 40 * 256 / 519),
        (0.5, 20, 20),
        (0.35, 20, 20 * 256 / 366),
        (0.17, 60, 60 * 256 / 753),
    ],
)
def test_tridents_own_rule_comes_to_the_true_side_at_level_0(mpp, source, target, tmp_path):
    slide = tiles(mpp, downsamples=(1, 2))
    write_trident(tmp_path / "x.h5", slide)
    with h5py.File(tmp_path / "x.h5") as file:
        coords, attrs = file["coords"], dict(file["coords"].attrs)
        assert (coords.dtype, coords.chunks, coords.maxshape) == (np.int64, (1, 2), (None, 2))
        assert coords.compression is None
    assert (attrs["level0_magnification"], attrs["patch_size"], attrs["overlap"]) == (source, 256, 0)
    assert attrs["target_magnification"] == pytest.approx(target)
    assert (attrs["level0_width"], attrs["level0_height"], attrs["name"]) == (8192, 6144, "s1")
    # as WSIPatcher computes what it reads: pixel sizes from magnifications, then the side
    downsample = (10 / attrs["target_magnification"]) / (10 / attrs["level0_magnification"])
    assert round(attrs["patch_size"] * downsample) == attrs["patch_size_level0"] == slide.grid.span_px
    assert attrs["patch_size_level0"] * mpp == pytest.approx(128, rel=0.015)


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.1, 80), (0.16, 60), (0.23, 40), (0.3, 20), (0.35, 20), (0.5, 20), (0.6, 10), (1.2, 5), (2.39, 5)],
)
def test_a_pixel_size_has_the_magnification_that_trident_gives_it(mpp, magnification):
    assert trident_magnification(mpp) == magnification


@pytest.mark.parametrize("mpp", [2.4, 0, None])
def test_a_pixel_size_that_trident_has_no_name_for_is_refused(mpp):
    with pytest.raises(SpecError, match="no magnification"):
        trident_magnification(mpp)


@pytest.mark.parametrize(
    ("slide", "level", "patch_size"),
    [
        (tiles(0.25, (1, 2, 4)), 1, 256),
        (tiles(0.25, (1, 4)), 0, 512),  # CLAM does not resample: twice our pixels, the same tissue
        (tiles(0.25, (1, 4), made=(2,)), 0, 512),  # OpenSlide knows stored levels only
        (tiles(0.25, (1, 4, 16), made=(2, 8), mpp=1.0), 1, 256),
        (tiles(0.23, (1, 2)), 0, 557),  # 557 is odd: half of it would miss the side
    ],
)
def test_clam_is_told_a_stored_level_and_the_pixels_there(slide, level, patch_size, tmp_path):
    write_clam(tmp_path / "x.h5", slide)
    with h5py.File(tmp_path / "x.h5") as file:
        attrs = dict(file["coords"].attrs)
        assert file["coords"].dtype == np.int64
    stored = [level for level in slide.levels if level.stored]
    assert (attrs["patch_level"], attrs["patch_size"]) == (level, patch_size)
    assert attrs["level_dim"].tolist() == attrs["downsampled_level_dim"].tolist() == [
        stored[level].width, stored[level].height,
    ]  # fmt: skip
    assert attrs["downsample"].tolist() == pytest.approx([stored[level].downsample] * 2)
    assert abs(patch_size * stored[level].downsample - slide.grid.span_px) <= 0.5


def test_a_real_file_of_clam_is_read_and_makes_a_grid(data_dir):
    coords = read_coords(data_dir / "bags" / "clam_coords_TCGA-2Y-A9GT-01Z-00-DX1.h5")
    assert (coords.flavour, coords.xy.shape, coords.span_px, coords.size) == ("clam", (8896, 2), 512, (67181, 59019))
    assert coords.xy[0].tolist() == [13281, 2848]
    assert coords.attrs["level_dim"] == [67181, 59019]
    levels = [Level(67181, 59019, 1.0, 0.25), Level(16795, 14754, 4.0, 1.0)]
    grid = grid_from_coords(levels, coords, TileSpec())
    assert (len(grid), grid.level, grid.mpp) == (8896, 0, 0.5)
    with pytest.raises(
        SpecError, match=r"128\.0 µm wide, 256 px at 1 µm.*; ask for --tile-px 128, or for --tile-mpp 0\.5"
    ):
        grid_from_coords(levels, coords, TileSpec(mpp=1.0))
    with pytest.raises(SpecError, match="not of this slide"):
        grid_from_coords([Level(67181, 50000, 1.0, 0.25)], coords, TileSpec())


def test_real_feature_files_without_a_tile_size_are_refused(data_dir):
    with pytest.raises(StoreError, match=r"name the matching patches/<slide>\.h5"):
        read_coords(data_dir / "bags" / "stamp_TCGA-AD-6964-01Z-00-DX1.features.h5")
    with pytest.raises(StoreError, match="no table of tile coordinates"):
        read_coords(data_dir / "bags" / "stamp_TCGA-3X-AAVA-01Z-00-DX1.features.h5")


def h5(path: Path, coords=None, attrs=(), root=(), **datasets) -> Path:
    """An HDF5 file; `attrs` are those of `coords`, `datasets` are (array, attributes)."""
    with h5py.File(path, "w") as file:
        file.attrs.update(dict(root))
        if coords is not None:
            file.create_dataset("coords", data=coords).attrs.update(dict(attrs))
        for name, (array, own) in datasets.items():
            file.create_dataset(name, data=array).attrs.update(own)
    return path


CORNERS = np.array([[1024, 512], [1536, 512]])


@pytest.mark.parametrize(
    ("flavour", "content"),
    [
        (
            "mussel",
            {
                "coords": CORNERS,
                "attrs": {"patch_size": 512, "patch_level": 0, "patch_size_to_resize_to_for_desired_mpp": 224},
            },
        ),
        (
            "wsinfer",
            {"coords": CORNERS, "attrs": {"patch_size": 512, "patch_level": 0, "patch_spacing_um_px": 0.5}},
        ),
        (
            "atlaspatch",
            {
                "coords": np.c_[CORNERS, [[512, 512, 0]] * 2].astype(np.int32),
                "root": {"passport_version": 2, "patch_size": 256, "patch_size_level0": 512},
            },
        ),
        (
            "stamp",
            {
                "coords": (CORNERS * 0.25).astype(np.float32),
                "root": {"stamp_version": "2.1.0", "unit": "um", "tile_size_um": 128.0, "feat_type": "tile"},
            },
        ),
        (
            "trident",
            {
                "coords": CORNERS,
                "attrs": {"patch_size": 256, "patch_size_level0": 512.0, "level0_magnification": 40},
                "features": (np.zeros((2, 8), np.float32), {"encoder": "uni_v1"}),
            },
        ),
        ("clam", {"coords": CORNERS, "attrs": {"patch_size": 128, "patch_level": 1, "downsample": (4.0, 4.0003)}}),
        (
            "clam-patches",
            {
                "coords": (CORNERS // 4).astype(np.int32),
                "imgs": (np.zeros((2, 128, 128, 3), np.uint8), {"patch_level": 1, "downsample": (4.0, 4.0)}),
            },
        ),
        (
            "clam-patches",  # --custom_downsample 2
            {
                "coords": (CORNERS // 2).astype(np.int32),
                "imgs": (
                    np.zeros((2, 256, 256, 3), np.uint8),
                    {"patch_level": 0, "downsample": (1.0, 1.0), "level_dim": (8192, 6144)}
                    | {"downsampled_level_dim": (4096, 3072)},
                ),
            },
        ),
    ],
)
def test_every_tool_is_known_by_its_attributes(flavour, content, tmp_path):
    coords = read_coords(h5(tmp_path / "x.h5", **content), mpp=0.25)
    assert (coords.flavour, coords.span_px) == (flavour, 512)
    assert np.array_equal(coords.xy, CORNERS)


def test_micrometres_need_the_pixel_size(tmp_path):
    path = h5(tmp_path / "x.h5", CORNERS.astype(float), root={"unit": "um", "tile_size_um": 128.0})
    with pytest.raises(SpecError, match=r"x\.h5 is of STAMP, in µm"):
        read_coords(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"coords": CORNERS, "features": (np.zeros((2, 8)), {})}, "matching patches"),
        ({"coords": CORNERS[0]}, "no table"),
        ({}, "no table"),
        ({"coords": CORNERS * 1e9, "attrs": {"patch_size": 1, "patch_spacing_um_px": 1}}, "no numbers of pixels"),
        ({"coords": CORNERS * np.nan, "attrs": {"patch_size": 1, "patch_spacing_um_px": 1}}, "no numbers of pixels"),
        ({"coords": CORNERS, "attrs": {"patch_size": "big", "patch_spacing_um_px": 1}}, "tile size is None"),
        ({"coords": CORNERS, "attrs": {"patch_size_level0": 0, "level0_magnification": 40}}, "tile size is 0"),
        ({"coords": CORNERS, "attrs": {"patch_size": 256, "patch_level": 0, "downsample": 0.0}}, "downsample is 0"),
    ],
)
def test_a_file_without_usable_tiles_is_refused_by_name(content, message, tmp_path):
    with pytest.raises(StoreError, match=rf"x\.h5.*{message}"):
        read_coords(h5(tmp_path / "x.h5", **content))


def test_a_missing_cut_or_other_file_is_refused(tmp_path):
    write_trident(tmp_path / "x.h5", tiles())
    (tmp_path / "cut.h5").write_bytes((tmp_path / "x.h5").read_bytes()[:3000])
    (tmp_path / "text.h5").write_text("x,y\n")
    for name, message in [("gone.h5", "no such file"), ("cut.h5", "not a sound HDF5"), ("text.h5", "not a sound HDF5")]:
        with pytest.raises(StoreError, match=message):
            read_coords(tmp_path / name)


def test_a_table_that_cannot_be_in_the_file_is_not_made_up(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("coords", shape=(10_000_000, 2), dtype=np.int64, chunks=(1024, 2))
    with pytest.raises(StoreError, match="10000000 tiles in so small a file"):
        read_coords(tmp_path / "x.h5")


def test_flipped_bytes_end_in_our_error_or_in_numbers(tmp_path):
    write_trident(tmp_path / "x.h5", tiles(stride_px=1024))
    sound, rng = (tmp_path / "x.h5").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(sound)
        for place in rng.integers(0, len(sound), 8):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "y.h5").write_bytes(damaged)
        try:
            assert read_coords(tmp_path / "y.h5").xy.ndim == 2
        except StoreError:
            refused += 1
    assert refused > 10


def test_patches_come_out_at_another_tools_coordinates(tmp_path):
    slide = ArraySlide([tissue_like(1024, 1024)], 0.25)
    path = h5(tmp_path / "x.h5", np.array([[800, 100], [33, 471]]), {"patch_size": 256, "patch_spacing_um_px": 0.25})
    grid = grid_from_coords(slide.levels, read_coords(path), TileSpec(mpp=0.25))
    (batch,) = iter_patches(slide, grid)
    assert np.array_equal(batch.patches[1], slide._arrays[0][471 : 471 + 256, 33 : 33 + 256])
    assert (batch.patches[0][:, 224:] == 255).all()  # beyond the edge is white
    mask = np.zeros((64, 64), bool)
    mask[:, :8] = True
    assert grid.tissue.tolist() == [1, 1]
    known = grid_from_coords(slide.levels, read_coords(path), TileSpec(mpp=0.25), Tissue(mask, 16, 0.0))
    assert known.tissue.tolist() == pytest.approx([0, (128 - 33) / 256])


@pytest.mark.parametrize(
    ("levels", "spec", "error", "message"),
    [
        (
            [Level(8192, 6144, 1.0, 0.35)],
            {},
            SpecError,
            r"179\.2 µm wide.*ask for --tile-px 358, or for --tile-mpp 0\.7$",
        ),
        ([Level(8192, 6144, 1.0, 0.25)], {"tile_px": 600, "mpp": 0.2133, "tolerance": 0.1}, SpecError, "finest level"),
        ([Level(8192, 6144, 1.0, 0.25)], {"tile_px": 520, "mpp": 0.25, "tolerance": 0.1}, SpecError, "smaller patches"),
        ([Level(8192, 6144, 1.0, None)], {}, SlideError, "pixel size"),
        ([Level(1000, 6144, 1.0, 0.25)], {}, SpecError, "not of this slide"),
    ],
)
def test_coordinates_that_contradict_the_slide_or_the_spec_are_refused(levels, spec, error, message, tmp_path):
    path = h5(tmp_path / "x.h5", CORNERS, {"patch_size": 512, "patch_spacing_um_px": 0.5})
    with pytest.raises(error, match=message):
        grid_from_coords(levels, read_coords(path), TileSpec(**spec))


def empty(slide_id: str) -> SlideTiles:
    full = tiles()
    none = TileGrid(full.grid.spec, 0, 512, 0.5, np.empty((0, 2), np.int64), np.empty(0, np.float32))
    return SlideTiles(slide_id, none, full.levels)


def test_trees_have_the_names_that_the_tools_expect(tmp_path):
    slides = [tiles(slide_id="a"), tiles(slide_id="b"), empty("c")]
    (folder,) = export_trident(slides, tmp_path / "trident")
    assert folder.name == "20x_256px_0px_overlap"
    assert sorted(path.name for path in (folder / "patches").iterdir()) == [f"{one}_patches.h5" for one in "abc"]
    assert read_coords(folder / "patches" / "c_patches.h5").xy.shape == (0, 2)
    export_clam(slides, tmp_path / "clam")
    assert sorted(path.name for path in (tmp_path / "clam" / "patches").iterdir()) == ["a.h5", "b.h5"]
    with (tmp_path / "clam" / "process_list_autogen.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["process"], row["status"]) for row in rows] == [
        ("a", "0", "processed"), ("b", "0", "processed"), ("c", "0", "failed_seg"),
    ]  # fmt: skip
    (other,) = export_trident([tiles(stride_px=192, mpp=1.0)], tmp_path / "trident")
    assert other.name == "10x_256px_64px_overlap"
    with pytest.raises(SpecError, match="no plain file name"):
        export_clam([tiles(slide_id="../a")], tmp_path)


def test_a_clam_tree_knows_which_slides_are_empty_and_keeps_no_older_file_of_them(tmp_path):
    export_clam([tiles(slide_id="a"), tiles(slide_id="b")], tmp_path)
    assert not known_empty(tmp_path, "b")
    export_clam([tiles(slide_id="a"), empty("b")], tmp_path)
    assert [path.name for path in (tmp_path / "patches").iterdir()] == ["a.h5"]
    assert [known_empty(tmp_path, name) for name in ("a", "b", "c")] == [False, True, False]
    assert not known_empty(tmp_path / "patches", "b")
    table = tmp_path / "process_list_autogen.csv"
    table.write_text(table.read_text().replace("b,0,failed_seg,", "b,0,failed_seg,0"))  # CLAM gave up on it
    assert not known_empty(tmp_path, "b")
    table.write_bytes(b"slide_id,status\n\xff,x\n")
    with pytest.raises(StoreError, match="no table"):
        known_empty(tmp_path, "b")


def test_a_tile_that_a_file_lists_again_is_taken_once_in_the_files_order(tmp_path, caplog):
    corners = np.array([[512, 0], [0, 512], [512, 0], [0, 0], [0, 512]])
    path = h5(tmp_path / "x.h5", corners, {"patch_size": 512, "patch_spacing_um_px": 0.25})
    grid = grid_from_coords(tiles().levels, read_coords(path), TileSpec())
    assert grid.xy.tolist() == [[512, 0], [0, 512], [0, 0]]
    assert len(grid.tissue) == 3
    assert "lists 2 of its 5 tiles again" in caplog.text


def test_the_real_dataset_class_of_torchmil_reads_a_trident_tree(tmp_path):
    torchmil = pytest.importorskip("torchmil.datasets", reason="torchmil is not installed: pip install torchmil")
    slides = [tiles(slide_id="a"), tiles(0.5, slide_id="b")]
    (folder,) = export_trident(slides, tmp_path)
    (folder / "features_test").mkdir()
    for slide in slides:  # rows of features are rows of coords, as TRIDENT writes them
        h5(folder / "features_test" / f"{slide.slide_id}.h5", features=(slide.grid.xy.astype(np.float32), {}))
    (tmp_path / "labels.csv").write_text("wsi,label\na.svs,1\nb.svs,0\n")
    for slide in slides:
        data = torchmil.TridentWSIDataset(
            f"{folder}/", str(tmp_path / "labels.csv"), "test", wsi_names=[slide.slide_id], wsi_name_col="wsi",
            wsi_label_col="label", bag_keys=["X", "Y", "adj", "coords"], patch_size=slide.grid.span_px,
        )  # fmt: skip
        bag = data[0]
        assert np.array_equal(bag["X"].numpy(), slide.grid.xy)
        assert np.array_equal(bag["coords"].numpy(), slide.grid.xy // slide.grid.span_px)
        assert bag["Y"].tolist() == [int(slide.slide_id == "a")]
        assert tuple(bag["adj"].shape) == (len(slide.grid), len(slide.grid))
