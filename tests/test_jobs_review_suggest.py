"""What reviewers say goes out to training and QuPath and comes back; what is suggested is what nobody spoke of."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from shapely.geometry import box, mapping, shape

from embedding.store import open_embeddings
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import read_manifest
from jobs.model_stages import open_model
from jobs.region_bags import region_bags, tiles_inside
from jobs.review import Review
from jobs.review.export import export_review
from jobs.review.suggest import REGION_TILES, suggest, write_for_qupath
from jobs.review.suggestions import suggestions_path
from jobs.review.taken_back import take_back
from jobs.slide_sizes import slide_sizes
from jobs.slide_table import keep_records
from jobs.training import train_model
from mil.active import ChoiceSpec
from mil.model import load_model
from mil.predict import predict
from tiling.regions import load_regions
from tiling.spec import RegionSpec
from viewer.review import without_patients
from wsi.errors import SpecError, StoreError
from wsi.synthetic import read_truth

from .commands import wsi

CLASSES = ("normal", "tumor")
QUICK = {"jobs": {"executor": "serial"}, "train": {"folds": 2, "epochs": 2}}


@pytest.fixture
def run(trained, tmp_path) -> RunFolder:
    """The trained run, to be reviewed: its own review folder, all else shared."""
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    for name in ("tiles", "embeddings", "models", "receipts"):
        (folder.root / name).symlink_to(trained.run / name)
    return folder


@pytest.fixture(scope="module")
def records(trained):
    return read_manifest(trained.manifest)


def review_of(run, records) -> Review:
    return Review(run.review, slide_sizes(run, [record.slide_id for record in records]), CLASSES)


def act(review, slide, action, **given) -> dict:
    return review.act(slide, {"event": str(uuid4()), "who": "Dr. Gray", "action": action, **given})


def draw(review, slide, geometry, label) -> str:
    region = {"id": str(uuid4()), "geometry": json.loads(json.dumps(mapping(geometry))), "label": label, "note": ""}
    act(review, slide, "region-add", region=region)
    return region["id"]


def test_suggestions_are_of_tiles_and_not_of_those_that_were_reviewed(run, trained, records):
    model = open_model(trained.model)
    made = suggest(run, model, records, ChoiceSpec(6, "uncertainty")).suggestions
    again = suggest(run, model, records, ChoiceSpec(6, "uncertainty")).suggestions
    assert made == again
    assert len({one.id for one in made}) == 6
    for one in made:
        store = open_embeddings(next((run.root / "embeddings").glob(f"*/{one.slide_id}.zarr")))
        tiles = tiles_inside(shape(one.geometry), store.xy, store.span_px)
        assert 1 <= len(tiles) <= REGION_TILES
        assert shape(one.geometry).area == pytest.approx(len(tiles) * store.span_px**2)
        assert one.label in CLASSES
        assert "undecided" in one.reason
    review = review_of(run, records)
    assert [entry["region"]["id"] for entry in review.queue()] == [one.id for one in made]
    for one in made[:3]:
        act(review, one.slide_id, "region-accept", id=one.id)
    others = suggest(run, model, records, ChoiceSpec(6, "uncertainty")).suggestions
    known = {one.slide_id: shape(one.geometry) for one in made[:3]}
    assert all(shape(one.geometry).intersection(known.get(one.slide_id, box(0, 0, 0, 0))).area == 0 for one in others)


def test_a_slide_of_the_cohort_is_looked_at_by_the_network_that_did_not_see_it(run, trained, records):
    model = open_model(trained.model)  # two folds: one network has not seen a slide, and cannot disagree with itself
    assert suggest(run, model, records, ChoiceSpec(6, "disagreement")).suggestions == ()
    stranger = replace(model, cohort=())
    assert len(suggest(run, stranger, records, ChoiceSpec(6, "disagreement")).suggestions) == 6


def test_slides_without_embeddings_are_named_and_none_at_all_is_an_error(run, trained, records, tmp_path):
    model = open_model(trained.model)
    absent = replace(records[0], slide_id="absent")
    assert suggest(run, model, [*records, absent], ChoiceSpec(2)).left_out == {
        "absent": "no embeddings that fit the model"
    }
    with pytest.raises(StoreError, match="no slide has tiles"):
        suggest(RunFolder(tmp_path / "empty"), model, records, ChoiceSpec(2))


def test_damaged_suggestions_are_told(run, trained, records):
    suggest(run, open_model(trained.model), records, ChoiceSpec(2))
    path = suggestions_path(run.review)
    path.write_text(path.read_text().replace('"label": "', '"label": "x', 1))
    with pytest.raises(StoreError, match="checksum"):
        review_of(run, records).queue()


def test_qupath_gives_back_what_was_done_to_suggestions(run, trained, records, tmp_path):
    made = suggest(run, open_model(trained.model), records, ChoiceSpec(4, per_slide=4)).suggestions
    review, folder = review_of(run, records), tmp_path / "qupath"
    files = write_for_qupath(made, folder, CLASSES)
    assert [path.name for path in files] == [f"{one}.geojson" for one in dict.fromkeys(s.slide_id for s in made)]
    assert {str(one.done) for one in take_back(review, folder, "Dr. Gray")} <= {
        f"Counter({{'unchanged': {number}}})" for number in (1, 2, 3, 4)
    }
    path = folder / f"{made[0].slide_id}.geojson"
    content = json.loads(path.read_text())
    mine = next(one for one in content["features"] if one["id"] == made[0].id)
    assert mine["properties"]["measurements"]["uncertainty"] == made[0].scores["uncertainty"]
    other = "tumor" if made[0].label == "normal" else "normal"
    mine["properties"]["classification"] = {"name": other, "color": [1, 2, 3]}
    drawn = {
        "type": "Feature",
        "geometry": mapping(box(0, 0, 300, 300)),
        "properties": {"classification": {"name": "tumor"}},
    }
    content["features"] = [mine, drawn]
    path.write_text(json.dumps(content))
    gone = sum(one.slide_id == made[0].slide_id for one in made) - 1
    (said,) = take_back(review, path, "Dr. Gray", missing="reject")
    assert dict(said.done) == {"class changed": 1, "added": 1, **({"rejected": gone} if gone else {})}
    regions = {region["id"]: region for region in review.of(made[0].slide_id)["regions"]}
    assert (regions[made[0].id]["status"], regions[made[0].id]["label"]) == ("relabelled", other)
    version = review.of(made[0].slide_id)["version"]
    take_back(review, path, "Dr. Gray")
    assert review.of(made[0].slide_id)["version"] == version  # the same file again changes nothing


def test_the_export_is_taken_by_tiling_and_training(run, trained, records, tmp_path):
    review = review_of(run, records)
    for record in records[:-1]:
        act(review, record.slide_id, "relabel", label=record.label)
    act(review, records[0].slide_id, "reject")
    last = records[-1].slide_id
    draw(review, last, box(0, 0, 1024, 512), "normal")
    draw(review, last, box(0, 512, 1024, 1024), "tumor")
    draw(review, last, box(0, 0, 100, 100), None)
    made = export_review(review, records, tmp_path / "out")
    assert (made.labelled, made.drawn, made.files) == (len(records) - 2, 2, 1)
    rows = {row["slide_id"]: row for row in rows_of(made.labels)}
    assert records[0].slide_id not in rows
    assert rows[last]["label"] == ""
    assert rows[records[1].slide_id]["reviewed_by"] == "Dr. Gray"
    again = read_manifest(made.labels)
    assert [record.patient_id for record in again] == [record.patient_id for record in records[1:]]
    assert Path(again[0].path).is_file()
    drawn = load_regions(RegionSpec(include=str(made.regions), include_classes=("tumor",)), last, (1024, 1024))
    assert drawn.include.area == 1024 * 512
    spec = resolve({**QUICK, "train": {**QUICK["train"], "regions": str(made.regions)}})
    bags = region_bags(again, spec, run)
    assert [bag.label for bag in bags] == ["normal", "tumor"]
    model = train_model(again, spec, run_with(run, tmp_path), "again")
    assert {row.truth for row in model.regions} == {"normal", "tumor"}
    assert last not in {row.bag for row in model.cohort}
    card = (run_with(run, tmp_path).model("again") / "MODEL_CARD.md").read_text()
    assert "2 drawn regions of 1 slides" in card
    store = open_embeddings(next((run.root / "embeddings").glob(f"*/{last}.zarr")))
    from mil.bag import load_bag

    assert predict(model, load_bag(store, patient_id=records[-1].patient_id)).origin.startswith("held-out")


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def run_with(run, tmp_path) -> RunFolder:
    """A run of the same embeddings that a model can be written to."""
    folder = RunFolder(tmp_path / "trained")
    if not folder.root.exists():
        folder.root.mkdir()
        for name in ("tiles", "embeddings", "receipts"):
            (folder.root / name).symlink_to((run.root / name).resolve())
    return folder


def test_an_accepted_slide_has_the_class_that_was_predicted_as_it_was_accepted(run, records, tmp_path):
    review = review_of(run, records)
    first, second = records[0].slide_id, records[1].slide_id
    body = {"event": "a", "who": "A", "action": "accept"}
    review.act(first, body, predicted={"old": "tumor", "new": "normal"})
    review.act(second, {**body, "event": "b"}, predicted={"old": "tumor"})
    made = export_review(review, records, tmp_path / "out")
    assert made.undecided == (first,)
    assert {row["slide_id"]: row["label"] for row in rows_of(made.labels)} == {second: "tumor"}
    chosen = export_review(review, records, tmp_path / "out", model="new")
    assert {row["slide_id"]: row["label"] for row in rows_of(chosen.labels)} == {first: "normal"}
    every = export_review(review, records, tmp_path / "out", model="old", everything=True)
    assert every.labelled == len(records)


def test_what_cannot_be_exported_is_said(run, records, tmp_path):
    review = review_of(run, records)
    with pytest.raises(SpecError, match="nobody has accepted"):
        export_review(review, records, tmp_path / "out")
    act(review, records[0].slide_id, "relabel", label="tumor")
    with pytest.raises(SpecError, match=r"no row of the manifest for 1 reviewed slides .*--source"):
        export_review(review, [], tmp_path / "out")


def test_the_commands_go_round(trained, records, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    source = ("--source", trained.manifest)
    said = wsi("review", "suggest", run, "--model", trained.model, "-k", 4, "--out", tmp_path / "qupath", *source)
    assert "4 regions of" in said
    said = wsi("review", "import", run, tmp_path / "qupath", "--who", "Dr. Gray", *source)
    review = review_of(RunFolder(run), records)
    for entry in review.queue():
        act(review, entry["slide_id"], "region-accept", id=entry["region"]["id"])
    truth = {record.slide_id: (read_truth(Path(record.path)).labels == 2).any() for record in records}
    for slide, tumour in truth.items():
        act(review, slide, "relabel", label=CLASSES[int(tumour)])
        draw(review, slide, box(0, 0, 1024, 1024), CLASSES[int(tumour)])
    said = wsi("review", "export", run, "--out", tmp_path / "out", *source)
    assert "12 slides with a class" in said
    regions = tmp_path / "out" / "regions"
    learning = ("--folds", 2, "--epochs", 1, "--device", "cpu")
    said = wsi("train", tmp_path / "out" / "labels.csv", "-o", run, "-n", "next", "--regions", regions, *learning)
    assert "16 drawn regions" in " ".join(said.split())
    tuned = ("--epochs", 1, "--device", "cpu", "--dry-run", "--run", run)
    # as the viewer gives it away: slides and classes only, and the run folder knows the rest
    bare = tmp_path / "bare.csv"
    bare.write_text(without_patients((tmp_path / "out" / "labels.csv").read_text()))
    assert "path" not in rows_of(bare)[0]
    keep_records(RunFolder(run), records)
    wsi("train", bare, "-o", run, "-n", "bare", *learning)
    models = [load_model(run / "models" / name) for name in ("next", "bare")]
    assert models[0].partition == models[1].partition
    for labels, more in (("slides", ()), ("regions", ("--regions", regions))):
        out = tmp_path / f"adapter-{labels}"
        said = wsi("finetune", tmp_path / "out" / "labels.csv", "-o", out, "--labels", labels, *more, *tuned)
        assert "train" in said


def test_tiles_of_a_region_are_those_whose_centre_it_holds_or_the_one_it_lies_in():
    xy = np.array([[0, 0], [100, 0], [200, 0]])
    assert tiles_inside(box(40, 0, 260, 100), xy, 100).tolist() == [0, 1, 2]
    assert tiles_inside(box(60, 0, 240, 100), xy, 100).tolist() == [1]
    assert tiles_inside(box(10, 10, 20, 20), xy, 100).tolist() == [0]
    assert tiles_inside(box(900, 10, 920, 20), xy, 100).tolist() == []
