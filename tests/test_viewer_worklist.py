"""The worklist: what is known of each slide, in the order in which somebody should look."""

import json
import math
import os
import time

import pytest

from jobs.folder import RunFolder
from jobs.manifest import read_manifest, read_source
from jobs.slide_table import keep_records, read_records
from tests.commands import slides, wsi
from tests.run_folders import Writer
from tests.viewer_site import make_run, predict, said
from viewer.catalogue import EVERY_S, Catalogue
from viewer.said import read_said, said_of
from viewer.worklist import Query, page
from wsi.errors import EngineError
from wsi.publish import write_json


def catalogue(run, **records) -> Catalogue:
    return Catalogue(RunFolder(run), records)


def look_again(one: Catalogue):
    """As if the time between two looks had passed."""
    one._looked -= 2 * EVERY_S
    return one.look()


def test_a_calibrated_prediction_is_a_probability_and_others_are_not():
    found = said_of(said("a", 0.9), None)
    assert (found["kind"], found["predicted"], found["value"]) == ("probability", "tumor", 0.9)
    assert found["urgency"] == 0.9
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert found["uncertainty"] == pytest.approx(entropy)
    raw = said_of(said("a", 0.9, probability={}), None)
    assert (raw["kind"], raw["value"], raw["urgency"], raw["uncertainty"]) == ("softmax", 0.9, None, None)
    assert said_of(said("a", 0.9), "normal")["urgency"] == pytest.approx(0.1)
    assert said_of(said("a", 0.99, abstains=True), None)["uncertainty"] == 1
    assert said_of(said("a", 0.5), None)["uncertainty"] == pytest.approx(1)
    assert said_of(said("a", 1.0), None)["uncertainty"] == 0


def test_numbers_and_risks_stand_for_themselves():
    number = said_of(said("a", 0.5, predicted=None, output={"value": 3.5}, probability={}), None)
    assert (number["kind"], number["value"], number["outputs"]) == ("value", 3.5, {"value": 3.5})
    output = {"risk": -0.4, "survival_12": 0.7, "survival_24": 0.5}
    risk = said_of(said("a", 0.5, predicted=None, output=output, probability={}), None)
    assert (risk["kind"], risk["value"], risk["outputs"]) == ("risk", -0.4, output)


def test_what_predict_writes_is_read(trained, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    wsi("predict", trained.manifest, "--out", run, "--model", run / "models" / "tumor")
    found = {path.stem: read_said(path, None) for path in (run / "predictions" / "tumor").glob("*.json")}
    assert len(found) == len(read_manifest(trained.manifest))
    assert all(one is not None and one["_classes"] == ["normal", "tumor"] for one in found.values())
    shown = page(catalogue(run).look(), {}, Query())
    assert shown["total"] == len(found)
    assert [card["id"] for card in shown["slides"]] == sorted(sorted(found), key=lambda name: -found[name]["urgency"])


def test_files_of_another_version_or_cut_short_are_left_out(tmp_path):
    path = tmp_path / "a.json"
    for content in ("", "{", "[]", "3", '{"output": 1}', '{"output": {}, "probability": []}'):
        path.write_text(content)
        assert read_said(path, None) is None


def names(now, **query) -> list[str]:
    return [card["id"] for card in page(now, {}, Query(**query))["slides"]]


def test_slides_are_sorted_filtered_and_searched(tmp_path):
    writer = Writer(tmp_path, "one").write_many("tile", [f"s{n}" for n in range(6)], tiles=4).say(ended="now")
    predict(tmp_path, "m", s0=0.2, s1=0.9, s2=0.55)
    predict(tmp_path, "other", s3=0.8)
    writer.write("tile", "s4", "failed", problem="cut short at /data/Smith^John/s4.svs", remedy="copy it again")
    now = catalogue(tmp_path).look()
    assert now.models == ("m", "other")
    assert now.classes == ("normal", "tumor")
    assert names(now, model="m")[:3] == ["s1", "s2", "s0"]
    assert names(now)[:4] == ["s1", "s3", "s2", "s0"]  # by what the first model says of each
    assert names(now, sort="urgency", order="asc", model="m") == ["s0", "s2", "s1", "s3", "s4", "s5"]  # unknown: last
    assert names(now, sort="uncertainty", model="m")[:3] == ["s2", "s0", "s1"]
    assert names(now, sort="id", order="desc") == ["s5", "s4", "s3", "s2", "s1", "s0"]
    assert names(now, search="S1") == ["s1"]
    assert names(now, status="failed") == ["s4"]
    assert names(now, predicted="normal", model="m") == ["s0"]
    assert names(now, sort="id", offset=2, limit=2) == ["s2", "s3"]
    failed = page(now, {}, Query(status="failed"))
    assert failed["total"] == 1
    assert "Smith" not in json.dumps(failed)
    assert "copy it again" in failed["slides"][0]["problem"]
    assert failed["counts"]["status"] == {"done": 5, "failed": 1}
    assert failed["counts"]["predicted"] == {"tumor": 3, "normal": 1}
    reviews = {"s2": {"status": "accepted"}, "gone": {"status": "accepted"}}
    reviewed = page(now, reviews, Query(review="accepted"))
    assert [card["id"] for card in reviewed["slides"]] == ["s2"]
    assert reviewed["counts"]["review"] == {"accepted": 1, "open": 5}
    assert [card["id"] for card in page(now, reviews, Query(sort="review"))["slides"]][-1] == "s2"


def test_a_run_at_work_is_followed(tmp_path):
    writer = Writer(tmp_path, "one").say()
    writer.write("tile", "a", "done", tiles=5)
    one = catalogue(tmp_path)
    assert {card["status"] for card in one.look().cards.values()} == {"done"}
    writer.write("tile", "b", "empty", problem="no tissue")
    writer.write("embed", "a", "failed", problem="memory", remedy="more")
    writer.write("tile", "c", "done", tiles=7)
    cards = look_again(one).cards
    assert {name: card["status"] for name, card in cards.items()} == {"a": "failed", "b": "empty", "c": "waiting"}
    writer.write("embed", "a", "done", tiles=5)
    predict(tmp_path, "m", a=0.7)
    now = look_again(one)
    assert now.cards["a"]["said"]["m"]["urgency"] == 0.7
    assert now.cards["a"]["status"] == "done"
    predict(tmp_path, "m", a=0.3)
    assert look_again(one).cards["a"]["said"]["m"]["urgency"] == 0.3
    before = look_again(one)
    assert look_again(one) is before  # nothing changed: nothing is built
    (tmp_path / "predictions" / "m" / "a.json").unlink()
    assert look_again(one).cards["a"]["said"] == {}


def test_a_run_remembers_where_its_slides_lie_and_whose_they_are(tmp_path):
    run = make_run(tmp_path, "a", "b")
    found = read_records(RunFolder(run))
    assert {name: record.path.is_file() for name, record in found.items()} == {"a": True, "b": True}
    manifest = tmp_path / "manifest.csv"
    rows = "slide_id,path,patient_id,label,age,mpp\na,slides/a.svs,p1,tumor,61,0.5\nb,slides/b.svs,p1,normal,61,\n"
    manifest.write_text(rows)
    keep_records(RunFolder(run), read_source(manifest))
    again = read_records(RunFolder(run))
    assert (again["a"].patient_id, again["a"].label, again["a"].extra, again["a"].mpp) == (
        "p1",
        "tumor",
        {"age": "61"},
        0.5,
    )
    assert again["b"].mpp is None
    before = sorted(path.name for path in (run / "lists").iterdir())
    keep_records(RunFolder(run), read_source(manifest))
    assert sorted(path.name for path in (run / "lists").iterdir()) == before


def test_slides_that_a_run_comes_to_later_are_found(tmp_path):
    from viewer.serve import ViewSpec, open_catalogue

    run = make_run(tmp_path, "a")
    one, kind = open_catalogue(ViewSpec(str(run)))
    assert kind == "run"
    assert list(one.look().cards) == ["a"]
    slides(tmp_path / "more", "b")
    wsi("tile", tmp_path / "more", "--out", run, "--tile-px", 128, "--min-tissue", 0.5)
    assert list(look_again(one).cards) == ["a", "b"]
    assert one.place("b").path == tmp_path / "more" / "b.svs"
    assert one.place("c") is None
    with pytest.raises(EngineError, match="no run folder"):
        open_catalogue(ViewSpec(str(tmp_path / "more"), slides="x"))


def test_names_that_a_manifest_does_not_take_hide_no_others(tmp_path):
    from pathlib import Path

    from jobs.manifest import SlideRecord

    odd = SlideRecord("odd", Path("/slides/a\nb.svs"), "odd", "odd")
    keep_records(RunFolder(tmp_path), [odd, SlideRecord("a", Path("/slides/a.svs"), "a", "a")])
    assert list(read_records(RunFolder(tmp_path))) == ["a"]


def test_ten_thousand_slides_are_looked_up_once_for_many_pages(tmp_path, monkeypatch):
    ids = [f"slide-{number:05}" for number in range(10_000)]
    Writer(tmp_path, "one").write_many("tile", ids, tiles=9).say(ended="now")
    folder = tmp_path / "predictions" / "m"
    folder.mkdir(parents=True)
    for number, name in enumerate(ids[:200]):
        write_json(folder / f"{name}.json", said(name, number / 200))
    old = time.time() - 60
    os.utime(folder, (old, old))
    one = catalogue(tmp_path)
    now = one.look()
    read = []
    monkeypatch.setattr("viewer.catalogue.read_said", lambda path, urgent: read.append(path))
    assert look_again(one) is now
    assert not read
    shown = page(now, {}, Query(limit=100))
    assert (shown["total"], len(shown["slides"]), shown["slides"][0]["id"]) == (10_000, 100, "slide-00199")
