"""Slides copied to a local disk before they are read: a cache of bounded size that processes of a machine may share.

In the cache's folder, for each slide (`slidestream-` and twelve digits of where it lies):
  slidestream-X/           its files under slide/, and staged.json, which says of what they are copies
  slidestream-X.draft-…/   being copied; its name ends with the bytes that it is to take, which count from then on
  slidestream-X.use-…      somebody reads it, or will
  slidestream-X.evict-…    somebody is about to remove it, unless it is in use
  slidestream-X.gone-…/    being removed
After the word comes whose it is: machine, process, when that began, number. What a dead process left is swept away.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsi.errors import EngineError, StoreError
from wsi.identity import dicom_series, slide_files
from wsi.machine import is_alive, machine_id, process_start
from wsi.source import is_url, name_of, open_source, shown

from .manifest import SlideRecord

BLOCK_BYTES = 8 << 20  # copied between two looks whether it is still wanted
KEPT_FREE_BYTES = 256 << 20  # of the disk, for whoever else writes there
FOREIGN_S = {"evict": 60}  # what processes of another machine, or of another container here, leave counts for so long
OTHERS_S = 6 * 3600  # the same for what else they leave
WAIT_S = 600.0  # for another process to end its copy of the slide
_POLL_S = 0.1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ENTRY = "slidestream-????????????"

_log = logging.getLogger(__name__)
_number = itertools.count()


class NoRoomError(Exception):
    """The cache has no room for a slide until others are read to their end."""


class _Stopped(Exception):
    """The copy is not wanted any more."""


@dataclass(frozen=True)
class Files:
    """What a slide consists of where it lies: two of the same are the same slide, as far as can be told unread.

    name     of the file or folder that the slide is named by
    sizes    path below the folder that `name` is in → (bytes, mtime in ns or what a store says for it)
    """

    name: str
    sizes: dict[str, tuple[int, str]]

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.sizes.values())


@dataclass(frozen=True)
class Hold:
    """A copy in use until `release`: meanwhile nobody evicts it. record: the slide's, with the copy's path."""

    record: SlideRecord
    mark: Path

    def release(self) -> None:
        self.mark.unlink(missing_ok=True)


def files_of(place: Path | str) -> Files:
    """The files that a slide consists of, with companions. A URL is one file.

    Raises OSError or an EngineError where the slide cannot be looked at.
    """
    if is_url(place):
        with closing(open_source(place)) as source:
            version = str(getattr(source, "version", ""))
            return Files(name_of(place), {name_of(place): (source.size, version or f"seen {time.time_ns()}")})
    path = Path(place)
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", str(path))  # a pipe would never be read
    files = slide_files(path)
    if path.is_file() and dicom_series(path) is not None:
        files += _lost_beside(path)
    statuses = {file.relative_to(path.parent).as_posix(): file.stat() for file in files}
    return Files(path.name, {name: (status.st_size, str(status.st_mtime_ns)) for name, status in statuses.items()})


def _lost_beside(path: Path) -> list[Path]:
    """Damaged files beside a DICOM file that may be of its slide, which the reader refuses then: a copy must not pass.

    Among the files of several slides nobody knows whose one is, so there the reader passes it over.
    """
    beside = [file for file in path.parent.iterdir() if file.is_file() and file.suffix.lower() in (".dcm", path.suffix)]
    series = {file: dicom_series(file) for file in beside if not file.name.startswith(".")}
    several = len(set(series.values()) - {None}) > 1
    return [] if several else [file for file, uid in series.items() if uid is None]


def original_words(text: str, record: SlideRecord, copy: SlideRecord) -> str:
    """What was said of a copy, as it would be said of the slide itself: the cache's folder is of no interest."""
    if copy.path == record.path:
        return text
    local = Path(copy.path)
    if is_url(record.path):
        return text.replace(str(local), shown(record.path))
    whole = text.replace(str(local), str(record.path))
    return whole.replace(str(local.parent), str(Path(record.path).parent))


class SlideCache:
    """Copies of slides in a folder on a local disk, never more than `limit_bytes` of them, None for what the disk has.

    Thread-safe; several processes of the machine may use one folder. Raises StoreError where nothing can be written.
    """

    def __init__(self, folder: Path | str, limit_bytes: int | None = None):
        self.folder = Path(folder).expanduser()
        self._limit, self._said = limit_bytes, set[str]()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}-{next(_number)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            problem = f"no slides can be copied there ({error.strerror})"
            raise StoreError(self.folder, problem, "give another folder to --stage-to") from error
        self.sweep()

    @contextmanager
    def staged(self, record: SlideRecord) -> Iterator[SlideRecord]:
        """The record of a copy, which is made if it is not there; the record itself where there can be none."""
        try:
            hold = self.hold(record)
        except NoRoomError:
            self.say("no room", f"{self.folder} is full of slides that are being read")
            hold = None
        try:
            yield record if hold is None else hold.record
        finally:
            if hold is not None:
                hold.release()

    def hold(self, record: SlideRecord, stopped: Callable[[], bool] = lambda: False) -> Hold | None:
        """A copy to read, made if it is not there; None where the slide is to be read where it lies: there is no room
        for it ever, or it cannot be copied, which reading it will explain.

        stopped  asked all the time: True ends the copying
        Raises NoRoomError where there is no room yet.
        """
        key = _key(record.path)
        mark = self._path(key, "use")
        try:
            mark.touch()
            local = self._get(key, record.path, mark, stopped)
        except (OSError, EngineError, _Stopped) as error:
            mark.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                self._limit = self._used()  # so that the next slides take the place of those that are there
                self.say("full", f"{self.folder}: {error.strerror}")
            else:
                _log.info("%s is read where it lies: %s", record.slide_id, shown(str(error)))
            return None
        except NoRoomError:
            mark.unlink(missing_ok=True)
            raise
        if local is None:
            mark.unlink(missing_ok=True)
            return None
        return Hold(replace(record, path=local), mark)

    def clear(self) -> None:
        """Remove every copy that nobody uses."""
        self.sweep()
        for entry in self.folder.glob(_ENTRY):
            self._evict(entry.name)

    def sweep(self) -> None:
        """Remove what dead processes left, but whole copies: who comes next may want them."""
        for path in self.folder.glob("slidestream-*.*-*"):
            if not _is_of_the_living(path):
                _remove(path)

    def say(self, kind: str, text: str) -> None:
        """Warn once of each kind: it would be the same for every slide."""
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("%s: slides are read where they lie until there is room", text)

    def _get(self, key: str, place: Path | str, mark: Path, stopped: Callable[[], bool]) -> Path | None:
        """Path of the copy, once it is there; `mark` is this user's."""
        files = files_of(place)
        if is_url(place) and not _read_alike(place):
            _log.info("%s is read where it lies: from a copy, another reader would give other pixels", shown(place))
            return None
        begun = time.monotonic()
        while True:  # who evicts has seen the mark, or is done with it soon; who copies does it for all
            while self._living(key, "evict"):
                time.sleep(_POLL_S / 10)
            if self._holds(key, files):
                return self.folder / key / "slide" / files.name
            if not self._living(key, "draft"):
                break
            if stopped() or time.monotonic() - begun > WAIT_S:
                raise _Stopped
            time.sleep(_POLL_S)
        if (self.folder / key).exists() and not self._evict(key, mark):  # of an older slide, which others still read
            return None
        if self._limit is not None and files.bytes > self._limit:
            self.say("large", f"a slide of {files.bytes:,} bytes is larger than {self.folder} may become")
            return None
        self._copy(key, place, files, stopped)
        return self.folder / key / "slide" / files.name if self._holds(key, files) else None

    def _holds(self, key: str, files: Files) -> bool:
        """Whether the copy of just these files is there; then it counts as used now."""
        found = _said_of(self.folder / key)
        if (found.get("boot"), found.get("name"), found.get("files")) != (_boot(), files.name, _plain(files)):
            return False
        os.utime(self.folder / key / "staged.json")
        return True

    def _copy(self, key: str, place: Path | str, files: Files, stopped: Callable[[], bool]) -> None:
        """Make the copy, unless the slide changes meanwhile or another process is first."""
        draft = self._path(key, "draft", files.bytes)
        draft.mkdir()
        try:
            self._make_room(files.bytes)
            for name, (size, _) in files.sizes.items():
                target = draft / "slide" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy_file(place if is_url(place) else Path(place).parent / name, target, size, stopped)
                if target.stat().st_size != size:
                    raise OSError(errno.EIO, "it is not of the size that was copied", str(target))
            if not is_url(place) and files_of(place) != files:
                raise OSError(errno.EIO, "it changed while it was copied", str(place))
            content = {"of": shown(place), "boot": _boot(), "name": files.name, "bytes": files.bytes}
            (draft / "staged.json").write_text(json.dumps({**content, "files": _plain(files)}), encoding="utf-8")
            if not (self.folder / key).exists():
                draft.rename(self.folder / key)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _make_room(self, need: int) -> None:
        """Evict what was not used for longest until there is room for what is being copied, of which `need` bytes here.

        Raises NoRoomError where all the rest is in use.
        """
        self.sweep()
        kept: set[str] = set()
        while not self._fits(need):
            entries = [entry for entry in self.folder.glob(_ENTRY) if entry.name not in kept]
            oldest = min(entries, key=_used_ns, default=None)
            if oldest is None:
                raise NoRoomError
            if not self._evict(oldest.name):
                kept.add(oldest.name)

    def _fits(self, need: int) -> bool:
        if self._limit is not None and self._used() > self._limit:
            return False
        return need + KEPT_FREE_BYTES <= shutil.disk_usage(self.folder).free

    def _used(self) -> int:
        """Bytes of all copies, and of those that are being made."""
        drafts = [path.name.rpartition("-")[2] for path in self.folder.glob("slidestream-*.draft-*")]
        whole = [_said_of(entry).get("bytes", 0) for entry in self.folder.glob(_ENTRY)]
        return sum(int(size) for size in (*drafts, *whole) if str(size).isdigit())

    def _evict(self, key: str, mine: Path | None = None) -> bool:
        """Remove a copy that nobody uses, `mine` aside; returns whether it is gone.

        A user marks first and looks for an evicter then, an evicter does so the other way round: one sees the other.
        """
        intent, gone = self._path(key, "evict"), self._path(key, "gone")
        intent.touch()
        try:
            if any(mark != mine for mark in self._living(key, "use")):
                return False
            (self.folder / key).rename(gone)
        except FileNotFoundError:  # another process was first
            return True
        except OSError:  # somebody who left no mark has its files open, where a system minds that
            return False
        finally:
            intent.unlink(missing_ok=True)
        _remove(gone)
        return True

    def _living(self, key: str, word: str) -> list[Path]:
        return [path for path in self.folder.glob(f"{key}.{word}-*") if _is_of_the_living(path)]

    def _path(self, key: str, word: str, *more: object) -> Path:
        pid = os.getpid()
        owner = [machine_id(), pid, process_start(pid), next(_number), *more]
        return self.folder / f"{key}.{word}-{'-'.join(map(str, owner))}"


def _key(place: Path | str) -> str:
    text = str(place) if is_url(place) else os.path.abspath(place)
    return f"slidestream-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _plain(files: Files) -> dict[str, list[Any]]:
    return {name: list(facts) for name, facts in files.sizes.items()}


def _said_of(entry: Path) -> dict[str, Any]:
    """The record of a copy; nothing where there is none, or it is damaged."""
    try:
        said = json.loads((entry / "staged.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _used_ns(entry: Path) -> int:
    try:
        return (entry / "staged.json").stat().st_mtime_ns
    except OSError:
        return 0


def _is_of_the_living(path: Path) -> bool:
    """Whether who made this mark or draft is still there, by its name; nearer than by age only for this machine's."""
    word, machine, pid, start = [*path.name.partition(".")[2].split("-"), "", "", ""][:4]
    if machine == machine_id() and pid.isdigit():
        return is_alive(int(pid), start)
    try:
        return time.time() - path.stat().st_mtime < FOREIGN_S.get(word, OTHERS_S)
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it may be another user's
            path.unlink()


def _copy_file(source: Path | str, target: Path, size: int, stopped: Callable[[], bool]) -> None:
    """Copy `size` bytes: a file may grow for ever. Raises _Stopped, or what reading and writing raise."""
    with ExitStack() as stack:
        out = stack.enter_context(target.open("wb"))
        if sys.platform == "linux" and not is_url(source):  # within the system: nine times as fast
            file = stack.enter_context(Path(source).open("rb"))
            at = 0
            while sent := os.sendfile(out.fileno(), file.fileno(), at, min(BLOCK_BYTES, size - at)):
                at += sent
                if stopped():
                    raise _Stopped
            return
        remote = stack.enter_context(closing(open_source(source)))
        for at in range(0, size, BLOCK_BYTES):
            if stopped():
                raise _Stopped
            remote.prefetch([(at, 2 * BLOCK_BYTES)])
            out.write(remote.read_at(at, min(BLOCK_BYTES, size - at)))


def _read_alike(url: Path | str) -> bool:
    """Whether a copy would be read as the URL is: some formats have one reader for URLs and another for files."""
    from wsi.formats import FORMATS

    suffix = Path(name_of(url)).suffix.lower()
    for form in sorted(FORMATS, key=lambda form: suffix not in form.suffixes):  # as open_slide offers it to them
        if "url" not in form.places:
            return False  # it may take the copy
        if form.load().matches(url).takes:
            return "here" in form.places
    return False


@lru_cache(maxsize=1)
def _boot() -> str:
    """Since when this machine is up: copies are not flushed to the disk, so a power cut leaves them half written.

    Where that is not known, no other process's copies are used.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"process {os.getpid()}"
