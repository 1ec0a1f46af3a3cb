"""A web server for tests: serves files in ranges, counts what it is asked for, and misbehaves on demand."""

import re
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class RangeServer:
    """A running server; its fields may be changed between requests.

    fault     what it does wrong: "" nothing · ignore: sends the whole file · cut: half of the range, as if it were all
              drop: closes the connection in the middle · shift: another range than asked for · an HTTP status as text
    faults    how many answers are wrong; those after them are right
    etag      as it tells it; None: none
    login     "user:password" that it asks for; "": none
    asked     ranges asked for, (start, end)
    """

    root: Path
    address: str = ""
    fault: str = ""
    faults: int = 1_000_000
    etag: str | None = '"1"'
    login: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list)
    sent_bytes: int = 0

    def url(self, name: str) -> str:
        return f"http://{self.address}/{name}"

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()
        self.sent_bytes = 0


@contextmanager
def range_server(root: Path) -> Iterator[RangeServer]:
    """Serve the files of `root` on this machine until the block ends."""
    state = RangeServer(root)

    class Handler(_Handler):
        server_state = state

    with _Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up, as they do when they want no whole file, are no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: RangeServer
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        """Files lie under their names, and under moved/ is a link to them."""
        state = self.server_state
        name = self.path.partition("?")[0].lstrip("/")
        if name.startswith("moved/"):
            return self._refuse(302, location=f"/{name.removeprefix('moved/')}")
        if state.login and self.headers.get("Authorization") != f"Basic {b64encode(state.login.encode()).decode()}":
            return self._refuse(401)
        path = state.root / name
        if not path.is_file():
            return self._refuse(404)
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
        state.asked.append((start, end))
        fault = state.fault if state.faults > 0 else ""
        state.faults -= bool(fault)
        if fault.isdigit():
            return self._refuse(int(fault))
        if start >= len(data):
            return self._refuse(416, f"bytes */{len(data)}")
        if fault == "ignore" or asked is None:
            return self._send(200, data, None)
        if fault == "shift":
            start, end = max(0, start - 7), end - 7
        if fault == "cut":
            end = (start + end) // 2
        return self._send(206, data[start:end], f"bytes {start}-{end - 1}/{len(data)}", fault == "drop")

    def _send(self, status: int, data: bytes, content_range: str | None, drop: bool = False) -> None:
        state = self.server_state
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        if state.etag is not None:
            self.send_header("ETag", state.etag)
        self.end_headers()
        part = data[: len(data) // 2] if drop else data
        state.sent_bytes += len(part)
        self.close_connection = drop
        try:
            self.wfile.write(part)
        except ConnectionError:  # the client does not want a whole file
            self.close_connection = True

    def _refuse(self, status: int, content_range: str | None = None, location: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in (("Content-Range", content_range), ("Location", location)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...
