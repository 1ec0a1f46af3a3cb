"""The review of a run: what people said of its slides, as the viewer shows it and the log keeps it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi.errors import ReviewError

from .event import MAX_REGIONS, Event, read_action
from .geojson import feature_collection
from .log import ReviewLog
from .state import SlideState, fold
from .suggestions import Suggestion, by_slide, read_suggestions, suggestions_path


class Review:
    """Reviews in `folder`, of these slides; for several threads, and beside other processes on the same folder.

    slides   id → (width, height) in level-0 pixels, None where that is not known
    classes  the classes that models and manifest know: their order gives their colours
    """

    def __init__(self, folder: Path, slides: Mapping[str, tuple[int, int] | None], classes: Sequence[str]):
        self.folder, self.slides, self.classes = folder, slides, tuple(classes)
        self._log, self._turn = ReviewLog(folder / "log"), threading.Lock()
        self._events: dict[str, list[Event]] = {}
        self._slide_of: dict[str, str] = {}
        self._states: dict[str, SlideState] = {}
        self._suggestions: dict[str, list[Suggestion]] = {}
        self._queue: list[Suggestion] = []
        self._seen: tuple[int, int] | None = None

    def of(self, slide_id: str, who: str | None = None) -> dict[str, Any]:
        """SlideReview of one slide; `undoable` is for this reviewer, or with None for who did the newest thing."""
        with self._turn:
            self._refresh()
            return self._state(slide_id).as_dict(who)

    def act(self, slide_id: str, body: Mapping[str, Any], predicted: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Keep what a reviewer did, and return the SlideReview after it. An event that is known changes nothing.

        body       as the viewer sends it: {event, who, action …}
        predicted  what the models say of the slide now, by model: kept when it is accepted
        Raises ReviewError where the request does not fit, StoreError where it cannot be kept.
        """
        if slide_id not in self.slides:
            raise _no_slide()
        event = read_action(slide_id, body, self.slides[slide_id])
        with self._turn:
            self._refresh()
            state = self._state(slide_id)
            if event.id in self._slide_of:
                if self._slide_of[event.id] != slide_id:
                    raise ReviewError("event", "it is of another slide", "give every event an id of its own")
                return state.as_dict(event.who)
            if event.action == "accept" and predicted:
                event = replace(event, predicted=dict(predicted))
            self._keep([self._log.append(_fitting(event, state, self._suggestions.get(slide_id, ())))])
            return self._state(slide_id).as_dict(event.who)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Of every slide: status, label, who, when, comments, regions (answered), suggested (waiting)."""
        with self._turn:
            self._refresh()
            untouched = SlideState("").summary()
            known = self._events.keys() | self._suggestions.keys()
            return {slide: self._state(slide).summary() if slide in known else untouched for slide in self.slides}

    def queue(self) -> list[dict[str, Any]]:
        """Suggestions that wait for an answer, {slide_id, region}, those first that teach most."""
        with self._turn:
            self._refresh()
            waiting = []
            for one in self._queue:
                region = self._state(one.slide_id).regions.get(one.id) if one.slide_id in self.slides else None
                if region is not None and region.status == "open":
                    waiting.append({"slide_id": one.slide_id, "region": region.as_dict()})
            return waiting

    def geojson(self, slide_id: str) -> dict[str, Any]:
        """All regions of the slide as QuPath annotations."""
        with self._turn:
            self._refresh()
            return feature_collection(slide_id, self._state(slide_id).regions.values(), self.classes)

    def labels_csv(self) -> str:
        """The table of labels that `wsi review export` writes, with every column of the manifest that is known."""
        from .export import labels_text

        return labels_text(self.states(), self.folder.parent)

    def states(self) -> dict[str, SlideState]:
        """What was said of each slide of which anything was."""
        with self._turn:
            self._refresh()
            known = self._events.keys() | self._suggestions.keys()
            return {slide: self._state(slide) for slide in self.slides if slide in known}

    def damaged(self) -> dict[Path, list[int]]:
        """Numbers of the log's lines, from 1, that are not as they were written, by file."""
        with self._turn:
            self._refresh()
            return self._log.damaged()

    def _refresh(self) -> None:
        """Take in what other processes wrote since."""
        events, again = self._log.fetch()
        if again:
            for known in (self._events, self._slide_of, self._states):
                known.clear()
        self._keep(events)
        path = suggestions_path(self.folder)
        try:
            facts = path.stat()
            seen = (facts.st_mtime_ns, facts.st_ino)
        except FileNotFoundError:
            seen = None
        if seen != self._seen:
            self._queue = read_suggestions(self.folder)
            self._suggestions, self._seen = by_slide(self._queue), seen
            self._states.clear()

    def _keep(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.id not in self._slide_of:
                self._slide_of[event.id] = event.slide_id
                self._events.setdefault(event.slide_id, []).append(event)
                self._states.pop(event.slide_id, None)

    def _state(self, slide_id: str) -> SlideState:
        if slide_id not in self.slides:
            raise _no_slide()
        if slide_id not in self._states:
            said = self._events.get(slide_id, ()), self._suggestions.get(slide_id, ())
            self._states[slide_id] = fold(slide_id, *said)
        return self._states[slide_id]


def _no_slide() -> ReviewError:
    return ReviewError("slide", "it is not one of this run", "choose one of the worklist")


def _fitting(event: Event, state: SlideState, suggestions: Sequence[Suggestion]) -> Event:
    """The event, with the suggestion that it is the first of; ReviewError where the slide's state forbids it."""
    region = state.regions.get(event.region)
    if event.action == "undo":
        before = next((one for one in state.events if one.id == event.target), None)
        if before is None or before.action == "undo":
            raise ReviewError("event", "there is no such event of this slide", "load the page again")
        if before.who != event.who:
            raise ReviewError("event", f"it is of {before.who}", "only who did something can undo it")
    elif event.action == "region-add":
        if region is not None:
            raise ReviewError("region", "a region of this id is there", "give every region an id of its own")
        if len(state.regions) >= MAX_REGIONS:
            problem = f"the slide has {MAX_REGIONS:,} regions already"
            raise ReviewError("region", problem, "delete some, or draw more in QuPath")
    elif event.region and region is None:
        raise ReviewError("region", "it is not there any more", "load the page again")
    elif event.action == "region-accept" and region is not None and region.label is None:
        raise ReviewError("region", "it has no class yet", "give it a class instead")
    found = next((one for one in suggestions if one.id == event.region), None)
    return replace(event, suggestion=found.as_dict()) if found is not None else event
