"""Who may ask the viewer's server, what for, and how much: nobody else, nothing else, not more."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.commands import slides, wsi
from tests.viewer_site import TOKEN, heatmap_of, make_run, predict, served
from viewer.connection import PatientConnection
from viewer.fault import without_paths
from viewer.guard import MAX_BODY, Door, Guard
from viewer.serve import ViewSpec, built_pages, check_address, make_door
from wsi.errors import EngineError
from wsi.machine import is_alive

REPOSITORY = Path(__file__).resolve().parent.parent
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with served(make_run(folder, "a"), folder) as one:
        yield one


def test_nobody_comes_in_without_the_link(site):
    with httpx.Client(base_url=site.base) as stranger:
        for place in ("/api/session", "/api/slides", "/api/slides/a/tiles/0/0_0.jpg", "/api/review/labels.csv"):
            answer = stranger.get(place)
            assert answer.status_code == 401
            assert answer.json()["title"] == "Not signed in"
        page = stranger.get("/")
        assert page.status_code == 401
        assert "wsi view" in page.text
        assert stranger.get("/?token=wrong").status_code == 401
        assert stranger.get("/", headers={"cookie": "wsi_test=wrong"}).status_code == 401
        assert stranger.get("/", headers={"cookie": "wsi_test=é".encode()}).status_code == 401
        assert stranger.get("/api/session", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
        assert stranger.get("/api/session", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_link_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(site):
    with httpx.Client(base_url=site.base) as person:
        answer = person.get(f"/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")  # a browser keeps #place over it
        words = {word.strip() for word in answer.headers["set-cookie"].split(";")}
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= words
        assert person.get("/").status_code == 200
        assert TOKEN not in person.get("/").text


def test_another_name_that_points_here_is_not_served(site):
    port = site.base.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
        assert site.client.get("/api/session", headers={"host": host}).status_code in (400, 421), host


def test_answers_forbid_scripts_from_elsewhere(site):
    for place in ("/", "/api/session", "/api/slides/a/thumbnail.jpg", "/nothing", "/api/slides?limit=x"):
        headers = site.client.get(place).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("place", ["docs", "redoc", "openapi.json", "api", "static/index.html", "index.html/", ".env"])
def test_nothing_is_served_that_is_not_a_page(site, place):
    assert site.client.get(f"/{place}").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e%2f",
        "%252e%252e%252f",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "C:%5C",
        "a%00b",
        "x" * 1500,
        "%ff",
        "a/../../b",
    ],
)
def test_ids_are_looked_up_and_never_a_path(site, name):
    for place in (f"/api/slides/{name}", f"/api/slides/{name}/thumbnail.jpg", f"/api/slides/{name}/grid", f"/{name}"):
        with socket.create_connection(("127.0.0.1", int(site.base.rpartition(":")[2]))) as raw:  # no client tidies it
            host = site.base.removeprefix("http://")
            head = f"GET {place} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
            raw.sendall(head.encode())
            content = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
        assert re.match(rb"HTTP/1.1 (400|404|414) ", content), (place, content[:100])
        assert b"root:" not in content


def test_a_form_on_another_site_cannot_review(site):
    address, good = "/api/slides/a/review", {"origin": site.base}
    body = json.dumps({"event": "0d0f26cb-9d7f-4df6-8f6e-aa6b36b6b3a1", "who": "x", "action": "accept"})

    def status(headers: dict[str, str]) -> int:
        with httpx.Client(base_url=site.base, cookies={"wsi_test": TOKEN}) as client:
            return client.post(address, content=body, headers=headers).status_code

    assert status({**JSON, "origin": "http://evil.example"}) == 403
    assert status({**JSON, "origin": "null"}) == 403
    assert status(JSON) == 403  # browsers always say where a form is from
    assert status({**JSON, **good, "sec-fetch-site": "cross-site"}) == 403
    assert status({**JSON, **good, "sec-fetch-site": "same-site"}) == 403
    assert status({**good, "content-type": "text/plain"}) == 415
    assert status({**good, "content-type": "application/x-www-form-urlencoded"}) == 415
    assert site.client.get(address).json()["version"] == 0
    assert status({**JSON, **good}) == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_not_taken(site, method):
    assert site.client.request(method, "/api/slides/a").status_code == 405


def test_bodies_are_limited_before_and_while_they_are_read(site):
    address = "/api/slides/a/review"
    with suppress(httpx.WriteError, httpx.ReadError):
        assert site.client.post(address, content=bytes(MAX_BODY + 1), headers=JSON).status_code == 413

    def endless():
        for _ in range(200):
            yield b" " * 65536

    with suppress(httpx.WriteError, httpx.ReadError):  # cut off while it was sending
        assert site.client.post(address, content=endless(), headers=JSON).status_code == 413
    for wrong in (b"", b"{", b"[]", b'{"a": NaN}', b"[" * 100_000, b"\xff", b'"a"'):
        assert site.client.post(address, content=wrong, headers=JSON).status_code == 400, wrong[:10]
    assert site.client.get("/api/session").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "slides?limit=501",
        "slides?limit=-1",
        "slides?offset=-1",
        "slides?sort=path",
        "slides?search=" + "x" * 101,
        "slides/a/patch.jpg?x=0&y=0&side=10&px=2049",
        "slides/a/patch.jpg?x=0&y=0&side=100000&px=10",
        "slides/a/patch.jpg?x=99999999999&y=0&side=10&px=10",
        "slides/a/patch.jpg?x=NaN&y=0&side=10&px=10",
        "slides/a/thumbnail.jpg?width=100000",
    ],
)
def test_whatever_is_asked_for_has_limits(site, query):
    answer = site.client.get(f"/api/{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {"type", "status", "title", "detail", "id"}
    assert "xxxx" not in answer.text


def test_heads_are_limited(site):
    with httpx.Client(base_url=site.base) as client:
        with suppress(httpx.ReadError, httpx.WriteError):  # cut off while it was sending
            assert client.get("/", headers={"x": "y" * 200_000}).status_code in (400, 431)
        assert client.get("/?" + "a" * 5000, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 414


def test_who_sends_a_byte_at_a_time_is_cut_off_and_keeps_nobody_waiting(site, monkeypatch):
    monkeypatch.setattr("viewer.connection.HEAD_S", 1.0)
    port = int(site.base.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        for one in slow:
            one.sendall(b"G")
        assert site.client.get("/api/slides/a/thumbnail.jpg").status_code == 200
        for one in slow:
            one.settimeout(20)
            assert one.recv(100) == b""
    finally:
        for one in slow:
            one.close()
    assert issubclass(PatientConnection, asyncio.Protocol)


def test_a_failure_inside_says_nothing_of_the_machine(site, tmp_path, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError(f"/data/Smith^John in {tmp_path}")

    monkeypatch.setattr("viewer.app.page", fail)
    with httpx.Client(base_url=site.base, cookies={"wsi_test": TOKEN}) as client:  # which is cut off after it
        answer = client.get("/api/slides")
    assert answer.status_code == 500
    assert "Smith" not in answer.text
    assert str(tmp_path) not in answer.text
    assert "Traceback" not in answer.text
    name = answer.json()["detail"].split()[-1]
    assert any(name in record.getMessage() for record in caplog.records)


def test_the_log_has_neither_the_token_nor_what_was_searched_for(site, caplog):
    caplog.set_level("INFO", "viewer.access")
    site.client.get(f"/?token={TOKEN}")
    site.client.get("/api/slides?search=Smith")
    site.client.get("/a%0d%0aforged")
    end, lines = time.monotonic() + 5, []
    while len(lines) < 3 and time.monotonic() < end:  # an answer is there a moment before its line
        lines = [record.getMessage() for record in caplog.records if record.name == "viewer.access"]
    words = "\n".join(lines)
    assert len(words.splitlines()) == len(lines) == 3
    assert "/api/slides 200" in words
    assert TOKEN not in words
    assert "Smith" not in words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cut short at /data/Smith^John/a.svs; copy it", "cut short at (a file); copy it"),
        (r"C:\slides\Smith.svs is gone", "(a file) is gone"),
        ("no answer of s3://bucket/Smith.svs", "no answer of (a file)"),
        ("no /data/Smith John/a b.svs (it went); copy it", "no (a file) (it went); copy it"),
        (r"C:\data\Smith, John\a.svs: gone", "(a file): gone"),
        ("no answer of http://pacs:8000/Smith John/a.svs", "no answer of (a file)"),
        ("0.5 µm/px and/or 3/4", "0.5 µm/px and/or 3/4"),
    ],
)
def test_paths_are_taken_out_of_sentences(words, said):
    assert without_paths(words) == said


def test_an_address_for_others_needs_encryption(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(EngineError, match="unencrypted"):
            check_address(ViewSpec("x", host=host))
        check_address(ViewSpec("x", host=host, behind_proxy="viewer.example"))
        check_address(ViewSpec("x", host=host, tls=(Path("c"), Path("k"))))
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(ViewSpec("x", host=host))
    assert "unencrypted" in wsi("view", slides(tmp_path / "slides", "a"), "--host", "0.0.0.0", code=2)
    assert "belong together" in wsi("view", tmp_path / "slides", "--tls-cert", "x.pem", code=2)


def test_behind_a_proxy_its_name_is_served_and_cookies_need_https():
    door, link = make_door(ViewSpec("x", host="0.0.0.0", behind_proxy="viewer.example"), 8000)
    assert link.startswith("https://viewer.example/?token=")
    assert "viewer.example" in door.hosts
    assert door.secure
    everywhere, link = make_door(ViewSpec("x", host="0.0.0.0", tls=(Path("c"), Path("k"))), 8000)
    assert "0.0.0.0" not in link
    assert link.removeprefix("https://").partition("/")[0].lower() in everywhere.hosts
    assert f"{socket.gethostname().lower()}:8000" in everywhere.hosts
    plain, link = make_door(ViewSpec("x"), 8000)
    assert link == f"http://127.0.0.1:8000/?token={plain.token}"
    assert len(plain.token) >= 32
    assert make_door(ViewSpec("x"), 8000)[0].token != plain.token


def test_websockets_are_not_taken():
    async def app(scope, receive, send) -> None:
        raise AssertionError("let through")

    async def ask() -> None:
        guard = Guard(app, Door(frozenset({"x"}), "t", "c"))
        await guard({"type": "websocket", "headers": [], "path": "/"}, None, None)

    asyncio.run(ask())


def test_without_the_built_pages_the_command_names_what_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr("viewer.serve.STATIC", tmp_path / "nothing")
    assert "make viewer" in wsi("view", slides(tmp_path / "slides", "a"), code=2)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "index.html").write_text("x")
    assert list(built_pages()) == ["index.html"]
    assert "there is no such file" in wsi("view", tmp_path / "gone.svs", code=2)


def test_the_command_listens_on_this_machine_only_and_ends_at_once_with_all_its_processes(tmp_path):
    folder = slides(tmp_path / "slides", "a")
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.html").write_text("<!doctype html><title>viewer</title>")
    code = f"import viewer.serve, pathlib; viewer.serve.STATIC = pathlib.Path({str(static)!r}); "
    code += "from cli.main import main; main()"
    command = [sys.executable, "-c", code, "view", str(folder), "--readers", "2"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        link = server.stdout.readline().strip()
        port = int(re.search(r":(\d+)/\?token=", link)[1])
        with httpx.Client(timeout=60, follow_redirects=True) as client:
            assert client.get(link).status_code == 200
            assert client.get(f"http://127.0.0.1:{port}/api/slides/a/tiles/11/0_0.jpg").status_code == 200
            table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
            listening = [line.split()[1] for line in table.splitlines() if line.split()[3] == "0A"]
            assert [one for one in listening if one.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            children += [
                child
                for task in Path(f"/proc/{server.pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
            assert len(set(children)) >= 2
            begun = time.monotonic()
            server.send_signal(signal.SIGINT)  # with a connection that is still open
            server.wait(10)
        assert time.monotonic() - begun < 5
        assert server.returncode == 130
        assert "Traceback" not in server.stderr.read()
    end = time.monotonic() + 5  # Python's own helper for shared resources ends when it sees that the server has
    while any(is_alive(int(child)) for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_no_answer_names_the_patient_or_where_files_lie(tmp_path):
    canary = "CANARY"
    folder = slides(tmp_path / canary, f"{canary}-Smith", "b")
    (folder / "broken.svs").write_bytes((folder / "b.svs").read_bytes()[:9000])
    rows = [f"a,{folder}/{canary}-Smith.svs", f"b,{folder}/b.svs", f"c,{folder}/broken.svs", f"d,{folder}/gone.svs"]
    table = "slide_id,path,patient_id,case_id,label\n"
    table += "".join(f"{row},{canary}-patient,{canary}-case,tumor\n" for row in rows)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(table)
    wsi("tile", manifest, "--out", tmp_path / "run", "--tile-px", 128, code=1)
    predict(tmp_path / "run", "m", a=0.9, b=0.2)
    heatmap_of(tmp_path / "run", "a", "m")
    with served(tmp_path / "run", tmp_path) as site:
        body = {"event": "7a0f26cb-9d7f-4df6-8f6e-aa6b36b6b3a1", "who": "ann", "action": "accept"}
        answers = [site.client.post("/api/slides/a/review", json=body)]
        places = ["session", "slides", "queue", "review/labels.csv"]
        below = ("", "/review", "/review.geojson", "/tissue", "/grid", "/scores/m", "/annotations", "/thumbnail.jpg",
                 "/tiles/11/0_0.jpg", "/patch.jpg?x=0&y=0&side=64", "/associated/label.jpg")  # fmt: skip
        places += [f"slides/{name}{more}" for name in "abcd" for more in below]
        answers += [site.client.get(f"/api/{place}") for place in places]
    assert any(f"{canary}-patient" in path.read_text() for path in (tmp_path / "run" / "lists").glob("*.csv"))
    assert [one.status_code for one in answers[:5]] == [200] * 5
    assert {card["status"] for card in answers[2].json()["slides"]} == {"done", "failed"}
    for one in answers:
        assert one.status_code < 500, one.text
        assert canary.encode() not in one.content, (one.url, one.text)
        assert str(tmp_path).encode() not in one.content, (one.url, one.text)


def test_pictures_of_each_start_have_addresses_of_their_own(tmp_path, site):
    """A browser keeps pictures for an hour: those of another run on the same port must not be taken for these."""
    start = site.client.get("/api/session").json()["start"]
    assert len(start) == 16
    assert site.client.get("/api/session").json()["start"] == start
