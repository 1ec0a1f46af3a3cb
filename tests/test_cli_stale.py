"""A result never outlives what it was made from, and one job's failure is not another's."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from jobs.folder import now
from jobs.receipts import Receipt, append_receipt
from tests.conftest import Trained
from tests.slides import SvsOptions, tissue_like, write_svs
from tests.test_cli_run import table, wsi
from tiling import open_patches
from wsi.synthetic import SyntheticSpec, write_synthetic_slide


@pytest.fixture
def run(trained, tmp_path) -> Trained:
    """A copy of the trained run, with predictions, that a test may spoil; its slides are copied too."""
    shutil.copytree(trained.run.parent, tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "run" / "heatmaps", ignore_errors=True)  # another test may have drawn some
    copy = Trained(
        tmp_path / "all" / "slides" / "manifest.csv", tmp_path / "all" / "run", tmp_path / "all/run/models/tumor"
    )
    wsi("predict", copy.manifest, "-m", copy.model, "-o", copy.run, "--executor", "serial")
    return copy


def relabelled(run: Trained, name: str) -> Path:
    """The manifest with its labels exchanged, under another name."""
    with run.manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    path = run.manifest.with_name(name)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": {"tumor": "normal", "normal": "tumor"}[row["label"]]} for row in rows)
    return path


def test_predictions_of_a_model_trained_anew_are_not_judged_as_its_own(run):
    wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run)
    flipped = relabelled(run, "flipped.csv")
    wsi("train", flipped, "-o", run.run, "-n", "tumor", "--folds", 2, "--epochs", 1)
    text = wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run, code=2)
    assert "predictions are of another model of this name; run `wsi predict` first" in text
    before = table(run.run / "predictions" / "tumor.csv")
    first = run.manifest.with_name("first.csv")
    first.write_text("".join(run.manifest.read_text().splitlines(keepends=True)[:4]))
    wsi("predict", first, "-m", run.model, "-o", run.run, "--executor", "serial")
    after = table(run.run / "predictions" / "tumor.csv")
    assert len(before) == 12
    assert len(after) == 3  # a table never mixes two models


def test_a_failure_with_another_backbone_spoils_no_prediction(run):
    ids = list(table(run.run / "predictions" / "tumor.csv"))
    for slide_id in ids:
        append_receipt(
            run.run / "receipts" / "embed.jsonl",
            Receipt(slide_id, "embed", "failed", problem="no weights", finished=now()),
        )
    wsi("predict", run.manifest, "-m", run.model, "-o", run.run, "--executor", "serial")
    assert {row["status"] for row in table(run.run / "predictions" / "tumor.csv").values()} == {"done"}
    assert "left out" not in wsi("train", run.manifest, "-o", run.run, "-n", "b", "--folds", 2, "--epochs", 1)


def test_embeddings_of_a_slide_that_was_replaced_are_not_used(run):
    slide = run.manifest.parent / "synthetic-03-a.svs"
    write_synthetic_slide(slide, SyntheticSpec(seed=99, width_px=1024, height_px=1024))
    options = ["-o", run.run, "--executor", "serial"]
    for command in (
        ["predict", "-m", run.model, *options],
        ["heatmap", "-m", run.model, *options],
        ["encode", *options[:2]],
    ):
        text = wsi(command[0], run.manifest, *command[1:], code=1)
        assert "it is not the slide that was tiled: its content differs" in text
    assert "its content differs" in wsi("train", run.manifest, "-o", run.run, "-n", "b", code=2)
    wsi("tile", run.manifest, *options)
    for command in ("predict", "heatmap"):
        text = wsi(command, run.manifest, "-m", run.model, *options, code=1)
        assert "1 of 12 slides failed" in text
        assert "its tiles have been made anew since" in text
    assert table(run.run / "predictions" / "tumor.csv")["synthetic-03-a"]["status"] == "failed"
    assert "made anew" in wsi("train", run.manifest, "-o", run.run, "-n", "b", code=2)
    wsi("embed", run.manifest, *options)
    wsi("predict", run.manifest, "-m", run.model, *options)
    assert table(run.run / "predictions" / "tumor.csv")["synthetic-03-a"]["status"] == "done"


def test_a_report_shows_no_figures_of_another_cohort(run):
    wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run)
    assert "Slide AUROC" in (run.run / "report" / "index.html").read_text()
    one = run.manifest.with_name("one.csv")
    one.write_text("".join(run.manifest.read_text().splitlines(keepends=True)[:2]))
    wsi("run", one, "-m", run.model, "-o", run.run, "--executor", "serial")
    assert "Slide AUROC" not in (run.run / "report" / "index.html").read_text()


def test_a_slide_that_becomes_empty_loses_its_old_heatmap(run, tmp_path):
    first = run.manifest.with_name("first.csv")
    first.write_text("".join(run.manifest.read_text().splitlines(keepends=True)[:2]))
    options = ["-m", run.model, "-o", run.run, "--executor", "serial"]
    wsi("run", first, *options)
    slide_id = next(iter(table(first)))
    folder = run.run / "heatmaps" / "tumor"
    assert (folder / f"{slide_id}.png").exists()
    wsi("run", first, *options, "--min-tissue", "1.0", "--config", none_of_it(tmp_path))
    assert table(run.run / "predictions" / "tumor.csv")[slide_id]["status"] == "empty"
    assert [path.name for path in folder.iterdir()] == [f"{slide_id}.json"]


def none_of_it(tmp_path: Path) -> Path:
    path = tmp_path / "none.yaml"
    path.write_text("tile:\n  tissue:\n    min_area_um2: 1000000000\n")
    return path


def test_a_slides_own_scale_is_kept_and_stored_patches_survive_a_run_without(tmp_path):
    write_svs(tmp_path / "s[red]x.svs", tissue_like(600, 600), SvsOptions(downsamples=(1,)))
    options = ["-o", tmp_path / "o[/b]x", "--executor", "serial"]  # names that rich would take for markup
    text = wsi("tile", tmp_path / "s[red]x.svs", *options, "--slide-mpp", "0.25", "--patches", "raw")
    assert "1 done" in text
    store = tmp_path / "o[/b]x" / "tiles" / "s_red_x.zarr"
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert (attributes["slide"]["mpp"], attributes["slide"]["mpp_source"]) == (0.5, "vendor")
    assert "s[red]x.svs" in wsi("info", tmp_path / "s[red]x.svs")
    assert "1 already there" in wsi("tile", tmp_path / "s[red]x.svs", *options)
    assert (store / "patches").exists()


def test_a_dry_run_knows_what_is_there(run):
    text = wsi("run", run.manifest, "-m", run.model, "-o", run.run, "--dry-run")
    assert "12 slides with" in text
    assert "12 of them are tiled already, 0 cannot be read. It would write about 0.0 MB" in text
    text = wsi("train", run.manifest, "-o", run.run, "-n", "x", "--dry-run")
    assert "12 slides of 10 patients (" in text
    assert not (run.run / "models" / "x").exists()
    tiles = sum(len(open_patches(path).grid) for path in (run.run / "tiles").iterdir())
    assert f"12 slides with {tiles} tiles to do" in wsi(
        "heatmap", run.manifest, "-m", run.model, "-o", run.run, "--dry-run"
    )
    absent = run.run.with_name("absent")
    assert "12 not ready" in wsi("embed", run.manifest, "-o", absent, "--dry-run", code=1)
    assert not absent.exists()
    assert not (run.run / "heatmaps").exists()


def test_a_report_never_pairs_a_models_scores_with_the_heatmap_of_another(run):
    wsi("heatmap", run.manifest, "-m", run.model, "-o", run.run, "--executor", "serial")
    wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run)
    assert (run.run / "report" / "index.html").read_text().count(".geojson.gz") >= 12
    wsi("train", relabelled(run, "flipped.csv"), "-o", run.run, "-n", "tumor", "--folds", 2, "--epochs", 1)
    wsi("predict", run.manifest, "-m", run.model, "-o", run.run, "--executor", "serial")
    wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run)
    assert ".geojson.gz" not in (run.run / "report" / "index.html").read_text()


def test_predictions_of_older_embeddings_are_not_judged(run):
    options = ["-o", run.run, "--executor", "serial"]
    wsi("tile", run.manifest, *options, "--min-tissue", "0.9")
    assert "tiles have been made anew" in wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run, code=2)
    wsi("embed", run.manifest, *options)
    text = wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run, code=2)
    assert "its embeddings have been made anew since; run `wsi predict` again" in text


def test_a_slide_that_fails_to_embed_anew_is_left_out_of_training(run):
    """Its older embeddings are of other tiles: they must neither be used nor stand in the way."""
    options = ["-o", run.run, "--executor", "serial"]
    wsi("tile", run.manifest, *options, "--min-tissue", "0.9")
    others = run.manifest.with_name("others.csv")
    lines = run.manifest.read_text().splitlines(keepends=True)
    others.write_text("".join(lines[:1] + lines[2:]))
    wsi("embed", others, *options)
    lost = lines[1].partition(",")[0]
    append_receipt(
        run.run / "receipts" / "embed.jsonl", Receipt(lost, "embed", "failed", problem="damaged", finished=now())
    )
    text = wsi("train", run.manifest, "-o", run.run, "-n", "b", "--folds", 2, "--epochs", 1)
    assert f"1 labelled slides failed earlier and are left out: {lost}" in text


def test_an_evaluated_synthetic_cohort_is_still_called_synthetic_and_judged_by_its_truth(run):
    wsi("evaluate", run.manifest, "-m", run.model, "-o", run.run)
    report = (run.run / "report" / "index.html").read_text()
    assert "SYNTHETIC" in report
    assert "Tile AUROC" in report


def test_weights_that_the_model_was_not_trained_with_end_the_run_before_work(run, tmp_path):
    import torch

    from embedding import find_backbone, find_weights

    state = torch.load(find_weights(find_backbone("efficientnet-lite0")), weights_only=True)
    torch.save({**state, "_conv_stem.weight": state["_conv_stem.weight"] * 1.01}, tmp_path / "other.pth")
    options = ["-m", run.model, "-o", tmp_path / "run", "--weights", tmp_path / "other.pth"]
    assert "not the weights file of efficientnet-lite0" in wsi("run", run.manifest, *options, code=2)
    text = wsi("run", run.manifest, *options, "--own-weights", code=2)
    assert "weights_sha256" in text
    assert not (tmp_path / "run").exists()


def test_a_bad_slide_with_a_name_that_is_not_utf8_is_reported_like_any_other(run, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(run.manifest.parent / "synthetic-01-a.svs", folder)
    with open(bytes(folder) + b"/b\xfe.svs", "wb") as stream:
        stream.write(b"no slide")
    text = wsi("run", folder, "-m", run.model, "-o", tmp_path / "run", "--executor", "serial", code=1)
    assert "1 of 2 slides failed" in text
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert {row["status"] for row in table(tmp_path / "run" / "predictions" / "tumor.csv").values()} == {
        "done",
        "failed",
    }


def test_two_models_heatmaps_on_one_slide_have_different_objects(run):
    import gzip

    one = run.manifest.with_name("one.csv")
    one.write_text("".join(run.manifest.read_text().splitlines(keepends=True)[:2]))
    wsi("train", run.manifest, "-o", run.run, "-n", "second", "--folds", 2, "--epochs", 1)
    ids = []
    for model in ("tumor", "second"):
        wsi("heatmap", one, "-m", run.run / "models" / model, "-o", run.run, "--executor", "serial")
        content = gzip.decompress(next((run.run / "heatmaps" / model).glob("*.geojson.gz")).read_bytes())
        ids.append({feature["id"] for feature in json.loads(content)["features"]})
    assert ids[0]
    assert not ids[0] & ids[1]
