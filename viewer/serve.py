"""From what a user names to a server that shows it."""

import secrets
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

from jobs.folder import RunFolder
from jobs.manifest import SlideRecord, read_source
from jobs.slide_table import read_records
from wsi.errors import EngineError, ManifestError, SpecError, StoreError
from wsi.source import is_url, name_of
from wsi.synthetic import truth_path

from .catalogue import Catalogue
from .guard import Door

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY = ("0.0.0.0", "::", "")  # every address of this machine
_ANNOTATIONS = (".geojson", ".json", ".xml", ".gz", ".zip")


class ViewerError(EngineError):
    """The viewer cannot be started."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """What the command was given.

    source       a run folder, a slide, a folder of slides or a manifest
    slides       where the slides of a run lie now: a folder or manifest
    urgent       the class whose probability is a slide's urgency, None: the last one
    host, port   to listen on, port 0 for a free one; tls: (certificate, key)
    behind_proxy host and port by which people reach a proxy in front of this, https
    """

    source: str
    slides: str | None = None
    annotations: Path | None = None
    urgent: str | None = None
    channels: str | None = None
    reviewer: str | None = None
    show_label: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    tls: tuple[Path, Path] | None = None
    behind_proxy: str | None = None
    readers: int = 3


def view(spec: ViewSpec, ready: Callable[[str], None]) -> None:
    """Serve until the process is interrupted. `ready` is told the link.

    Raises ViewerError where the pages were not built or the address cannot be used, SpecError for an address that
    must not be listened on, and what opening the source raises.
    """
    import uvicorn

    from .app import make_app
    from .connection import PatientConnection
    from .readers import Readers
    from .review import open_review
    from .site import Site

    check_address(spec)
    static = built_pages()
    catalogue, kind = open_catalogue(spec)
    annotations = {} if spec.annotations is None else annotations_in(spec.annotations)
    with listening(spec.host, spec.port) as sock, tempfile.TemporaryDirectory(prefix="wsi-view-") as notes:
        door, link = make_door(spec, sock.getsockname()[1])
        readers = Readers(spec.readers, Path(notes))
        try:
            site = Site(
                catalogue,
                readers,
                title_of(spec.source, kind),
                kind,
                static,
                synthetic(catalogue),
                spec.show_label,
                spec.reviewer,
                annotations,
                open_review(catalogue),
            )
            config = uvicorn.Config(
                make_app(site, door),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                http=PatientConnection,
                limit_concurrency=256,
                timeout_keep_alive=20,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=32 << 10,
                proxy_headers=False,
                ssl_certfile=None if spec.tls is None else str(spec.tls[0]),
                ssl_keyfile=None if spec.tls is None else str(spec.tls[1]),
            )
            Thread(target=catalogue.look, daemon=True).start()  # so that the first page has not to wait for it
            ready(link)
            uvicorn.Server(config).run(sockets=[sock])
        finally:
            readers.close()


def check_address(spec: ViewSpec) -> None:
    """Raises SpecError for an address that others can reach without encryption."""
    if spec.host in LOOPBACK or spec.tls is not None or spec.behind_proxy is not None:
        return
    raise SpecError(
        "--host",
        f"{spec.host} can be reached by others, and what they ask would travel unencrypted",
        "leave it out and use an SSH tunnel, or give --tls-cert and --tls-key, or --behind-proxy NAME with a proxy "
        "that encrypts",
    )


def built_pages() -> dict[str, Path]:
    """Address → file of the built front end: a look-up, so nothing else can be asked for."""
    if not (STATIC / "index.html").is_file():
        raise ViewerError("the viewer", "its pages were not built", "run `make viewer` once in the source folder")
    return {path.relative_to(STATIC).as_posix(): path for path in sorted(STATIC.rglob("*")) if path.is_file()}


def open_catalogue(spec: ViewSpec) -> tuple[Catalogue, str]:
    """(the slides, run, folder or slide)."""
    place = Path(spec.source)
    if not is_url(spec.source) and is_run(place):
        folder = RunFolder(place)
        again = partial(_records_of, folder, spec.slides)
        return Catalogue(folder, again(), spec.urgent, spec.channels, again), "run"
    if spec.slides is not None:
        raise SpecError("--slides", f"{spec.source} is no run folder", "leave it out, or name the run")
    records = {record.slide_id: record for record in read_source(spec.source)}
    kind = "slide" if len(records) == 1 and not place.is_dir() else "folder"
    return Catalogue(None, records, spec.urgent, spec.channels), kind


def is_run(place: Path) -> bool:
    """Whether a folder is what a command was given as --out."""
    return (place / "run.json").is_file() or any((place / name).is_dir() for name in ("receipts", "predictions"))


def _records_of(folder: RunFolder, slides: str | None) -> Mapping[str, SlideRecord]:
    """Where the slides of a run lie: as given, as the run was told, or beside it as `wsi demo` puts them."""
    if slides is not None:
        return {record.slide_id: record for record in read_source(slides)}
    known = read_records(folder)
    beside = folder.root.parent / "slides" / "manifest.csv"
    if not any(isinstance(one.path, str) or one.path.exists() for one in known.values()) and beside.is_file():
        try:
            return known | {record.slide_id: record for record in read_source(beside)}
        except ManifestError:
            return known
    return known


def annotations_in(folder: Path) -> dict[str, Path]:
    """slide_id → its file in a folder of annotations, by the file's name up to its first suffix of a known format."""
    if not folder.is_dir():
        raise StoreError(folder, "there is no such folder", "give a folder with one file of annotations a slide")
    found = {}
    for path in sorted(folder.iterdir()):
        name = path.name
        while path.is_file() and name.lower().endswith(_ANNOTATIONS):
            name = name.rpartition(".")[0]
        if name != path.name and not name.startswith("."):
            found[name] = path
    return found


def synthetic(catalogue: Catalogue) -> bool:
    """Whether every slide was drawn by the generator, which writes a truth map beside each."""
    records = catalogue.records.values()
    return bool(records) and all(isinstance(one.path, Path) and truth_path(one.path).exists() for one in records)


def title_of(source: str, kind: str) -> str:
    name = name_of(source.rstrip("/")) if is_url(source) else Path(source).resolve().name
    if kind == "run" and name == "run":
        name = Path(source).resolve().parent.name
    return f"{name} · slidestream" if kind != "slide" else "slidestream"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ViewerError where the address is taken or is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named TCP, so that asyncio sends answers at once: else each waits 40 ms for the browser to confirm its head
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)  # now, so that a link that is opened as soon as it is printed waits and is not refused
    except OSError as error:
        sock.close()
        raise ViewerError(
            f"{host}:{port}", f"cannot be listened on ({error.strerror})", "give another --port"
        ) from None
    return sock


def names_here() -> set[str]:
    """Names and addresses of this machine, as a browser elsewhere may call it."""
    names = {socket.gethostname().lower(), socket.getfqdn().lower()}
    with suppress(OSError):  # a machine that does not know its own name
        found = socket.getaddrinfo(socket.gethostname(), None)
        names |= {f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0]) for family, *_, address in found}
    return names


def make_door(spec: ViewSpec, port: int) -> tuple[Door, str]:
    """How the server is reached, and the link that lets in who has it."""
    token, secure = secrets.token_urlsafe(24), spec.tls is not None or spec.behind_proxy is not None
    shown = f"[{spec.host}]" if ":" in spec.host else spec.host
    if spec.host in EVERY:  # which is no address that a browser could open
        shown = socket.getfqdn()
    address = spec.behind_proxy or f"{shown}:{port}"
    hosts = {address.lower(), f"{shown}:{port}".lower()}
    if spec.host in (*LOOPBACK, *EVERY):
        hosts |= {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
    if spec.host in EVERY:
        hosts |= {f"{name}:{port}" for name in names_here()}
    link = f"{'https' if secure else 'http'}://{address}/?token={token}"
    return Door(frozenset(hosts), token, f"wsi_{port}", secure), link
