"""The log of reviews: what is confirmed is kept, whoever writes beside it, and what state follows from it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from jobs.review import Review
from jobs.review.event import MAX_TEXT, MAX_VERTICES
from jobs.review.suggestions import Suggestion, write_suggestions
from wsi.annotations import read_annotations
from wsi.errors import ReviewError, StoreError

SLIDES = {"one": (10_000, 8_000), "two": None}
CLASSES = ("normal", "tumor")
SQUARE = {"type": "Polygon", "coordinates": [[[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]]}
ANOTHER = {"type": "Polygon", "coordinates": [[[500, 500], [900, 500], [900, 900], [500, 900]]]}


@pytest.fixture
def review(tmp_path) -> Review:
    return Review(tmp_path / "review", SLIDES, CLASSES)


def act(review: Review, action: str, slide: str = "one", who: str = "Dr. Gray", **given) -> dict:
    return review.act(slide, {"event": given.pop("event", str(uuid4())), "who": who, "action": action, **given})


def add(review: Review, geometry=SQUARE, label="tumor", **given) -> str:
    region = {"id": str(uuid4()), "geometry": geometry, "label": label, "note": ""}
    act(review, "region-add", region=region, **given)
    return region["id"]


def log_of(review: Review) -> Path:
    (path,) = (review.folder / "log").iterdir()
    return path


def test_a_slide_that_nobody_looked_at_is_open(review):
    assert review.of("one") == {
        "slide_id": "one",
        "status": "open",
        "label": None,
        "who": None,
        "when": None,
        "regions": [],
        "comments": [],
        "history": [],
        "undoable": None,
        "version": 0,
    }
    assert not review.folder.exists()  # nothing is written by looking


@pytest.mark.parametrize(
    ("action", "given", "status", "label"),
    [
        ("accept", {}, "accepted", None),
        ("reject", {}, "rejected", None),
        ("relabel", {"label": " tumor "}, "relabelled", "tumor"),
        ("reopen", {}, "open", None),
    ],
)
def test_a_slide_has_the_state_that_was_last_given_to_it(review, action, given, status, label):
    act(review, "relabel", label="normal")
    said = act(review, action, **given)
    assert (said["status"], said["label"], said["version"]) == (status, label, 2)
    assert said == Review(review.folder, SLIDES, CLASSES).of("one")  # as another process reads it


def test_undo_takes_back_ones_own_events_and_no_others(review):
    act(review, "accept", who="A", event="first")
    act(review, "relabel", who="B", label="tumor", event="second")
    with pytest.raises(ReviewError, match="only who did something can undo it"):
        act(review, "undo", who="A", event="second")
    assert review.of("one", "A")["undoable"] == "first"
    said = act(review, "undo", who="B", event="second")
    assert (said["status"], said["who"], said["undoable"]) == ("accepted", "A", None)
    assert [entry["undone"] for entry in said["history"]] == [False, True, False]
    again = act(review, "undo", who="B", event="second")  # the request was repeated
    assert again == said
    assert act(review, "undo", who="A", event="first")["status"] == "open"


def test_regions_are_drawn_edited_relabelled_rejected_deleted_and_brought_back(review):
    place = add(review)
    (region,) = review.of("one")["regions"]
    assert (region["status"], region["origin"], region["label"]) == ("accepted", "drawn", "tumor")
    act(review, "region-edit", region={"id": place, "geometry": ANOTHER})
    act(review, "region-relabel", id=place, label="normal")
    (region,) = review.of("one")["regions"]
    assert region["geometry"]["coordinates"][0][0] in ANOTHER["coordinates"][0]
    assert (region["status"], region["label"]) == ("relabelled", "normal")
    assert act(review, "region-reject", id=place)["regions"][0]["status"] == "rejected"
    assert act(review, "region-delete", id=place, event="gone")["regions"] == []
    with pytest.raises(ReviewError, match="not there any more"):
        act(review, "region-accept", id=place)
    assert act(review, "undo", event="gone")["regions"][0]["id"] == place


def test_a_repeated_request_counts_once(review):
    first = act(review, "comment", text="a mitosis?", event="same")
    assert act(review, "comment", text="a mitosis?", event="same") == first
    assert len(log_of(review).read_text().splitlines()) == 1
    with pytest.raises(ReviewError, match="another slide"):
        act(review, "comment", slide="two", text="a mitosis?", event="same")


def test_a_ring_that_crosses_itself_is_mended_and_cut_off_at_the_slides_edge(review):
    add(review, {"type": "Polygon", "coordinates": [[[0, 0], [400, 400], [400, 0], [0, 400]]]})
    scribble = np.random.default_rng(0).random((400, 2)) * 1000
    with pytest.raises(ReviewError, match="crosses itself thousands of times"):
        add(review, {"type": "Polygon", "coordinates": [scribble.tolist()]})
    add(review, {"type": "Polygon", "coordinates": [[[-500, 7000], [500, 7000], [500, 9000], [-500, 9000]]]})
    import shapely

    bow, cut = (shapely.geometry.shape(region["geometry"]) for region in review.of("one")["regions"])
    assert bow.is_valid
    assert bow.area == 2 * 400 * 200 / 2
    assert cut.bounds == (0, 7000, 500, 8000)


@pytest.mark.parametrize(
    ("action", "given", "problem"),
    [
        ("destroy", {}, "is not known"),
        ("accept", {"who": " "}, "missing or empty"),
        ("accept", {"who": "x" * 101}, "101 characters"),
        ("accept", {"event": "../../x"}, "missing, or not of letters"),
        ("accept", {"event": 7}, "missing, or not of letters"),
        ("relabel", {}, "missing or empty"),
        ("relabel", {"label": "tu\x00mor"}, "U\\+0000"),
        ("relabel", {"label": "tu\u202emor"}, "U\\+202E"),
        ("relabel", {"label": "=1+1"}, "formula"),
        ("relabel", {"label": "NaN"}, "nothing is known"),
        ("comment", {"text": "x" * (MAX_TEXT + 1)}, "4,001 characters"),
        ("region-add", {}, "missing"),
        ("region-add", {"region": {"id": "a", "geometry": {"type": "LineString"}}}, "its type is 'LineString'"),
        ("region-add", {"region": {"id": "a", "geometry": {"type": "Polygon"}}}, "no coordinates"),
        ("region-accept", {"id": "nothing"}, "not there any more"),
        ("undo", {"event": "nothing"}, "no such event"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_kept(review, action, given, problem):
    with pytest.raises(ReviewError, match=problem):
        act(review, action, **given)
    assert not review.folder.exists()


@pytest.mark.parametrize(
    ("ring", "problem"),
    [
        ([[0, 0], [1, 1]], "fewer than 3"),
        ([[0, 0], [1, 1], [1, 1], [0, 0]], "fewer than 3"),
        ([[0, 0], [1, float("nan")], [1, 0]], "not a number of pixels"),
        ([[0, 0], [1, float("inf")], [1, 0]], "not a number of pixels"),
        ([[0, 0], [1e300, 1], [1, 0]], "not a number of pixels"),
        ([[0, 0], [True, 1], [1, 0]], "not a number of pixels"),
        ([[0, 0], ["1", 1], [1, 0]], "not a number of pixels"),
        ([[20_000, 0], [20_001, 0], [20_001, 9]], "no area on the slide"),
        ([[0, 0], [5, 5], [9, 9]], "no area on the slide"),
        ([[0, 0]] * (MAX_VERTICES + 1), "no list of up to"),
    ],
)
def test_outlines_that_are_none_are_refused(review, ring, problem):
    with pytest.raises(ReviewError, match=problem):
        add(review, {"type": "Polygon", "coordinates": [ring]})


def test_two_writers_see_each_other_and_agree(tmp_path):
    mine, other = (Review(tmp_path / "review", SLIDES, CLASSES) for _ in range(2))
    for number in range(5):
        act(mine, "comment", who="A", text=f"mine {number}")
        act(other, "comment", who="B", text=f"other {number}")
    assert mine.of("one") == other.of("one")
    texts = [comment["text"] for comment in mine.of("one")["comments"]]
    assert texts == [f"{who} {number}" for number in range(5) for who in ("mine", "other")]


def test_an_event_sorts_after_what_its_reviewer_saw_though_the_clock_of_that_is_ahead(review):
    act(review, "relabel", who="A", label="tumor")
    path = log_of(review)
    line = json.loads(path.read_text())
    from datetime import datetime, timedelta

    from wsi.publish import append_line

    ahead = datetime.fromisoformat(line["time"]) + timedelta(minutes=5)
    line |= {"id": "ahead", "time": ahead.isoformat(timespec="microseconds"), "session": "other", "label": "normal"}
    line.pop("crc")
    append_line(path.with_name("other.jsonl"), line, checked=True)
    assert review.of("one")["label"] == "normal"
    assert act(review, "relabel", who="B", label="tumor")["label"] == "tumor"


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_was_cut_short_is_lost_alone_and_told(review, cut):
    act(review, "comment", text="whole")
    act(review, "comment", text="cut")
    path = log_of(review)
    path.write_bytes(path.read_bytes()[:-cut])
    after = Review(review.folder, SLIDES, CLASSES)
    assert [comment["text"] for comment in after.of("one")["comments"]] == ["whole"]
    for number, writer in enumerate((after, Review(review.folder, SLIDES, CLASSES))):
        act(writer, "comment", text=f"after {number}")
    texts = [comment["text"] for comment in after.of("one")["comments"]]
    assert texts == ["whole", "after 0", "after 1"]


def test_a_changed_line_is_left_out_and_told(review):
    act(review, "relabel", label="tumor")
    act(review, "comment", text="sound")
    path = log_of(review)
    path.write_bytes(path.read_bytes().replace(b'"tumor"', b'"tumos"'))
    after = Review(review.folder, SLIDES, CLASSES)
    assert (after.of("one")["status"], after.damaged()) == ("open", {path: [1]})
    assert after.of("one")["comments"]


def test_what_cannot_be_kept_is_said_and_not_shown(review, monkeypatch):
    act(review, "accept")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="could not be kept"):
            act(review, "reject", event="repeated")
    assert act(review, "reject", event="repeated")["status"] == "rejected"
    assert review.of("one")["version"] == 2


WRITER = """
import sys
from pathlib import Path
from jobs.review import Review
review = Review(Path(sys.argv[1]), {"one": None}, ())
for number in range(10**6):
    body = {"event": f"{sys.argv[2]}-{number}", "who": "A", "action": "comment", "text": str(number)}
    review.act("one", body)
    print(body["event"], flush=True)
"""


def test_a_process_killed_at_any_moment_loses_nothing_that_it_confirmed(tmp_path):
    folder = tmp_path / "review"
    confirmed = set()
    for run in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, folder, f"run{run}"], stdout=subprocess.PIPE) as writer:
            lines = [writer.stdout.readline() for _ in range(20 + run)]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().splitlines(keepends=True)
        confirmed |= {line.decode().strip() for line in lines if line.endswith(b"\n")}
    review = Review(folder, {"one": None}, ())
    kept = {entry["id"] for entry in review.of("one")["history"]}
    assert len(confirmed) > 60
    assert confirmed <= kept


def test_suggestions_wait_in_the_queue_until_they_are_answered(review):
    suggested = [Suggestion(str(uuid4()), "one", SQUARE, "tumor", "the folds disagree") for _ in range(3)]
    suggested.append(Suggestion(str(uuid4()), "two", SQUARE, "normal", "far from all others"))
    write_suggestions(review.folder, suggested, {"model": "abmil"})
    assert [entry["region"]["id"] for entry in review.queue()] == [one.id for one in suggested]
    assert review.summary()["one"]["suggested"] == 3
    first, second, third, _ = suggested
    act(review, "region-accept", id=first.id)
    act(review, "region-edit", region={"id": second.id, "geometry": ANOTHER})
    act(review, "region-delete", id=third.id)
    assert [entry["region"]["origin"] for entry in review.queue()] == ["edited", "suggested"]
    write_suggestions(review.folder, [], {"model": "abmil"})  # a newer model asks for nothing
    kept = {region["id"]: region for region in review.of("one")["regions"]}
    assert kept.keys() == {first.id, second.id}
    assert kept[first.id]["reason"] == "the folds disagree"
    assert (kept[first.id]["status"], kept[first.id]["label"]) == ("accepted", "tumor")


def test_the_summary_names_every_slide(review):
    act(review, "relabel", label="tumor", who="B")
    act(review, "comment", text="look again")
    add(review)
    said = review.summary()
    assert said["two"] == {
        "status": "open", "label": None, "who": None, "when": None, "comments": 0, "regions": 0, "suggested": 0
    }  # fmt: skip
    assert {**said["one"], "when": None} == {
        "status": "relabelled", "label": "tumor", "who": "B", "when": None, "comments": 1, "regions": 1, "suggested": 0
    }  # fmt: skip


def test_regions_go_to_qupath_with_class_colour_and_who(review, tmp_path):
    place = add(review)
    add(review, ANOTHER, None)
    made = review.geojson("one")
    first, second = made["features"]
    assert first["id"] == place
    assert first["properties"]["classification"]["name"] == "tumor"
    assert first["properties"]["metadata"]["who"] == "Dr. Gray"
    assert "classification" not in second["properties"]
    assert len(second["properties"]["color"]) == 3
    (tmp_path / "one.geojson").write_text(json.dumps(made))
    found = read_annotations(tmp_path / "one.geojson")
    assert [(one.classes, one.geometry.area) for one in found] == [(("tumor",), 40_000.0), ((), 160_000.0)]


def test_the_table_of_labels_holds_what_was_relabelled_or_accepted(review):
    body = {"event": "a", "who": "A", "action": "accept"}
    review.act("one", body, predicted={"abmil": "tumor", "linear": "tumor"})
    act(review, "relabel", slide="two", who="B", label="normal, mostly")
    rows = list(csv.DictReader(io.StringIO(review.labels_csv())))
    said = [(row["slide_id"], row["label"], row["reviewed_by"], row["predicted"]) for row in rows]
    assert said == [("one", "tumor", "A", "tumor"), ("two", "normal, mostly", "B", "")]
