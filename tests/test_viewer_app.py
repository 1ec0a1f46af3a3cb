"""The viewer's API over a real socket: what the front end asks for, and what it gets."""

import json
import struct
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from tests.commands import slides, store, wsi
from tests.slides import SvsOptions
from tests.viewer_site import heatmap_of, make_run, served
from viewer.pack import pack
from viewer.serve import ViewSpec, annotations_in, open_catalogue, title_of
from wsi.errors import EngineError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three slides, tiled, with predictions and a heatmap of the first."""
    run = make_run(tmp_path_factory.mktemp("viewer"), "a", "b", "c")
    heatmap_of(run, "a", "m")
    return run


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    with served(run, tmp_path_factory.mktemp("site")) as one:
        yield one


def unpack(content: bytes) -> tuple[dict, np.ndarray, np.ndarray, list[np.ndarray]]:
    """As api.ts reads it: (header, xy, failed, columns)."""
    (length,) = struct.unpack("<I", content[:4])
    head, at = json.loads(content[4 : 4 + length]), 4 + length
    assert at % 4 == 0
    xy = np.frombuffer(content, "<i4", 2 * head["n"], at).reshape(-1, 2)
    failed = np.frombuffer(content, "<i4", 2 * head["failed"], at + xy.nbytes).reshape(-1, 2)
    first = at + xy.nbytes + failed.nbytes
    columns = [np.frombuffer(content, "<f4", head["n"], first + 4 * head["n"] * k) for k in range(len(head["columns"]))]
    assert len(content) == first + 4 * head["n"] * len(columns)
    return head, xy, failed, columns


def test_numbers_travel_as_they_are():
    xy, failed = np.array([[0, 128], [256, 384], [9, 9]]), np.array([[7, 8]])
    values = np.array([0.1, 0.2, 1], np.float32)
    head, xy_there, failed_there, columns = unpack(pack(128, xy, failed, {"tumor é": (values, 0, 1)}))
    assert (head["span_px"], head["columns"]) == (128, [{"name": "tumor é", "low": 0.0, "high": 1.0}])
    assert (xy_there == xy).all()
    assert (failed_there == failed).all()
    assert (columns[0] == values).all()


def test_the_session_says_what_there_is(site):
    said = site.client.get("/api/session").json()
    assert (said["kind"], said["models"], said["classes"]) == ("run", ["m"], ["normal", "tumor"])
    assert said["review"] is True
    assert said["show_label"] is False


def test_a_slide_has_its_facts_and_neighbours(site, run):
    said = site.client.get("/api/slides/b").json()
    assert (said["width"], said["height"], said["tile_px"], said["mpp"]) == (1200, 960, 512, 0.5)
    assert (said["previous"], said["next"]) == ("a", "c")
    assert said["tiles"] == 6  # as the prediction says
    assert said["said"]["m"]["kind"] == "probability"
    assert said["scores"] == {}
    assert site.client.get("/api/slides/a").json()["scores"] == {"m": ["prediction"]}
    assert said["associated"] == []
    assert str(run) not in json.dumps(said)


def test_scores_and_grid_lie_on_the_slides_tiles(site, run):
    grid = store(run, "a").grid
    head, xy, failed, columns = unpack(site.client.get("/api/slides/a/scores/m?score=prediction").content)
    assert (xy == grid.xy).all()
    assert head["span_px"] == grid.span_px
    assert failed.tolist() == [[0, 0]]
    assert [column["name"] for column in head["columns"]] == ["tumor softmax", "attention rank", "gradient"]
    assert [(column["low"], column["high"]) for column in head["columns"][:2]] == [(0, 1), (0, 1)]
    assert head["columns"][2]["low"] == pytest.approx(float(columns[2].min()))
    assert columns[0] == pytest.approx(np.linspace(0.1, 0.9, len(xy)))
    head, xy, _, columns = unpack(site.client.get("/api/slides/a/grid").content)
    assert (xy == grid.xy).all()
    assert head["columns"][0]["name"] == "tissue"
    assert (columns[0] == grid.tissue).all()


def test_heatmaps_of_earlier_versions_are_read_from_their_tiles(run, tmp_path):
    import shutil

    from heatmaps import write_geojson
    from jobs.folder import RunFolder

    other = tmp_path / "run"
    shutil.copytree(run, other)
    heatmap = heatmap_of(other, "a", "m")
    RunFolder(other).scores("m", "a").unlink()
    write_geojson(heatmap, RunFolder(other).heatmap("m", "a", "attention"))
    with served(other, tmp_path) as site:
        assert site.client.get("/api/slides/a").json()["scores"] == {"m": ["attention"]}
        _, xy, _, columns = unpack(site.client.get("/api/slides/a/scores/m?score=attention").content)
        assert (xy == heatmap.xy).all()
        assert columns[0] == pytest.approx(heatmap.scores)


@pytest.mark.parametrize(
    "place",
    ["scores/m?score=attention", "scores/other", "scores/..%2f..%2fm", "scores/m?score=../a", "annotations", "nothing"],
)
def test_what_is_not_there_is_not_found(site, place):
    answer = site.client.get(f"/api/slides/a/{place}")
    assert answer.status_code == 404
    assert answer.json()["status"] == 404


def test_tissue_is_outlined_on_the_slide(site):
    import shapely

    found = site.client.get("/api/slides/a/tissue").json()
    outline = shapely.from_geojson(json.dumps(found["features"][0]["geometry"]))
    box = shapely.box(240, 240, 960, 720)  # where tests.commands.section draws it
    assert outline.intersection(box).area / outline.union(box).area > 0.9


def test_what_a_reviewer_says_is_kept_and_counted(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    with served(tmp_path / "run", tmp_path) as site:
        body = {"event": str(uuid4()), "who": "ann", "action": "relabel", "label": "normal"}
        for _ in range(2):  # a repeated request is harmless
            answer = site.client.post("/api/slides/c/review", json=body)
            assert answer.status_code == 200, answer.text
            assert (answer.json()["status"], answer.json()["label"], answer.json()["version"]) == (
                "relabelled",
                "normal",
                1,
            )
        ring = [[300, 300], [400, 300], [400, 400], [300, 300]]
        region = {
            "id": str(uuid4()),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "label": "tumor",
            "note": "",
        }
        drawn = {"event": str(uuid4()), "who": "ann", "action": "region-add", "region": region}
        assert site.client.post("/api/slides/c/review", json=drawn).status_code == 200
        wrong = {**drawn, "event": str(uuid4()), "action": "explode"}
        assert site.client.post("/api/slides/c/review", json=wrong).status_code == 422
        assert site.client.post("/api/slides/nobody/review", json=body).status_code == 404
        card = site.client.get("/api/slides?review=relabelled").json()
        assert [one["id"] for one in card["slides"]] == ["c"]
        assert card["counts"]["review"] == {"relabelled": 1, "open": 2}
        assert site.client.get("/api/slides/c").json()["review"]["regions"] == 1
        features = site.client.get("/api/slides/c/review.geojson").json()["features"]
        assert features[0]["id"] == region["id"]
        table = site.client.get("/api/review/labels.csv").text.splitlines()
        assert table[0] == "slide_id,label,predicted,reviewed_by,reviewed_at"
        assert table[1].startswith("c,normal,")
        assert site.client.get("/api/queue").json() == {"items": []}
    with served(tmp_path / "run", tmp_path) as site:  # a new server on the same run
        assert site.client.get("/api/slides/c/review").json()["version"] == 2


def test_a_name_given_at_the_start_is_the_reviewers(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    with served(tmp_path / "run", tmp_path, reviewer="Dr. Grey") as site:
        body = {"event": str(uuid4()), "who": "somebody else", "action": "accept"}
        assert site.client.post("/api/slides/a/review", json=body).json()["who"] == "Dr. Grey"


def test_a_folder_and_a_slide_are_shown_without_a_run(tmp_path):
    folder = slides(tmp_path / "slides", "x", "y")
    with served(folder, tmp_path) as site:
        assert site.client.get("/api/session").json()["kind"] == "folder"
        assert site.client.get("/api/session").json()["review"] is False
        listed = site.client.get("/api/slides").json()
        assert [card["id"] for card in listed["slides"]] == ["x", "y"]
        said = site.client.get("/api/slides/x").json()
        assert (said["grid"], said["tissue"], said["scores"]) == (False, False, {})
        assert site.client.get("/api/slides/x/thumbnail.jpg?width=100").status_code == 200
        assert site.client.get("/api/slides/x/grid").status_code == 422
        assert site.client.get("/api/slides/x/review").status_code == 409
    with served(folder / "x.svs", tmp_path) as site:
        assert site.client.get("/api/session").json()["kind"] == "slide"


def test_annotations_of_others_are_shown(data_dir, tmp_path):
    import shutil

    folder = slides(tmp_path / "slides", "x")
    given = tmp_path / "annotations"
    given.mkdir()
    source = next(path for path in sorted((data_dir / "annotations").rglob("*.geojson")))
    shutil.copy(source, given / "x.geojson")
    (given / "broken.xml").write_text("<a>")
    (given / "notes.txt").write_text("none of these")
    found = annotations_in(given)
    assert sorted(found) == ["broken", "x"]
    with served(folder, tmp_path, annotations=found) as site:
        assert site.client.get("/api/slides/x").json()["annotations"] is True
        features = site.client.get("/api/slides/x/annotations").json()["features"]
        assert features
        assert all(one["geometry"]["coordinates"] for one in features)
    with pytest.raises(EngineError, match="no such folder"):
        annotations_in(tmp_path / "nowhere")


def test_label_and_macro_are_shown_only_where_that_was_asked_for(tmp_path):
    folder = slides(tmp_path / "slides", "x", options=SvsOptions())
    with served(folder, tmp_path) as site:
        assert site.client.get("/api/slides/x").json()["associated"] == []
        assert site.client.get("/api/slides/x/associated/label.jpg").status_code == 404
    with served(folder, tmp_path, show_label=True) as site:
        assert "label" in site.client.get("/api/slides/x").json()["associated"]
        assert site.client.get("/api/slides/x/associated/label.jpg").headers["content-type"] == "image/jpeg"
        assert site.client.get("/api/slides/x/associated/nothing.jpg").status_code == 404


def test_many_clients_get_the_same_answers(site):
    """Forty requests from eight threads; the readers answer each once."""
    addresses = [f"/api/slides/{name}/tiles/11/{x}_{y}.jpg" for name in "abc" for x in range(3) for y in range(2)]
    alone = {address: site.client.get(address).content for address in addresses}
    wrong: list[str] = []

    def ask() -> None:
        import httpx

        with httpx.Client(base_url=site.base, cookies=dict(site.client.cookies), timeout=60) as client:
            wrong.extend(address for address in addresses if client.get(address).content != alone[address])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_slide_that_a_run_failed_to_read_says_why(tmp_path):
    folder = slides(tmp_path / "slides", "good")
    (folder / "bad.svs").write_bytes((folder / "good.svs").read_bytes()[:5000])
    wsi("tile", folder, "--out", tmp_path / "run", code=1)
    with served(tmp_path / "run", tmp_path) as site:
        listed = site.client.get("/api/slides?status=failed").json()
        assert [card["id"] for card in listed["slides"]] == ["bad"]
        assert listed["slides"][0]["problem"]
        assert site.client.get("/api/slides/bad").status_code == 422
        assert site.client.get("/api/slides/good").status_code == 200


def test_what_is_opened_is_told_apart(run, tmp_path):
    assert open_catalogue(ViewSpec(str(run)))[1] == "run"
    assert title_of(str(run), "run") == f"{run.parent.name} · slidestream"
    with pytest.raises(EngineError, match="no such file"):
        open_catalogue(ViewSpec(str(tmp_path / "nowhere")))
