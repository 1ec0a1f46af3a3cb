"""The review's part of the API: what people said of slides, and say now."""

import asyncio
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from jobs.review import Review
from wsi.errors import EngineError, StoreError

from .catalogue import Catalogue
from .guard import TOO_LARGE
from .site import Refused, Site, find_place

_SHOWN = ("slide_id", "label", "predicted", "reviewed_by", "reviewed_at")  # columns that say nothing of the patient


def open_review(catalogue: Catalogue) -> Review | None:
    """The reviews of a run; None where there is no run, or nothing can be written into its folder."""
    folder = catalogue.folder
    if folder is None or not os.access(folder.root, os.W_OK):
        return None
    return Review(folder.review, _Sizes(catalogue), catalogue.look().classes)


class _Sizes(Mapping[str, "tuple[int, int] | None"]):
    """slide_id → (width, height) in level-0 pixels, looked up when asked for: there may be ten thousand slides."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue

    def __getitem__(self, slide_id: str) -> tuple[int, int] | None:
        if slide_id not in self:
            raise KeyError(slide_id)
        return self._catalogue.size(slide_id)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._catalogue.look().cards

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalogue.look().cards)

    def __len__(self) -> int:
        return len(self._catalogue.look().cards)


def summaries(site: Site) -> Mapping[str, Mapping[str, Any]]:
    """slide_id → the review part of its card."""
    return {} if site.review is None else site.review.summary()


def add_review(app: FastAPI, site: Site) -> None:
    """The addresses of the review; without a run they answer that nothing is kept."""

    def kept() -> Review:
        if site.review is None:
            raise Refused(409, "Reviews are not kept here", "open a run folder that can be written")
        return site.review

    @app.get("/api/slides/{slide_id}/review")
    async def read(slide_id: str, who: Annotated[str | None, Query(max_length=100)] = None) -> JSONResponse:
        await find_place(site, slide_id)
        return JSONResponse(await asyncio.to_thread(kept().of, slide_id, who or site.reviewer))

    @app.post("/api/slides/{slide_id}/review")
    async def act(request: Request, slide_id: str) -> JSONResponse:
        await find_place(site, slide_id)
        review, body = kept(), await _body(request)
        if site.reviewer is not None:
            body["who"] = site.reviewer
        said = site.catalogue.look().cards[slide_id]["said"]
        predicted = {model: one["predicted"] for model, one in said.items() if one["predicted"]}
        try:
            return JSONResponse(await asyncio.to_thread(review.act, slide_id, body, predicted))
        except StoreError as error:
            raise Refused(503, "It could not be kept", error.problem) from error
        except EngineError as error:
            raise Refused(422, "That does not fit", f"{error.problem}; {error.args[2]}") from error

    @app.get("/api/slides/{slide_id}/review.geojson")
    async def geojson(slide_id: str) -> JSONResponse:
        await find_place(site, slide_id)
        return JSONResponse(
            await asyncio.to_thread(kept().geojson, slide_id),
            headers={"content-disposition": 'attachment; filename="review.geojson"'},
            media_type="application/geo+json",
        )

    @app.get("/api/queue")
    async def queue() -> JSONResponse:
        return JSONResponse({"items": [] if site.review is None else await asyncio.to_thread(site.review.queue)})

    @app.get("/api/review/labels.csv")
    async def labels() -> Response:
        text = await asyncio.to_thread(kept().labels_csv)
        return Response(
            text if site.show_label else without_patients(text),
            headers={"content-disposition": 'attachment; filename="labels.csv"', "cache-control": "no-store"},
            media_type="text/csv; charset=utf-8",
        )


def without_patients(text: str) -> str:
    """The table without who the patients are and where their files lie: `wsi train` takes both from the rows that the
    run folder keeps."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _SHOWN, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object."""
    try:
        content = await request.body()
    except ClientDisconnect:
        if request.scope.get(TOO_LARGE):
            raise Refused(413, "The body is too large") from None
        raise Refused(408, "The body did not come") from None
    try:
        found = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is no JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "The body is no JSON object")
    return found


def _no_number(text: str) -> float:
    raise ValueError(text)  # NaN and Infinity are not JSON
