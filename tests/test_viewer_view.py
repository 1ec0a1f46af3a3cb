"""Load, pan and zoom in a real browser: at every place and zoom the pixels on the screen are those of the slide."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser import NO_ANSWER, STAGE, on_slide, pixels_at, rest, until, view_of
from tests.slides import SvsOptions, write_svs
from tests.viewer_site import TOKEN, Served, served

BLOCK, COLUMNS, ROWS = 160, 18, 14
PICTURE = "canvas:not(.slide-overlay)"
CENTRES = [[BLOCK * (column + 0.5), BLOCK * (row + 0.5)] for row in range(ROWS) for column in range(COLUMNS)]


def coded() -> NDArray[np.uint8]:
    """Blocks whose red says the column and whose green says the row: uint8 (rows, cols, 3)."""
    rows, columns = np.indices((ROWS * BLOCK, COLUMNS * BLOCK)) // BLOCK
    return np.stack([40 + 11 * columns, 40 + 14 * rows, np.full_like(rows, 120)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("view")
    (folder / "slides").mkdir()
    write_svs(folder / "slides" / "coded.svs", coded(), SvsOptions(colour="444", quality=95))
    with served(folder / "slides", folder, pages=pages) as server:
        yield server


def open_slide(visits, site, address: str = "coded", **context: Any) -> Any:
    page = visits.open(site.link, f"#/slide/{address}", **context)
    page.wait_for_selector(f"{STAGE}[data-ready]")
    rest(page)
    return page


def check(page: Any) -> int:
    """Every block whose centre is in view has its colour there; returns how many are."""
    box, (left, top, zoom) = page.locator(STAGE).first.bounding_box(), view_of(page)
    centres = np.array(CENTRES)
    near = np.abs(centres - (left, top)) * zoom < (box["width"] / 2 - 5, box["height"] / 2 - 5)
    inside = centres[near.all(axis=1)].tolist()
    expected = coded()[[int(y) for _, y in inside], [int(x) for x, _ in inside]].astype(int)
    for _ in range(50):  # until the tiles are there
        seen = pixels_at(page, inside, PICTURE)
        if np.abs(seen[:, :3] - expected).max() <= 5:
            return len(inside)
        page.wait_for_timeout(100)
    raise AssertionError(f"{inside}: {seen[:, :3].tolist()}, not {expected.tolist()}")


def test_the_whole_slide_is_seen_and_every_tile_arrives(visits, site):
    page = visits.open(site.link)
    answers: list[tuple[str, int]] = []
    page.on("response", lambda answer: answers.append((answer.url, answer.status)))
    page.wait_for_selector("tr[data-id=coded]")
    page.locator("tr[data-id=coded] a").first.click()
    page.wait_for_selector(f"{STAGE}[data-ready]")
    rest(page)
    assert check(page) == COLUMNS * ROWS
    tiles = [status for url, status in answers if "/tiles/" in url]
    assert tiles
    assert set(tiles) == {200}


def test_dragging_moves_the_slide_with_the_pointer(visits, site):
    page = open_slide(visits, site, f"coded?x={8 * BLOCK}&y={6 * BLOCK}&zoom=0.8")
    box = page.locator(STAGE).first.bounding_box()
    start = box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6
    grasped = on_slide(page, *start)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] - 100, start[1] - 60, steps=4)
    page.wait_for_timeout(150)  # held: let go in motion, the slide would glide on
    page.mouse.move(start[0] - 210, start[1] - 130, steps=4)
    page.wait_for_timeout(150)
    page.mouse.up()
    rest(page)
    assert on_slide(page, start[0] - 210, start[1] - 130) == pytest.approx(grasped, abs=2 / 0.8)
    assert check(page) > 10


def test_the_wheel_zooms_at_the_pointer(visits, site):
    page = open_slide(visits, site, f"coded?x={8 * BLOCK}&y={6 * BLOCK}&zoom=0.4")
    box = page.locator(STAGE).first.bounding_box()
    at = box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4
    below = on_slide(page, *at)
    page.mouse.move(*at)
    for _ in range(3):
        page.mouse.wheel(0, -120)
        page.wait_for_timeout(80)
    rest(page)
    assert view_of(page)[2] > 0.6
    assert on_slide(page, *at) == pytest.approx(below, abs=2 / 0.4)
    assert check(page) > 10


@pytest.mark.parametrize("zoom", [0.25, 1, 2])
def test_a_place_is_shown_where_it_lies_at_every_zoom(visits, site, zoom):
    x, y = 5 * BLOCK, 9 * BLOCK
    page = open_slide(visits, site, f"coded?x={x}&y={y}&zoom={zoom}")
    assert view_of(page) == pytest.approx((x, y, zoom), abs=0.1)
    assert check(page) > 3
    bar = page.locator("[data-testid=scalebar]").inner_text()
    assert "µm" in bar or "mm" in bar


def test_arrow_keys_and_plus_and_minus_move_the_view(visits, site):
    page = open_slide(visits, site, f"coded?x={8 * BLOCK}&y={6 * BLOCK}&zoom=0.8")
    x, y, zoom = view_of(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    rest(page)
    assert view_of(page)[0] > x
    assert view_of(page)[1] > y
    page.keyboard.press("-")
    rest(page)
    assert view_of(page)[2] < zoom
    assert check(page) > 10
    page.keyboard.press("0")
    rest(page)
    assert check(page) == COLUMNS * ROWS


WRONG = {
    "#/slide/missing": "No such slide",
    "#/slide/": "There is nothing here",
    "#/slide/..%2F..%2Fetc%2Fpasswd": "There is nothing here",
    "#/slide/%3Cimg src=x onerror=alert(1)%3E": "No such slide",
    "#/slide/%E0%A4%A": "No such slide",  # no UTF-8
}


@pytest.mark.parametrize("place", WRONG)
def test_an_address_that_leads_nowhere_is_said_to_be_wrong(visits, site, place):
    visits.expect(NO_ANSWER)
    page = visits.open(site.link, place)
    page.get_by_role("alert").wait_for()
    assert WRONG[place] in page.get_by_role("alert").inner_text()
    assert page.locator("img[src=x]").count() == 0
    page.goto(f"{site.base}/#/worklist")  # and leads on
    page.wait_for_selector("tr[data-id=coded]")


@pytest.mark.parametrize("query", ["x=1&y=oops&zoom=1", "x=1e99&y=-5&zoom=3", "zoom=-1", "x=NaN&y=NaN&zoom=NaN"])
def test_a_place_that_cannot_be_shows_the_slide_all_the_same(visits, site, query):
    page = open_slide(visits, site, f"coded?{query}")
    x, y, zoom = view_of(page)
    assert all(np.isfinite([x, y, zoom]))
    page.keyboard.press("0")
    rest(page)
    assert check(page) == COLUMNS * ROWS


def test_a_name_of_no_page_is_the_worklist(visits, site):
    page = visits.open(site.link, "#/nonsense/of/a/link?sort=__proto__&model=none&status=x")
    page.get_by_role("button", name="Clear filters").wait_for()
    page.get_by_role("button", name="Clear filters").click()
    page.wait_for_selector("tr[data-id=coded]")


def test_without_the_right_token_the_page_says_how_to_get_in(visits, site):
    visits.expect(NO_ANSWER)
    page = visits.open(site.link.replace(TOKEN, "wrong"))
    assert "wsi view" in page.locator("body").inner_text()
    page.goto(f"{site.base}/#/slide/coded")
    until(page, "document.body.innerText.includes('wsi view')")
