"""The viewer's pages and its API; viewer/web/src/api.ts has the same as types."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from .cache import ByteCache
from .guard import Door, Guard, problem_body
from .place import TILE_PX, Place, max_level
from .review import add_review, summaries
from .site import Refused, Site, ask, find_place
from .worklist import NO_REVIEW, page
from .worklist import Query as Asked

CACHE_BYTES = 256 << 20
MAX_PATCH_PX = 2048
_PRIVATE = "private, max-age=3600"
_FILES = {  # not what the machine's registry says: a browser runs no script under another name
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png",
    ".ico": "image/x-icon", ".txt": "text/plain", ".json": "application/json", ".woff2": "font/woff2",
}  # fmt: skip
_log = logging.getLogger(__name__)

Text = Annotated[str, Query(max_length=100)]


def make_app(site: Site, door: Door) -> Guard:
    """The server as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_lists(app, site)
    _add_pictures(app, site)
    _add_numbers(app, site)
    add_review(app, site)
    _add_files(app, site)
    return Guard(app, door)


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, title: str, detail: str) -> Response:
        content, headers = problem_body(status, title, detail)
        return Response(content, status, headers, "application/problem+json")

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return answer(error.fault.status, error.fault.title, error.fault.detail)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        names = sorted({str(one["loc"][-1])[:40] for one in error.errors()})
        return answer(400, "The request is not valid", f"see {', '.join(names)}")

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "There is nothing here" if error.status_code == 404 else "Not allowed", "")

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Response:
        name = secrets.token_hex(4)
        _log.error("a request failed (%s)", name, exc_info=error)
        return answer(500, "The viewer failed", f"its log has the reason under {name}")


def _add_lists(app: FastAPI, site: Site) -> None:
    from importlib.metadata import version

    catalogue, start = site.catalogue, secrets.token_hex(8)

    @app.get("/api/session")
    async def session() -> JSONResponse:
        now = await asyncio.to_thread(catalogue.look)
        return JSONResponse(
            {
                "title": site.title,
                "kind": site.kind,
                "synthetic": site.synthetic,
                "models": list(now.models),
                "classes": list(now.classes),
                "review": site.review is not None,
                "reviewer": site.reviewer,
                "show_label": site.show_label,
                "version": version("slidestream"),
                "start": start,
            }
        )

    @app.get("/api/slides")
    async def slides(
        sort: Literal["urgency", "uncertainty", "id", "review", "tiles"] = "urgency",
        order: Literal["asc", "desc"] | None = None,
        model: Text | None = None,
        search: Text = "",
        status: Text = "",
        review: Text = "",
        predicted: Text = "",
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> JSONResponse:
        asked = Asked(sort, order, model, search, status, review, predicted, offset, limit)
        return JSONResponse(await asyncio.to_thread(lambda: page(catalogue.look(), summaries(site), asked)))

    @app.get("/api/slides/{slide_id}")
    async def slide(slide_id: str) -> JSONResponse:
        place = await find_place(site, slide_id)
        facts = await ask(site, "facts", place)
        now = catalogue.look()
        ids = list(now.cards)
        at = ids.index(slide_id)
        said = {
            **now.cards[slide_id],
            "review": await asyncio.to_thread(_review_of, site, slide_id),
            **_slide_facts(site, place, facts),
        }
        said |= {"scores": await asyncio.to_thread(catalogue.scores, slide_id)}
        said |= {"previous": ids[at - 1] if at else None, "next": ids[at + 1] if at + 1 < len(ids) else None}
        return JSONResponse(said)


def _review_of(site: Site, slide_id: str) -> Mapping[str, Any]:
    return summaries(site).get(slide_id, NO_REVIEW)


def _slide_facts(site: Site, place: Place, facts: Mapping[str, Any]) -> dict[str, Any]:
    width, height, mpp = facts["width"], facts["height"], facts["mpp"]
    stored = place.store is not None and place.store.is_dir()
    shown = {"Size": f"{width:,} × {height:,} px"}
    if mpp:
        shown["Size"] += f", {width * mpp / 1e3:.1f} × {height * mpp / 1e3:.1f} mm"
        shown["Scale"] = f"{mpp:.4g} µm/px, from {facts['mpp_source']}"
    if facts["objective"]:
        shown["Objective"] = f"{facts['objective']:g}x"
    shown["Format"] = f"{facts['vendor']}, {facts['codec'] or 'codec unknown'}, {facts['levels']} levels"
    area = site.catalogue.tissue_um2(place.slide_id)
    if area:
        shown["Tissue"] = f"{area / 1e6:.1f} mm²"
    return {
        "width": width,
        "height": height,
        "mpp": mpp,
        "mpp_source": facts["mpp_source"],
        "objective": facts["objective"],
        "tile_px": TILE_PX,
        "max_level": max_level(width, height),
        "pixels": facts["pixels"],
        "tissue": stored,
        "grid": stored,
        "annotations": place.slide_id in site.annotations,
        "associated": list(facts["associated"]) if site.show_label else [],
        "facts": shown,
    }


def _add_pictures(app: FastAPI, site: Site) -> None:
    cache = ByteCache(CACHE_BYTES)

    async def picture(request: Request, *words: Any) -> Response:
        """A JPEG from the cache or a reader; its tag tells a browser whether it has it already."""
        content = cache.get(words)
        if content is None:
            content = await ask(site, *words)
            cache.put(words, content)
        tag = f'"{hashlib.blake2b(content, digest_size=8).hexdigest()}"'
        headers = {"cache-control": _PRIVATE, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type="image/jpeg")

    @app.get("/api/slides/{slide_id}/tiles/{level}/{x}_{y}.jpg")
    async def tile(request: Request, slide_id: str, level: int, x: int, y: int) -> Response:
        place = await find_place(site, slide_id)
        if not (0 <= level <= 40 and 0 <= x < 1 << 22 and 0 <= y < 1 << 22):
            raise Refused(404, "No such tile", "")
        return await picture(request, "tile", place, level, x, y)

    @app.get("/api/slides/{slide_id}/thumbnail.jpg")
    async def thumbnail(
        request: Request, slide_id: str, width: Annotated[int, Query(ge=16, le=1200)] = 256
    ) -> Response:
        return await picture(request, "thumbnail", await find_place(site, slide_id), width)

    @app.get("/api/slides/{slide_id}/patch.jpg")
    async def patch(
        request: Request,
        slide_id: str,
        x: Annotated[int, Query(ge=-(1 << 31), le=1 << 31)],
        y: Annotated[int, Query(ge=-(1 << 31), le=1 << 31)],
        side: Annotated[int, Query(ge=1, le=1 << 16)],
        px: Annotated[int, Query(ge=1, le=MAX_PATCH_PX)] = 512,
    ) -> Response:
        return await picture(request, "patch", await find_place(site, slide_id), x, y, side, px)

    @app.get("/api/slides/{slide_id}/associated/{name}.jpg")
    async def associated(request: Request, slide_id: str, name: str) -> Response:
        if not site.show_label:
            raise Refused(404, "There is nothing here", "")
        return await picture(request, "associated", await find_place(site, slide_id), name)


def _add_numbers(app: FastAPI, site: Site) -> None:
    def plain(content: bytes, kind: str = "application/octet-stream") -> Response:
        return Response(content, headers={"cache-control": "no-cache"}, media_type=kind)

    @app.get("/api/slides/{slide_id}/grid")
    async def grid(slide_id: str) -> Response:
        return plain(await ask(site, "grid", await find_place(site, slide_id)))

    @app.get("/api/slides/{slide_id}/tissue")
    async def tissue(slide_id: str) -> Response:
        return plain(await ask(site, "tissue", await find_place(site, slide_id)), "application/geo+json")

    @app.get("/api/slides/{slide_id}/scores/{model}")
    async def scores(slide_id: str, model: str, score: Text = "prediction") -> Response:
        await find_place(site, slide_id)
        files = await asyncio.to_thread(site.catalogue.score_files, slide_id, model, score)
        if files is None:
            raise Refused(404, "No such scores", "draw them with `wsi heatmap`")
        return plain(await ask(site, "scores", *files))

    @app.get("/api/slides/{slide_id}/annotations")
    async def annotations(slide_id: str) -> Response:
        await find_place(site, slide_id)
        path = site.annotations.get(slide_id)
        if path is None:
            raise Refused(404, "No annotations of this slide", "give them with --annotations FOLDER")
        return plain(await ask(site, "annotations", path), "application/geo+json")


def _add_files(app: FastAPI, site: Site) -> None:
    async def file(name: str) -> Response:
        path = site.static.get(name)
        if path is None:
            raise Refused(404, "There is nothing here", "")
        kind = _FILES.get(path.suffix, "application/octet-stream")
        lasting = "no-cache" if name == "index.html" else "private, max-age=31536000, immutable"
        content = await asyncio.to_thread(path.read_bytes)
        return Response(content, headers={"cache-control": lasting}, media_type=kind)

    @app.get("/")
    async def index() -> Response:
        return await file("index.html")

    @app.get("/{name:path}")
    async def other(name: str) -> Response:
        return await file(name)
