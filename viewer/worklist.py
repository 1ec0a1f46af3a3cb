"""A page of the worklist: filtered, searched, sorted."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .catalogue import Card, Snapshot

NO_REVIEW: Mapping[str, Any] = {
    "status": "open", "label": None, "who": None, "when": None, "comments": 0, "regions": 0, "suggested": 0,
}  # fmt: skip
_REVIEW_ORDER = ("open", "rejected", "relabelled", "accepted")  # what is left to do comes first


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for; sort, order, limits as in api.ts. model: whose predictions count, None for the first that
    said something of a slide."""

    sort: str = "urgency"
    order: str | None = None
    model: str | None = None
    search: str = ""
    status: str = ""
    review: str = ""
    predicted: str = ""
    offset: int = 0
    limit: int = 100


def page(now: Snapshot, reviews: Mapping[str, Mapping[str, Any]], query: Query) -> dict[str, Any]:
    """A `Worklist` of api.ts."""
    found = [card for card in now.cards.values() if _fits(card, reviews, query)]
    key = _key(reviews, query)
    order = query.order or ("asc" if query.sort in ("id", "review") else "desc")
    with_key = [card for card in found if key(card) is not None]
    without = [card for card in found if key(card) is None]  # at the end in either order
    with_key.sort(key=key, reverse=order == "desc")  # stable: equal ones stay in the order of ids
    chosen = [*with_key, *without][query.offset : query.offset + query.limit]
    slides = [{**card, "review": reviews.get(card["id"], NO_REVIEW)} for card in chosen]
    reviewed = Counter(review["status"] for slide_id, review in reviews.items() if slide_id in now.cards)
    reviewed["open"] += len(now.cards) - reviewed.total()
    predicted = Counter(said["predicted"] for card in now.cards.values() if (said := said_by(card, query.model)))
    predicted.pop(None, None)
    status = Counter(card["status"] for card in now.cards.values())
    counts = {"status": status, "review": reviewed, "predicted": predicted}
    return {"total": len(found), "offset": query.offset, "slides": slides, "counts": counts}


def said_by(card: Card, model: str | None) -> Mapping[str, Any] | None:
    """What the model, or the first one, said of the slide."""
    said: Mapping[str, Mapping[str, Any]] = card["said"]
    return next(iter(said.values()), None) if model is None else said.get(model)


def _fits(card: Card, reviews: Mapping[str, Mapping[str, Any]], query: Query) -> bool:
    if query.search and query.search.casefold() not in card["id"].casefold():
        return False
    if query.status and card["status"] != query.status:
        return False
    if query.review and reviews.get(card["id"], NO_REVIEW)["status"] != query.review:
        return False
    said = said_by(card, query.model) if query.predicted else None
    return not query.predicted or (said is not None and said["predicted"] == query.predicted)


def _key(reviews: Mapping[str, Mapping[str, Any]], query: Query) -> Callable[[Card], Any]:
    def by_said(card: Card) -> Any:
        said = said_by(card, query.model)
        return None if said is None else said[query.sort]

    if query.sort in ("urgency", "uncertainty"):
        return by_said
    if query.sort == "review":
        return lambda card: _REVIEW_ORDER.index(reviews.get(card["id"], NO_REVIEW)["status"])
    return lambda card: card[query.sort]
