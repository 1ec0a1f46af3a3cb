"""A small hub for tests: enough of the hub's protocol for huggingface_hub to look up, download, and be refused."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".bin", ".pth", ".pt")  # kept in LFS: their ETag is their sha256, and a CDN sends them


@dataclass
class Hub:
    """A running hub; its fields may be changed between requests.

    repositories  name → its commits, oldest first: (commit, file → content)
    gated         repositories whose files need `token`
    fault         what it does wrong: "" nothing · a status as text: answers every request with it · page: a web page
                  short: ends a large file half-way, as if it were whole · altered: other bytes · stall: sends half of
                  a large file, and then nothing
    asked         (method, path, whether a token came with it)
    """

    address: str = ""
    repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    fault: str = ""
    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address}"

    def commit(self, repository: str, **files: bytes) -> str:
        """A new newest commit of the repository, of these files (a dot in a name is written __); returns its id."""
        commits = self.repositories.setdefault(repository, [])
        named = {name.replace("__", "."): content for name, content in files.items()}
        identity = hashlib.sha1(repr((repository, len(commits), sorted(named))).encode()).hexdigest()
        commits.append((identity, named))
        return identity

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[repository]
        return commits[-1] if revision == "main" else next((entry for entry in commits if entry[0] == revision), None)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on this machine until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.address = str(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()
            thread.join()


@contextmanager
def hub_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to, an empty cache and an empty store of imported weights in `folder`, and no
    token. huggingface_hub reads its settings when it is imported, so they are set in it."""
    from huggingface_hub import constants, file_download

    from embedding import hub as module

    with hub_server() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN_PATH": str(folder / "token"),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        # versions before 1 have a copy there
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setenv("SLIDESTREAM_HOME", str(folder / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        module._notice.cache_clear()
        yield server


class _Handler(BaseHTTPRequestHandler):
    state: Hub  # the protocol is HTTP/1.0: each request makes a connection, which a guard of connections then sees

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path).lstrip("/")
        hub.asked.append((self.command, path, "Authorization" in self.headers))
        if hub.fault.isdigit():
            return self._send(int(hub.fault))
        if hub.fault == "page":
            return self._send(200, b"<html>please log in</html>")
        if path.startswith("cdn/"):
            return self._send_large(path.removeprefix("cdn/"))
        if path.startswith("api/models/"):
            return self._answer(path.removeprefix("api/models/"))
        repository, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        return self._resolve(repository, revision, name)

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if self._refused(repository, revision, "file"):
            return None
        commit, files = self.state.files(repository, revision) or ("", {})
        if name not in files:
            return self._send(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[name]
        if not name.endswith(LARGE):
            etag = hashlib.sha1(content).hexdigest()
            return self._send(200, content, **{"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        digest = hashlib.sha256(content).hexdigest()
        return self._send(
            302,
            Location=f"http://localhost:{self.state.address}/cdn/{digest}",  # another host: no token may go there
            **{"X-Repo-Commit": commit, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))},
        )

    def _answer(self, path: str) -> None:
        """Of a repository: its newest or a named commit and its files, or the tree of files of a commit."""
        parts = path.split("/")
        repository, kind = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        revision = parts[3] if len(parts) > 3 else "main"
        if self._refused(repository, revision, "look"):
            return None
        commit, files = self.state.files(repository, revision) or ("", {})
        if kind == "tree":
            rows = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()]  # fmt: skip
            return self._send(200, json.dumps(rows).encode(), **{"Content-Type": "application/json"})
        siblings = []
        for name, content in files.items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        answer = {"id": repository, "sha": commit, "siblings": siblings}
        return self._send(200, json.dumps(answer).encode(), **{"Content-Type": "application/json"})

    def _refused(self, repository: str, revision: str, what: str) -> bool:
        """Send the hub's refusals. Anyone may look at a gated repository; its files are what is gated."""
        hub, given = self.state, self.headers.get("Authorization")
        refusal: tuple[int, str] | None = None
        if given not in (None, f"Bearer {hub.token}", "Bearer hf_other"):
            self._send(401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
            return True
        if repository not in hub.repositories:
            refusal = (404 if given else 401, "RepoNotFound")
        elif what == "file" and repository in hub.gated and given != f"Bearer {hub.token}":
            refusal = (403 if given else 401, "GatedRepo")
        elif hub.files(repository, revision) is None:
            refusal = (404, "RevisionNotFound")
        if refusal is not None:
            self._send(refusal[0], **{"X-Error-Code": refusal[1]})
        return refusal is not None

    def _send_large(self, digest: str) -> None:
        hub = self.state
        contents = [
            content for commits in hub.repositories.values() for _, files in commits for content in files.values()
        ]
        content = next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)
        if hub.fault == "altered":
            content = bytes(len(content))
        if hub.fault == "short":
            content = content[: len(content) // 2]
        if hub.fault == "stall":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            hub.stalled.set()
            hub.released.wait(60)
            self.close_connection = True
            return None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content)
        start, stop = int(asked[1]), len(content)
        return self._send(206, content[start:], **{"Content-Range": f"bytes {start}-{stop - 1}/{stop}"})

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...
