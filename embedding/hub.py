"""Files of the hub: which a repository has, how they come to this machine, and what to do when they do not.

All transfers are huggingface_hub's: it reads HF_TOKEN, HF_ENDPOINT (a mirror), HF_HOME and HF_HUB_OFFLINE, and a file
takes its name in the cache only when it is whole.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from wsi.errors import BackboneError

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BESIDE = re.compile(r"(README|LICEN[CS]E|NOTICE)[^/]*|tokenizer\.json", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """One file of a repository.

    name        of the entry that it is for
    repository  OWNER/NAME
    files       the first of these that it has
    revision    commit, tag or branch; None is the newest commit
    """

    name: str
    repository: str
    files: tuple[str, ...]
    revision: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit: it names one content for ever."""
        return bool(_COMMIT.fullmatch(self.revision or ""))

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repository}"


@dataclass(frozen=True)
class Offered:
    """The file as the hub describes it: its commit, bytes and sha256 (where stated), and what goes along with it."""

    file: str
    commit: str
    size_bytes: int | None
    sha256: str | None
    beside: tuple[str, ...]


def is_offline(offline: bool = False) -> bool:
    """Whether no network call may be made: by the caller's word or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def find_file(wanted: Wanted, offline: bool = False) -> Path:
    """The file in the hub's cache, fetched if need be. A pinned one that is there costs no network call.

    Where the hub cannot be reached, or no longer lets this account in, a cached copy is used and a notice says which.
    Raises BackboneError with what to do.
    """
    offline = is_offline(offline)
    known = cached(wanted) if offline or wanted.pinned else None
    if known is not None:
        return known
    if offline:
        raise BackboneError(
            wanted.name,
            f"its weights, {wanted.repository}, are not on this machine, and offline none are fetched",
            f"`wsi backbones fetch {wanted.name}` where there is a network, and carry them here with "
            "`wsi backbones export` and `import`; or give the file with --weights",
        )
    try:
        return fetch(wanted, look_up(wanted).file)
    except failures() as error:
        known = cached(wanted)
        if known is None or _is_missing(error):
            raise explained(wanted, error) from error
        _notice(wanted.name, _what(error), f"the copy in its cache, revision {revision_of(known)}")
        return known


def look_up(wanted: Wanted) -> Offered:
    """Ask the hub for the file. Raises huggingface_hub's errors (see `failures`), and BackboneError where the
    repository has none of the files."""
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    found = api.model_info(wanted.repository, revision=wanted.revision, timeout=TIMEOUT_S, files_metadata=True)
    offered = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    for name in wanted.files:
        if name in offered:
            beside = tuple(other for other in offered if _BESIDE.fullmatch(other))
            lfs = offered[name].lfs
            return Offered(name, str(found.sha), offered[name].size, lfs.sha256 if lfs else None, beside)
    holds = ", ".join(list(offered)[:6]) or "nothing"
    raise BackboneError(
        wanted.name,
        f"{wanted.repository} has no file {' or '.join(wanted.files)}; it holds {holds}",
        "give the weights file with --weights",
    )


def offered(wanted: Wanted) -> Offered:
    """What the hub offers, by `look_up`. Raises BackboneError with what to do where that cannot be known."""
    if is_offline():
        raise BackboneError(wanted.name, "HF_HUB_OFFLINE is set, so nothing is fetched", "unset it")
    try:
        return look_up(wanted)
    except failures() as error:
        raise explained(wanted, error) from error


def fetch_all(wanted: Wanted, found: Offered) -> Path:
    """Download the file, and the licence, card and tokenizer beside it. Raises BackboneError with what to do."""
    try:
        path = fetch(wanted, found.file)
        for file in found.beside:
            fetch(wanted, file)
    except failures() as error:
        raise explained(wanted, error) from error
    return path


def fetch(wanted: Wanted, file: str) -> Path:
    """Download one file into the hub's cache, if it is not there. Raises huggingface_hub's errors (see `failures`)."""
    from huggingface_hub import constants, hf_hub_download

    path = hf_hub_download(wanted.repository, file, revision=wanted.revision, endpoint=constants.ENDPOINT)
    return checked(Path(path))


def cached(wanted: Wanted) -> Path | None:
    """The file in the hub's cache, of the wanted revision; None where it is not. No network call."""
    found = peek(wanted)
    return None if found is None else checked(found)


def peek(wanted: Wanted) -> Path | None:
    """The same, without reading it."""
    from huggingface_hub import constants, try_to_load_from_cache

    for name in wanted.files:
        found = try_to_load_from_cache(
            wanted.repository, name, cache_dir=constants.HF_HUB_CACHE, revision=wanted.revision
        )
        if isinstance(found, str):
            return Path(found)
    return None


def snapshot(repository: str, revision: str | None, patterns: Sequence[str], offline: bool = False) -> Path:
    """Folder with a repository's files that match `patterns` (as in fnmatch), each of which must match one.

    Raises BackboneError as `find_file` does.
    """
    from huggingface_hub import constants, snapshot_download

    wanted, local = Wanted(repository, repository, tuple(patterns), revision), is_offline(offline)
    try:
        if not local and not wanted.pinned:
            local = not _reached(wanted)
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=local,
            cache_dir=constants.HF_HUB_CACHE,
            endpoint=constants.ENDPOINT,
        )
    except failures() as error:
        if is_offline(offline):
            raise _not_here(repository, revision, patterns) from error
        raise explained(wanted, error) from error
    folder = Path(found)
    names = [entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()]
    lacking = [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)]
    if lacking:
        raise _not_here(repository, revision, lacking)
    return folder


def snapshot_root(path: Path) -> Path | None:
    """Folder of the revision that a file of the hub's cache belongs to; None for a file from elsewhere."""
    return next((folder for folder in path.parents if folder.parent.name == "snapshots"), None)


def beside_in(folder: Path) -> list[Path]:
    """What goes along with the weights in a folder: licence, model card, notice, the tokenizer of a text tower."""
    return sorted(entry for entry in folder.iterdir() if entry.is_file() and _BESIDE.fullmatch(entry.name))


def revision_of(path: Path) -> str | None:
    """Commit of a file of the hub's cache; None for a file from elsewhere."""
    root = snapshot_root(path)
    return None if root is None else root.name


def checked(path: Path) -> Path:
    """The path, if its content is what the hub says: in its cache, large files are links to blobs named by sha256.

    Raises BackboneError for a damaged one.
    """
    from .weights import weights_digest

    stated = Path(os.readlink(path)).name if path.is_symlink() else ""
    if _SHA256.fullmatch(stated) and weights_digest(path) != stated:
        problem = f"it is damaged: its sha256 is {weights_digest(path)}, the hub's is {stated}"
        raise BackboneError(path, problem, "delete it, and the file that it links to, and fetch it again")
    return path


@cache
def failures() -> tuple[type[BaseException], ...]:
    """What huggingface_hub raises when a file cannot be had.

    Network errors are of the HTTP library that it uses, which has changed (requests, httpx, httpx2): the base of its
    own error names it. OSError is a full disk, too; RuntimeError comes of its fast transfer (xet); ValueError of a
    proxy's login page, where JSON should be.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    return (*HfHubHTTPError.__bases__, EntryNotFoundError, OSError, RuntimeError, json.JSONDecodeError)


def explained(wanted: Wanted, error: BaseException) -> BackboneError:
    """A failure in words, with what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    file = "give the file with --weights"
    if isinstance(error, GatedRepoError) or (status == 403 and get_token()):
        account = "the account of HF_TOKEN has no access" if get_token() else "no HF_TOKEN is set"
        problem = f"its weights, {wanted.repository}, are gated, and {account}"
        remedy = f"accept the terms at {wanted.page} and set HF_TOKEN to that account's token; or {file}"
        return BackboneError(wanted.name, problem, remedy)
    if isinstance(error, RevisionNotFoundError):
        return BackboneError(
            wanted.name, f"{wanted.repository} has no revision {wanted.revision}", f"see {wanted.page}, or {file}"
        )
    if isinstance(error, RepositoryNotFoundError):
        problem = f"the hub shows no repository {wanted.repository} to this account"
        return BackboneError(wanted.name, problem, f"see {wanted.page}; a private one needs HF_TOKEN; or {file}")
    if status in (401, 403):
        return BackboneError(
            wanted.name, f"the hub refuses the token (HTTP {status})", f"set HF_TOKEN to a valid one, or {file}"
        )
    remedy = "check the network, HTTPS_PROXY and HF_ENDPOINT"
    if isinstance(error, RuntimeError):
        remedy = "set HF_HUB_DISABLE_XET=1, as its fast transfer uses hosts of its own that a firewall may block"
    return BackboneError(
        wanted.name, f"its weights could not be fetched from {wanted.page}: {_what(error)}", f"{remedy}; or {file}"
    )


def _reached(wanted: Wanted) -> bool:
    from huggingface_hub import HfApi, constants

    try:
        HfApi(endpoint=constants.ENDPOINT).model_info(wanted.repository, revision=wanted.revision, timeout=TIMEOUT_S)
    except failures() as error:
        if _is_missing(error):
            raise
        _notice(wanted.name, _what(error), "what is in its cache")
        return False
    return True


def _is_missing(error: BaseException) -> bool:
    """The hub answered, and there is no such thing: an older copy must not stand in for it."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError

    local = isinstance(error, LocalEntryNotFoundError)  # the hub's own word for "not reached, and not cached"
    return isinstance(error, RevisionNotFoundError | EntryNotFoundError) and not local


def _not_here(repository: str, revision: str | None, patterns: Sequence[str]) -> BackboneError:
    problem = f"of revision {revision or 'main'}, {', '.join(patterns)} are not on this machine"
    return BackboneError(repository, problem, "fetch it where there is a network, and carry the hub's cache here")


def _what(error: BaseException) -> str:
    """The error's first line, which says enough."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' if first else ''}{first[:120]}"


@cache
def _notice(name: str, why: str, instead: str) -> None:
    """Say it once a process."""
    log.warning("%s: the hub cannot be asked (%s); %s is used", name, why, instead)
