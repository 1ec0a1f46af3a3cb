"""Coordinates from and for other tools and other runs, through the commands."""

import h5py
import numpy as np
import pytest

from embedding.store import open_embeddings
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
    [("trydent", "run", "--to: 'trydent' is unknown; choose trident, clam, stamp"), ("clam", "none", "no tiled slides")],
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
