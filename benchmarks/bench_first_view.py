"""The first view in a browser: how long until a page of `wsi view` shows what it is for. Medians of several loads.

    python benchmarks/bench_first_view.py [BIG_SLIDE] [--loads 5] [--slides 10000] [--tiles 1000000]

Three pages, each opened in headless Chromium without a cache, from the address to what is seen: the worklist of a run
with so many predicted slides (first row), a big slide (its first picture is there), and the slide's heatmap of so many
tiles (drawn). The heatmap's numbers are also fetched alone from the server: time and bytes.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
STAGE = "[data-testid=stage]"
SCORED = f'{STAGE}[data-scores]:not([data-scores=""]):not([data-scores=loading])'


def median_of(loads: int, load: Callable[[], float]) -> str:
    times = [load() for _ in range(loads)]
    return f"{statistics.median(times):.2f} s (of {loads} loads, longest {max(times):.2f} s)"


def until_seen(browser: Any, link: str, place: str, selector: str) -> float:
    """Seconds from asking for a page, with nothing cached, until what is selected is there."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(link + place, wait_until="commit")
    page.wait_for_selector(selector, timeout=120_000)
    took = time.perf_counter() - begun
    context.close()
    return took


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=found, args=["--disable-gpu"], chromium_sandbox=os.geteuid() != 0)


@contextmanager
def viewing(source: Path) -> Iterator[tuple[str, str]]:
    """(link, token) of the real command."""
    from benchmarks.bench_viewer import begin

    ours = [sys.executable, "-c", "from cli.main import main; main()", "view", str(source)]
    target = begin("wsi view", ours, "")
    try:
        yield f"{target.base}/?token={target.token}", target.token
    finally:
        target.process.terminate()
        target.process.wait(10)


def many_slides(root: Path, count: int) -> Path:
    """A run folder with so many predicted slides, whose files are not there."""
    from tests.run_folders import Writer
    from tests.viewer_site import said

    ids = [f"slide-{number:05}" for number in range(count)]
    for stage in ("tile", "embed", "predict"):
        Writer(root, "one").write_many(stage, ids, tiles=5000).say(ended="now")
    (root / "run.json").touch()
    folder = root / "predictions" / "m"
    folder.mkdir(parents=True)
    for number, name in enumerate(ids):
        (folder / f"{name}.json").write_text(json.dumps(said(name, number / count)))
    return root


def big_heatmap(root: Path, slide: Path, tiles: int) -> Path:
    """A run folder with one slide and a heatmap of so many tiles over all of it, smooth as a model's."""
    from heatmaps import Heatmap
    from heatmaps.scores import write_scores
    from jobs.folder import RunFolder
    from jobs.manifest import SlideRecord
    from jobs.slide_table import keep_records
    from tests.run_folders import Writer
    from tests.viewer_site import predict
    from wsi import open_slide

    name = slide.stem
    with open_slide(slide) as opened:
        width, height = opened.levels[0].width, opened.levels[0].height
    span = max(1, int(np.sqrt(width * height / tiles)))
    columns, rows = width // span, height // span
    y, x = np.indices((rows, columns)).reshape(2, -1)
    noise = np.random.default_rng(0).normal(0, 0.05, len(x))
    scores = (0.5 + 0.4 * np.sin(x / 40) * np.cos(y / 55) + noise).clip(0, 1).astype(np.float32)
    xy = np.stack([x, y], axis=1).astype(np.int64) * span
    heatmap = Heatmap(name, "tumor softmax", "tumor", scores, xy, span, (0.0, 1.0), {}, xy[:0])
    write_scores(heatmap, RunFolder(root).scores("m", name))
    Writer(root, "one").write_many("tile", [name], tiles=len(x)).say(ended="now")
    (root / "run.json").touch()
    predict(root, "m", **{name: 0.9})
    keep_records(RunFolder(root), [SlideRecord(name, slide.resolve(), name, name)])
    return root


def numbers(link: str, token: str, name: str, loads: int) -> None:
    """How long the server takes for the heatmap's numbers, and how many bytes travel."""
    import httpx

    base = link.partition("/?")[0]
    with httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
        sizes = []

        def load() -> float:
            begun = time.perf_counter()
            with client.stream("GET", f"/api/slides/{name}/scores/m") as answer:
                sizes.append(sum(map(len, answer.iter_raw())))
                assert answer.status_code == 200
            encoding.append(answer.headers.get("content-encoding", "not compressed"))
            return time.perf_counter() - begun

        encoding: list[str] = []
        said = median_of(loads, load)
    print(f"numbers alone, from the server: {said}, {sizes[0] / 1e6:.1f} MB, {encoding[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    given = parser.parse_args()
    print(f"load of this machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        with viewing(many_slides(Path(folder, "many"), given.slides)) as (link, _):
            first = until_seen(browser, link, "", "table.worklist tbody tr[data-id]")
            again = median_of(given.loads, lambda: until_seen(browser, link, "", "table.worklist tbody tr[data-id]"))
        print(f"worklist of {given.slides:,} slides: {first:.2f} s right after the start, then {again}")
        if given.slide is None:
            return
        name = given.slide.stem
        with viewing(big_heatmap(Path(folder, "big"), given.slide, given.tiles)) as (link, token):
            place = f"#/slide/{name}"
            picture = median_of(given.loads, lambda: until_seen(browser, link, place, f"{STAGE}[data-ready]"))
            print(f"slide page, first picture: {picture}")
            heat = median_of(given.loads, lambda: until_seen(browser, link, place, SCORED))
            print(f"slide page, heatmap of about {given.tiles:,} tiles: {heat}")
            numbers(link, token, name, given.loads)


if __name__ == "__main__":
    main()
