"""What befalls runs: kills at any moment, disks that are full, away, sick or slow, hanging slides, and impatience."""

import errno
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.receipts import read_receipts
from tests.faults import (
    Cohort,
    Faults,
    end_of,
    fill,
    finish,
    fork,
    is_group_alive,
    kill,
    litter,
    results,
    small_disk,
    start,
    start_wsi,
    statuses,
    times_done,
    told,
    unpluggable,
    wait_until,
)
from tests.slides import tissue_like, write_svs

STAGES = ("read", "draw")
ACTS = {f"s{number:03d}": "parts=3" if number % 10 == 0 else "" for number in range(200)}
KILLS = 20


def read_all(cohort: Cohort, run: Path, *stages: str, **jobs: object) -> dict:
    """A run to its end; what it told."""
    code, text = finish(start(cohort, run, *(stages or ("read",)), **jobs))
    assert "Traceback" not in text, text
    return {"code": code, **told(text)}


def words(found: dict, stage: str = "read") -> Counter:
    return Counter(status for status, _ in found["found"][stage].values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Cohort, Path]:
    cohort = Cohort.make(tmp_path_factory.mktemp("undisturbed"), ACTS)
    assert read_all(cohort, cohort.folder / "run", *STAGES)["code"] == 0
    return cohort, cohort.folder / "run"


# --- kills -----------------------------------------------------------------------------------------------------------
@pytest.mark.heavy
def test_a_run_killed_twenty_times_makes_what_an_undisturbed_one_makes_and_loses_only_what_it_was_at(
    undisturbed, tmp_path
):
    cohort, run = Cohort.make(tmp_path / "cohort", ACTS), tmp_path / "run"
    draw, lost = random.Random(0), 0
    for number in range(KILLS):
        begun, wanted = len(cohort.begun()), draw.randrange(20)
        if number % 5 == 0:  # with worker processes, the others without
            process = start(cohort, run, *STAGES)
            wait_until(lambda begun=begun, wanted=wanted: len(cohort.begun()) > begun + wanted)
            kill(process)
            process.communicate()
            lost += 2
        else:
            child = fork(cohort, run, *STAGES)
            wait_until(lambda begun=begun, wanted=wanted: len(cohort.begun()) > begun + wanted)
            time.sleep(draw.random() * 0.01)
            os.kill(child, signal.SIGKILL)
            assert end_of(child) == -signal.SIGKILL
            lost += 1
        assert published(run).items() <= results(undisturbed[1], *STAGES).items()
    assert read_all(cohort, run, *STAGES)["code"] == 0
    assert results(run, *STAGES) == results(undisturbed[1], *STAGES)
    assert litter(run) == []
    assert cohort.overlaps() == []
    begun, once = Counter(cohort.begun()), Counter(undisturbed[0].begun())
    assert set(begun) == set(once)
    assert sum((begun - once).values()) <= lost
    for stage in STAGES:
        assert set(times_done(run, stage).values()) <= {0, 1}


@pytest.mark.heavy
def test_a_run_killed_at_each_of_its_renames_and_links_in_turn_is_never_half(tmp_path):
    acts = {"a": "", "b": "parts=2"}
    whole = Cohort.make(tmp_path / "whole", acts)
    assert end_of(fork(whole, whole.folder / "run", *STAGES)) == 0
    expected, moment = results(whole.folder / "run", *STAGES), 1
    cohort = Cohort.make(tmp_path / "cohort", acts)
    while end_of(fork(cohort, run := tmp_path / f"run-{moment}", *STAGES, dies_at=moment)) == -signal.SIGKILL:
        assert published(run).items() <= expected.items()
        again = cohort if moment % 2 else Cohort(cohort.folder, {"a": ""})  # the slide that it was at, or another
        assert end_of(fork(again, run, *STAGES)) == 0
        assert end_of(fork(cohort, run, *STAGES)) == 0
        assert results(run, *STAGES) == expected
        assert litter(run) == []
        moment += 1
    assert results(run, *STAGES) == expected
    assert moment > 15


def published(run: Path) -> dict[str, bytes]:
    return {path: content for path, content in results(run, *STAGES).items() if "/." not in path}


# --- slides that crash, hang and eat memory, among others ------------------------------------------------------------
def test_workers_that_die_cost_their_own_slides_one_more_try_alone_and_others_nothing(tmp_path):
    acts = {f"good-{number}": "parts=2" if number % 3 else "" for number in range(12)}
    bad = {"abort": "abort", "segfault": "segfault", "killed": "killed", "hog": "hog=900", "loop": "loop",
           "part": "parts=3 abort at=1"}  # fmt: skip
    cohort = Cohort.make(tmp_path / "cohort", acts | bad)
    found = read_all(cohort, tmp_path / "run", deadline_s=2, memory_mib=512)
    assert words(found) == {"done": 12, "failed": 6}
    begun = Counter(cohort.begun())
    tries = {name: begun[f"read {name} {'1' if name == 'part' else '-'}"] for name in bad}
    assert tries == {**dict.fromkeys(bad, 2), "hog": 1}
    assert all(count == 1 for name, count in begun.items() if name.split()[1] in acts)
    causes = {one.slide_id: one.cause for one in read_receipts(tmp_path / "run" / "receipts" / "read.jsonl")}
    assert {name: causes[name] for name in bad} == {
        "abort": "crash", "segfault": "crash", "killed": "killed", "hog": "memory", "loop": "timeout", "part": "crash",
    }  # fmt: skip
    assert all("part" in path for path in litter(tmp_path / "run"))
    again = read_all(cohort, tmp_path / "run", deadline_s=2, memory_mib=512)
    assert words(again) == {"skipped": 12, "failed": 6}
    tried = Counter(cohort.begun()) - begun
    # what crashed would only cost a process again; what hung may have had a slow disk
    assert {name.split()[1] for name in tried} == {"killed", "hog", "loop"}


# --- disks -----------------------------------------------------------------------------------------------------------
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_space(tmp_path):
    cohort = Cohort.make(tmp_path / "cohort", {f"s{number:02d}": "seconds=0.1" for number in range(40)})
    with small_disk(tmp_path / "disk", 2048) as disk:
        process = start(cohort, disk / "run", lease_s=2)
        wait_until(lambda: len(cohort.begun()) > 6)
        fill(disk)
        code, text = finish(process)
        ended = told(text)
        assert code == 1
        assert "nothing more can be written: No space left on device" in ended["why"]
        assert "free space there and run again" in ended["remedy"]
        tried = ended["found"]["read"].values()
        assert len(tried) < 40
        assert all("No space left" in problem for status, problem in tried if status == "failed")
        assert all(len(content) == 128 for content in results(disk / "run").values())
        (disk / "filling").unlink()
        found = read_all(cohort, disk / "run")
        assert (found["code"], len(found["found"]["read"]), words(found)["failed"]) == (0, 40, 0)
        assert litter(disk / "run") == []


def test_slides_on_a_disk_that_went_away_wait_for_it(tmp_path):
    cohort = Cohort.make(tmp_path / "cohort", {f"s{number:02d}": "seconds=0.05" for number in range(50)})
    run = tmp_path / "run"
    with unpluggable(cohort.folder / "slides") as unplug:
        process = start(cohort, run)
        wait_until(lambda: len(cohort.begun()) >= 10)
        unplug()
        code, text = finish(process)
    ended, count = told(text), Counter(statuses(run).values())
    assert code == 1
    assert re.search(r"the slides cannot be reached: \d in a row", ended["why"])
    assert f"see that the disk of {cohort.folder / 'slides'} is mounted" in ended["remedy"]
    assert 5 <= count["failed"] <= 7  # and two that were at work
    assert count.total() < 50
    found = read_all(cohort, run)  # the disk is there again
    assert (found["code"], words(found)["failed"], len(results(run))) == (0, 0, 50)


def test_missing_slides_among_others_are_failures_of_their_own(tmp_path):
    cohort = Cohort.make(tmp_path / "cohort", {f"s{number:03d}": "" for number in range(150)})
    gone = [f"s{number:03d}" for number in (*range(3, 10), *range(60, 66), 90, 149)]
    for name in gone:
        (cohort.folder / "slides" / f"{name}.svs").unlink()
    found = read_all(cohort, tmp_path / "run")
    assert (found["code"], found["why"]) == (0, None)
    assert sorted(name for name, status in statuses(tmp_path / "run").items() if status == "failed") == gone
    assert words(found) == {"done": 150 - len(gone), "failed": len(gone)}


def test_a_read_error_that_passes_is_tried_again_and_one_that_stays_fails_by_its_cause(tmp_path):
    cohort = Cohort.make(
        tmp_path / "cohort", {"passes": "eio=2", "stays": "eio", "well": "", "part": "parts=3 eio=1 at=1"}
    )
    found = read_all(cohort, tmp_path / "run")
    assert words(found) == {"done": 3, "failed": 1}
    begun = Counter(cohort.begun())
    assert (begun["read passes -"], begun["read stays -"], begun["read part 1"], begun["read part 0"]) == (3, 3, 2, 1)
    receipts = {one.slide_id: one for one in read_receipts(tmp_path / "run" / "receipts" / "read.jsonl")}
    assert (receipts["stays"].cause, receipts["stays"].remedy) == ("io", "check the disk and the network mount")
    (cohort.folder / "tries-read-stays").unlink()
    well = Cohort(cohort.folder, {**cohort.acts, "stays": "eio=1"})
    assert words(read_all(well, tmp_path / "run")) == {"done": 1, "skipped": 3}  # unasked


# --- the commands themselves -----------------------------------------------------------------------------------------
TILE = ("--tile-px", 240, "--tile-mpp", 0.5, "--tissue", "none")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(4):
        write_svs(folder / f"s{seed}.svs", tissue_like(960, 720, seed))
    return folder


def test_a_command_on_a_full_disk_says_so_whenever_it_becomes_full(slides, tmp_path):
    with small_disk(tmp_path / "disk", 700) as disk:
        (disk / "run").mkdir()
        command = ("tile", slides, "-o", disk / "run", *TILE, "--patches", "raw")
        filling = fill(disk)
        code, text = finish(start_wsi(*command, scratch=tmp_path))
        assert code == 2, text
        assert "nothing can be written there (No space left on device)" in text
        assert "Traceback" not in text, text
        filling.unlink()
        code, text = finish(start_wsi(*command, scratch=tmp_path))  # there is room for some of the slides
        assert code == 1, text
        assert "nothing more can be written: No space left on device" in text
        assert "free space there and run again" in text
        assert "Traceback" not in text, text
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, text = finish(start_wsi(*command, scratch=tmp_path))
        assert code == 0, text
        assert litter(disk / "run") == []


def sick(name: str, first: int, many: int) -> Faults:
    """A disk that fails some of the reads of a slide."""
    return Faults(shim={"PATH": f"/{name}.svs", "CALLS": "read", "ERRNO": errno.EIO, "FIRST": first, "MANY": many})


def test_reads_that_fail_once_or_twice_are_made_again(slides, tmp_path):
    command = ("tile", slides / "s0.svs", *TILE, "--patches", "raw", "--executor", "serial")
    assert finish(start_wsi(*command, "-o", tmp_path / "whole", scratch=tmp_path))[0] == 0
    for first in (1, 8, 40):
        run = tmp_path / f"run-{first}"
        code, text = finish(start_wsi(*command, "-o", run, scratch=tmp_path, faults=sick("s0", first, 2)))
        assert code == 0, text
        assert stores(run) == stores(tmp_path / "whole")


def stores(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in (run / "tiles").rglob("*") if p.is_file()}


def test_a_slide_whose_disk_stays_sick_fails_by_its_cause_and_is_done_when_that_is_mended(slides, tmp_path):
    run = tmp_path / "run"
    command = ("tile", slides, "-o", run, *TILE, "--executor", "serial")
    code, text = finish(start_wsi(*command, scratch=tmp_path, faults=sick("s3", 1, 1 << 30)))
    assert code == 1, text
    (failed,) = [one for one in read_receipts(run / "receipts" / "tile.jsonl") if one.status == "failed"]
    assert (failed.slide_id, failed.cause) == ("s3", "io")
    assert "Input/output error" in failed.problem
    code, text = finish(start_wsi(*command, scratch=tmp_path))
    assert code == 0, text


def test_a_slow_disk_is_waited_for(slides, tmp_path):
    slow = Faults(shim={"PATH": "/s1.svs", "CALLS": "read sync", "SLEEP_MS": 5})
    run = tmp_path / "run"
    deadline = ("--set", "jobs.deadline_s=2")
    code, text = finish(start_wsi("tile", slides, "-o", run, *TILE, *deadline, scratch=tmp_path, faults=slow))
    assert code == 0, text
    assert statuses(run, "tile") == {path.stem: "done" for path in slides.iterdir()}


def test_a_clock_that_is_wrong_makes_nothing_again(slides, tmp_path):
    run, year_s = tmp_path / "run", 366 * 86_400
    command, before = ("tile", slides, "-o", run, *TILE, "--executor", "serial"), {}
    for clock_s in (0, year_s, -86_400):
        code, text = finish(start_wsi(*command, scratch=tmp_path, faults=Faults(clock_s=clock_s)))
        assert code == 0, text
        assert ("4 already there" if before else "4 done") in text
        before = before or stores(run)
        assert stores(run) == before


@pytest.mark.parametrize(
    ("sent", "code"), [((signal.SIGTERM,), 143), ((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGINT), 130)]
)
def test_a_run_with_a_hanging_slide_ends_when_it_is_told(slides, tmp_path, sent, code):
    run = tmp_path / "run"
    hanging = Faults(shim={"PATH": "/s1.svs", "CALLS": "read", "SLEEP_MS": 3_600_000})
    process = start_wsi("tile", slides, "-o", run, *TILE, scratch=tmp_path, faults=hanging)
    wait_until(lambda: "s2" in statuses(run, "tile") if (run / "receipts").exists() else False)
    told_at = time.monotonic()
    for number in sent:
        os.kill(process.pid, number)
        time.sleep(0.01)
    ended, text = finish(process, 30)
    assert time.monotonic() - told_at < 10  # what batch systems grant is 30 s
    # the second Ctrl-C may also find Python at its end, where it kills as it does by default: to a shell the same 130
    assert ended in ((code,) if len(sent) == 1 else (code, -signal.SIGINT)), text
    assert "Traceback" not in text
    assert not is_group_alive(process)
    if len(sent) == 1:
        assert not [path for path in (run / "claims").rglob("*") if path.is_file()]
        return
    ended, text = finish(start_wsi("tile", slides, "-o", run, *TILE, scratch=tmp_path))  # nothing was tidied up
    assert ended == 0, text
    assert litter(run) == []
    assert statuses(run, "tile").keys() == {path.stem for path in slides.iterdir()}
