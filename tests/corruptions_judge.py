"""What a reader makes of a damaged slide: all of its pixels against those of the sound one."""

import os
import resource
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi import SlideError, open_slide

REFUSED, RAISED, SAME, WRONG = "refused", "raised", "same", "wrong"
MIXED, MARKED, NOTHING = "mixed", "marked", "nothing"
PATCH = 256


class Patch(NamedTuple):
    """pixels: uint8 (PATCH, PATCH, 3) at (x, y) of the level; None where marked missing; or what the read raised."""

    x: int
    y: int
    pixels: NDArray[np.uint8] | Exception | None


class Opened(Protocol):
    """A slide open in some reader.

    sizes   (width, height) of each level: first the `stored` ones, then those that decoding makes
    mpp     as the reader gives it, None if unknown
    """

    sizes: list[tuple[int, int]]
    stored: int
    mpp: float | None

    def patches(self, level: int) -> Iterator[Patch]: ...


@dataclass(frozen=True)
class Verdict:
    """kind: one of the words above, crashed or hung; what was raised and how clean that is; the scale shown as true.

    clean  no exception but the reader's own kind came out
    wrong  patches whose pixels are wrong and not marked
    """

    kind: str
    clean: bool = True
    wrong: int = 0
    mpp: float | None = None
    words: str = ""


class Ours:
    """This engine. All levels, those that decoding makes included."""

    clean = (SlideError,)

    def __init__(self, path: Path):
        self._slide = open_slide(path)
        self._levels = sorted(range(len(self._slide.levels)), key=lambda number: not self._slide.levels[number].stored)
        self.sizes = [(self._slide.levels[number].width, self._slide.levels[number].height) for number in self._levels]
        self.stored = sum(level.stored for level in self._slide.levels)
        self.mpp = self._slide.info.mpp

    def patches(self, level: int) -> Iterator[Patch]:
        number = self._levels[level]
        scale = self._slide.levels[number].downsample
        corners = grid(self.sizes[level])
        for start in range(0, len(corners), 64):
            part = corners[start : start + 64]
            out = np.empty((len(part), PATCH, PATCH, 3), np.uint8)
            ok = self._slide.read_many(np.rint(part * scale).astype(np.int64), number, out)
            for (x, y), fine, pixels in zip(part.tolist(), ok, out, strict=True):
                yield Patch(x, y, pixels if fine else None)


def grid(size: tuple[int, int]) -> NDArray[np.int64]:
    x, y = np.meshgrid(np.arange(0, size[0], PATCH), np.arange(0, size[1], PATCH))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def whole(opened: Opened) -> list[NDArray[np.uint8]]:
    """Every level of a sound slide, uint8 (height, width, 3)."""
    levels = []
    for number, (width, height) in enumerate(opened.sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        for x, y, patch in opened.patches(number):
            assert isinstance(patch, np.ndarray), patch
            part = pixels[y : y + PATCH, x : x + PATCH]
            part[...] = patch[: part.shape[0], : part.shape[1]]
        levels.append(pixels)
    return levels


def judge(reader: Callable[[Path], Opened], path: Path, truth: Sequence[NDArray[np.uint8]] | None) -> Verdict:
    """Open `path`, read all of it and compare; without `truth` whatever can be read is taken for wrong."""
    clean = getattr(reader, "clean", (Exception,))
    try:
        opened = reader(path)
    except Exception as error:  # noqa: BLE001  (whatever a reader raises is what is looked for)
        return Verdict(REFUSED, isinstance(error, clean), words=f"{type(error).__name__}: {error}")
    right = wrong = missing = 0
    faults: list[Exception] = []
    for level, size in enumerate(opened.sizes):
        try:
            for x, y, pixels in opened.patches(level):
                if pixels is None:
                    missing += 1
                elif isinstance(pixels, Exception):
                    faults.append(pixels)
                elif truth is not None and level < len(truth) and _agree(pixels, truth[level], x, y, size):
                    right += 1
                else:
                    wrong += 1
        except Exception as error:  # noqa: BLE001
            faults.append(error)
    expected = [(level.shape[1], level.shape[0]) for level in truth or ()][: opened.stored]
    same_size = opened.sizes[: opened.stored] == expected
    words = f"{type(faults[0]).__name__}: {faults[0]}" if faults else ""
    if right + wrong + missing + len(faults) == 0:
        kind = NOTHING
    elif faults or missing:
        kind = MIXED if wrong or not same_size else RAISED if faults else MARKED
    else:
        kind = WRONG if wrong or not same_size else SAME
    return Verdict(kind, all(isinstance(error, clean) for error in faults), wrong, opened.mpp, words)


def _agree(pixels: NDArray[np.uint8], level: NDArray[np.uint8], x: int, y: int, size: tuple[int, int]) -> bool:
    """Whether a patch shows what the level shows there, as far as both go."""
    right, bottom = min(x + PATCH, size[0], level.shape[1]), min(y + PATCH, size[1], level.shape[0])
    return bool((pixels[: max(0, bottom - y), : max(0, right - x)] == level[y:bottom, x:right]).all())


class Ended(NamedTuple):
    """A child process: what it said, its exit code (negative: by that signal; None: it hung), its peak memory."""

    said: str
    code: int | None
    peak_bytes: int


def in_child(work: Callable[[Callable[[str], None]], None], silence_s: float, memory_bytes: int) -> Ended:
    """Run `work` in a forked process under a limit of its address space; `work` says what it found by calling back.

    silence_s  it is killed when it says nothing for so long
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        work(lambda text: os.write(write_end, text.encode(errors="replace")) and None)
        os._exit(0)
    os.close(write_end)
    said, hung = b"", False
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        while not hung:
            hung = not select.select([pipe], [], [], silence_s)[0]
            part = b"" if hung else pipe.read(65_536)
            if not part:
                break
            said += part
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    code = None if hung else os.waitstatus_to_exitcode(status)
    return Ended(said.decode(errors="replace"), code, usage.ru_maxrss << 10)
