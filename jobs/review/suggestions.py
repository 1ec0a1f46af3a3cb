"""The regions that the engine asks people to look at: review/suggestions.json, replaced whole."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from wsi.errors import StoreError
from wsi.publish import seal_fits, write_json

SCHEMA = "suggestions/1"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A place whose label would teach much.

    id        a UUID, the same for the same place on the same slide by the same model
    geometry  GeoJSON in level-0 pixels
    label     the class that the model gives it
    reason    why it was chosen, in words; scores: the numbers behind it
    """

    id: str
    slide_id: str
    geometry: Mapping[str, Any]
    label: str | None
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(**{name.name: content[name.name] for name in fields(cls) if name.name in content})


def suggestions_path(folder: Path) -> Path:
    return folder / "suggestions.json"


def write_suggestions(folder: Path, chosen: Sequence[Suggestion], facts: Mapping[str, Any]) -> None:
    """Replace the suggestions of the review folder. facts: model, by, when and what else shaped them."""
    content = {"schema": SCHEMA, **facts, "suggestions": [one.as_dict() for one in chosen]}
    write_json(suggestions_path(folder), content, sealed=True)


def read_suggestions(folder: Path) -> list[Suggestion]:
    """In the order in which they are to be looked at; [] where there are none. Raises StoreError where damaged."""
    path = suggestions_path(folder)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    remedy = "make them again with `wsi review suggest`"
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise StoreError(path, f"its schema is {content['schema']!r}, not {SCHEMA!r}", remedy)
        found = [Suggestion.from_dict(one) for one in content["suggestions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(path, f"it is damaged ({error!r})", remedy) from None
    if seal_fits(text) is False:
        raise StoreError(path, "its checksum does not fit", remedy)
    return found


def by_slide(suggestions: Iterable[Suggestion]) -> dict[str, list[Suggestion]]:
    found: dict[str, list[Suggestion]] = {}
    for one in suggestions:
        found.setdefault(one.slide_id, []).append(one)
    return found
