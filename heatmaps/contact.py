"""The contact sheet: every slide's tissue, pen and tiles at a glance: a person reviews a hundred in a minute."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wsi.publish import appear_file

from .report import page_environment


@dataclass(frozen=True, slots=True)
class ContactCard:
    """One slide. picture: of `draw_tissue`, None where there is none; problem: why there is none, why it is
    empty, or what to look at.

    tissue_mm2, tiles   what was found; flags: flag → number of tiles with it
    left_out            flag → number of tiles that are missing for it
    found               tiles there were before a number of them was drawn, None where all were kept
    unreadable          tiles whose pixels cannot be read
    """

    slide_id: str
    status: str
    picture: Path | None
    tiles: int = 0
    tissue_mm2: float | None = None
    size_mm: tuple[float, float] | None = None
    flags: tuple[tuple[str, int], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    found: int | None = None
    unreadable: int = 0
    problem: str = ""


def write_contact_sheet(cards: Sequence[ContactCard], path: Path, command: str) -> None:
    """Write one HTML page; pictures are linked relative to it, and load as one scrolls.

    What needs a look stands first: failed slides, those without tissue, then by the share of tiles that cannot be
    read, are flagged or were left out for it.
    """
    ordered = sorted(cards, key=_urgency)
    links = {card.slide_id: os.path.relpath(card.picture, path.parent) for card in ordered if card.picture is not None}
    template = page_environment().from_string(
        files(__package__).joinpath("contact.html.j2").read_text(encoding="utf-8")
    )
    text = template.render(cards=ordered, links=links, command=command, tiles=sum(card.tiles for card in cards))
    with appear_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def _urgency(card: ContactCard) -> tuple[int, float, str]:
    rank = {"failed": 0, "empty": 1}.get(card.status, 2)
    flagged, gone = (sum(count for _, count in counts) for counts in (card.flags, card.left_out))
    return rank, -(card.unreadable + flagged + gone) / max(1, card.tiles + gone), card.slide_id
