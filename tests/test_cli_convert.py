"""Coordinates from and for other tools and other runs, through the commands."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from embedding.contract import contract_name, differing
from embedding.store import open_embeddings
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import read_manifest
from jobs.model_stages import predict_slide
from jobs.receipts import DONE
from tests.commands import corners, section, slides, statuses, store, wsi
from tests.slides import write_svs
from tiling.coords import read_coords

PX = ("--tile-px", 120, "--tile-mpp", 0.5)
TREE = "20x_120px_0px_overlap"


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Two slides and a run that tiled them."""
    folder = tmp_path_factory.mktemp("tiled")
    slides(folder / "slides", "a", "b.2")
    wsi("tile", folder / "slides", "-o", folder / "run", *PX)
    return folder


@pytest.mark.parametrize(
    ("flavour", "said", "given", "files"),
    [
        ("trident", TREE, TREE, [f"{TREE}/patches/a_patches.h5", f"{TREE}/patches/b.2_patches.h5"]),
        ("trident", TREE, "", [f"{TREE}/patches/a_patches.h5"]),  # TRIDENT's job folder, with one tiling in it
        ("clam", "", "", ["patches/a.h5", "patches/b.2.h5", "process_list_autogen.csv"]),
    ],
)
def test_tiles_that_go_out_to_another_tool_come_back_the_same(tiled, tmp_path, flavour, said, given, files):
    out, run = tmp_path / "out", tmp_path / "run"
    assert wsi("convert", tiled / "run", "--to", flavour, "-o", out) == f"2 slides: {out / said}\n"
    assert all((out / file).is_file() for file in files)
    options = ("tile", tiled / "slides", "-o", run, *PX, "--coords", out / given)
    assert "2 done" in wsi(*options)
    for slide_id in ("a", "b.2"):
        ours, theirs = store(run, slide_id).grid, store(tiled / "run", slide_id).grid
        assert np.array_equal(ours.xy, theirs.xy)
        assert (ours.span_px, ours.level, ours.mpp) == (theirs.span_px, theirs.level, theirs.mpp)
        assert ours.tissue == pytest.approx(theirs.tissue, abs=1e-6)
    assert "2 already there" in wsi(*options)


def test_a_changed_file_of_coordinates_redoes_its_slide_and_a_missing_one_fails_alone(tiled, tmp_path):
    out, run = tmp_path / "out", tmp_path / "run"
    wsi("convert", tiled / "run", "--to", "clam", "-o", out)
    options = ("tile", tiled / "slides", "-o", run, *PX, "--coords", out)
    wsi(*options)
    with h5py.File(out / "patches" / "a.h5", "r+") as file:
        file["coords"].resize(5, axis=0)
    wsi(*options)
    assert statuses(run) == {"a": "done", "b.2": "skipped"}
    assert len(corners(run, "a")) == 5
    (out / "patches" / "b.2.h5").unlink()
    text = wsi(*options, code=1)
    assert "out has no tiles of b.2" in text
    assert statuses(run) == {"a": "skipped", "b.2": "failed"}


def test_tiles_of_another_size_are_refused_and_the_scale_that_fits_is_named(tiled, tmp_path):
    wsi("convert", tiled / "run", "--to", "trident", "-o", tmp_path / "out")
    options = ("tile", tiled / "slides" / "a.svs", "-o", tmp_path / "run", "--coords", tmp_path / "out" / TREE)
    text = wsi(*options, "--tile-px", 60, "--tile-mpp", 0.5, code=1)
    assert "are 60.0 µm wide, 60 px at 0.5 µm per pixel are not" in text
    assert "ask for --tile-px 120, or for --tile-mpp 1" in text
    assert "1 done" in wsi(*options, "--tile-px", 60, "--tile-mpp", 1)
    grid = store(tmp_path / "run", "a").grid
    assert (grid.spec.tile_px, grid.span_px, grid.mpp) == (60, 120, 1.0)


@pytest.mark.parametrize("tile_px", [120, 64])
def test_another_runs_tiles_give_the_same_places_at_another_scale(tiled, tmp_path, tile_px):
    run, mpp = tmp_path / "run", 2.0
    options = ("tile", tiled / "slides", "-o", run, "--coords", tiled / "run")
    wsi(*options, "--tile-px", tile_px, "--tile-mpp", mpp)
    ours, theirs = store(run, "a").grid, store(tiled / "run", "a").grid
    assert ours.span_px == tile_px * 4
    assert ours.mpp == mpp
    assert ours.spec.tile_px == tile_px
    assert np.array_equal(ours.xy + ours.span_px // 2, theirs.xy + theirs.span_px // 2)
    assert len(ours) == len(theirs) > 20


def test_tiles_of_a_slide_of_another_size_are_not_taken(tiled, tmp_path):
    write_svs(tmp_path / "a.svs", section(1300, 900))
    wsi("convert", tiled / "run", "--to", "trident", "-o", tmp_path / "out")
    for place in (tiled / "run", tmp_path / "out"):
        text = wsi("tile", tmp_path / "a.svs", "-o", tmp_path / "run", *PX, "--coords", place, code=1)
        assert "not of this slide, of 1300 x 900 px" in text


def test_tiles_of_another_slide_of_the_same_size_or_of_the_run_itself_are_not_taken(tiled, tmp_path):
    write_svs(tmp_path / "a.svs", section(seed=9))
    options = ("tile", tmp_path / "a.svs", "-o", tmp_path / "run", *PX, "--coords", tiled / "run")
    assert "it is of another slide: the content differs" in wsi(*options, code=1)
    text = wsi("tile", tiled / "slides", "-o", tiled / "run", *PX, "--coords", tiled / "run", code=2)
    assert "it is the run folder itself" in text


def test_the_coordinates_of_one_slide_may_be_given_as_its_file(tiled, tmp_path):
    wsi("convert", tiled / "run", "--to", "clam", "-o", tmp_path / "out")
    file, run = tmp_path / "out" / "patches" / "b.2.h5", tmp_path / "run"
    wsi("tile", tiled / "slides" / "b.2.svs", "-o", run, *PX, "--coords", file)
    assert corners(run, "b.2") == corners(tiled / "run", "b.2")


def test_what_was_tiled_by_anothers_coordinates_is_embedded_row_by_row(tiled, tmp_path):
    wsi("convert", tiled / "run", "--to", "clam", "-o", tmp_path / "out")
    files = sorted((tmp_path / "out" / "patches").iterdir())
    with h5py.File(files[0], "r+") as file:  # another order, as another tool may have
        file["coords"][:] = file["coords"][()][::-1]
    run = tmp_path / "run"
    wsi("tile", tiled / "slides" / "a.svs", "-o", run, *PX, "--coords", tmp_path / "out")
    wsi("embed", tiled / "slides" / "a.svs", "-o", run)
    wsi("tile", tiled / "slides" / "a.svs", "-o", tmp_path / "own", *PX)
    wsi("embed", tiled / "slides" / "a.svs", "-o", tmp_path / "own")
    theirs, ours = (open_embeddings(next(folder.glob("embeddings/*/a.zarr"))) for folder in (run, tmp_path / "own"))
    assert np.array_equal(theirs.xy, read_coords(files[0]).xy)
    assert np.array_equal(theirs.xy, ours.xy[::-1])
    assert np.allclose(theirs.embeddings, ours.embeddings[::-1], atol=0.01)


@pytest.mark.parametrize(
    ("flavour", "run", "problem"),
    [
        ("trydent", "run", "--to: 'trydent' is unknown; choose trident, clam, stamp"),
        ("clam", "none", "no tiled slides"),
    ],
)
def test_what_cannot_be_converted_is_refused(tiled, tmp_path, flavour, run, problem):
    assert problem in wsi("convert", tiled / run, "--to", flavour, "-o", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_given_tiles(tiled, tmp_path):
    options = ("--coords", tiled / "run", "--dry-run")
    text = wsi("tile", tiled / "slides", "-o", tmp_path / "run", *PX, *options)
    tiles = sum(len(corners(tiled / "run", name)) for name in ("a", "b.2"))
    assert f"2 slides with {tiles} tiles" in text
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def embedded(tiled):
    """The same run with embeddings, and its patches as files."""
    shutil.copytree(tiled / "run", tiled / "embedded")
    run = tiled / "embedded"
    wsi("tile", tiled / "slides", "-o", run, *PX, "--patches", "jpeg", "--export", "jpg")
    wsi("embed", tiled / "slides", "-o", run)
    return run


def only(run, slide_id):
    """The one store of embeddings that a run has of a slide."""
    (path,) = run.glob(f"embeddings/*/{slide_id}.zarr")
    return open_embeddings(path)


@pytest.mark.parametrize(
    ("flavour", "said", "exact"),
    [
        ("trident", (), True),
        ("clam", (), True),
        ("stamp", ("--slide-mpp", 0.5), True),  # float16 both, so nothing is rounded
        ("atlaspatch", (), True),
        ("slide2vec", (), True),
        ("anndata", (), True),
    ],
)
def test_embeddings_that_go_to_another_tool_come_back_the_same(embedded, tmp_path, flavour, said, exact):
    if flavour == "anndata":
        pytest.importorskip("anndata", reason="anndata is not installed: pip install anndata")
    text = wsi("convert", embedded, "--to", flavour, "-o", tmp_path / "out")
    assert "2 slides with features of efficientnet-lite0-" in text
    assert ("embeddings: float16 as float32" in text) == (flavour in ("clam", "atlaspatch", "anndata"))
    back = wsi("convert", tmp_path / "out", "--to", "run", "-o", tmp_path / "run", *said)
    assert f"{flavour}: 2 slides" in back
    for slide_id in ("a", "b.2"):
        ours, theirs = only(embedded, slide_id), only(tmp_path / "run", slide_id)
        assert np.array_equal(ours.embeddings, theirs.embeddings)
        assert np.array_equal(ours.xy, theirs.xy)
        assert ours.span_px == theirs.span_px
        assert theirs.contract["origin"] == flavour
        assert theirs.contract_hash != ours.contract_hash
    report = json.loads((tmp_path / "run" / "convert_report.json").read_text())
    assert [slide["slide_id"] for slide in report["slides"]] == ["a", "b.2"]
    assert {line["field"] for line in report["slides"][0]["kept"]} >= {"embeddings", "coords", "span_px"}


def test_a_run_with_several_kinds_of_embeddings_asks_which(embedded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(embedded / "embeddings", run / "embeddings")
    (name,) = (path.name for path in (run / "embeddings").iterdir())
    wsi("convert", embedded, "--to", "clam", "-o", tmp_path / "clam")
    wsi("convert", tmp_path / "clam", "--to", "run", "-o", run)
    text = wsi("convert", run, "--to", "stamp", "-o", tmp_path / "out", code=2)
    assert "run/embeddings: 2 of them fit" in text
    assert "name one with --contract" in text
    assert "it has no embeddings x" in wsi("convert", run, "--to", "stamp", "-o", tmp_path, "--contract", "x", code=2)
    assert "2 slides with" in wsi("convert", run, "--to", "stamp", "-o", tmp_path / "out", "--contract", name)


def test_imported_features_are_trained_on_and_predicted_from_but_never_mixed_with_ours(trained, tmp_path):
    run = tmp_path / "run"
    wsi("convert", trained.run, "--to", "trident", "-o", tmp_path / "out")
    text = wsi("convert", tmp_path / "out", "--to", "run", "-o", run)
    (name,) = (path.name for path in (run / "embeddings").iterdir())
    assert f"--features {name}" in text
    wsi("train", trained.manifest, "-o", run, "-n", "m", "--features", name, "--folds", 2, "--epochs", 2)
    spec = resolve({"model": str(run / "models" / "m")})
    record = read_manifest(trained.manifest)[0]
    assert predict_slide(record, spec, RunFolder(run)).status == DONE
    text = wsi("predict", trained.manifest, "-o", run, "-m", trained.model, code=2)
    assert "origin" in text  # the two contracts, side by side
    text = wsi("predict", trained.manifest, "-o", trained.run, "-m", run / "models" / "m", code=2)
    assert "embeddings that TRIDENT made" in text
    assert "wsi convert FILES --to run" in text  # and not settings of ours, which would not mend it
    assert "≠" not in text
    with (run / "slides.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["slide_id"] for row in rows} == {one.slide_id for one in read_manifest(trained.manifest)}
    assert contract_name(only(run, rows[0]["slide_id"]).contract) == name


def test_features_at_the_places_of_the_runs_tiles_are_of_that_slide_and_others_are_refused(embedded, tiled, tmp_path):
    run = tmp_path / "run"
    wsi("convert", embedded, "--to", "trident", "-o", tmp_path / "out")
    wsi("tile", tiled / "slides", "-o", run, *PX, "--coords", tmp_path / "out")
    wsi("convert", tmp_path / "out", "--to", "run", "-o", run)
    assert only(run, "a").identity == store(run, "a").identity
    assert only(run, "a").attrs["grid_fingerprint"] == store(run, "a").attrs["grid_fingerprint"]
    wsi("tile", tiled / "slides", "-o", run, "--tile-px", 60, "--tile-mpp", 0.5)
    text = wsi("convert", tmp_path / "out", "--to", "run", "-o", run, code=2)
    assert "the run folder has other tiles of a" in text


def test_a_bad_file_fails_alone_and_coordinates_are_left(embedded, tmp_path):
    wsi("convert", embedded, "--to", "clam", "-o", tmp_path / "out")
    (tmp_path / "out" / "h5_files" / "a.h5").write_bytes(b"damaged")
    (tmp_path / "out" / "pt_files" / "a.pt").unlink()
    text = wsi("convert", tmp_path / "out", "--to", "run", "-o", tmp_path / "run", code=1)
    assert "clam: 1 slides" in text
    assert "a.h5: not a sound HDF5 file" in text
    assert "2 files hold coordinates only" in text


def test_real_bags_become_a_run(data_dir, tmp_path):
    text = wsi("convert", data_dir / "bags", "--to", "run", "-o", tmp_path / "run")
    assert "1 files hold coordinates only" in text
    assert "guessed  span_px (1 of 2 slides)" in text
    shapes = sorted(open_embeddings(path).embeddings.shape for path in (tmp_path / "run").glob("embeddings/*/*.zarr"))
    assert shapes == [(180, 512), (777, 512)]


def test_exported_patches_come_in_again_and_are_embedded_without_their_slide(embedded, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "patches"
    shutil.copytree(embedded / "patches", copy)
    text = wsi("convert", copy, "--to", "run", "-o", run)
    assert "tile images: 2 slides" in text
    theirs, ours = store(run, "a"), store(embedded, "a")
    rows = [ours.grid.xy.tolist().index(corner) for corner in theirs.grid.xy.tolist()]  # in order of names
    assert len(set(rows)) == len(ours.grid)
    assert (theirs.grid.span_px, theirs.grid.mpp) == (ours.grid.span_px, ours.grid.mpp)
    assert theirs.shards.chunk(3) == ours.shards.chunk(rows[3])  # the JPEG files as they are
    wsi("embed", run / "slides.csv", "-o", run)
    unlike = differing(only(run, "a").contract, only(embedded, "a").contract)
    assert unlike == [("pixels", "jpeg files", "jpeg, quality 90")]  # nobody knows what pictures went through
    assert np.allclose(only(run, "a").embeddings, only(embedded, "a").embeddings[rows], atol=0.005)


@pytest.mark.parametrize(
    ("names", "said", "expected", "span", "fate"),
    [
        (["000000_x0_y512.png", "000001_x512_y0.png"], (), [[0, 512], [512, 0]], 512, "kept"),  # TRIDENT
        (["tile_(0, 256.0).png", "tile_(256.0, 0).png"], ("--slide-mpp", 0.25), [[0, 1024], [1024, 0]], 128, "kept"),
        (["s1_0_64.png", "s1_64_0.png"], (), [[0, 64], [64, 0]], 64, "kept"),
        (["s1_0_1.png", "s1_1_0.png"], ("--slide-mpp", 0.25), [[0, 128], [128, 0]], 128, "guessed"),  # column and row
        (["ten10.png", "two2.png", "one1.png"], (), [[0, 0], [64, 0], [0, 64]], 64, "guessed"),  # a made-up grid
    ],
)  # fmt: skip
def test_names_of_tile_images_give_their_places(names, said, expected, span, fate, tmp_path):
    folder = tmp_path / "tiles" / "s1"
    folder.mkdir(parents=True)
    pixels = {name: np.full((64, 64, 3), 20 * number, np.uint8) for number, name in enumerate(names)}
    for name, image in pixels.items():
        Image.fromarray(image).save(folder / name)
    text = wsi("convert", tmp_path / "tiles", "--to", "run", "-o", tmp_path / "run", "--tile-mpp", 0.5, *said)
    assert f"{fate:<8} coords" in text
    tiles = store(tmp_path / "run", "s1")
    assert tiles.grid.xy.tolist() == expected
    assert tiles.grid.span_px == span
    found = [int(patch[0, 0, 0]) for patch in tiles.read_patches(0, len(names))]
    assert sorted(found) == [20 * number for number in range(len(names))]


def test_images_that_are_no_tiles_are_left_out_and_counted(tmp_path):
    folder = tmp_path / "tiles" / "s1"
    folder.mkdir(parents=True)
    for number, side in enumerate((64, 64, 64, 32)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / f"s1_{number * 64}_{number * 64}.png")
    (folder / "s1_9_9.png").write_bytes(b"no image")
    text = wsi("convert", tmp_path / "tiles", "--to", "run", "-o", tmp_path / "run", "--tile-mpp", 0.5)
    assert "1 slides, 3 tiles" in text
    assert "dropped  images: not 64 x 64 px, or no image" in text
    text = wsi("convert", tmp_path / "tiles", "--to", "run", "-o", tmp_path / "run", code=2)
    assert "give --tile-mpp" in text or "nothing says how large" in text


def test_an_archive_of_tiles_is_a_slide(tmp_path):
    folder = tmp_path / "s1"
    folder.mkdir()
    for x in (0, 64):
        Image.fromarray(np.full((64, 64, 3), x, np.uint8)).save(folder / f"{x}_x{x}_y{x}.png")
    for kind in ("zip", "tar"):
        archive = shutil.make_archive(str(tmp_path / kind), kind, folder)
        wsi("convert", archive, "--to", "run", "-o", tmp_path / "run", "--tile-mpp", 0.5)
        assert store(tmp_path / "run", kind).grid.xy.tolist() == [[0, 0], [64, 64]]


def test_what_makes_no_sense_together_is_refused(embedded, tmp_path):
    assert "leave out what is said" in wsi(
        "convert", embedded, "--to", "clam", "-o", tmp_path, "--tile-px", 256, code=2
    )
    assert "out of range" in wsi("convert", tmp_path, "--to", "run", "-o", tmp_path / "r", "--slide-mpp", 99, code=2)
    assert "no such file" in wsi("convert", tmp_path / "x", "--to", "run", "-o", tmp_path / "r", code=2)
    assert "no tile images" in wsi("convert", tmp_path, "--to", "run", "-o", tmp_path / "r", code=2)


def test_a_run_over_imported_tiles_takes_them_as_they_are(tmp_path):
    folder = tmp_path / "tiles" / "s1"
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}_x{64 * (number % 2)}_y{64 * (number // 2)}.png")
    run = tmp_path / "run"
    wsi("convert", tmp_path / "tiles", "--to", "run", "-o", run, "--tile-mpp", 0.5)
    wsi("run", run / "slides.csv", "-o", run)
    assert (statuses(run), statuses(run, "embed")) == ({"s1": "skipped"}, {"s1": "done"})
