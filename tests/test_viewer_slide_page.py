"""The slide page in a real browser: what is drawn lies where the numbers say, and a link leads back to its place."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from heatmaps import Heatmap
from heatmaps.colour import colour_table, colours_of
from tests.browser import SCORED, pixels_at, rest, until
from tests.viewer_site import Served, heatmap_of, make_run, served

SET = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }"


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Heatmap]]:
    folder = tmp_path_factory.mktemp("slide-page")
    run = make_run(folder, "a", "b")
    heatmap = heatmap_of(run, "a", "m")
    with served(run, folder, pages=pages) as server:
        yield server, heatmap


@pytest.fixture
def open_slide(site, visits) -> Callable[..., Any]:
    def opened(address: str = "a") -> Any:
        page = visits.open(site[0].link, f"#/slide/{address}")
        page.wait_for_selector(SCORED)
        rest(page)
        return page

    return opened


def centres(heatmap: Heatmap) -> list[list[float]]:
    return (heatmap.xy + heatmap.span_px / 2).tolist()


def test_every_tile_has_the_colour_that_the_files_give_its_score(open_slide, site):
    page, heatmap = open_slide(), site[1]
    page.locator("[data-testid=opacity]").first.evaluate(SET, "1")
    rest(page)
    seen = pixels_at(page, centres(heatmap))
    expected = colours_of(heatmap.scores, heatmap.limits, colour_table())
    assert np.abs(seen[:, :3] - expected.astype(int)).max() <= 1
    assert (seen[:, 3] == 255).all()


def test_nothing_is_drawn_where_there_is_no_tile(open_slide, site):
    page, heatmap = open_slide(), site[1]
    x0, y0 = heatmap.xy.min(axis=0) - 20
    x1, y1 = heatmap.xy.max(axis=0) + heatmap.span_px + 20
    seen = pixels_at(page, [[int(x1), int(y1)], [int(x1), int(y0)], [int(x0) - 400, int(y1)]])
    assert (seen[:, 3] == 0).all()


def test_a_failed_tile_is_hatched_in_grey(open_slide, site):
    page, heatmap = open_slide(), site[1]
    assert heatmap.failed_xy.tolist() == [[0, 0]]
    seen = pixels_at(page, [[x, y] for x in (20, 50, 80) for y in (20, 50, 80)])
    assert (seen[:, 3] > 0).all()
    assert np.ptp(seen[:, :3], axis=1).max() <= 2


def test_the_threshold_hides_the_tiles_below_it_and_no_others(open_slide, site):
    page, heatmap = open_slide(), site[1]
    page.locator("[data-testid=threshold]").evaluate(SET, "250")  # the middle of 500 steps from 0 to 1
    rest(page)
    seen = pixels_at(page, centres(heatmap))
    assert ((seen[:, 3] > 0) == (heatmap.scores >= 0.5)).all()
    shown = int((heatmap.scores >= 0.5).sum())
    assert page.locator("[data-testid=shown]").inner_text().startswith(f"{shown} of {len(heatmap.scores)} tiles")


def test_a_link_to_a_place_opens_there_and_keeps_it_when_reloaded(open_slide, site):
    heatmap = site[1]
    x, y = (int(value) for value in centres(heatmap)[0])
    page = open_slide(f"a?x={x}&y={y}&zoom=0.5")
    stage = page.locator("[data-testid=stage]")
    assert [stage.get_attribute("data-center"), float(stage.get_attribute("data-zoom"))] == [f"{x}.0,{y}.0", 0.5]
    page.keyboard.press("+")
    rest(page)
    moved = page.url
    assert "zoom=0.8" in moved
    page.reload()
    page.wait_for_selector(SCORED)
    assert page.url == moved
    assert float(stage.get_attribute("data-zoom")) == pytest.approx(0.8)


def test_a_click_opens_the_patch_with_its_tiles_numbers(open_slide, site):
    heatmap = site[1]
    x, y = (int(value) for value in centres(heatmap)[2])
    page = open_slide(f"a?x={x}&y={y}&zoom=0.5")
    box = page.locator("[data-testid=stage]").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    corner = [f"{value:,}" for value in heatmap.xy[2]]
    assert f"x {corner[0]}, y {corner[1]} px" in dialog.inner_text()
    assert f"{heatmap.scores[2]:.2f}" in dialog.inner_text()
    until(page, "document.querySelector('[data-testid=patch-picture]').naturalWidth > 0")
    assert page.locator("[data-testid=patch-picture]").evaluate("picture => picture.naturalWidth") == heatmap.span_px
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_two_views_move_as_one_and_show_different_numbers(open_slide, site):
    page, heatmap = open_slide(), site[1]
    page.keyboard.press("c")
    page.wait_for_selector(f".slide-pane:nth-child(2) {SCORED}")
    page.keyboard.press("+")
    rest(page)
    left, right = page.locator("[data-testid=stage]").all()
    assert left.get_attribute("data-zoom") == right.get_attribute("data-zoom")
    assert left.get_attribute("data-center") == right.get_attribute("data-center")
    assert (left.get_attribute("data-scores"), right.get_attribute("data-scores")) == (heatmap.name, "attention rank")


def test_a_tile_of_the_strip_leads_to_its_place(open_slide, site):
    page, heatmap = open_slide(), site[1]
    page.locator("[data-testid=strip] li button").first.click()
    rest(page)
    x, y = centres(heatmap)[int(heatmap.scores.argmax())]
    assert page.locator("[data-testid=stage]").get_attribute("data-center") == f"{x:.1f},{y:.1f}"
