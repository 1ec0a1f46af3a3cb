"""wsi train and what follows from it: every task, cases and patients, several backbones, bad manifests."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import wsi

FEW = ("--folds", "2", "--epochs", "2")


def rows_of(trained) -> list[dict[str, str]]:
    """The manifest of the trained cohort with a column for every task."""
    with trained.manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for i, row in enumerate(rows):
        tumor = row["label"] == "tumor"
        row["path"] = str(trained.manifest.parent / row["path"])
        row |= {"findings": ("necrosis;mitoses", "necrosis", "mitoses", "-")[i % 4], "grade": "123"[i % 3]}
        row |= {"ki67": str(10 + 5 * i), "time": str(5 + i), "event": str(int(i % 3 > 0)), "age": str(40 + 3 * i)}
        row |= {"sex": "fm"[i % 2], "site": "AB"[i // 2 % 2], "subtype": "x" if tumor else "y"}
    return rows


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A folder of one's own with the trained run, in run/, and the manifest with more columns."""
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(trained.run, folder / "run")
    write(folder / "slides.csv", rows_of(trained))
    (folder / "features").write_text(next((trained.run / "embeddings").iterdir()).name)
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def train(run: Path, name: str, *options: object, manifest: Path | None = None, code: int = 0) -> str:
    if "--features" not in options:  # another test adds embeddings of several views
        options = (*options, "--features", (run / "features").read_text())
    return wsi("train", manifest or run / "slides.csv", "-o", run / "run", "-n", name, *FEW, *options, code=code)


def table(run: Path, model: str) -> list[dict[str, str]]:
    with (run / "run" / "predictions" / f"{model}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


TASKS = {
    "classification": (["--target", "subtype", "--classes", "y,x"], "AUROC", "probability_x"),
    "multilabel": (["--target", "findings"], "AUROC", "sigmoid_necrosis"),
    "ordinal": (["--target", "grade", "--classes", "1,2,3"], "kappa", "softmax_3"),
    "regression": (["--target", "ki67"], "R²", "value"),
    "cox": ([], "c-index", "risk"),
    "survival": (["--set", "train.task.bins=2"], "c-index", "risk"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_trained_predicted_drawn_and_judged(run, task):
    options, figure, column = TASKS[task]
    said = train(run, task, "--task", task, *options)
    assert figure.lower() in said.lower()
    model = run / "run" / "models" / task
    assert {"splits.csv", "splits.json", "history.csv"} <= {path.name for path in model.iterdir()}
    assert not list((run / "run" / "training").glob(f"{task}-*"))
    wsi("predict", run / "slides.csv", "-o", run / "run", "-m", model)
    rows = table(run, task)
    assert len({row[column] for row in rows}) > 1
    assert all(row["predicted"] and row["origin"].startswith("held-out fold") for row in rows)
    wsi("heatmap", run / "slides.csv", "-o", run / "run", "-m", model)
    assert len(list((run / "run" / "heatmaps" / task).glob("*.png"))) == len(rows)
    judged = wsi("evaluate", run / "slides.csv", "-o", run / "run", "-m", model)
    assert figure.lower() in judged.lower()
    content = json.loads((run / "run" / "predictions" / f"{task}.evaluation.json").read_text())
    assert content["metrics"]["task"] == task
    assert content["flow"][-1]["slides"] == len(rows)


def test_a_patients_slides_are_one_bag(run):
    train(run, "patients", "--level", "patient")
    config = json.loads((run / "run" / "models" / "patients" / "config.json").read_text())
    with (run / "slides.csv").open(newline="") as stream:
        patient_of = {row["slide_id"]: row["patient_id"] for row in csv.DictReader(stream)}
    assert len(config["cohort"]) == len(set(patient_of.values())) < len(patient_of)
    wsi("predict", run / "slides.csv", "-o", run / "run", "-m", run / "run" / "models" / "patients")
    said = {}
    for row in table(run, "patients"):
        assert row["bag"] == patient_of[row["slide_id"]]
        said.setdefault(row["bag"], set()).add((row["softmax_tumor"], row["slides"]))
    assert all(len(values) == 1 for values in said.values())
    wsi("heatmap", run / "slides.csv", "-o", run / "run", "-m", run / "run" / "models" / "patients")
    wsi("evaluate", run / "slides.csv", "-o", run / "run", "-m", run / "run" / "models" / "patients")
    content = json.loads((run / "run" / "predictions" / "patients.evaluation.json").read_text())
    assert content["metrics"]["bags"] == len(said)


def test_covariates_speak_beside_the_tiles_and_folds_are_balanced_by_site(run):
    train(run, "clinical", "--covariates", "age,sex", "--stratify", "site", "--head", "mean")
    config = json.loads((run / "run" / "models" / "clinical" / "config.json").read_text())
    assert config["head"]["covariates"] >= 3
    wsi("predict", run / "slides.csv", "-o", run / "run", "-m", run / "run" / "models" / "clinical")
    assert all(row["status"] == "done" for row in table(run, "clinical"))


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_several_backbones_are_joined(run, trained, fusion):
    if len(list((run / "run" / "embeddings").iterdir())) < 2:
        wsi("embed", run / "slides.csv", "-o", run / "run", "--views", "4")
    both = sorted(path.name for path in (run / "run" / "embeddings").iterdir())
    train(run, fusion, "--features", both[0], "--features", both[1], "--fusion", fusion)
    config = json.loads((run / "run" / "models" / fusion / "config.json").read_text())
    assert config["head"]["dim"] == 2 * 1280
    assert config["head"]["blocks"] == ([1280, 1280] if fusion == "late" else [])
    model = run / "run" / "models" / fusion
    wsi("predict", run / "slides.csv", "-o", run / "run", "-m", model)
    wsi("evaluate", run / "slides.csv", "-o", run / "run", "-m", model)
    assert all(row["status"] == "done" for row in table(run, fusion))
    said = wsi("run", run / "slides.csv", "-o", run / "other", "-m", model, code=2)
    assert "wsi predict" in said


def test_attention_gradient_and_occlusion_are_files_of_their_own_with_their_tiles(run, trained):
    model = trained.model
    for score in ("attention", "gradient", "occlusion"):
        wsi("heatmap", run / "slides.csv", "-o", run / "run", "-m", model, "--score", score, "--tiles", "2")
        facts = [json.loads(path.read_text()) for path in (run / "run" / "heatmaps" / "tumor").glob(f"*.{score}.json")]
        assert len(facts) == 12
        assert {fact["score"] for fact in facts} == {f"{score} rank"}
    folder = next((run / "run" / "heatmaps" / "tumor").glob("*.attention.tiles"))
    names = sorted(path.name for path in folder.iterdir())
    assert sum(name.startswith("highest") for name in names) == 2
    assert "gallery.png" in names


def test_the_same_splits_file_gives_the_same_folds(run):
    train(run, "first")
    splits = run / "run" / "models" / "first" / "splits.csv"
    train(run, "second", "--splits", splits, "--head", "mean")
    configs = [json.loads((run / "run" / "models" / name / "config.json").read_text()) for name in ("first", "second")]
    assert [row["folds"] for row in configs[0]["cohort"]] == [row["folds"] for row in configs[1]["cohort"]]


def spoil(rows, column, *texts):
    return [{**row, column: texts[i % len(texts)]} for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda rows: spoil(rows, "label", "tumor"), [], "all bags are of one class"),
        (lambda rows: spoil(rows, "label", ""), [], "no slide has one"),
        (lambda rows: spoil(rows, "ki67", "10", "many"), ["--task", "regression", "--target", "ki67"], "'many'"),
        (lambda rows: spoil(rows, "time", "3", "0"), ["--task", "cox"], "says 0"),
        (lambda rows: spoil(rows, "event", "1", "perhaps"), ["--task", "cox"], "'perhaps'"),
        (lambda rows: spoil(rows, "patient_id", "one"), [], "patient"),
        (lambda rows: rows, ["--folds", "9"], "fewer than the 9 folds"),
        (lambda rows: rows, ["--head", "nonsense"], "choose one of: abmil"),
        (lambda rows: rows, ["--task", "ordinal", "--target", "grade"], "order"),
        (lambda rows: rows, ["--covariates", "weight"], "weight"),
        (lambda rows: rows, ["--splits", "nowhere.csv"], "is missing"),
        (lambda rows: rows, ["--task", "regression", "--target", "ki67", "--head", "clam-sb"], "one class per bag"),
        (lambda rows: rows, ["--level", "ward"], "slide, case, patient"),
        (lambda rows: rows, ["--features", "a", "--features", "a"], "'a' is named twice"),
    ],
)
def test_bad_input_ends_before_work_with_a_remedy(run, trained, tmp_path, change, options, said):
    manifest = write(tmp_path / "slides.csv", change(rows_of(trained)))
    text = train(run, "bad", *options, manifest=manifest, code=2)
    assert said in " ".join(text.split())
    assert not (run / "run" / "models" / "bad").exists()


def test_a_patients_label_may_stand_at_one_of_the_slides(run, trained, tmp_path):
    """Training and prediction see the same bag: all slides of the patient."""
    rows = rows_of(trained)
    several = next(row["patient_id"] for row in rows if sum(r["patient_id"] == row["patient_id"] for r in rows) > 1)
    second = [row for row in rows if row["patient_id"] == several][1]
    second["label"] = ""
    manifest = write(tmp_path / "slides.csv", rows)
    train(run, "one-row", "--level", "patient", manifest=manifest)
    config = json.loads((run / "run" / "models" / "one-row" / "config.json").read_text())
    bag = next(row for row in config["cohort"] if row["patient_id"] == several)
    assert second["slide_id"] in bag["slide_ids"]
    wsi("predict", manifest, "-o", run / "run", "-m", run / "run" / "models" / "one-row")
    wsi("evaluate", manifest, "-o", run / "run", "-m", run / "run" / "models" / "one-row")
    content = json.loads((run / "run" / "predictions" / "one-row.evaluation.json").read_text())
    assert content["flow"][-1]["slides"] == len(rows)


def test_a_slide_without_a_label_is_left_out_and_a_manifest_without_patients_is_told(run, trained, tmp_path):
    rows = rows_of(trained)
    rows[0]["label"] = "NA"
    assert "no patients" not in train(run, "unlabelled", manifest=write(tmp_path / "slides.csv", rows))
    for row in rows:
        row["patient_id"] = row["case_id"] = ""
    text = train(run, "unlabelled", manifest=write(tmp_path / "slides.csv", rows))
    assert f"1 of {len(rows)} slides are left out: nothing in label" in text
    assert "names no patients" in text
    config = json.loads((run / "run" / "models" / "unlabelled" / "config.json").read_text())
    assert rows[0]["slide_id"] not in {row["bag"] for row in config["cohort"]}
    assert "NA" not in json.dumps(config["task"])


def test_heatmaps_are_held_against_drawn_regions(run, trained, tmp_path):
    """A region that covers the tiles the model likes best is found; a slide with an empty file has no lesion."""
    import numpy as np

    from tiling import open_patches

    drawn = tmp_path / "regions"
    drawn.mkdir()
    for row in rows_of(trained):
        grid = open_patches(trained.run / "tiles" / f"{row['slide_id']}.zarr").grid
        x, y = (int(v) for v in np.median(grid.xy, axis=0))
        ring = [[x, y], [x + 600, y], [x + 600, y + 600], [x, y + 600], [x, y]]
        properties = {"objectType": "annotation", "classification": {"name": "lesion"}}
        shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
        file = drawn / f"{row['slide_id']}.geojson"
        file.write_text(json.dumps([shape] if row["label"] == "tumor" else []))
    file.unlink()  # the last slide is left out, and told
    arguments = ("evaluate", run / "slides.csv", "-o", run / "run", "-m", trained.model, "--regions", drawn)
    wsi("predict", run / "slides.csv", "-o", run / "run", "-m", trained.model)
    said = wsi(*arguments, "--region-class", "lesion")
    assert "FROC score" in said
    assert "1 slides have no file of regions" in said
    found = json.loads((run / "run" / "predictions" / "tumor.evaluation.json").read_text())["localisation"]
    assert found["slides"] == 11
    assert found["froc"]["lesions"] == sum(row["label"] == "tumor" for row in rows_of(trained)[:-1])
    values = {(figure["name"], figure["of"]): figure["value"] for figure in found["figures"]}
    assert 0 <= values["tile AUROC", "all tiles"] <= 1
    assert "the classes there are: lesion" in wsi(*arguments, "--region-class", "tumour", code=2)
    (tmp_path / "none").mkdir()
    assert "no file of any slide" in wsi(*arguments[:-1], tmp_path / "none", code=2)
