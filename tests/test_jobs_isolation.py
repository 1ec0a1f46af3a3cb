"""What a slide does to its worker process stays with that slide: crashes, hangs and memory, in real processes."""

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs import progress
from jobs.config import RunSpec, resolve
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.last_words import Death, explain_death
from jobs.manifest import SlideRecord
from jobs.plan import plan_run
from jobs.receipts import Receipt
from jobs.run import Outcome, run_stage
from jobs.tile_stage import tile_slide
from jobs.workers import Limits, Workers
from wsi import SpecError
from wsi.publish import draft_of
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

LINUX = sys.platform == "linux"
MIB = 1 << 20


def hold_the_interpreter() -> None:
    """Compute in C for hours without letting another Python thread run, as a decoder in an endless loop does."""
    re.match(r"(a*)*b", "a" * 64)


def act_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """A stage whose slides do what their names say."""
    (folder.root / f"started-{record.slide_id}-{os.getpid()}-{time.monotonic_ns()}").touch()
    kind = record.slide_id.partition("-")[0]
    if kind == "abort":
        draft_of(folder.tiles(record.slide_id), "half").mkdir(parents=True)
        os.abort()
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(7)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(3_600)
    if kind == "loop":
        hold_the_interpreter()
    if kind == "hog":
        np.ones(700 * MIB, np.uint8)
    if kind == "native":  # as GLib under OpenSlide does
        os.write(2, b"\n(process:7): GLib-ERROR **: 07:16:25.1: ../glib/gmem.c:106: failed to allocate 9 bytes\n")
        os.abort()
    if kind == "slow":
        for done in range(8):
            progress.advance(done, 8)
            time.sleep(0.5)
    if kind == "model":
        with progress.busy():
            time.sleep(4)
    return Outcome("done", "mark", 1)


def records(*names: str) -> list[SlideRecord]:
    return [SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names]


def act(folder: Path, *names: str, **settings: float) -> dict[str, Receipt]:
    spec = RunSpec(jobs=ExecSpec(workers=2, **settings))
    return {receipt.slide_id: receipt for receipt in run_stage(act_slide, records(*names), spec, RunFolder(folder))}


def starts(folder: Path, name: str) -> list[int]:
    """Process ids in which a slide was begun."""
    return [int(path.name.split("-")[-2]) for path in folder.glob(f"started-{name}-*")]


BAD = {
    "abort": r"^crashed: SIGABRT, in act_slide of tests/test_jobs_isolation.py",
    "segfault": r"^crashed: SIGSEGV, in string_at of ",
    "exit": "^crashed: its process ended with exit code 7",
    "killed": "^killed: SIGKILL from outside",
    "hang": r"^timeout: no tile for [23] s, in act_slide of tests/test_jobs_isolation.py",
    "loop": r"^timeout: no tile for [23] s, in match of re/__init__.py",
    "native": r"^memory: failed to allocate 9 bytes \(limit 512 MiB\)",
}


@pytest.mark.skipif(os.name != "posix", reason="signals by name")
def test_each_death_fails_its_own_slide_with_its_reason_and_no_other(tmp_path):
    good = [f"good-{number}" for number in range(6)]
    names = [name for pair in zip(good, BAD, strict=False) for name in pair] + ["native"]
    found = act(tmp_path, *names, deadline_s=2, memory_mib=512)
    assert {name: receipt.status for name, receipt in found.items()} == {
        name: "failed" if name in BAD else "done" for name in names
    }
    for name, problem in BAD.items():
        assert re.search(problem, found[name].problem), found[name].problem
        assert found[name].problem.endswith("(also when tried again alone)")
        assert found[name].remedy
        assert len(starts(tmp_path, name)) == 2
    assert "Fatal Python error: Segmentation fault" in found["segfault"].trace
    assert [len(starts(tmp_path, name)) for name in good] == [1] * 6
    assert multiprocessing.active_children() == []
    for pid in {pid for name in names for pid in starts(tmp_path, name)}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(tmp_path.rglob(".draft-*"))


@pytest.mark.skipif(not LINUX, reason="private memory is limited on Linux")
def test_memory_is_limited_and_the_worker_lives_on(tmp_path):
    found = act(tmp_path, "hog", "good", memory_mib=512)
    assert found["hog"].problem.startswith("memory: Unable to allocate 700. MiB")
    assert "(limit 512 MiB)" in found["hog"].problem
    assert (found["good"].status, len(starts(tmp_path, "hog"))) == ("done", 1)
    assert act(tmp_path / "free", "hog", memory_mib=None)["hog"].status == "done"


def test_tiles_done_and_models_at_work_hold_off_the_deadline(tmp_path):
    found = act(tmp_path, "slow", "model", deadline_s=2)
    assert {receipt.status for receipt in found.values()} == {"done"}


def meet(folder: Path, kind: str, number: int) -> tuple[str, int]:
    """A task that waits for another in the same process, and then does what its name says."""
    (folder / f"{kind}-{number}").touch()
    until = time.monotonic() + 30
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        progress.advance(number, 10)
        time.sleep(0.05)
    progress.advance(number, 10)
    time.sleep(0.8)
    if kind == "raise":
        raise ZeroDivisionError("a task's thread")
    if kind == "hang":
        time.sleep(3_600)
    if kind == "busy":
        with progress.busy():
            time.sleep(3)
    while kind == "wait":
        progress.advance(number, 10)
        time.sleep(0.1)
    return kind, os.getpid()


@pytest.mark.parametrize(
    ("kinds", "problem"),
    [
        (("well", "busy"), None),
        (("wait", "raise"), "^crashed: its process ended with exit code 1"),
        (("wait", "hang"), "^timeout: no tile for 2 s"),  # the deadline is of each task
    ],
)
def test_tasks_share_a_process_and_its_death_but_not_their_progress(tmp_path, kinds, problem):
    (tmp_path / "met").mkdir()
    found, counts = {}, {}
    with Workers(1, partial(meet, tmp_path / "met"), tmp_path, Limits(deadline_s=2), slots=2) as workers:
        assert workers.room == 2
        for number, kind in enumerate(kinds, 3):
            workers.submit(kind, kind, number)
        while workers.busy:
            counts |= workers.tiles()
            found |= dict(workers.results())
    assert counts == {kind: (number, 10) for number, kind in enumerate(kinds, 3)}
    if problem is None:
        assert len({pid for _, pid in found.values()}) == 1
        assert [found[kind][0] for kind in kinds] == list(kinds)
    else:
        assert sorted(found) == sorted(kinds)
        assert all(isinstance(death, Death) and re.search(problem, death.problem) for death in found.values())


def test_a_slide_that_crashed_is_tried_again_only_when_something_changed_or_it_is_asked_for(tmp_path):
    for settings, begun in (({}, 2), ({}, 2), ({"retry_failed": True}, 4), ({"memory_mib": 512}, 6)):
        found = act(tmp_path, "exit", **settings)["exit"]
        assert (found.status, found.cause, len(starts(tmp_path, "exit"))) == ("failed", "crash", begun)
    assert "--retry-failed" in act(tmp_path, "exit", memory_mib=512)["exit"].remedy


def test_a_slide_that_was_refused_or_killed_from_outside_is_tried_again_by_the_next_run(tmp_path):
    for _ in range(2):
        assert act(tmp_path, "killed")["killed"].status == "failed"
    assert len(starts(tmp_path, "killed")) == 4


@pytest.mark.parametrize("settings", [{"deadline_s": 0.0}, {"deadline_s": float("nan")}, {"memory_mib": 10}])
def test_limits_that_no_slide_could_keep_are_refused(settings):
    with pytest.raises(SpecError, match="out of range"):
        ExecSpec(**settings)


def test_what_killed_a_reader_is_named_with_the_librarys_version():
    import openslide

    said = textwrap.dedent(f"""
        Fatal Python error: Aborted

        Thread 0x00007f2b (most recent call first):
          File "{openslide.__path__[0]}/lowlevel.py", line 418 in read_region
          File "/x/wsi/formats/openslide.py", line 130 in _read_rgba
          File "/x/wsi/formats/openslide.py", line 77 in read_many

        Current thread 0x00007f2c (most recent call first):
          File "/usr/lib/python3.11/threading.py", line 324 in wait
    """)
    problem = explain_death(-signal.SIGABRT, said, None).problem
    assert re.fullmatch(
        r"crashed: SIGABRT, in read_region of openslide-bin [\d.]+, reader wsi/formats/openslide\.py", problem
    )


@pytest.mark.skipif(not LINUX, reason="elsewhere a thread watches, which a held interpreter stops")
def test_a_hanging_worker_does_not_outlive_a_run_that_is_killed(tmp_path):
    script = f"""
from pathlib import Path
from tests.test_jobs_isolation import act
if __name__ == "__main__":
    act(Path({str(tmp_path)!r}), "loop")
"""
    root = Path(__file__).resolve().parent.parent
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env={**os.environ, "PYTHONPATH": str(root)})
    until = time.monotonic() + 60
    while not starts(tmp_path, "loop") and time.monotonic() < until:
        time.sleep(0.1)
    (worker,) = starts(tmp_path, "loop")
    run.kill()
    run.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lived on")


def test_a_slide_that_vanishes_between_plan_and_read_fails_alone(tmp_path):
    for name in ("gone", "here"):
        write_synthetic_slide(tmp_path / f"{name}.svs", SyntheticSpec(width_px=512, height_px=512))
    both = [SlideRecord(name, tmp_path / f"{name}.svs", name, name) for name in ("gone", "here")]
    spec, folder = resolve({"jobs": {"workers": 1}}), RunFolder(tmp_path / "run")
    assert plan_run(both, spec, folder, lambda done: None).slides == 2
    (tmp_path / "gone.svs").unlink()
    gone, here = run_stage(tile_slide, both, spec, folder)
    assert (gone.status, gone.problem) == ("failed", "there is no such file")
    assert here.status == "done"
