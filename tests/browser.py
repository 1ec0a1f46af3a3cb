"""A real browser for tests of the viewer's pages: headless Chromium, driven by Playwright.

`CHROMIUM` names another one. Tests are skipped, with the reason, where there is no browser, no Playwright, or where
the pages were not built. A test fails when a page had an error, wrote one to its console or broke its security policy.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
SIZE = {"width": 1280, "height": 720}
STAGE = "[data-testid=stage]"
SCORED = f'{STAGE}[data-scores]:not([data-scores=""]):not([data-scores=loading])'
NO_ANSWER = "Failed to load resource"  # what a browser writes of each request that is refused or not answered

GONE = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED")


@pytest.fixture(scope="session")
def pages() -> dict[str, Path]:
    """Address → file of the built front end."""
    from viewer.serve import ViewerError, built_pages  # not for tests of other things

    try:
        return built_pages()
    except ViewerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def browser(pages) -> Iterator[Any]:
    """One for all tests of a file. Not longer: while Playwright runs, nothing else may run an event loop beside it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra dev")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here; CHROMIUM may name one")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=list(FLAGS), chromium_sandbox=os.geteuid() != 0)
        yield started
        started.close()


class Visits:
    """Opens pages, each in a profile of its own, and listens to what goes wrong in them."""

    def __init__(self, browser: Any):
        self._browser, self._contexts = browser, []
        self._troubles: list[str] = []
        self._expected = list(GONE)  # at a test's end the server may go before its pages

    def open(self, link: str, place: str = "", who: str | None = None, **context: Any) -> Any:
        """A page at `place` (#/…) of the viewer at `link`, which lets in; `who` reviews there. Nothing moves slowly."""
        made = self._browser.new_context(**{"viewport": SIZE, "reduced_motion": "reduce", **context})
        self._contexts.append(made)
        made.set_default_timeout(20_000)
        if who is not None:
            made.add_init_script(f"localStorage.setItem('slidestream.reviewer', '{who}')")
        page = made.new_page()
        page.on("pageerror", lambda error: self._troubles.append(error.message))
        page.on("console", self._hear)
        page.goto(link + place)
        return page

    def expect(self, words: str) -> None:
        """An error with these words, or at an address with them, is what the test is about."""
        self._expected.append(words)

    def close(self) -> None:
        for one in self._contexts:
            one.close()
        troubles = [said for said in self._troubles if not any(words in said for words in self._expected)]
        if troubles:
            raise AssertionError("\n".join(["in the browser:", *troubles]))

    def _hear(self, said: Any) -> None:
        if said.type == "error":
            self._troubles.append(f"{said.text} ({said.location['url']})")


@pytest.fixture
def visits(browser) -> Iterator[Visits]:
    opened = Visits(browser)
    yield opened
    opened.close()


def until(page: Any, condition: str) -> None:
    """Wait until it is true; asked from here, for the page's policy lets nothing be made from text in it."""
    end = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def rest(page: Any) -> None:
    """Wait until the view stands still and what it shows is drawn."""
    page.wait_for_selector(f"{STAGE}[data-zoom]")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    before, now = "", view_of(page)
    while before != now:
        page.wait_for_timeout(120)
        before, now = now, view_of(page)


def view_of(page: Any) -> tuple[float, float, float]:
    """(x, y, zoom) as the stage says: the centre in level-0 pixels, and screen pixels for each of them."""
    stage = page.locator(STAGE).first
    x, y = (float(part) for part in stage.get_attribute("data-center").split(","))
    return x, y, float(stage.get_attribute("data-zoom"))


def on_slide(page: Any, x: float, y: float) -> tuple[float, float]:
    """Level-0 pixels under a place of the window."""
    box, (left, top, zoom) = page.locator(STAGE).first.bounding_box(), view_of(page)
    return left + (x - box["x"] - box["width"] / 2) / zoom, top + (y - box["y"] - box["height"] / 2) / zoom


def on_screen(page: Any, x: float, y: float) -> tuple[float, float]:
    """Place of the window where the slide's level-0 pixel (x, y) is."""
    box, (left, top, zoom) = page.locator(STAGE).first.bounding_box(), view_of(page)
    return (x - left) * zoom + box["x"] + box["width"] / 2, (y - top) * zoom + box["y"] + box["height"] / 2


_READ = """([places, selector]) => {
  const stage = document.querySelector('[data-testid=stage]');
  const canvas = stage.querySelector(selector);
  const [x, y] = stage.dataset.center.split(',').map(Number);
  const zoom = Number(stage.dataset.zoom);
  const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;  // once: it is slow
  return places.map(([px, py]) => {
    const across = Math.round((px - x) * zoom + canvas.width / 2);
    const at = 4 * (across + canvas.width * Math.round((py - y) * zoom + canvas.height / 2));
    return [...all.slice(at, at + 4)];
  });
}"""


def pixels_at(page: Any, places: list[list[float]], layer: str = ".slide-overlay") -> NDArray[np.int64]:
    """RGBA (n, 4) of the heatmap, or another canvas, over level-0 places (n, 2) that are in view."""
    return np.array(page.evaluate(_READ, [places, layer]))


def token_of(link: str) -> tuple[str, str]:
    """(address, token) of a link that `wsi view` printed."""
    found = re.fullmatch(r"(https?://[^/]+)/\?token=(\S+)", link)
    assert found is not None, link
    return found[1], found[2]
