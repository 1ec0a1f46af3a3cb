"""The contact sheet: what needs a look first, links that exist, and text that is only text."""

from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from heatmaps.contact import ContactCard, write_contact_sheet
from tests.commands import GLASS, slides, wsi
from tests.slides import write_svs

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements in order; `open` is empty at the end of a page whose elements are nested well."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.names, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1][1] == "name":
            self.names.append(data)

    def links(self):
        return [attrs[key] for _, attrs in self.elements for key in ("href", "src") if key in attrs]


def read_page(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def picture(folder, name):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / name)
    return folder / name


def write(tmp_path, *cards, command="wsi tile"):
    path = tmp_path / "report" / "tissue.html"
    write_contact_sheet(cards, path, command)
    return read_page(path)


def test_what_needs_a_look_stands_first(tmp_path):
    def card(name, status="done", **more):
        shown = picture(tmp_path / "tissue", f"{name}.jpg") if status != "failed" else None
        return ContactCard(name, status, shown, **more)

    page = write(
        tmp_path,
        card("clean", tiles=10),
        card("some", tiles=10, flags=(("blur", 2),)),
        card("dropped", tiles=1, left_out=(("blur", 9),)),
        card("most", tiles=10, flags=(("blur", 6), ("fold", 2))),
        card("also-clean", tiles=900),
        card("broken", "failed", problem="it is empty"),
        card("glass", "empty"),
    )
    assert page.names == ["broken", "glass", "dropped", "most", "some", "also-clean", "clean"]


def test_every_link_leads_to_a_picture_from_where_the_page_lies(tmp_path):
    names = ("a", "b#2", "c 100%", "d?x=1")
    cards = [ContactCard(name, "done", picture(tmp_path / "tissue", f"{name}.jpg"), 3) for name in names]
    links = [link for link in write(tmp_path, *cards).links() if not link.startswith("data:")]
    assert len(links) == 8
    assert all((tmp_path / "report" / unquote(link)).resolve().is_file() for link in links)
    assert not any("#" in link or "?" in link for link in links)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a & b"]
)
def test_text_from_slides_and_commands_stays_text(tmp_path, evil):
    shown = picture(tmp_path / "tissue", "a.jpg")
    cards = [ContactCard("lost", "failed", None, problem=evil), ContactCard("a", "done", shown, 3, problem=evil)]
    page = write(tmp_path, *cards, command=evil)
    assert "script" not in [tag for tag, _ in page.elements]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "".join(page.text).count(evil) == 3


def test_a_page_says_what_was_found_flagged_and_left_out(tmp_path):
    shown = picture(tmp_path / "tissue", "a.jpg")
    card = ContactCard("a", "done", shown, 1200, 12.34, (20.0, 15.5), (("fold", 7),), (("blur", 12), ("pen", 1)), 5000)
    text = " ".join("".join(write(tmp_path, card).text).split())
    for words in ("20.0 × 15.5 mm · 12.3 mm² tissue", "1,200 of 5,000 tiles", "fold 7", "left out: blur 12, pen 1"):
        assert words in text


def test_a_page_without_slides_is_a_page(tmp_path):
    assert "Tissue and tiles of 0 slides" in "".join(write(tmp_path).text)


def test_the_sheet_of_a_run_names_every_slide_once_and_its_links_exist(tmp_path):
    source, run = slides(tmp_path / "slides", "b", "a"), tmp_path / "run"
    write_svs(source / "z.svs", np.full((480, 600, 3), GLASS, np.uint8))
    (source / "m.svs").write_bytes(b"no slide")
    wsi("tile", source, "-o", run, "--tile-px", 120, code=1)
    page = read_page(run / "report" / "tissue.html")
    assert page.names == ["m", "z", "a", "b"]
    links = [link for link in page.links() if not link.startswith("data:")]
    assert len(links) == 6
    assert all((run / "report" / link).is_file() for link in links)
    assert "wsi tile" in "".join(page.text)
