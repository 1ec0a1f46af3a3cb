"""Worklist and review queue in a real browser: order, filters, keys, ten thousand rows, states and accessibility."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.review.suggestions import Suggestion, write_suggestions
from tests.browser import NO_ANSWER, until
from tests.run_folders import Writer
from tests.viewer_site import Served, make_run, predict, said, served
from wsi.publish import write_json

AXE = Path(__file__).resolve().parent.parent / "viewer" / "web" / "node_modules" / "axe-core" / "axe.min.js"
MANY = 10_000
ROWS = "table.worklist tbody tr[data-id]"


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory) -> Iterator[Served]:
    """Five slides: d the most urgent, b full of doubts, e failed."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder, "a", "b", "c", "d")
    predict(run, "other", a=0.9, b=0.2)
    row = said("b", 0.3, set=["normal", "tumor"], abstains=True, flags=["tiles unlike training"], failed_tiles=2)
    write_json(run / "predictions" / "m" / "b.json", row, sealed=True)
    cause = {"problem": "No space is left on the disk", "remedy": "free some and run the same command again"}
    Writer(run, "later").write("tile", "e", "failed", **cause)
    with served(run, folder, pages=pages) as server:
        yield server


@pytest.fixture(autouse=True)
def failed_slides_have_no_thumbnail(visits):
    visits.expect("/thumbnail.jpg")


def shown(page: Any) -> list[str]:
    page.wait_for_selector(ROWS)
    return [row.get_attribute("data-id") for row in page.query_selector_all(ROWS)]


def test_the_most_urgent_slide_stands_first_and_says_what_is_known_of_it(site, visits):
    page = visits.open(site.link)
    assert shown(page)[:4] == ["d", "c", "b", "a"]
    first = page.locator("tr[data-id=d]")
    assert "tumor" in first.inner_text()
    assert "0.70" in first.inner_text()
    assert "probability" in first.inner_text()
    doubtful = page.locator("tr[data-id=b]").inner_text()
    for words in ("Abstains", "{normal, tumor}", "tiles unlike training", "2 failed tiles"):
        assert words in doubtful
    assert "free some and run the same command again" in page.locator("tr[data-id=e]").inner_text()
    assert page.locator(".worklist-count").inner_text() == "5 slides"
    until(page, "document.querySelector('tr[data-id=d] img').naturalWidth > 0")


def test_filters_and_order_stand_in_the_address_and_survive_a_reload(site, visits):
    page = visits.open(site.link)
    shown(page)
    page.keyboard.press("/")
    page.keyboard.type("B")
    until(page, f"document.querySelectorAll('{ROWS}').length === 1")
    assert shown(page) == ["b"]
    assert "search=B" in page.url
    assert page.locator(".worklist-count").inner_text() == "1 of 5 slides"
    page.reload()
    assert shown(page) == ["b"]
    page.get_by_role("button", name="Clear filters").click()
    until(page, f"document.querySelectorAll('{ROWS}').length === 5")
    page.get_by_role("button", name="Slide", exact=True).click()
    page.wait_for_selector("th[aria-sort=ascending]")
    assert shown(page) == ["a", "b", "c", "d", "e"]
    page.get_by_role("button", name="Slide", exact=True).click()
    page.wait_for_selector("th[aria-sort=descending]")
    assert shown(page) == ["e", "d", "c", "b", "a"]
    page.get_by_label("Status").select_option("failed")
    until(page, f"document.querySelectorAll('{ROWS}').length === 1")
    assert shown(page) == ["e"]
    page.get_by_label("Model").select_option("other")
    page.get_by_label("Status").select_option("")
    until(page, f"document.querySelectorAll('{ROWS}').length === 5")
    assert "0.90" in page.locator("tr[data-id=a]").inner_text()
    assert "model=other" in page.url


def test_keys_lead_through_the_list_to_a_slide_and_back(site, visits):
    page = visits.open(site.link)
    shown(page)
    page.keyboard.press("j")
    assert page.locator("tr[aria-current=true]").get_attribute("data-id") == "c"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/slide/c*")
    page.go_back()
    page.wait_for_selector("tr[aria-current=true]")
    assert page.locator("tr[aria-current=true]").get_attribute("data-id") == "c"
    page.keyboard.press("?")
    assert "Next slide" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("j")  # belongs to the dialog now
    page.keyboard.press("Escape")
    assert page.locator("tr[aria-current=true]").get_attribute("data-id") == "c"


def test_ten_thousand_slides_keep_few_rows_in_the_document(pages, visits, tmp_path):
    ids = [f"slide-{number:05}" for number in range(MANY)]
    Writer(tmp_path, "one").write_many("tile", ids, tiles=9).say(ended="now")
    (tmp_path / "run.json").touch()
    with served(tmp_path, tmp_path, pages=pages) as server:
        page = visits.open(server.link)
        assert shown(page)[0] == "slide-00000"
        assert page.locator("table.worklist").get_attribute("aria-rowcount") == str(MANY + 1)
        page.keyboard.press("End")
        page.wait_for_selector(f"tr[data-id=slide-{MANY - 1:05}]")
        assert page.locator("tr[aria-current=true]").get_attribute("aria-rowindex") == str(MANY + 1)
        page.evaluate("document.querySelector('.worklist-scroll').scrollTop *= 0.5")
        until(page, f"document.querySelector('{ROWS}')?.dataset.id.startsWith('slide-049')")
        rows = page.locator("table.worklist tbody tr").count()
        assert rows < 60
        row = page.locator(ROWS).first
        place = int(row.get_attribute("data-id").removeprefix("slide-"))
        assert row.get_attribute("data-index") == str(place)


def test_the_queue_is_answered_by_key_and_an_answer_can_be_taken_back(pages, visits, tmp_path):
    run = make_run(tmp_path, "a")
    ring = [[40, 40], [140, 40], [140, 140], [40, 140], [40, 40]]
    names = [f"{digit * 8}-1111-4111-8111-111111111111" for digit in "123"]
    square = {"type": "Polygon", "coordinates": [ring]}
    suggestions = [Suggestion(name, "a", square, "tumor", "the networks disagree") for name in names]
    (run / "review").mkdir(exist_ok=True)
    write_suggestions(run / "review", suggestions, {"model": "m"})
    with served(run, tmp_path, pages=pages) as server:
        page = visits.open(server.link, "#/queue")
        page.wait_for_selector("article.suggestion")
        assert page.locator("article.suggestion").count() == 3
        page.keyboard.press("a")
        page.get_by_label("Name or initials").fill("A. Reader")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Accepted: tumor")
        page.keyboard.press("x")
        page.wait_for_selector("article >> text=Rejected")
        page.keyboard.press("1")  # the one class that the model did not say: normal
        page.wait_for_selector("text=Relabelled: normal")
        page.keyboard.press("u")
        until(page, "document.querySelectorAll('article.answered').length === 2")
        until(page, "!document.body.innerText.includes('not saved')")
        kept = {region["id"]: region for region in server.client.get("/api/slides/a/review").json()["regions"]}
        assert [kept[name]["status"] for name in names] == ["accepted", "rejected", "open"]
        assert kept[names[0]]["who"] == "A. Reader"
        page.reload()
        page.wait_for_selector("article.suggestion")
        assert page.locator("article.suggestion").get_attribute("data-id") == names[2]


def test_pages_say_what_is_wrong_and_try_again(site, visits):
    visits.expect(NO_ANSWER)
    page = visits.open(site.link)
    shown(page)
    slides = re.compile(r"/api/slides\?")
    page.route(slides, lambda route: route.abort())
    page.reload()
    page.get_by_role("alert").wait_for()
    assert "The server does not answer" in page.get_by_role("alert").inner_text()
    page.unroute(slides)
    page.get_by_role("button", name="Try again").click()
    assert len(shown(page)) == 5
    page.get_by_label("Search slides by name").fill("nothing is called this")
    page.wait_for_selector("text=No slide fits")
    page.context.clear_cookies()
    page.get_by_role("button", name="Clear filters").click()
    page.wait_for_selector("text=This session has ended")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["", "#/queue"])
def test_no_serious_barrier_is_found(site, visits, scheme, place):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed; `make viewer` installs it")
    page = visits.open(site.link, place, color_scheme=scheme)
    page.wait_for_selector(ROWS if not place else ".state")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    told = [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found]
    assert [one for one in told if one[1] in ("serious", "critical")] == []


def test_colours_follow_the_button_and_stay(site, visits):
    page = visits.open(site.link, color_scheme="light")
    shown(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name="Colours:")
    button.click()
    assert page.evaluate(ground) == light
    button.click()
    until(page, f"{ground} !== '{light}'")
    dark = page.evaluate(ground)
    page.reload()
    shown(page)
    assert page.evaluate(ground) == dark
