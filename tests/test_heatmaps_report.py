"""The report: complete in itself, inert whatever the ids hold, and usable for thousands of slides."""

import base64
import io
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from heatmaps import (
    Baseline,
    Confusion,
    Evaluation,
    Failure,
    Figure,
    FoldRow,
    Headline,
    Interval,
    Report,
    RocCurve,
    SlideRow,
    StageRow,
    write_report,
)
from heatmaps.report import duration
from wsi.errors import SpecError

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A1",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "line\r\n\x1b[31mforged\u202etxt.exe",
    "javascript:alert(1)",
]


def picture(colour: str = "red", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (90, 60), colour).save(out, format=kind)
    return out.getvalue()


def make_report(**changes: Any) -> Report:
    evaluation = Evaluation(
        "tumor", Interval(0.934, 0.862, 0.981), patients=38, slides=40,
        folds=[FoldRow("1", 8, 9, 0.9), FoldRow("2", 7, 7, None)],
        curves=[RocCurve("out of fold", [(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)])],
        confusion=Confusion(["normal", "tumor"], [[17, 3], [2, 16]]),
        baselines=[Baseline("Mean colour", Interval(0.61, 0.43, 0.77), "RGB")],
        tile_auroc=Interval(0.91), notes=["Split by patient."],
    )  # fmt: skip
    fields: dict[str, Any] = {
        "title": "A run",
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "command": "wsi run slides --out run",
        "headlines": [Headline("Tiles", "12,345", "3 could not be read")],
        "stages": [StageRow("tile", 1234, 1, 0, 2, 75.0)],
        "facts": {"Backbone": "lite0", "Pixel size": "0.5 µm/px (vendor)"},
        "evaluation": evaluation,
        "slides": [
            SlideRow(
                "s1",
                "done",
                "tumor",
                "tumor",
                {"normal": 0.1, "tumor": 0.9},
                1000,
                3,
                {"GeoJSON": "../heatmaps/m/s 1.geojson.gz"},
            ),
            SlideRow("s2", "done", "normal", "tumor", {"normal": 0.4, "tumor": 0.6}, 10),
            SlideRow("s3", "empty", "normal", tiles=0),
        ],
        "figures": [Figure("s1", picture(), "softmax 0.90"), Figure("s2", picture("blue", "PNG"))],
        "failures": [Failure("s4", "tile", "JPEG data ends early", "copy the slide again", "Traceback\n  line 2")],
        "warnings": ["The cohort is small."],
    }
    return Report(**{**fields, **changes})


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a written report."""

    def __init__(self, report: Report, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        write_report(report, path)
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def references(self) -> list[str]:
        found = [
            value or "" for _, attributes in self.tags for name, value in attributes.items()
            if name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
        ]  # fmt: skip
        return found + re.findall(r"url\(([^)]*)\)", self.source)


@pytest.fixture
def page(tmp_path):
    return Page(make_report(), tmp_path / "index.html")


def test_the_page_loads_nothing_and_runs_nothing(page):
    outside = [ref for ref in page.references if not ref.startswith(("data:", "#"))]
    assert outside == ["../heatmaps/m/s%201.geojson.gz"]  # a link to the run's own file, not an asset
    assert not re.search(r"https?://|//[a-z]|@import", page.source)
    assert {"script", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy


def test_every_link_within_the_page_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {ref[1:] for ref in page.references if ref.startswith("#")} <= set(ids)


def test_the_page_says_what_it_was_given(page):
    for text in [
        "A run", "2026-01-02 03:04 UTC", "wsi run slides --out run", "Not for diagnosis", "12,345",
        "3 could not be read", "1,234", "1 min 15 s", "0.5 µm/px (vendor)", "0.934", "(0.862–0.981)", "0.610",
        "0.910", "Mean colour", "Split by patient.", "17", "s1", "s2", "s3", "empty", "0.900", "1,000", "differs",
        "softmax 0.90", "JPEG data ends early", "copy the slide again", "Traceback\n  line 2", "The cohort is small.",
    ]:  # fmt: skip
        assert text in page.text, text
    assert [attributes["points"] for attributes in page.all("polyline")] == ["0.0,300.0 30.0,60.0 300.0,0.0"]
    assert "SYNTHETIC" not in page.text


def test_figures_are_embedded_byte_for_byte(page):
    sources = [image["src"] for image in page.all("img")]
    for data, kind in ((picture(), "jpeg"), (picture("blue", "PNG"), "png")):
        assert f"data:image/{kind};base64,{base64.b64encode(data).decode()}" in sources
    assert len(sources) == 4  # and each is small in its table row


def test_synthetic_data_is_named_so(tmp_path):
    assert "SYNTHETIC DATA" in Page(make_report(synthetic=True), tmp_path / "a.html").text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_inert(tmp_path, text):
    calm = Page(make_report(), tmp_path / "calm.html")
    figure = Figure(text, picture(), text)
    row = SlideRow(text, text, text, text, {text: 0.5, "b": 0.5}, 5)
    hostile = Page(
        make_report(
            title=text, command=text, warnings=[text], facts={text: text}, headlines=[Headline(text, text, text)],
            slides=[row], figures=[figure, figure], failures=[Failure(text, text, text, text, text)],
            stages=[StageRow(text, 1, 2, 3, 4, None)],
        ),
        tmp_path / "hostile.html",
    )  # fmt: skip
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in calm.tags}
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", hostile.source)
    shown = text.replace("\r", "\\x0d").replace("\x1b", "\\x1b").replace("\u202e", "\\x202e")
    assert shown in hostile.text


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "https://example.org/a", "/etc/passwd", "file:///etc/passwd", "C:\\x", "//host/a"]
)
def test_a_link_out_of_the_run_is_refused(tmp_path, link):
    with pytest.raises(SpecError, match="relative"):
        write_report(make_report(slides=[SlideRow("s1", "done", files={"PNG": link})]), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(SpecError, match="neither PNG nor JPEG"):
        write_report(make_report(figures=[Figure("s1", b"<svg onload=alert(1)>")]), tmp_path / "a.html")


def test_thousands_of_slides_are_light_pages(tmp_path):
    slides = [SlideRow(f"s{i}", "done", None, "tumor", {"tumor": 0.7, "normal": 0.3}, 5) for i in range(5000)]
    figures = [Figure(f"s{i}", picture()) for i in range(60)]
    page = Page(make_report(slides=slides, figures=figures), tmp_path / "a.html")
    assert len(page.all("figure")) == 40
    assert "20 more heatmaps" in page.text
    assert len(page.all("img")) == 80
    assert ("s99" in page.text, "s100" in page.text, "s4999" in page.text) == (True, False, False)
    assert len(page.source) < 1_000_000
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["a.html", *(f"slides-{number:03d}.html" for number in range(2, 51))]
    for name in files:
        html = (tmp_path / name).read_text()
        assert all(f'href="{other}#slides"' in html for other in files if other != name)
        assert len(html) < 1_000_000
    last = (tmp_path / "slides-050.html").read_text()
    assert ("s4999" in last, "Slides 4,901 to 5,000 of 5,000" in last, "<script" in last) == (True, True, False)
    write_report(make_report(slides=slides[:150]), tmp_path / "a.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "slides-002.html"]


def test_the_first_screen_answers_what_came_out_and_what_failed(tmp_path):
    slides = [SlideRow(f"s{i}", "done", None, "tumor" if i < 3 else "normal", {"tumor": 0.7}, 5) for i in range(4)]
    failures = [Failure("f1", "tile", "no scale", "say it"), Failure("f2", "tile", "no scale", "say it")]
    text = " ".join(Page(make_report(slides=slides, failures=failures), tmp_path / "a.html").text.split())
    assert "tumor375 %" in text
    assert "normal125 %" in text
    assert "no scale" in text[text.index("What failed") : text.index("What failed") + 300]
    nothing = " ".join(Page(make_report(slides=slides, failures=[]), tmp_path / "b.html").text.split())
    assert "What failed Nothing." in nothing


def test_a_run_without_model_evaluation_or_pictures_has_a_report_too(tmp_path):
    bare = Report("A run", datetime(2026, 1, 2, tzinfo=UTC), "", slides=[SlideRow("s1", "done", tiles=4)])
    page = Page(bare, tmp_path / "a.html")
    assert "Not for diagnosis" in page.text
    for absent in ("Evaluation", "Predicted", "Failures", "Stages", "Label"):
        assert absent not in page.text


def test_many_classes_show_the_predicted_one_only(tmp_path):
    softmax = {f"class {i}": 0.1 * i for i in range(1, 6)}
    page = Page(make_report(slides=[SlideRow("s", "done", None, "class 4", softmax)]), tmp_path / "a.html")
    assert "0.400" in page.text
    assert "0.300" not in page.text


def test_equal_reports_are_equal_files(tmp_path):
    for name in ("a.html", "b.html"):
        write_report(make_report(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_runs_nothing_of_a_hostile_report(tmp_path):
    """Scripts would change the document's title; the browser gives back the document after loading."""
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    write_report(make_report(title="calm" + attack, warnings=[attack], facts={attack: attack}), tmp_path / "a.html")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [
        "chromium",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/a.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "<html" not in done.stdout:
        pytest.skip("chromium does not start here")
    assert "Not for diagnosis" in done.stdout
    assert "<title>calm&lt;script&gt;" in done.stdout
