"""The main job from the command line, on a real slide and on synthetic ones."""

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from heatmaps import check_qupath
from jobs.folder import now
from jobs.receipts import Receipt, append_receipt
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

WSI = [sys.executable, "-c", "from cli.main import main; main()"]


def wsi(*arguments: object, code: int = 0, **options) -> str:
    """Run the command in a process of its own; returns what it printed."""
    done = subprocess.run(
        [*WSI, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, **options
    )
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert "Traceback" not in text, text
    return text


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


def digest(run: Path, *folders: str) -> dict[str, tuple[int, int]]:
    """Every file below these folders of a run, with its time and size."""
    files = [path for folder in folders for path in (run / folder).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, real_slide, trained) -> tuple[Path, str]:
    """wsi run on the real slide and on an empty one, with a model."""
    folder = tmp_path_factory.mktemp("real")
    write_synthetic_slide(folder / "glass.svs", SyntheticSpec(width_px=1024, height_px=1024, tissue=0.0))
    (folder / "slides.csv").write_text(f"slide_id,path\nreal,{real_slide}\nglass,glass.svs\n")
    return folder, wsi("run", folder / "slides.csv", "--model", trained.model, "--out", folder / "run")


def test_a_real_slide_becomes_a_class_a_heatmap_and_a_report(real_run, real_slide):
    folder, text = real_run
    run = folder / "run"
    row = table(run / "predictions" / "tumor.csv")["real"]
    assert row["status"] == "done"
    assert row["predicted"] in ("normal", "tumor")
    assert float(row["softmax_normal"]) + float(row["softmax_tumor"]) == pytest.approx(1, abs=1e-5)
    assert row["origin"] == "mean of 2 folds"
    assert (float(row["mpp"]), row["mpp_source"]) == (pytest.approx(0.5, rel=0.01), "vendor")
    tiles = int(row["tiles"])
    assert 30 < tiles < 117
    assert check_qupath(run / "heatmaps" / "tumor" / "real.geojson.gz") == tiles
    with Image.open(run / "heatmaps" / "tumor" / "real.png") as picture:
        assert picture.width >= 700
    report = (run / "report" / "index.html").read_text()
    assert "Not for diagnosis" in report
    assert "real.geojson.gz" in report
    assert f"report: {run / 'report' / 'index.html'}" in text
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["tile"]["mpp"] == 0.5
    assert record["versions"]["torch"]


def test_the_heatmap_lies_on_the_slides_tissue(real_run, real_slide):
    from wsi import Region, open_slide

    content = json.loads(gzip.decompress((real_run[0] / "run/heatmaps/tumor/real.geojson.gz").read_bytes()))
    with open_slide(real_slide) as slide:
        for feature in content["features"][::7]:
            ring = np.array(feature["geometry"]["coordinates"][0])
            x, y = ring.min(axis=0).tolist()
            side = int(np.ptp(ring[:, 0]))
            pixels = slide.read(Region(x, y, side, side), 0)
            assert (pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 20).mean() > 0.1


def test_a_slide_without_tissue_is_empty_in_the_table(real_run):
    row = table(real_run[0] / "run" / "predictions" / "tumor.csv")["glass"]
    assert (row["status"], row["predicted"], row["tiles"]) == ("empty", "", "0")
    assert not (real_run[0] / "run" / "heatmaps" / "tumor" / "glass.png").exists()


def test_a_full_rerun_does_nothing_and_says_so(real_run, trained):
    folder, _ = real_run
    before = digest(folder / "run", "tiles", "embeddings", "heatmaps", "predictions/tumor")
    text = wsi("run", folder / "slides.csv", "--model", trained.model, "--out", folder / "run")
    assert "Nothing to do: all of it was already there." in text
    assert digest(folder / "run", "tiles", "embeddings", "heatmaps", "predictions/tumor") == before


def test_a_changed_setting_redoes_what_depends_on_it_and_no_more(real_run, trained):
    folder, _ = real_run
    before = digest(folder / "run", "embeddings", "tiles")
    text = wsi("heatmap", folder / "slides.csv", "-m", trained.model, "-o", folder / "run", "-c", recipe(folder))
    assert "real: done" in text
    assert digest(folder / "run", "embeddings", "tiles") == before
    facts = json.loads((folder / "run" / "heatmaps" / "tumor" / "real.attention.json").read_text())
    assert facts["score"] == "attention rank"


def recipe(folder: Path) -> Path:
    path = folder / "attention.yaml"
    path.write_text("heatmap:\n  score: attention\n")
    return path


def test_without_a_model_it_stops_after_the_embeddings_and_says_so(real_slide, tmp_path):
    text = wsi("run", real_slide, "--out", tmp_path / "run", "--executor", "serial")
    assert "stops after the embeddings" in text
    store = zarr.open_group(next((tmp_path / "run" / "embeddings").rglob("CMU-1-Small-Region.zarr")), mode="r")
    assert store["embeddings"].shape[1] == 1280
    assert not (tmp_path / "run" / "predictions").exists()
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(real_slide, tmp_path):
    text = wsi("run", real_slide, "--out", tmp_path / "run", "--dry-run")
    assert "1 slides with" in text
    assert "tiles of 224 px at 0.5 µm/px" in text
    assert not (tmp_path / "run").exists()


def test_a_killed_run_is_continued_and_gives_what_an_undisturbed_one_gives(trained, tmp_path):
    """SIGKILL to the whole process group at several moments, then once more to the end."""
    command = [*WSI, "run", str(trained.manifest), "--model", str(trained.model), "--out", str(tmp_path / "run")]
    for seconds in (2.5, 4.0, 7.0, 11.0):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wsi("run", trained.manifest, "--model", trained.model, "--out", tmp_path / "run")
    undisturbed = {path.relative_to(trained.run): path for path in trained.run.glob("embeddings/*/*.zarr")}
    assert len(undisturbed) == 12
    for name, path in undisturbed.items():
        ours, theirs = (zarr.open_group(root, mode="r")["embeddings"][...] for root in (tmp_path / "run" / name, path))
        assert np.array_equal(ours, theirs)
    rows = table(tmp_path / "run" / "predictions" / "tumor.csv")
    assert {row["status"] for row in rows.values()} == {"done"}
    assert not list((tmp_path / "run").rglob(".draft-*"))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_at_once_with_its_workers(trained, tmp_path, sent, code):
    command = [*WSI, "run", str(trained.manifest), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    time.sleep(6)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)  # a terminal tells the group
    text, _ = process.communicate(timeout=10)
    assert process.returncode == code
    assert "Traceback" not in text
    for _ in range(25):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("a worker outlived the run")


def test_the_single_steps_lead_to_the_same_place(trained, tmp_path):
    run = tmp_path / "run"  # of its own: other tests predict in the shared one
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("predictions", "heatmaps"))
    assert "12 done" in wsi("predict", trained.manifest, "-m", trained.model, "-o", run)
    rows = table(run / "predictions" / "tumor.csv")
    assert all(row["origin"].startswith("held-out fold ") for row in rows.values())  # no slide by a model that saw it
    wsi("heatmap", trained.manifest, "-m", trained.model, "-o", run)
    text = wsi("evaluate", trained.manifest, "-m", trained.model, "-o", run)
    assert "12 slides of 10 patients: AUROC 0." in text
    content = json.loads((run / "predictions" / "tumor.evaluation.json").read_text())
    assert content["cross_validated"] is True
    assert "Slide AUROC" in (run / "report" / "index.html").read_text()


def test_training_leaves_out_slides_whose_failure_is_on_record_and_says_so(trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    lost = "synthetic-03-a"
    shutil.rmtree(next((tmp_path / "run" / "embeddings").glob(f"*/{lost}.zarr")))
    options = ["--out", tmp_path / "run", "--name", "again", "--folds", 2, "--epochs", 1]
    assert "1 of 12 labelled slides have no embeddings" in wsi("train", trained.manifest, *options, code=2)
    append_receipt(
        tmp_path / "run" / "receipts" / "embed.jsonl",
        Receipt(lost, "embed", "failed", problem="damaged", finished=now()),
    )
    text = wsi("train", trained.manifest, *options)
    assert f"1 labelled slides failed earlier and are left out: {lost}" in text
    assert "11 slides" in text
    lines = (tmp_path / "run" / "receipts" / "commands.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["command"].startswith("wsi")


def test_info_prints_what_is_known_and_the_reason_for_the_reader(real_slide):
    text = wsi("info", real_slide)
    for word in ("aperio", "2,220 × 2,967 px", "0.499 µm/px (from vendor), objective 20x", "label, macro", "reader"):
        assert word in text
    facts = json.loads(wsi("info", real_slide, "--json"))
    assert (facts["mpp"], facts["reader"]) == (0.499, "tiff")
    assert [level["width"] for level in facts["levels"] if level["stored"]] == [2220]
    assert len(facts["levels"]) == 4  # the others are made by the decoder


def test_doctor_finds_this_machine_sound():
    assert "package names" in wsi("doctor")
