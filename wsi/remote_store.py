"""Ranges of one remote file, each checked: never the bytes of another version, nor fewer or others than asked for.

Web servers are asked here (fsspec's own requests take whatever answer comes), all other stores through fsspec.
"""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .errors import RemoteError, SlideError
from .source import shown

if TYPE_CHECKING:
    from aiohttp import ClientResponse

HEAD_BYTES = 64 << 10  # that the first request fetches
_ATTEMPTS = 4  # waiting up to 0.5, 1 and 2 s between them
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_INSTALL = 'pip install "slidestream[remote]" for s3://; gcsfs for gs://, adlfs for abfs://'
_CREDENTIALS = "check the credentials (for s3:// AWS_PROFILE or AWS_ACCESS_KEY_ID; FSSPEC_S3_ANON=true for public data)"
_NOT_THE_SLIDE = "the slide may be sound: check the network and the store, then run again"
_RUN_AGAIN = "run again when it is no longer written to"
_COPY = "copy the file to this machine, or serve it from a store that answers range requests"

# Exceptions of the libraries below fsspec that are no OSError; a module that is not loaded has raised nothing.
_LIBRARY_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
)


class Store(Protocol):
    """One remote file as it was when it was opened. Thread-safe.

    size     bytes
    version  changes when the content does (ETag, generation or time); "" where the store tells none
    head     its first bytes where they came with the opening, else b""
    """

    size: int
    version: str
    head: bytes

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes start to end, all of them. Raises SlideError if the file has changed, RemoteError if it stays away."""
        ...


def connect(url: str, head_bytes: int = HEAD_BYTES) -> Store:
    """The file at `url`, asked for just now, a web server for its first bytes. Raises SlideError or RemoteError."""
    return HttpStore(url, head_bytes) if url.startswith(("http://", "https://")) else FsspecStore(url)


class FsspecStore:
    """A file in S3, Google or Azure storage, or wherever else fsspec reads; S3 answers for the opened version only."""

    def __init__(self, url: str):
        import fsspec

        self._url = url
        with told(url):
            fs, path = fsspec.core.url_to_fs(url)
            fs.invalidate_cache()  # a listing of earlier is no news
            handle = fs.open(path, "rb", cache_type="none")
            facts = getattr(handle, "details", None) or fs.info(path)
        if facts.get("type") == "directory":
            raise SlideError(url, "this is a folder, not a slide file", "name a file in it")
        if facts.get("size") is None:
            raise SlideError(url, "its store does not tell its size", _COPY)
        self.size, self.head = int(facts["size"]), b""
        tokens = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime")
        self.version = " ".join(str(facts[token]) for token in tokens if facts.get(token))
        # The handle's own fetcher names the version to S3. It uses neither position nor cache, so threads may share it.
        cache = getattr(handle, "cache", None)
        self._get: Callable[..., bytes] = cache.fetcher if cache is not None else _whole_requests(fs, path)
        self._handle = handle  # lives as long as its fetcher

    def fetch(self, start: int, end: int) -> bytes:
        with told(self._url):
            data = self._get(start, end)
        if len(data) != end - start:
            raise RemoteError(
                shown(self._url), f"its store sent {len(data):,} bytes instead of {end - start:,}", _NOT_THE_SLIDE
            )
        return data


def _whole_requests(fs: Any, path: str) -> Callable[[int, int], bytes]:
    return lambda start, end: fs.cat_file(path, start=start, end=end)


class HttpStore:
    """A file on a web server that answers range requests."""

    def __init__(self, url: str, head_bytes: int):
        import fsspec

        self._url = url
        protocol = url.partition(":")[0]
        client = {"trust_env": True, **fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})}
        self._fs = fsspec.filesystem(protocol, client_kwargs=client)  # proxies and .netrc as the environment says
        self.size, self.version = -1, ""
        self.head = self._retried(0, head_bytes)

    def fetch(self, start: int, end: int) -> bytes:
        return self._retried(start, end)[: end - start]

    def _retried(self, start: int, end: int) -> bytes:
        from aiohttp import ClientConnectionError, ClientPayloadError
        from fsspec.asyn import sync
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        transient = (_Busy, ClientConnectionError, ClientPayloadError, TimeoutError)
        attempts = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(0.5, max=8),
            retry=retry_if_exception_type(transient),
            reraise=True,
        )
        with told(self._url):
            return attempts(sync, self._fs.loop, self._request, start, end)

    async def _request(self, start: int, end: int) -> bytes:
        from aiohttp import ClientTimeout

        session = await self._fs.set_session()
        headers = {
            **self._fs.kwargs.get("headers", {}),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        rest = {name: value for name, value in self._fs.kwargs.items() if name != "headers"}
        patience = ClientTimeout(total=300, sock_connect=10, sock_read=30)
        request = session.get(self._fs.encode_url(self._url), headers=headers, timeout=patience, **rest)
        async with request as answer:
            expected = self._check(answer, start, end)
            data = bytes(await answer.read()) if expected else b""
        if len(data) != expected:
            raise _Busy(f"the server sent {len(data):,} bytes instead of {expected:,}")
        return data

    def _check(self, answer: "ClientResponse", start: int, end: int) -> int:
        """Bytes that the answer must bring. Raises for one that is not the range of the file that was opened."""
        if answer.status in _BUSY:
            raise _Busy(f"the server answers {answer.status} {answer.reason}")
        if answer.status in (200, 206, 416):
            first, last, total = _range_of(answer)
            self._check_version(answer, total)
            if total == 0 or (answer.status == 200 and start == 0 and 0 < total <= HEAD_BYTES):
                return total  # a small file whole is what was asked for, and more
            if answer.status != 416 and first == start and last == min(end, self.size):
                return last - first
            raise SlideError(self._url, "the server does not send the range of bytes that it is asked for", _COPY)
        raise SlideError(self._url, *_refusal(answer.status))

    def _check_version(self, answer: "ClientResponse", total: int) -> None:
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if self.size < 0:
            self.size, self.version = total, version
        elif (self.size, self.version) != (total, version):
            raise SlideError(self._url, "it changed while it was read", _RUN_AGAIN)


def _range_of(answer: "ClientResponse") -> tuple[int, int, int]:
    """(start, end, bytes in the whole file) of the content that an answer brings; -1 for what it does not say."""
    if answer.status == 200:
        length = answer.content_length
        return (0, length, length) if length is not None else (-1, -1, -1)
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None:
        return -1, -1, -1
    first, last = (int(match[1]), int(match[2]) + 1) if match[1] else (-1, -1)
    return first, last, int(match[3])


class _Busy(OSError):
    """An answer that may be another one in a second."""


def _refusal(status: int) -> tuple[str, str]:
    if status in (401, 403):
        return f"access to it is refused (HTTP {status})", "check the URL and credentials; a signed URL expires"
    if status in (404, 410):
        return f"there is no such file (HTTP {status})", "check the URL"
    return f"the server refuses it (HTTP {status})", "check the URL"


def list_folder(url: str) -> list[str]:
    """URLs of the files in a remote folder, sorted by name. Raises as `connect`."""
    import fsspec

    with told(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()
        files = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
    return sorted(map(fs.unstrip_protocol, files))


@contextmanager
def told(url: str) -> Iterator[None]:
    """Errors of fsspec and the libraries below it, in words that name the remedy and hide the URL's secrets."""
    try:
        yield
    except (SlideError, RemoteError):
        raise
    except ImportError as error:
        raise SlideError(url, f"a package for such URLs is missing ({error})", _INSTALL) from None
    except FileNotFoundError:
        raise SlideError(url, "there is no such file", "check the URL") from None
    except IsADirectoryError:
        raise SlideError(url, "this is a folder, not a slide file", "name a file in it") from None
    except PermissionError as error:
        raise SlideError(url, f"access to it is refused ({shown(str(error))})", _CREDENTIALS) from None
    except ValueError as error:  # fsspec's word for an unknown protocol, yarl's for what is no URL
        raise SlideError(url, f"it cannot be opened ({shown(str(error))})", "check the URL") from None
    except failures() as error:
        if getattr(error, "errno", None) == errno.EBUSY:  # s3fs: the ETag is another
            raise SlideError(url, "it changed while it was read", _RUN_AGAIN) from None
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise SlideError(url, "no credentials were found for its store", _CREDENTIALS) from None
        said = shown(str(error)) or type(error).__name__
        raise RemoteError(url, f"its store cannot be reached, or breaks off ({said})", _NOT_THE_SLIDE) from None


def failures() -> tuple[type[Exception], ...]:
    """What reading from a store raises when the store or the way to it fails."""
    modules = ((sys.modules.get(module), name) for module, name in _LIBRARY_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in modules if hasattr(module, name)))
