"""Reviewing in a real browser: what is drawn, said and taken back there is what the server keeps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from jobs.review.suggestions import Suggestion, write_suggestions
from tests.browser import NO_ANSWER, on_slide, rest
from tests.viewer_site import make_run, served

SUGGESTED = {"first": "11111111-1111-4111-8111-111111111111", "second": "22222222-2222-4222-8222-222222222222"}


def square(x: int, y: int, side: int) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


@pytest.fixture(scope="module")
def prepared(pages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one slide and two suggestions."""
    run = make_run(tmp_path_factory.mktemp("review"), "a")
    reasons = {"first": "the model is unsure", "second": "the networks disagree"}
    suggestions = [
        Suggestion(SUGGESTED[name], "a", square(40 + 120 * place, 40, 100), "tumor", reasons[name])
        for place, name in enumerate(SUGGESTED)
    ]
    (run / "review").mkdir(exist_ok=True)
    write_suggestions(run / "review", suggestions, {"model": "m"})
    return run


@pytest.fixture
def open_page(prepared, pages, visits, tmp_path) -> Iterator[Callable[[str], Any]]:
    """Opens the slide's review as a reviewer, on a run of the test's own."""
    run = copytree(prepared, tmp_path / "run")
    with served(run, tmp_path, pages=pages) as server:

        def opened(who: str) -> Any:
            page = visits.open(server.link, "#/slide/a", who)
            show_review(page)
            return page

        yield opened


def show_review(page: Any) -> None:
    page.wait_for_selector("[data-testid=stage][data-zoom]")
    page.get_by_role("tab", name="Review").click()
    page.wait_for_selector("[data-testid=region]")


def kept(page: Any) -> dict[str, Any]:
    """What the server has of the slide."""
    return page.evaluate("() => fetch('api/slides/a/review').then((answer) => answer.json())")


def wait_for(page: Any, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(100):
        state = kept(page)
        if holds(state):
            return state
        page.wait_for_timeout(100)
    raise AssertionError(f"the server has {state}")


def region(state: dict[str, Any], **like: Any) -> dict[str, Any]:
    found = [one for one in state["regions"] if all(one[name] == value for name, value in like.items())]
    assert len(found) == 1, state["regions"]
    return found[0]


def status_of(state: dict[str, Any], name: str) -> str:
    return str(region(state, id=SUGGESTED[name])["status"])


def draw(page: Any, *, right: float = 0.55, side: int = 60) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draw a rectangle; its corners in level-0 pixels."""
    rest(page)
    box = page.get_by_test_id("stage").first.bounding_box()
    x, y = round(box["x"] + right * box["width"]), round(box["y"] + 0.55 * box["height"])
    page.keyboard.press("r")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + side / 2, y + side / 2, steps=3)
    page.mouse.move(x + side, y + side, steps=3)
    page.mouse.up()
    page.wait_for_selector("[data-testid=class-popover]")
    return on_slide(page, x, y), on_slide(page, x + side, y + side)


def bounds(geometry: dict[str, Any]) -> list[float]:
    xs, ys = zip(*geometry["coordinates"][0], strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def test_a_rectangle_is_kept_where_it_was_drawn_and_undone_step_by_step(open_page):
    page = open_page("Ann")
    (x0, y0), (x1, y1) = draw(page)
    page.keyboard.press("2")
    state = wait_for(page, lambda state: any(one["label"] == "tumor" and one["who"] for one in state["regions"]))
    drawn = region(state, origin="drawn")
    assert drawn["who"] == "Ann"
    assert bounds(drawn["geometry"]) == pytest.approx([x0, y0, x1, y1], abs=2.5 * (x1 - x0) / 60)
    page.keyboard.press("u")
    assert region(wait_for(page, lambda state: state["version"] == 3), origin="drawn")["label"] is None
    page.keyboard.press("u")
    gone = wait_for(page, lambda state: state["version"] == 4)
    assert [one["origin"] for one in gone["regions"]] == ["suggested", "suggested"]
    assert [told["undone"] for told in gone["history"][:2]] == [True, True]


def test_an_outline_is_edited_by_its_corner(open_page):
    page = open_page("Ann")
    draw(page)
    page.keyboard.press("Escape")
    before = bounds(region(wait_for(page, lambda state: len(state["regions"]) == 3), origin="drawn")["geometry"])
    page.keyboard.press("m")
    corner = page.locator(".a9s-corner-handle-bottomright").first
    corner.wait_for()
    box = corner.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 30, box["y"] + box["height"] / 2 + 15, steps=4)
    page.mouse.up()
    state = wait_for(page, lambda state: state["history"][-1]["action"] == "region-edit")
    after = bounds(region(state, origin="drawn")["geometry"])
    assert after[:2] == pytest.approx(before[:2], abs=0.5)
    assert after[2] - before[2] == pytest.approx(2 * (after[3] - before[3]), rel=0.15)
    assert after[2] > before[2]


def test_suggestions_are_answered_with_keys_and_the_next_one_comes(open_page):
    page = open_page("Ann")
    page.get_by_test_id("region").first.get_by_role("button").first.click()
    page.keyboard.press("a")
    wait_for(page, lambda state: status_of(state, "first") == "accepted")
    page.keyboard.press("x")
    state = wait_for(page, lambda state: status_of(state, "second") == "rejected")
    assert region(state, id=SUGGESTED["first"])["label"] == "tumor"
    page.wait_for_selector(f"[data-id='{SUGGESTED['second']}'][data-status=rejected]")


def test_what_could_not_be_sent_is_said_and_sent_after_a_reload(open_page, visits):
    visits.expect(NO_ANSWER)
    page = open_page("Ann")
    lost = "**/api/slides/a/review"
    page.route(lost, lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    page.keyboard.press("a")
    page.get_by_test_id("unsaved").wait_for()
    assert "1 not saved yet" in page.get_by_test_id("unsaved").inner_text()
    assert page.get_by_test_id("slide-status").get_attribute("data-status") == "accepted"
    assert kept(page)["status"] == "open"
    page.unroute(lost)
    page.reload()
    show_review(page)
    state = wait_for(page, lambda state: state["status"] == "accepted")
    assert [told["who"] for told in state["history"]] == ["Ann"]
    page.wait_for_selector("[data-testid=saving][data-waiting='0']", state="attached")


def test_an_answer_that_got_lost_on_the_way_back_counts_once(open_page, visits):
    visits.expect(NO_ANSWER)
    page = open_page("Ann")
    times = []

    def swallow(route: Any) -> None:
        if route.request.method != "POST":
            return route.continue_()
        times.append(route.request.post_data_json["event"])
        if len(times) > 1:
            return route.continue_()
        route.fetch()  # the server has it, the page does not hear of it
        return route.abort()

    page.route("**/api/slides/a/review", swallow)
    page.fill("#review-comment", "<b>Seen</b> at 40×")
    page.get_by_role("button", name="Add comment").click()
    page.wait_for_selector("[data-testid=saving][data-waiting='0']", state="attached")
    wait_for(page, lambda state: len(times) == 2)
    assert times[0] == times[1]
    assert [told["text"] for told in kept(page)["comments"]] == ["<b>Seen</b> at 40×"]
    assert page.get_by_test_id("comments").locator("b").count() == 0  # text is text


def test_two_reviewers_see_each_other_and_undo_only_their_own(open_page):
    ann, bob = open_page("Ann"), open_page("Bob")
    ann.keyboard.press("x")
    bob.wait_for_selector("[data-testid=slide-status][data-status=rejected]", timeout=15_000)
    assert bob.get_by_role("button", name="Undo mine").is_disabled()
    bob.get_by_role("group", name="Class of the slide").get_by_role("button", name="tumor").click()
    ann.wait_for_selector("[data-testid=slide-status][data-status=relabelled]", timeout=15_000)
    state = kept(ann)
    assert (state["label"], state["who"]) == ("tumor", "Bob")
    assert [(told["who"], told["action"]) for told in state["history"]] == [("Ann", "reject"), ("Bob", "relabel")]
