"""The whole loop with the real commands: look, say in the browser what is wrong, export, train; a server that dies."""

import csv
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from heatmaps import Heatmap
from heatmaps.scores import write_scores
from jobs.folder import RunFolder
from tests.browser import NO_ANSWER, SCORED, STAGE, pixels_at, rest, token_of, until
from tests.commands import store, wsi
from tests.viewer_site import make_run, predict, served
from wsi.synthetic import GLASS, TUMOUR, SyntheticSpec, read_truth, tile_truth, write_synthetic_slide

REPOSITORY = Path(__file__).resolve().parent.parent
SAVED = "[data-testid=saving][data-waiting='0']"


@contextmanager
def viewing(run: Path, port: str = "0") -> Iterator[tuple[subprocess.Popen, str]]:
    """`wsi view` on a run, in a process of its own, and the link that it printed."""
    command = [sys.executable, "-c", "from cli.main import main; main()", "view", str(run), "--port", port]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server, next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()


def show_review(page: Any) -> None:
    page.wait_for_selector(f"{STAGE}[data-zoom]")
    page.get_by_role("tab", name="Review").click()
    page.wait_for_selector("[data-testid=slide-status]")


def say(page: Any, slide: str, what: str, status: str) -> None:
    """Open a slide from where the page is, press a button of its review, and wait until the server has it."""
    page.evaluate(f"location.hash = '#/slide/{slide}'")
    page.wait_for_selector(f".slide-page {STAGE}[data-ready]")
    show_review(page)
    part = page.locator("section[aria-labelledby=review-slide]")
    part.get_by_role("button", name=what).first.click()
    page.wait_for_selector(f"[data-testid=slide-status][data-status={status}]")
    page.wait_for_selector(SAVED, state="attached")


def test_what_a_person_says_in_the_browser_is_what_the_next_model_learns(trained, visits, tmp_path):
    run = copytree(trained.run, tmp_path / "run")
    wsi("predict", trained.manifest, "--out", run, "--model", run / "models" / "tumor")
    with trained.manifest.open() as file:
        labels = {row["slide_id"]: row["label"] for row in csv.DictReader(file)}
    accepted, relabelled, rejected = sorted(labels)[:3]
    other = {"tumor": "normal", "normal": "tumor"}[labels[relabelled]]
    with viewing(run) as (_, link):
        page = visits.open(link, who="Ann")
        page.wait_for_selector(f"tr[data-id={accepted}]")
        said = page.evaluate(f"fetch('api/slides/{accepted}').then(answer => answer.json())")["said"]["tumor"]
        say(page, accepted, "Accept", "accepted")
        say(page, relabelled, other, "relabelled")
        say(page, rejected, "Reject", "rejected")
        page.evaluate("location.hash = '#/worklist'")
        page.locator(f"tr[data-id={relabelled}]", has_text="relabelled").wait_for()
    out = tmp_path / "reviewed"
    wsi("review", "export", run, "--out", out, "--all")
    with (out / "labels.csv").open() as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    expected = {**labels, accepted: said["predicted"], relabelled: other}
    del expected[rejected]
    assert {name: row["label"] for name, row in rows.items()} == expected
    assert (rows[relabelled]["reviewed_by"], rows[relabelled]["path"] != "") == ("Ann", True)
    small = ("--folds", 2, "--epochs", 2)
    wsi("train", out / "labels.csv", "--out", run, "--name", "reviewed", *small)
    made = RunFolder(run).model("reviewed")
    assert made.is_dir()
    with (made / "splits.csv").open() as file:
        learnt = {row["bag"]: row["truth"] for row in csv.DictReader(file)}
    assert learnt == expected
    wsi("predict", trained.manifest, "--out", run, "--model", made)
    assert {path.stem for path in (run / "predictions" / "reviewed").glob("*.json")} == set(labels)


def test_a_server_that_is_killed_loses_nothing_that_it_confirmed(pages, visits, tmp_path):
    run = make_run(tmp_path, "a")
    visits.expect(NO_ANSWER)
    with viewing(run) as (server, link):
        base, _ = token_of(link)
        page = visits.open(link, "#/slide/a", "Ann")
        show_review(page)
        page.keyboard.press("x")
        page.fill("#review-comment", "necrosis only")
        page.get_by_role("button", name="Add comment").click()
        page.wait_for_selector(SAVED, state="attached")
        until(page, "document.querySelectorAll('[data-testid=comments] li').length === 1")
        page.wait_for_selector(SAVED, state="attached")
        tasks = Path(f"/proc/{server.pid}/task").glob("*/children")
        readers = [pid for children in tasks for pid in children.read_text().split()]
        server.kill()
        server.wait()
        page.fill("#review-comment", "said while nobody listened")
        page.get_by_role("button", name="Add comment").click()
        page.get_by_test_id("unsaved").wait_for()
    assert readers
    for _ in range(100):
        left = [pid for pid in readers if Path("/proc", pid).is_dir()]
        if left:
            time.sleep(0.1)
    assert left == []  # they end when nobody asks them any more
    with viewing(run, base.rpartition(":")[2]) as (_, link):
        page.goto(link + "#/slide/a")
        show_review(page)
        page.wait_for_selector("[data-testid=slide-status][data-status=rejected]")
        until(page, "document.querySelectorAll('[data-testid=comments] li').length === 2")
        page.wait_for_selector(SAVED, state="attached")
        kept = page.evaluate("fetch('api/slides/a/review').then(answer => answer.json())")
        assert [one["text"] for one in kept["comments"]] == ["necrosis only", "said while nobody listened"]
        assert [told["action"] for told in kept["history"]] == ["reject", "comment", "comment"]


@pytest.fixture(scope="module")
def nests(pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A synthetic slide with tumour nests; each tile's score is its share of tumour by the truth map."""
    folder = tmp_path_factory.mktemp("nests")
    (folder / "slides").mkdir()
    slide = folder / "slides" / "nests.svs"
    write_synthetic_slide(slide, SyntheticSpec(seed=3, width_px=2048, height_px=2048, nests=3, nest_radius_um=180))
    run, truth = folder / "run", read_truth(slide)
    wsi("tile", folder / "slides", "--out", run, "--tile-px", 64)
    predict(run, "m", nests=0.9)
    grid = store(run, "nests").grid
    scores = tile_truth(truth, grid.xy, grid.span_px)
    heatmap = Heatmap("nests", "tumor", "tumor", scores, grid.xy, grid.span_px, (0.0, 1.0), {}, grid.xy[:0])
    write_scores(heatmap, RunFolder(run).scores("m", "nests"))
    with served(run, folder, pages=pages) as server:
        yield server, heatmap, truth


def test_the_heatmap_is_drawn_over_the_tumour_of_the_truth_map(visits, nests):
    server, heatmap, truth = nests
    page = visits.open(server.link, "#/slide/nests")
    page.wait_for_selector(SCORED)
    page.locator("[data-testid=threshold]").evaluate(
        "input => { input.value = 250; input.dispatchEvent(new Event('input')); }"  # the middle of 500 steps
    )
    rest(page)
    centres = heatmap.xy + heatmap.span_px / 2
    drawn = pixels_at(page, centres.tolist())[:, 3] > 0
    assert (drawn == (heatmap.scores >= 0.5)).all()
    assert 0.05 < drawn.mean() < 0.95
    rows, columns = np.indices(truth.labels.shape)[:, ::3, ::3].reshape(2, -1)
    places, kind = (np.stack([columns, rows], axis=1) + 0.5) * truth.scale, truth.labels[rows, columns]
    over = pixels_at(page, places.tolist())[:, 3] > 0
    assert over[kind == TUMOUR].mean() > 0.75
    assert (kind[over] == TUMOUR).mean() > 0.75
    assert over[kind == GLASS].mean() < 0.01


def test_a_slide_is_found_looked_at_and_accepted_without_a_mouse(pages, visits, tmp_path):
    run = make_run(tmp_path, "a", "b", "c")
    with served(run, tmp_path, pages=pages) as server:
        page = visits.open(server.link)
        page.wait_for_selector("tr[data-id=b]")
        page.keyboard.press("j")  # c is the most urgent, then b
        page.keyboard.press("Enter")
        page.wait_for_selector(f".slide-page {STAGE}[data-ready]")
        assert "#/slide/b" in page.url
        page.keyboard.press("a")
        page.get_by_label("Name or initials").wait_for()
        page.keyboard.type("Ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-testid=slide-status][data-status=accepted]", state="attached")
        page.wait_for_selector(SAVED, state="attached")
        page.keyboard.press("]")
        page.wait_for_url("**/#/slide/c*")
        page.go_back()
        page.go_back()
        page.locator("tr[data-id=b]", has_text="accepted").wait_for()
        page.keyboard.press("Tab")
        ring = page.evaluate(
            "(() => { const at = getComputedStyle(document.activeElement); return at.outlineStyle })()"
        )
        assert ring != "none"  # where the focus is can be seen
        kept = server.client.get("/api/slides/b/review").json()
        assert (kept["status"], kept["who"]) == ("accepted", "Ann")
