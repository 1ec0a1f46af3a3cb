"""What the server shows, and how its pages ask for it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.review import Review

from .catalogue import Catalogue
from .fault import Fault
from .place import Place
from .readers import Readers


@dataclass(frozen=True)
class Site:
    """What the server shows, and how.

    catalogue    the slides; readers: the processes that read them
    title        of the page; kind: run, folder or slide
    static       address → file of the built pages
    show_label   whether label and macro pictures, and who the patients are, may be seen
    reviewer     a name given at the start
    annotations  slide_id → a file of regions that somebody drew
    review       what people said of the slides; None where that cannot be kept
    """

    catalogue: Catalogue
    readers: Readers
    title: str
    kind: str
    static: Mapping[str, Path]
    synthetic: bool = False
    show_label: bool = False
    reviewer: str | None = None
    annotations: Mapping[str, Path] = field(default_factory=dict)
    review: Review | None = None


class Refused(Exception):
    """A request that is answered with what is wrong with it."""

    def __init__(self, status: int, title: str, detail: str = ""):
        super().__init__(status, title, detail)
        self.fault = Fault(status, title, detail)


async def find_place(site: Site, slide_id: str) -> Place:
    """The slide of that id: a look-up, whatever the text is."""
    place = await asyncio.to_thread(site.catalogue.place, slide_id)
    if place is None:
        raise Refused(404, "No such slide", "go back to the worklist")
    return place


async def ask(site: Site, *words: Any) -> Any:
    """A reader's answer."""
    said = await site.readers.ask(*words)
    if isinstance(said, Fault):
        raise Refused(said.status, said.title, said.detail)
    return said
