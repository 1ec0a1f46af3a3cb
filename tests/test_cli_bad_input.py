"""Whatever is wrong with the input: a clear message, the right exit code, and nothing lost."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from jobs.receipts import read_receipts
from tests.slides import SvsOptions, tissue_like, write_svs
from tests.test_cli_run import wsi


@pytest.mark.parametrize("command", ["run", "tile", "embed"])
def test_a_missing_source_ends_before_any_work(tmp_path, command):
    text = wsi(command, tmp_path / "none.svs", "--out", tmp_path / "run", code=2)
    assert "there is no such file or folder; give a slide, a folder of slides or a manifest CSV" in text
    assert not (tmp_path / "run").exists()


def test_a_folder_without_slides_ends_before_any_work(tmp_path):
    (tmp_path / "slides").mkdir()
    text = wsi("run", tmp_path / "slides", "--out", tmp_path / "run", code=2)
    assert "no slides are in this folder" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("slide_id\na\n", "the column 'path' is missing"),
        ("slide_id,path\na,x.svs\na,y.svs\n", "share one slide_id"),
        ("slide_id,path\na/b,x.svs\n", "no plain file name"),
        ("slide_id,path\n..,x.svs\n", "no plain file name"),
        ('slide_id,path\na,"x.svs\nb,y.svs\n', "it is no CSV"),
        ('slide_id,path\na,"x.svs\nb,y.svs"\n', "is a quote not closed"),
        ("slide_id,path,path\na,x.svs,y.svs\n", "'path' stands there twice"),
    ],
)
def test_a_bad_manifest_ends_before_any_work(tmp_path, rows, problem):
    (tmp_path / "slides.csv").write_text(rows)
    assert problem in wsi("run", tmp_path / "slides.csv", "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_an_output_folder_that_is_not_writable_ends_before_any_work(tmp_path, out, real_slide):
    (tmp_path / "file").write_text("")  # also root cannot make a folder of a file
    text = wsi("run", real_slide, "--out", tmp_path / out, code=2)
    assert "nothing can be written there" in text
    assert "give another --out" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_ends_before_any_work(tmp_path, real_slide):
    (tmp_path / "run").mkdir(mode=0o500)
    assert "nothing can be written there" in wsi("run", real_slide, "--out", tmp_path / "run", code=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, real_slide) -> tuple[Path, str]:
    """A folder with one good slide among bad ones, run to the embeddings."""
    folder = tmp_path_factory.mktemp("mixed")
    slides = folder / "slides"
    slides.mkdir()
    shutil.copy(real_slide, slides / "good.svs")
    content = real_slide.read_bytes()
    (slides / "truncated.svs").write_bytes(content[: len(content) // 2])
    (slides / "zero.svs").write_bytes(b"")
    (slides / "picture.svs").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    write_svs(slides / "noscale.svs", tissue_like(600, 600), SvsOptions(mpp=None, objective=None))
    rows = [["slide_id", "path"], *([path.stem, str(path)] for path in sorted(slides.iterdir()))]
    rows.append(["absent", "nowhere.svs"])
    with (folder / "slides.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder, wsi("run", folder / "slides.csv", "--out", folder / "run", code=1)


@pytest.mark.parametrize(
    ("slide", "problem", "remedy"),
    [
        ("absent", "no such file", ""),
        ("zero", "empty", ""),
        ("picture", "PNG", ""),
        ("truncated", "", "copy"),
        ("noscale", "pixel size", "--slide-mpp"),
    ],
)
def test_a_bad_slide_fails_alone_with_its_reason_and_remedy(mixed, slide, problem, remedy):
    folder, text = mixed
    receipts = {receipt.slide_id: receipt for receipt in read_receipts(folder / "run" / "receipts" / "tile.jsonl")}
    assert receipts[slide].status == "failed"
    assert problem in receipts[slide].problem
    assert remedy in receipts[slide].remedy
    assert slide in text
    assert slide in (folder / "run" / "report" / "index.html").read_text()


def test_the_good_slide_among_bad_ones_is_done(mixed):
    folder, text = mixed
    assert "5 of 6 slides failed" in text
    assert [path.stem for path in (folder / "run" / "embeddings").glob("*/*.zarr")] == ["good"]
    assert [path.stem for path in (folder / "run" / "tiles").glob("*.zarr")] == ["good"]


def test_a_scale_that_cannot_be_true_is_for_the_manifest_to_correct(tmp_path):
    write_svs(tmp_path / "odd.svs", tissue_like(600, 600), SvsOptions(mpp="28.9", objective=None))
    text = wsi("tile", tmp_path / "odd.svs", "--slide-mpp", "0.5", "--out", tmp_path / "run", code=1)
    assert "its file states 28.9 µm per pixel, outside 0.05 to 20" in text
    assert "--slide-mpp" not in text
    (tmp_path / "slides.csv").write_text("slide_id,path,mpp\nodd,odd.svs,0.5\n")
    assert "1 done" in wsi("tile", tmp_path / "slides.csv", "--out", tmp_path / "run")


def test_the_scale_that_was_missing_can_be_given(mixed):
    folder, _ = mixed
    text = wsi("tile", folder / "slides" / "noscale.svs", "--slide-mpp", "0.5", "--out", folder / "given")
    assert "1 done" in text
    attributes = json.loads((folder / "given" / "tiles" / "noscale.zarr" / "zarr.json").read_text())["attributes"]
    assert (attributes["slide"]["mpp"], attributes["slide"]["mpp_source"]) == (0.5, "user")


def test_a_model_of_another_contract_is_refused_and_both_are_named(trained, tmp_path):
    model = tmp_path / "other"
    shutil.copytree(trained.model, model)
    config = json.loads((model / "config.json").read_text())
    config["contract"] |= {"tile_px": 256, "hash": "0123456789ab"}
    config["contract_hash"] = "0123456789ab"
    (model / "config.json").write_text(json.dumps(config))
    text = wsi("predict", trained.manifest, "--model", model, "--out", trained.run, code=2)
    assert "0123456789ab" in text
    assert json.loads((trained.model / "config.json").read_text())["contract_hash"] in text
    lines = [line.split() for line in text.splitlines()]
    assert ["≠", "tile_px", "224", "256"] in lines  # side by side
    assert ["backbone", "efficientnet-lite0", "efficientnet-lite0"] in lines  # also what they have in common


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--backbone", "uni2"], "did you mean"),
        (["--tile-mpp", "fine"], "no scale"),
        (["--config", "nothing"], "no such recipe"),
        (["--executor", "threads"], "choose serial, processes or dask"),
        (["--model", "nowhere"], "no model folder"),
        (["--tile-px", "4"], "out of range"),
        (["--slide-mpp", "-1"], "no pixel size"),
        (["--device", "quantum"], "'quantum' cannot be used here"),
        (["--weights", "nowhere.safetensors"], "no such weights file"),
    ],
)
def test_a_wrong_option_ends_before_any_work(real_slide, tmp_path, options, problem):
    assert problem in wsi("run", real_slide, "--out", tmp_path / "run", *options, code=2)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_slide_in_info_is_wrong_input(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"hello")
    assert "error" in wsi("info", tmp_path / "a.svs", code=2)


def test_training_without_labels_or_embeddings_says_what_is_missing(trained, tmp_path, real_slide):
    (tmp_path / "slides.csv").write_text(f"slide_id,path\na,{real_slide}\n")
    text = wsi("train", tmp_path / "slides.csv", "--out", trained.run, "--name", "m", code=2)
    assert "add a `label` column" in text
    text = wsi("train", trained.manifest, "--out", tmp_path / "run", "--name", "m", code=2)
    assert "there are no embeddings" in text
    assert "run `wsi embed`" in text
    text = wsi("train", trained.manifest, "--out", trained.run, "--name", "a/b", code=2)
    assert "no plain folder name" in text
