import csv
import gzip
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embedding import BACKBONES, contract_name, open_embeddings
from embedding.zero_shot import slide_cosines, softmax, tile_cosines
from jobs.zero_shot import open_description
from tests.commands import slides, statuses, wsi
from tests.vision_language import tiny_plip

PROMPTS = "classes:\n  normal: [normal mucosa, fat]\n  tumor: [tumor, malignant glands]\n  slide: [slide]\n"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A folder with two slides, the weights of the backbone tiny-plip, and a run in which they are embedded with it."""
    home = tmp_path_factory.mktemp("zero-shot")
    backbone, _, _ = tiny_plip(home / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, backbone.name, backbone)
        slides(home / "slides", "a", "b")
        wsi("tile", home / "slides", "-o", home / "run", "--backbone", backbone.name)
        embed(home)
        yield home


@pytest.fixture
def home(embedded, tmp_path):
    """The same, to be changed at will."""
    shutil.copytree(embedded, tmp_path / "home")
    (tmp_path / "home" / "prompts.yaml").write_text(PROMPTS)
    return tmp_path / "home"


def embed(home, *options):
    wsi("embed", home / "slides", "-o", home / "run", "-b", "tiny-plip", "--weights", home / "weights", *options)


def score(home, *options, code=0):
    prompts = ("--prompts", home / "prompts.yaml", "--weights", home / "weights", "--executor", "serial")
    return wsi("zero-shot", home / "slides", "-o", home / "run", *prompts, *options, code=code)


def rows(run, name="prompts"):
    with (run / "predictions" / f"{name}.csv").open(newline="") as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


def features(run, slide_id):
    with gzip.open(run / "heatmaps" / "prompts" / f"{slide_id}.geojson.gz", "rt") as stream:
        return [feature["properties"]["measurements"] for feature in json.load(stream)["features"]]


def test_prompts_become_scores_of_tiles_and_slides(home):
    run = home / "run"
    score(home, "--top-k", 3)
    assert statuses(run, "zero_shot") == {"a": "done", "b": "done"}
    described = open_description(run / "zero_shot" / "prompts.npz")
    store = open_embeddings(next(run.glob("embeddings/*/a.zarr")))
    assert described.classes == ("normal", "tumor", "slide")
    cosines = tile_cosines(np.asarray(store.embeddings), described.vectors)
    tiles = softmax(cosines, described.logit_scale)
    measured = features(run, "a")
    assert len(measured) == len(store.ok) > 3
    found = np.array([[tile[f"{name} softmax"] for name in described.classes] for tile in measured])
    assert found == pytest.approx(tiles, abs=1e-6)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
    row = rows(run)["a"]
    expected = softmax(slide_cosines(cosines, 3), described.logit_scale)
    assert [float(row[f"softmax_{name}"]) for name in described.classes] == pytest.approx(expected, abs=1e-6)
    assert row["predicted"] == described.classes[expected.argmax()]
    assert row["origin"] == "prompts, top 3 tiles"
    assert (run / "heatmaps" / "prompts" / "b.png").is_file()


def test_a_second_run_does_only_what_is_missing_and_other_prompts_are_scored_anew(home):
    run = home / "run"
    score(home)
    before = rows(run)
    score(home)
    assert statuses(run, "zero_shot") == {"a": "skipped", "b": "skipped"}
    (run / "heatmaps" / "prompts" / "b.png").unlink()
    score(home)
    assert statuses(run, "zero_shot") == {"a": "skipped", "b": "done"}
    score(home, "--top-k", 1)
    assert statuses(run, "zero_shot") == {"a": "done", "b": "done"}
    (home / "prompts.yaml").write_text(PROMPTS.replace("fat", "tissue"))
    score(home)
    assert statuses(run, "zero_shot") == {"a": "done", "b": "done"}
    assert rows(run)["a"]["softmax_tumor"] != before["a"]["softmax_tumor"]


def test_embeddings_of_another_variant_are_refused_with_both_contracts(home):
    run = home / "run"
    projected = next((run / "embeddings").iterdir()).rename(home / "projected")
    embed(home, "--variant", "pool")
    said = score(home, code=2)
    assert "≠ pooling" in said
    assert "--variant projected" in said
    assert not (run / "predictions").exists()
    pool = next((run / "embeddings").iterdir()).name
    projected.rename(run / "embeddings" / described(projected))
    said = score(home, "--backbone", "plip", code=2)  # of several, none is blamed: all are listed, and what is needed
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith("tiny-plip-")}
    assert sorted(rows.values()) == [["pool"], ["projected"]]
    assert "the variant projected of plip" in said
    assert "≠" not in said
    score(home)  # the fitting ones are found beside them
    assert statuses(run, "zero_shot") == {"a": "done", "b": "done"}
    assert "≠ pooling" in score(home, "--features", pool, code=2)


def described(folder):
    return contract_name(open_embeddings(next(folder.glob("*.zarr"))).contract)


def test_what_cannot_be_scored_is_said_before_any_work(home):
    run = home / "run"
    (run / "models" / "tumor").mkdir(parents=True)
    assert "trained model" in score(home, "--name", "tumor", code=2)
    assert "out of range" in score(home, "--top-k", 0, code=2)
    other = tiny_plip(home / "other")[2]
    save_file({name: value + 1 for name, value in load_file(other).items()}, other)
    assert "≠ weights_sha256" in score(home, "--weights", home / "other", code=2)
    assert "nothing was done" in score(home, "--dry-run")
    assert not (run / "zero_shot").exists()
    shutil.rmtree(run / "embeddings")
    assert "wsi embed" in score(home, code=2)


def test_a_slide_without_embeddings_fails_alone(home):
    run = home / "run"
    shutil.rmtree(next(run.glob("embeddings/*/b.zarr")))
    score(home, code=1)
    assert statuses(run, "zero_shot") == {"a": "done", "b": "failed"}
    assert rows(run)["b"]["status"] == "failed"
    assert "no embeddings" in rows(run)["b"]["problem"]
