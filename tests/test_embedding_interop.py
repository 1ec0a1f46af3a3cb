"""Embeddings in the files of other tools: round trips, their own readers as oracles, real files, and damaged ones."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from embedding.backbones import find_backbone
from embedding.contract import make_contract
from embedding.interop import (
    READERS,
    WRITERS,
    Features,
    Known,
    Report,
    foreign_contract,
    read_features,
    recognise,
    write_features,
)
from embedding.interop.ours import from_store, to_store
from embedding.store import open_embeddings, write_embeddings
from tiling.coords import read_coords
from tiling.spec import TileSpec
from wsi.errors import SpecError, StoreError


def features(tiles=40, dim=6, dtype=np.float32, **given) -> Features:
    """Tiles of 256 px at 0.5 µm/px of a slide at 0.25, in a row of ten."""
    rng = np.random.default_rng(0)
    number = np.arange(tiles)
    usual = {
        "xy": np.stack([number % 10, number // 10], axis=1).astype(np.int64) * 512 + 1024,
        "span_px": 512, "tile_px": 256, "mpp": 0.5, "mpp_source": "file", "slide_mpp": 0.25, "size": (8192, 6144),
        "overlap_px": 0, "encoder": "uni_v1", "facts": {"hash": "0123456789ab"},
    }  # fmt: skip
    return Features("s1", "slidestream", rng.normal(size=(tiles, dim)).astype(dtype), **{**usual, **given})


def written(found: Features, flavour: str, out: Path) -> tuple[Path, Report]:
    report = Report(found.slide_id, flavour, out)
    return write_features(found, flavour, out, report), report


def h5(path: Path, attrs=None, **tables) -> Path:
    """An HDF5 file; a table is an array, or (array, attributes)."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs or {})
        for name, table in tables.items():
            values, about = table if isinstance(table, tuple) else (table, {})
            file.create_dataset(name, data=values).attrs.update(about)
    return path


MPP = Known(slide_mpp=0.25)
EVERYTHING = {"span_px", "tile_px", "mpp", "encoder"}


@pytest.mark.parametrize(
    ("flavour", "known", "same", "exact"),
    [
        ("trident", Known(), {"span_px", "tile_px", "mpp", "encoder", "size"}, True),
        ("clam", Known(), {"span_px"}, True),  # guessed by the distance of the tiles
        ("stamp", MPP, EVERYTHING, False),
        ("atlaspatch", Known(), {*EVERYTHING, "slide_mpp", "size"}, True),
        ("slide2vec", Known(), {*EVERYTHING, "slide_mpp", "size"}, True),
        ("anndata", Known(), {*EVERYTHING, "slide_mpp", "size"}, True),
        ("spatialdata", Known(), {*EVERYTHING, "slide_mpp", "size"}, True),
    ],
)
def test_what_is_written_for_a_tool_reads_back_the_same(flavour, known, same, exact, tmp_path):
    if flavour in ("anndata", "spatialdata"):
        pytest.importorskip(flavour, reason=f"{flavour} is not installed: pip install {flavour}")
    ours = features()
    path, report = written(ours, flavour, tmp_path)
    assert recognise(path) == flavour
    ((again, said),) = read_features(path, known)
    assert again.slide_id == "s1"
    assert again.origin == flavour
    assert np.allclose(again.embeddings, ours.embeddings, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)
    assert np.array_equal(again.xy, ours.xy)
    assert {name for name in same if getattr(again, name) != getattr(ours, name)} == set()
    lost = {name for name in EVERYTHING - same if getattr(again, name) is None}
    assert lost == EVERYTHING - same == {name for name in EVERYTHING if report.of(name) == "dropped"} - same
    assert {name for name in lost if said.of(name) != "missing"} == set()


def test_every_writer_has_a_reader_and_all_say_how_they_are_told():
    assert set(WRITERS) <= set(READERS)
    for flavour in READERS.values():
        assert callable(flavour.load())
        assert flavour.told_by


@pytest.mark.parametrize("tiles", [0, 1])
@pytest.mark.parametrize("flavour", ["trident", "clam", "stamp", "atlaspatch", "slide2vec"])
def test_slides_with_no_tile_or_one_go_there_and_back(flavour, tiles, tmp_path):
    path, _ = written(features(tiles), flavour, tmp_path)
    ((again, _),) = read_features(path, MPP)
    assert again.embeddings.shape == (tiles, 6)
    assert again.xy.shape == (tiles, 2)


def test_hdf5_files_are_laid_out_as_the_tools_lay_them_out(tmp_path):
    ours = features(3000, dtype=np.float16)
    trident, _ = written(ours, "trident", tmp_path)
    assert trident.relative_to(tmp_path).as_posix() == "20x_256px_0px_overlap/features_uni_v1/s1.h5"
    clam, _ = written(ours, "clam", tmp_path / "clam")
    stamp, _ = written(ours, "stamp", tmp_path / "stamp")
    atlas, _ = written(ours, "atlaspatch", tmp_path)
    with h5py.File(trident) as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float16, np.int64)
        assert file["features"].chunks == (1024, 6)
        assert file["features"].maxshape == (None, 6)
        assert dict(file["features"].attrs) == {"encoder": "uni_v1", "name": "s1", "savetodir": "features_uni_v1"}
        keys = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
        keys |= {"overlap": 0, "level0_width": 8192, "level0_height": 6144}
        assert {name: file["coords"].attrs[name] for name in keys} == keys
    with h5py.File(clam) as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        assert not [*file.attrs, *file["features"].attrs, *file["coords"].attrs]
    with h5py.File(stamp) as file:
        assert stamp.parent.name == "uni_v1-01234567"
        assert (file["feats"].dtype, file["coords"].dtype) == (np.float16, np.float32)
        assert np.allclose(file["coords"][()] / 0.25, ours.xy)
        attrs = dict(file.attrs)
        assert attrs == {
            "stamp_version": "2.1.0", "extractor": "uni_v1", "unit": "um", "tile_size_um": 128.0, "tile_size_px": 256,
            "code_hash": "01234567", "feat_type": "tile",
        }  # fmt: skip
    with h5py.File(atlas) as file:
        assert file["coords"][1].tolist() == [1536, 1024, 512, 512, 0]
        assert file["passports"][1] == b"s1__x1536_y1024_rw512_rh512_lv0_mag40_tmag20_total3000"
        assert file["passports"].dtype == "S160"
        assert file["features/uni_v1"].dtype == np.float32
        assert file.attrs["passport_version"] == 2


def test_the_tools_own_readers_read_what_is_written(tmp_path):
    import torch

    anndata = pytest.importorskip("anndata", reason="anndata is not installed: pip install anndata")
    ours = features()
    written(ours, "clam", tmp_path)
    tensor = torch.load(tmp_path / "pt_files" / "s1.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), ours.embeddings)
    table = anndata.read_h5ad(written(ours, "anndata", tmp_path)[0])
    assert np.array_equal(table.X, ours.embeddings)
    assert np.array_equal(table.obsm["spatial"], ours.xy + 256)  # centres, as squidpy has them
    assert table.uns["spatial"]["s1"]["scalefactors"]["spot_diameter_fullres"] == 512
    path, _ = written(ours, "slide2vec", tmp_path)
    with np.load(path) as file, np.load(tmp_path / "tiles" / "s1.coordinates.npz") as places:
        assert np.array_equal(file["features"], ours.embeddings)
        assert (places["x"].dtype, places["tile_index"].dtype, places["tissue_fractions"].dtype) == (
            np.int64, np.int32, np.float32,
        )  # fmt: skip
    meta = json.loads(path.with_suffix(".meta.json").read_text())
    assert (meta["num_tiles"], meta["feature_dtype"], meta["tile_size_lv0"]) == (40, "fp32", 512)


def test_spatialdata_reads_the_boxes_and_the_table_that_annotates_them(tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed: pip install spatialdata")
    ours = features()
    data = spatialdata.read_zarr(written(ours, "spatialdata", tmp_path)[0])
    boxes = data.shapes["tiles"].geometry.bounds.to_numpy()
    assert np.array_equal(boxes[:, :2], ours.xy)
    assert np.array_equal(boxes[:, 2:], ours.xy + 512)
    assert data.tables["uni_v1_tiles"].uns["spatialdata_attrs"]["region"] == "tiles"
    assert np.array_equal(data.tables["uni_v1_tiles"].X, ours.embeddings)


def test_torchmil_reads_features_from_a_trident_tree(tmp_path):
    torchmil = pytest.importorskip("torchmil.datasets", reason="torchmil is not installed: pip install torchmil")
    ours = features()
    path, _ = written(ours, "trident", tmp_path)
    folder = path.parent.parent
    (folder / "patches").mkdir()
    h5(folder / "patches" / "s1_patches.h5", coords=ours.xy)  # `wsi convert` writes these beside
    (tmp_path / "labels.csv").write_text("wsi,label\ns1.svs,1\n")
    data = torchmil.TridentWSIDataset(
        f"{folder}/", str(tmp_path / "labels.csv"), "uni_v1", wsi_names=["s1"], wsi_name_col="wsi",
        wsi_label_col="label", bag_keys=["X", "Y", "coords"], patch_size=512,
    )  # fmt: skip
    assert np.array_equal(data[0]["X"].numpy(), ours.embeddings)
    assert np.array_equal(data[0]["coords"].numpy(), ours.xy // 512)


@pytest.mark.parametrize(
    ("file", "flavour", "shape", "span", "placed"),
    [
        ("stamp_TCGA-AD-6964-01Z-00-DX1.features.h5", "stamp-old", (777, 512), 512, True),
        ("stamp_TCGA-3X-AAVA-01Z-00-DX1.features.h5", "bag", (180, 512), None, False),
    ],
)
def test_real_bags_read(file, flavour, shape, span, placed, data_dir):
    path = data_dir / "bags" / file
    assert recognise(path) == flavour
    ((found, report),) = read_features(path)
    assert found.slide_id == file.removesuffix(".features.h5")
    assert (found.embeddings.shape, found.embeddings.dtype) == (shape, np.float32)
    assert found.span_px == span
    assert (found.xy is not None) == placed
    assert report.of("encoder") == "missing"
    assert report.of("span_px" if placed else "coords") == ("guessed" if placed else "missing")
    if placed:
        assert found.xy[0].tolist() == [10240, 21504]


def test_a_table_of_anothers_spots_is_taken_by_their_centres(tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed: pip install anndata")
    table = anndata.AnnData(ROWS)
    table.obsm["spatial"] = GRID + 56.0
    table.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 112.0}}}
    table.write_h5ad(tmp_path / "s1.h5ad")
    ((found, report),) = read_features(tmp_path / "s1.h5ad")
    assert np.array_equal(found.xy, GRID)
    assert found.span_px == 112
    assert np.array_equal(found.embeddings, ROWS)
    assert "guessed" in [one.fate for one in report if one.field == "coords"]


def test_a_real_file_of_coordinates_is_known_for_one(data_dir):
    path = data_dir / "bags" / "clam_coords_TCGA-2Y-A9GT-01Z-00-DX1.h5"
    assert recognise(path) == "coords"
    assert len(read_coords(path).xy) == 8896
    with pytest.raises(StoreError, match="places and no features; give it to `wsi tile --coords`"):
        read_features(path)


GRID = np.array([[0, 0], [224, 0], [0, 224]])
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize(
    ("tables", "attrs", "known", "expected"),
    [
        (  # TRIDENT at 20.2x: the slide's magnification is rounded, so the true one is not known
            {"features": (ROWS, {"encoder": "uni_v1"}),
             "coords": (GRID, {"patch_size": 256, "patch_size_level0": 507, "target_magnification": 20.2})},
            {}, Known(), {"mpp": 0.5, "mpp_source": "magnification", "span_px": 507, "tile_px": 256},
        ),
        (  # what the user knows counts more
            {"features": (ROWS, {"encoder": "uni_v1"}), "coords": (GRID, {"target_magnification": 20})},
            {}, Known("uni2-h", 224, 0.25), {"mpp": 0.25, "mpp_source": "user", "encoder": "uni2-h", "tile_px": 224},
        ),
        ({"features": ROWS[0]}, {}, Known(), {"level": "slide", "xy": None}),
        ({"features": ROWS, "coords": GRID}, {}, Known(None, 224, 0.5, 0.25), {"span_px": 448}),
        (  # STAMP without the slide's pixel size: µm cannot be placed
            {"feats": ROWS.astype(np.float16), "coords": GRID.astype(np.float32)},
            {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "ctranspath-7c998680"},
            Known(), {"xy": None, "mpp": 256 / 224, "encoder": "ctranspath-7c998680"},
        ),
        ({"feats": ROWS, "coords": GRID}, {}, MPP, {"span_px": 1024, "tile_px": 224, "mpp": 256 / 224}),  # STAMP 1
        ({"feats": ROWS[:1]}, {"feat_type": "patient", "encoder": "cobra"}, Known(), {"level": "slide"}),
        ({"patch_embeddings": ROWS}, {}, Known(), {"xy": None, "origin": "stamp"}),
        (
            {"features": ROWS, "coords": (GRID, {"patch_size": 448, "patch_size_to_resize_to_for_desired_mpp": 224})},
            {}, Known(), {"origin": "mussel", "span_px": 448, "tile_px": 224},
        ),
    ],
)  # fmt: skip
def test_files_of_every_kind_say_what_is_in_them(tables, attrs, known, expected, tmp_path):
    ((found, _),) = read_features(h5(tmp_path / "s1.h5", attrs, **tables), known)
    assert {name: getattr(found, name) for name in expected} == expected


def test_coordinates_of_clam_come_from_its_patches_and_must_belong(tmp_path):
    (tmp_path / "h5_files").mkdir()
    (tmp_path / "patches").mkdir()
    path = h5(tmp_path / "h5_files" / "s1.h5", features=ROWS, coords=GRID.astype(np.int32))
    attrs = {"patch_size": 112, "patch_level": 1, "downsample": (2.0, 2.0)}
    h5(tmp_path / "patches" / "s1.h5", coords=(np.concatenate([GRID, GRID + 448]), attrs))
    ((found, report),) = read_features(path)
    assert (found.span_px, report.of("span_px")) == (224, "kept")
    h5(tmp_path / "patches" / "s1.h5", coords=(GRID + 1, attrs))
    with pytest.raises(StoreError, match=r"its tiles are not those of s1\.h5"):
        read_features(path)


def test_a_file_with_features_of_several_models_gives_each(tmp_path):
    path, _ = written(features(), "atlaspatch", tmp_path)
    with h5py.File(path, "r+") as file:
        file["features/virchow2"] = np.ones((40, 3), np.float32)
    found = [one for one, _ in read_features(path)]
    assert [(one.encoder, one.embeddings.shape) for one in found] == [("uni_v1", (40, 6)), ("virchow2", (40, 3))]
    assert foreign_contract(found[0])["hash"] != foreign_contract(found[1])["hash"]


@pytest.mark.parametrize("flavour", ["trident", "stamp", "atlaspatch"])
def test_a_tool_that_cannot_do_without_the_scale_is_not_given_a_made_up_one(flavour, tmp_path):
    with pytest.raises(SpecError, match="unknown"):
        written(features(slide_mpp=None), flavour, tmp_path)
    assert not any(tmp_path.iterdir())


def test_float16_is_refused_what_does_not_fit_in_it(tmp_path):
    with pytest.raises(StoreError, match="beyond float16"):
        written(replace(features(), embeddings=np.full((40, 6), 1e6, np.float32)), "stamp", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.h5", b"no HDF5", "not a sound HDF5 file"),
        ("x.npz", b"no zip", "of no kind that is read"),
        ("x.pt", b"no pickle", "no file of a tensor"),
        ("x.h5ad", b"no HDF5", "not a sound HDF5 file"),
        ("gone.h5", None, "no such file"),
    ],
)
def test_what_is_no_such_file_is_refused(name, content, problem, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=problem):
        read_features(tmp_path / name)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"features": ROWS, "coords": GRID[:2]}, "3 features and 2 coordinates"),
        ({"features": ROWS * np.nan, "coords": GRID}, "NaN or infinity"),
        ({"features": ROWS, "coords": GRID * np.nan}, "no numbers of pixels"),
        ({"features": np.array([b"a", b"b"]), "coords": GRID}, "no table of numbers"),
        ({"other": ROWS}, "of no kind that is read.*trident: `features`"),
    ],
)
def test_foreign_content_is_refused(tables, problem, tmp_path):
    with pytest.raises(StoreError, match=problem):
        read_features(h5(tmp_path / "s1.h5", **tables))


def test_no_code_in_a_pt_file_runs(tmp_path):
    import torch

    torch.save({"a": Path("x")}, tmp_path / "s1.pt")
    with pytest.raises(StoreError, match="no file of a tensor"):
        read_features(tmp_path / "s1.pt")


def test_a_claim_of_more_than_the_file_can_hold_is_not_believed(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("features", shape=(10_000_000, 512), dtype=np.float32, chunks=(1024, 512))
    with pytest.raises(StoreError, match="in so small a file cannot be"):
        read_features(tmp_path / "x.h5")


def test_a_text_heap_on_which_the_library_would_loop_for_ever_is_found_before(tmp_path):
    path, _ = written(features(4), "stamp", tmp_path)
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL\x01")
    data[heap + 16 : heap + 32] = bytes(16)  # the first text becomes free space of no size
    path.write_bytes(data)
    with pytest.raises(StoreError, match="its texts are damaged"):
        recognise(path)


def test_flipped_bytes_end_in_our_error_or_in_numbers(tmp_path):
    path, _ = written(features(8), "trident", tmp_path)
    sound, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(sound)
        for place in rng.integers(0, len(sound), 6):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "y.h5").write_bytes(damaged)
        try:
            assert all(one.embeddings.ndim == 2 for one, _ in read_features(tmp_path / "y.h5"))
        except StoreError:
            refused += 1
    assert refused > 10


def test_a_foreign_contract_is_never_our_own_and_says_where_it_is_from(tmp_path):
    uni = make_contract(find_backbone("uni"), "0" * 64, TileSpec(256, 0.5))
    ((found, _),) = read_features(written(features(), "trident", tmp_path)[0])
    contract = foreign_contract(found)
    assert contract["origin"] == "trident"
    assert contract["encoder"] == "uni_v1"
    assert contract["hash"] != uni["hash"]
    assert "origin" not in uni
    other = replace(found, slide_id="s2", span_px=507, slide_mpp=0.2525, size=None)
    assert foreign_contract(other) == contract  # what differs from slide to slide is no part of it
    assert foreign_contract(replace(found, encoder="uni_v2"))["hash"] != contract["hash"]


def test_a_store_holds_what_is_known_and_gives_it_back(tmp_path):
    ours = replace(features(dtype=np.float16), origin="trident")
    to_store(ours, foreign_contract(ours), Path("s1.h5"), tmp_path / "s1.zarr")
    store = open_embeddings(tmp_path / "s1.zarr")
    again = from_store(store, None, Report("s1", "x", Path("x")))
    assert np.array_equal(again.embeddings, ours.embeddings)
    assert np.array_equal(again.xy, ours.xy)
    same = ("span_px", "tile_px", "mpp", "slide_mpp", "encoder")
    assert [getattr(again, name) for name in same] == [getattr(ours, name) for name in same]
    unplaced = replace(ours, xy=None, span_px=None)
    to_store(unplaced, foreign_contract(unplaced), Path("s1.h5"), tmp_path / "s1.zarr")
    store = open_embeddings(tmp_path / "s1.zarr")
    assert (store.xy == -1).all()
    assert from_store(store, None, Report("s1", "x", Path("x"))).xy is None


def test_failed_tiles_are_left_out_and_counted(tmp_path):
    ok = np.array([True, False, True])
    contract = {"backbone": "uni", "hash": "0" * 12, "tile_px": 256, "mpp": 0.5}
    facts = {"slide_id": "s1", "contract": contract, "span_px": 512, "mpp": 0.5, "fingerprint": "", "identity": ""}
    with write_embeddings(tmp_path / "s1.zarr", 3, (2,), "float32") as writer:
        writer.write(ROWS[:, None] * ok[:, None, None], ok)
        writer.finish(GRID, facts)
    report = Report("s1", "clam", tmp_path)
    found = from_store(open_embeddings(tmp_path / "s1.zarr"), None, report)
    assert np.array_equal(found.embeddings, ROWS[ok])
    assert np.array_equal(found.xy, GRID[ok])
    assert found.slide_mpp == 0.25
    assert [(one.fate, one.value) for one in report if one.field == "failed tiles"] == [("dropped", 1)]
