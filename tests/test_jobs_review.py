"""What a flow does when its own books, its workers or single parts of a slide fail at an awkward moment."""

import os
import resource
import time
from pathlib import Path

import pytest

from jobs.config import RunSpec
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split
from jobs.run import Watcher, run_stages
from wsi import SlideError


def records(*names: str) -> dict[str, SlideRecord]:
    return {name: SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names}


def wait_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Takes the seconds that its slide's name says."""
    time.sleep(float(record.slide_id.rpartition("-")[2]) / 10)
    return Outcome("done", "mark", 1)


def _begin(folder: RunFolder, name: str) -> None:
    (folder.root / "begun").mkdir(exist_ok=True)
    (folder.root / "begun" / f"{name}-{time.monotonic_ns()}").touch()


def begun(root: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (root / "begun").iterdir())


def cut_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome | Split:
    _begin(folder, record.slide_id)
    if record.slide_id == "t":
        return Outcome("done", "mark", 1)
    return Split(folder.root / "parts", 2, 2, cut_part, cut_join)


def cut_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    _begin(folder, f"{record.slide_id}+{number}")
    if number == 0:
        while not list((folder.root / "begun").glob(f"{record.slide_id}+1-*")):
            time.sleep(0.05)
        raise SlideError(record.path, "it is damaged", "copy it again")
    time.sleep(1)
    os.abort()


def cut_join(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    raise AssertionError("a slide with a failed part is not joined")


def test_books_that_cannot_be_kept_end_the_run_when_several_units_end_at_once(tmp_path):
    line = Line(wait_slide, records("a-0", "b-5", "c-5"))

    def lose_receipts(receipt):
        if not (tmp_path / "aside").exists():
            (tmp_path / "receipts").rename(tmp_path / "aside")
            (tmp_path / "receipts").touch()
            time.sleep(2)  # the two others end meanwhile

    halt = run_stages([line], RunSpec(jobs=ExecSpec(workers=3)), RunFolder(tmp_path), [Watcher(receipt=lose_receipts)])
    assert halt.why is not None
    assert not line.running
    assert not list((tmp_path / "claims").glob("*/*~*"))


def test_workers_that_cannot_be_begun_end_the_run(tmp_path):
    used = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    line = Line(wait_slide, records(*(f"s{number}-5" for number in range(12))))

    def tighten(done):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, limits[1]))

    try:
        tighten(None)
        halt = run_stages([line], RunSpec(jobs=ExecSpec(workers=12)), RunFolder(tmp_path), [Watcher()])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert halt.why is not None and "open files" in halt.why


def test_a_part_that_dies_after_another_has_failed_its_slide_is_not_begun_again(tmp_path):
    line = Line(cut_slide, records("s", "t"))
    run_stages([line], RunSpec(jobs=ExecSpec(workers=2)), RunFolder(tmp_path), [Watcher()])
    assert line.receipts["s"].problem == "it is damaged"
    assert begun(tmp_path) == ["s", "s+0", "s+1", "t"]
