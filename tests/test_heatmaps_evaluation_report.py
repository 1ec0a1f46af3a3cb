"""The evaluation report and the model card: complete in themselves, inert whatever they are told, and readable."""

import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from heatmaps.charts import HEIGHT, WIDTH, Axis, Chart, Series, draw, ticks
from heatmaps.evaluation_report import (
    CalibrationRow,
    Case,
    ComparedRow,
    Comparison,
    CountTable,
    EvaluationReport,
    FigureRow,
    FlowStep,
    GroupRow,
    GroupTable,
    PointRow,
    p_text,
    short,
    write_evaluation_report,
)
from heatmaps.model_card import BackboneRow, ModelCard, card_markdown, write_model_card
from heatmaps.report import Confusion, Headline
from tests.test_heatmaps_report import HOSTILE, picture
from wsi.errors import SpecError

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
AUROC = FigureRow("AUROC", 0.9123, 0.8341, 0.9687, "tumor", "", "higher", "bootstrap over patients")
ECE = FigureRow("ECE", 0.12, 0.05, 0.2, "tumor", better="lower")


def chart(name: str = "tumor") -> Chart:
    curve = Series(name, [(0, 0), (0.1, 0.8), (1, 1)], "step", [(0, 0, 0.1), (0.1, 0.7, 0.9), (1, 1, 1)])
    dots = Series("seen", [(0.2, 0.1), (1, 1)], "points", [(0.2, 0.0, 0.4), (1, 0.9, 1)], colour=1)
    return Chart(f"ROC of {name}", Axis("false positives"), Axis("true positives"), [curve, dots], True, "Read it.")


def report(
    text: str = "tumor", image: bytes | None = None, heatmap: str | None = "../heatmaps/s 1.gz"
) -> EvaluationReport:
    group = GroupRow(text, 20, 18, 0.4, [AUROC], [replace(AUROC, value=-0.02, low=-0.1, high=0.06)], [0.0002])
    few = GroupRow("few", 4, 3, reason="3 patients, fewer than 10: counted, not judged")
    return EvaluationReport(
        title=f"Evaluation of {text}", created=WHEN, command=f"wsi evaluate {text}",
        question=f"How well is {text} told?",
        headline=AUROC, slides=1234, patients=987, cards=[Headline("AUPRC", "0.801", "95 % interval")],
        flow=[FlowStep("in the manifest", 1300, 1000), FlowStep("judged", 1234, 987, {f"no label {text}": ["a", "b"]})],
        cohort=[CountTable("site", [(text, 700, 500), ("B", 534, 487)])], splits={"Folds": "5", "Hash": text},
        figures=[AUROC, FigureRow("kappa", None, reason=f"not defined {text}")],
        folds=[("fold 0", 0.9), ("fold 1", None)],
        confusion=Confusion(["normal", text], [[17, 3], [2, 16]]), charts=[chart(text)],
        calibration=[CalibrationRow(ECE, replace(ECE, value=0.031))], calibration_text="Before and after.",
        points=[PointRow(text, "sensitivity of at least 0.95", [0.31, 0.33], "on other folds", (9, 3, 17, 2), [AUROC])],
        subgroups=[GroupTable("site", [group, few], "adjusted by Holm for all 7 tests", 3, "0.5")],
        sets=[FigureRow("coverage", 0.91)], sets_text="Sets of 90 %.", abstain=[FigureRow("answered", 0.7)],
        abstain_text="Silent below.",
        comparison=Comparison("other", [ComparedRow("AUROC", 0.9, 0.8, AUROC, 0.01, "DeLong")]),
        cases=[Case("s1", "tumor", text, "tumor got 0.01", image, heatmap)], notes=[f"Few patients: {text}."],
        facts={"Contract": "abc123", "Seed": text},
    )  # fmt: skip


def card(text: str = "tumor") -> ModelCard:
    return ModelCard(
        name=text, created=WHEN, summary=f"Slides to {text}.", flow=[FlowStep("trained", 80, 60, {text: ["a"]})],
        cohort=[CountTable("label", [(text, 40, 30)])], splits={"Hash": text}, figures=[AUROC], how="Out of fold.",
        calibration=[CalibrationRow(ECE, replace(ECE, value=0.031))], charts=[chart(text)], limits=[text],
        contract={"weights": text}, backbones=[BackboneRow("virchow2", "CC-BY-NC-ND-4.0", text, "no commercial use")],
        commands=[f"wsi run {text}"], facts={"Seed": "0"},
    )  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page(given: EvaluationReport, folder: Path) -> Page:
    write_evaluation_report(given, folder / "index.html")
    return Page(folder / "index.html")


def test_everything_that_was_given_is_said(tmp_path):
    text = page(report(), tmp_path).text
    for said in [
        "How well is tumor told?", "1,234 slides judged", "987 patients", "in the manifest",
        "2 left out: no label tumor",
        "700", "fold 1", "0.912", "(0.834 to 0.969)", "bootstrap over patients", "not defined tumor", "0.031",
        "Before and after.", "sensitivity of at least 0.95", "0.310, 0.330", "on other folds", "<0.001", "−0.020",
        "adjusted by Holm for all 7 tests", "3 patients, fewer than 10", "3 without a value", "Sets of 90 %.",
        "Silent below.", "DeLong", "tumor got 0.01", "Few patients: tumor.", "abc123", "Read it.", "Not for diagnosis.",
    ]:  # fmt: skip
        assert said in " ".join(text.split()), said


def test_sections_name_the_items_that_they_answer(tmp_path):
    text = page(report(), tmp_path).text
    for items in ("TRIPOD+AI 6b, 11, 20a · CLAIM 8, 13, 33", "CLAIM 20, 21", "CLAIM 37", "TRIPOD+AI 14, 23a, 23b"):
        assert items in text


def test_the_page_needs_nothing_but_itself(tmp_path):
    found = page(report(image=picture()), tmp_path)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, a in found.tags if a.get("rel") != "icon"}
    links = [a[name] for _, a in found.tags for name in ("href", "src") if a.get(name)]
    assert all(link.startswith(("#", "data:")) or link == "../heatmaps/s%201.gz" for link in links), links
    assert "url(" not in found.source.replace("(data:", "")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_inert(tmp_path, text):
    calm, hostile = page(report(), tmp_path), page(report(text), tmp_path)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in calm.tags]
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", hostile.source)
    write_model_card(card(text), tmp_path)
    write_model_card(card(), tmp_path / "calm")
    of_card, calm_card = Page(tmp_path / "MODEL_CARD.html"), Page(tmp_path / "calm" / "MODEL_CARD.html")
    assert [tag for tag, _ in of_card.tags] == [tag for tag, _ in calm_card.tags]


def test_a_bare_report_leaves_its_sections_out(tmp_path):
    bare = EvaluationReport("A table", WHEN, "", "How well?", FigureRow("AUROC", None, reason="one class"), 1, 1)
    text = page(bare, tmp_path).text
    assert "one class" in text
    assert "None were found by the program" in text
    for absent in ("Subgroups", "Thresholds", "Worst errors", "Beside another model", "Confusion", "None None"):
        assert absent not in text


def test_a_picture_or_link_that_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(SpecError, match="neither PNG nor JPEG"):
        page(report(image=b"<svg onload=alert(1)>"), tmp_path)
    with pytest.raises(SpecError, match="relative path"):
        page(report(heatmap="https://example.org/x"), tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_equal_reports_are_equal_files(tmp_path):
    assert page(report(), tmp_path).source == page(report(), tmp_path).source


def elements(drawn: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(str(drawn)).findall(f".//{tag}")


def test_a_chart_lays_its_points_where_its_axes_say():
    line = Chart("c", Axis("x", 0, 10), Axis("y", -1, 1), [Series("s", [(0, -1), (5, 0), (10, 1)])])
    frame = elements(draw(line), "rect")[0].attrib
    width, height = float(frame["width"]), float(frame["height"])
    points = elements(draw(line), "polyline")[0].attrib["points"]
    assert points == f"0.0,{height:.1f} {width / 2:.1f},{height / 2:.1f} {width:.1f},0.0"
    labels = [element.text for element in elements(draw(line), "text")]
    assert labels == ["0", "2", "4", "6", "8", "10", "−1", "−0.5", "0", "0.5", "1", "x", "y"]


def test_steps_hold_their_value_until_the_next():
    stepped = Chart("c", Axis("x"), Axis("y"), [Series("s", [(0, 1), (0.5, 0.5), (1, 0)], "step")])
    points = [pair.split(",") for pair in elements(draw(stepped), "polyline")[0].attrib["points"].split()]
    assert len(points) == 5
    assert points[0][1] == points[1][1] != points[2][1] == points[3][1]


def test_nothing_of_a_chart_lies_outside_its_drawing():
    wild = Series("s", [(-1e9, 1e12), (0.5, 0.5), (2, -1e300)], band=[(0, -5, 5), (1, -5, 1e9)])
    drawn = draw(Chart("c", Axis("x"), Axis("y"), [wild]))
    inner = elements(drawn, "svg")[0].attrib
    assert float(inner["x"]) + float(inner["width"]) < WIDTH
    assert float(inner["y"]) + float(inner["height"]) < HEIGHT
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d", elements(drawn, "polyline")[0].attrib["points"])]
    assert max(map(abs, numbers)) < 3 * max(WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.1, 0.42, [-0.1, 0, 0.1, 0.2, 0.3, 0.4]),
        (0, 60, [0, 20, 40, 60]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_few_and_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.91234, "0.912"), (-0.5, "−0.500"), (123.456, "123.5"), (45678.9, "45,679")],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_a_p_value_is_never_nought():
    assert [p_text(value) for value in (None, 0.0, 0.0004, 0.04, 1.0)] == ["–", "<0.001", "<0.001", "0.040", "1.000"]


def test_a_card_says_what_the_model_is_for_and_what_not(tmp_path):
    markdown, html = write_model_card(card(), tmp_path)
    text = markdown.read_text()
    for said in [
        "# tumor", "**Not for diagnosis.**", "## Intended use", "## Not to be used for", "no medical device",
        "1. trained: 80 slides of 60 patients; 1 left out: tumor",
        "| label | slides | patients |", "| tumor | 40 | 30 |",
        "| AUROC | tumor | 0.912 (0.834 to 0.969) |", "| ECE | tumor | 0.120 (0.050 to 0.200) | 0.031",
        "CC-BY-NC-ND-4.0", "no commercial use", "wsi run tumor", "- **weights**: tumor", "2026-01-02",
    ]:  # fmt: skip
        assert said in text, said
    page = Page(html)
    for said in ("Not to be used for", "0.912", "CC-BY-NC-ND-4.0", "wsi run tumor", "Out of fold."):
        assert said in page.text, said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<script>x</script>", r"# \<script\>x\</script\>"),
        ("a|b", r"# a\|b"),
        ("[a](javascript:x)", r"# \[a\](javascript:x)"),
        ("two\nlines", "# two lines"),
        ("`rm`", r"# \`rm\`"),
    ],
)
def test_marks_in_a_cards_texts_are_text(text, line):
    markdown = card_markdown(card(text))
    assert markdown.splitlines()[0] == line
    assert "<script>x" not in markdown.replace("wsi run <script>x</script>", "")  # within a fence it is text


def test_a_fence_cannot_be_ended_from_within():
    markdown = card_markdown(card("```\n# forged"))
    assert [line for line in markdown.splitlines() if line.startswith("```")] == ["```", "```"]
    assert "\n# forged" not in markdown


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_runs_nothing_of_a_hostile_report(tmp_path):
    """Scripts would change the document's title; the browser gives back the document after loading."""
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    write_evaluation_report(report("calm" + attack), tmp_path / "a.html")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *flags.split(), profile, "--dump-dom", f"file://{tmp_path}/a.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "<html" not in done.stdout:
        pytest.skip("chromium does not start here")
    assert "<title>Evaluation of calm&lt;script&gt;" in done.stdout
    assert "Not for diagnosis" in done.stdout
