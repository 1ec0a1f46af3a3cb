"""What stands before the server's pages: who may ask, what for, and how much they may send.

All is decided from a request's headers, before any of its body is read.
"""

import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

MAX_BODY = 1 << 20  # bytes: a region of 10,000 corners
BODY_S = 20.0  # for a body to arrive
TOO_LARGE = "slidestream.too_large"  # in a request's scope, where its body was more than that
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_LOCKED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>slidestream</title>
<h1>This page needs the link that was printed</h1>
<p>Open the whole link that <code>wsi view</code> printed in the terminal, with its token. A link holds until the
viewer is ended; each start makes a new one.</p>
<p>If you have just opened it: <a href="/">go on</a>.</p></html>"""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_access = logging.getLogger("viewer.access")


@dataclass(frozen=True, slots=True)
class Door:
    """How the server is reached.

    hosts   values of the Host header that are served: others are another site's name that points here
    token   what the link carries; cookie: the name of the cookie that it becomes
    secure  whether browsers reach it by https
    """

    hosts: frozenset[str]
    token: str
    cookie: str
    secure: bool = False


class Guard:
    """An ASGI application that lets through to `app` only what is allowed."""

    def __init__(self, app: App, door: Door):
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            return
        begun, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {name for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in known)]
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await refused(answer)
        else:
            await self._app(scope, self._counted(scope, receive), answer)
        path = scope["path"][:200].encode("unicode_escape").decode()  # without the query, which may hold the token
        _access.info("%s %s %d %.0f ms", scope["method"], path, status, (time.monotonic() - begun) * 1e3)

    def _refusal(self, scope: Scope) -> Callable[[Send], Awaitable[None]] | None:
        """What to answer instead of the application, if anything."""
        headers = _headers(scope)
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or headers.get("host", "").lower() not in self._door.hosts:
            return problem(421, "This name is not served here", "open the link that `wsi view` printed")
        method = scope["method"]
        if method not in ("GET", "HEAD", "POST"):
            return problem(405, "Not allowed", "the viewer takes GET and POST")
        if len(scope["path"]) > 2000 or len(scope["query_string"]) > 4000:
            return problem(414, "The address is too long", "")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if given is not None and method == "GET" and scope["path"] == "/":
            return self._admit(given[0])
        if not self._knows(headers):
            if scope["path"].startswith("/api/"):
                return problem(401, "Not signed in", "open the link that `wsi view` printed")
            return _send(401, _LOCKED.encode(), "text/html; charset=utf-8")
        return self._refuse_post(headers) if method == "POST" else self._refuse_body(headers, 0)

    def _admit(self, given: str) -> Callable[[Send], Awaitable[None]]:
        """A good token becomes a cookie; the address without it keeps the place (#…) that the link names."""
        if not _same(given, self._door.token):
            return _send(401, _LOCKED.encode(), "text/html; charset=utf-8")
        cookie = f"{self._door.cookie}={self._door.token}; Path=/; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if self._door.secure else ""
        return _send(303, b"", "text/plain", {"location": "/", "set-cookie": cookie, "cache-control": "no-store"})

    def _knows(self, headers: Mapping[str, str]) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(bearer.strip(), self._door.token):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._door.cookie)
        except CookieError:
            return False
        return found is not None and _same(found.value, self._door.token)

    def _refuse_post(self, headers: Mapping[str, str]) -> Callable[[Send], Awaitable[None]] | None:
        """A form on another site must not act here in the name of who is signed in."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        scheme = "https" if self._door.secure else "http"
        if origin is not None and origin.lower() not in {f"{scheme}://{host}" for host in self._door.hosts}:
            return problem(403, "Asked by another site", "")
        if site not in (None, "same-origin") or (origin is None and site is None and "cookie" in headers):
            return problem(403, "Asked by another site", "")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problem(415, "The body must be JSON", "send content-type: application/json")
        return self._refuse_body(headers, MAX_BODY)

    def _refuse_body(self, headers: Mapping[str, str], limit: int) -> Callable[[Send], Awaitable[None]] | None:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return problem(400, "The length is no number", "")
        if int(length[:20]) > limit or (limit == 0 and "transfer-encoding" in headers):
            return problem(413, "The body is too large", f"at most {limit:,} bytes are taken", {"connection": "close"})
        return None

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Count a body whose length was not stated, or was a lie, as it comes; end one that does not come."""
        import asyncio

        taken, end = 0, time.monotonic() + BODY_S
        whole = scope["method"] != "POST"

        async def take() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()  # waits for the client to go
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                return {"type": "http.disconnect"}
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            scope[TOO_LARGE] = taken > MAX_BODY
            return {"type": "http.disconnect"} if scope[TOO_LARGE] else message

        return take


def problem(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> Callable[[Send], Awaitable[None]]:
    """An answer that says what is wrong (RFC 9457), with an id by which the server's log names the same event."""
    content, extra = problem_body(status, title, detail)
    return _send(status, content, "application/problem+json", {**extra, **(headers or {})})


def problem_body(status: int, title: str, detail: str) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of such an answer."""
    said = {"type": "about:blank", "status": status, "title": title, "detail": detail, "id": secrets.token_hex(6)}
    more = {"retry-after": "2"} if status == 503 else {}
    return json.dumps(said).encode(), {"cache-control": "no-store", **more}


def _send(
    status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None
) -> Callable[[Send], Awaitable[None]]:
    lines = {"content-type": kind, "content-length": str(len(content)), "cache-control": "no-store", **(headers or {})}

    async def answer(send: Send) -> None:
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in lines.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content})

    return answer


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
