"""What holds of a slide after all that was said of it: a fold over the events, in their order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .event import REGION_STATUS, SLIDE_STATUS, Event
from .suggestions import Suggestion

DRAWN, SUGGESTED, EDITED = "drawn", "suggested", "edited"


@dataclass(frozen=True, slots=True)
class Region:
    """A place on a slide with what was said of it; members as in the viewer's API.

    status  open: a suggestion that nobody answered; accepted: also of one that a person drew
    origin  drawn, suggested, or edited: a suggestion whose outline a person moved
    """

    id: str
    geometry: Mapping[str, Any]
    label: str | None
    note: str = ""
    status: str = "open"
    origin: str = DRAWN
    reason: str = ""
    who: str | None = None
    when: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class SlideState:
    """What was said of one slide.

    regions  by id, those that were deleted left out; known: of all events, in order; undone: ids of those taken back
    """

    slide_id: str
    status: str = "open"
    label: str | None = None
    who: str | None = None
    when: str | None = None
    predicted: Mapping[str, str] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    comments: list[dict[str, str]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    undone: set[str] = field(default_factory=set)

    @property
    def suggested(self) -> int:
        """Suggestions that wait for an answer."""
        return sum(region.status == "open" for region in self.regions.values())

    def undoable(self, who: str | None) -> str | None:
        """Id of the newest event that this reviewer, or with None the one of the newest, can take back."""
        mine = (
            event
            for event in reversed(self.events)
            if event.action != "undo" and event.id not in self.undone and who in (None, event.who)
        )
        return next((event.id for event in mine), None)

    def as_dict(self, who: str | None) -> dict[str, Any]:
        """The viewer's SlideReview."""
        return {
            "slide_id": self.slide_id,
            "status": self.status,
            "label": self.label,
            "who": self.who,
            "when": self.when,
            "regions": [region.as_dict() for region in self.regions.values()],
            "comments": self.comments,
            "history": [self._told(event) for event in self.events],
            "undoable": self.undoable(who),
            "version": len(self.events),
        }

    def summary(self) -> dict[str, Any]:
        """What the worklist shows."""
        facts = {name: getattr(self, name) for name in ("status", "label", "who", "when", "suggested")}
        regions = sum(region.status not in ("open", "rejected") for region in self.regions.values())
        return {**facts, "comments": len(self.comments), "regions": regions}

    def _told(self, event: Event) -> dict[str, Any]:
        text = event.label or event.text or event.note
        facts = {"id": event.id, "who": event.who, "when": event.time, "action": event.action, "text": text}
        return {**facts, "undone": event.id in self.undone}


def fold(slide_id: str, events: Iterable[Event], suggestions: Iterable[Suggestion] = ()) -> SlideState:
    """The state after these events. An event that is there twice counts once; those that were undone do not count."""
    state = SlideState(slide_id)
    for one in suggestions:
        state.regions[one.id] = _suggested(one)
    for event in sorted({event.id: event for event in sorted(events, key=_order, reverse=True)}.values(), key=_order):
        state.events.append(event)
    by_id = {event.id: event for event in state.events}
    for event in state.events:
        before = by_id.get(event.target)
        if event.action == "undo" and before is not None and before.who == event.who and before.action != "undo":
            state.undone.add(before.id)
    for event in state.events:
        if event.id not in state.undone:
            _apply(state, event)
    for region_id in state.deleted:
        state.regions.pop(region_id, None)
    return state


def _order(event: Event) -> tuple[str, str, int]:
    return event.order


def _apply(state: SlideState, event: Event) -> None:
    if event.action in SLIDE_STATUS:
        is_open = event.action == "reopen"
        state.status, state.label = SLIDE_STATUS[event.action], event.label
        state.who, state.when = (None, None) if is_open else (event.who, event.time)
        state.predicted = event.predicted
    elif event.action == "comment":
        state.comments.append({"who": event.who, "when": event.time, "text": event.text})
    elif event.region:
        _apply_to_region(state, event)


def _apply_to_region(state: SlideState, event: Event) -> None:
    """Events of a region that is not there do nothing: whoever added it has taken that back."""
    region = state.regions.get(event.region)
    if region is None and event.suggestion is not None:  # its suggestion has been replaced by newer ones since
        region = _suggested(Suggestion.from_dict(event.suggestion))
    said: dict[str, Any] = {"who": event.who, "when": event.time}
    if event.action == "region-add":
        state.regions[event.region] = Region(
            event.region, event.geometry or {}, event.label, event.note, "accepted", **said
        )
        state.deleted.discard(event.region)
    elif region is None:
        return
    elif event.action == "region-delete":
        state.deleted.add(event.region)
    elif event.action == "region-edit":
        origin = DRAWN if region.origin == DRAWN else EDITED
        state.regions[event.region] = replace(region, geometry=event.geometry or region.geometry, origin=origin, **said)
    else:
        label = event.label if event.action == "region-relabel" else region.label
        state.regions[event.region] = replace(region, status=REGION_STATUS[event.action], label=label, **said)


def _suggested(one: Suggestion) -> Region:
    return Region(one.id, one.geometry, one.label, status="open", origin=SUGGESTED, reason=one.reason)
