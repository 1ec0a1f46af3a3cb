"""Several runs on one folder: they share the work, do nothing twice, and make what one run alone makes."""

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from jobs.receipts import read_receipts
from tests.faults import (
    NONE,
    Cohort,
    Faults,
    finish,
    kill,
    litter,
    results,
    start,
    start_wsi,
    statuses,
    times_done,
    told,
    wait_until,
)
from tests.slides import tissue_like, write_svs

STAGES = ("read", "draw")
ACTS = {
    **{f"plain-{number}": "seconds=0.05" for number in range(16)},
    **{f"parted-{number}": "parts=5 seconds=0.05" for number in range(8)},
    "broken": "fault stage=read",
    "crash": "abort stage=draw",
    "halfway": "parts=4 seconds=0.05 fault at=2 stage=read",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Cohort, Path]:
    """A run that nothing befalls."""
    cohort = Cohort.make(tmp_path_factory.mktemp("alone"), ACTS)
    code, text = finish(start(cohort, cohort.folder / "run", *STAGES))
    assert code == 0, text
    return cohort, cohort.folder / "run"


def whole(found: dict) -> dict:
    """Results without the parts of the slide that ends its processes: how many were done is a matter of turns."""
    return {path: content for path, content in found.items() if "/.parts/halfway/" not in path}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "hosts", [(None, None), (None, "b", "c", None)], ids=["two on one machine", "four on three machines"]
)
def test_runs_on_one_folder_do_together_what_one_does_and_nothing_twice(alone, tmp_path, hosts):
    cohort, run = Cohort.make(tmp_path / "cohort", ACTS), tmp_path / "run"
    runs = [start(cohort, run, *STAGES, faults=Faults(host), workers=1) for host in hosts]
    ends = [finish(process) for process in runs]
    assert {code for code, _ in ends} == {0}, ends
    expected = Counter(alone[0].begun())
    expected -= Counter({name: count for name, count in expected.items() if name.startswith("read halfway")})
    found = Counter(cohort.begun())
    halfway = {name: count for name, count in found.items() if name.startswith("read halfway")}
    assert set(halfway.values()) <= {1}
    assert found - Counter(halfway) == expected
    assert cohort.overlaps() == []
    assert whole(results(run, *STAGES)) == whole(results(alone[1], *STAGES))
    assert all("halfway" in path for path in litter(run))  # the parts that were done of it, for the next run
    for stage in STAGES:
        assert statuses(run, stage).keys() == statuses(alone[1], stage).keys()
        assert set(times_done(run, stage).values()) <= {0, 1}
        for _, text in ends:  # each run knows of all slides what became of them
            words = told(text)["found"][stage]
            failed = {name for name, (status, _) in words.items() if status == "failed"}
            assert words.keys() == statuses(alone[1], stage).keys()
            assert failed == {name for name, status in statuses(alone[1], stage).items() if status == "failed"}
    sessions = [json.loads(path.read_text()) for path in (run / "sessions").iterdir()]
    assert len(sessions) == len(hosts)
    assert all(session["ended"] for session in sessions)


def test_what_a_run_that_dies_was_at_goes_to_the_other(alone, tmp_path):
    cohort, run = Cohort.make(tmp_path / "cohort", ACTS), tmp_path / "run"
    dying, living = (start(cohort, run, *STAGES, workers=1, faults=fault) for fault in (Faults(die_at=30), NONE))
    assert finish(dying)[0] == -signal.SIGKILL
    code, text = finish(living)
    assert code == 0, text
    assert whole(results(run, *STAGES)) == whole(results(alone[1], *STAGES))
    assert cohort.overlaps() == []
    assert all("halfway" in path for path in litter(run))
    extra = sum((Counter(cohort.begun()) - Counter(alone[0].begun())).values())
    assert extra <= 1  # it had one worker


def test_a_dead_machines_work_is_taken_over_when_its_lease_is_over(alone, tmp_path):
    acts = {"long": "hang", "short": ""}
    cohort, run = Cohort.make(tmp_path / "cohort", acts), tmp_path / "run"
    afar = start(cohort, run, faults=Faults("elsewhere"), lease_s=4, workers=1)
    wait_until(lambda: "read long -" in cohort.begun())
    well = Cohort(cohort.folder, {"long": "", "short": ""})  # it hung there, as on a machine that died it may
    here = start(well, run, lease_s=4, workers=1)
    wait_until(lambda: "read short -" in cohort.begun())
    with pytest.raises(subprocess.TimeoutExpired):
        here.wait(3)  # the other is at it
    kill(afar)
    afar.communicate()
    code, text = finish(here)
    assert (code, told(text)["found"]["read"]["long"][0]) == (0, "done")
    assert [path for path in litter(run) if ".draft-" not in path] == []  # those are of a machine that may come back


# --- the commands themselves, on slides that are embedded in parts ---------------------------------------------------
SETTINGS = ("--tissue", "none", "--tile-px", 1024, "--tile-mpp", 0.5, "--set", "tile.stride_px=64",
            "--set", "tile.quality.measure=false", "--set", "jobs.shard_tiles=1", "--batch", 4)  # fmt: skip
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Slides of 36 tiles, which are three parts."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(NAMES):
        write_svs(folder / f"{name}.svs", tissue_like(1344, 1344, seed))
    (folder / "broken.svs").write_bytes(b"no slide")
    return folder


def run_command(cohort: Path, run: Path, *more: object) -> subprocess.Popen:
    return start_wsi("run", cohort, "-o", run, *SETTINGS, *more, scratch=run.parent)


def stores(run: Path) -> dict[str, bytes]:
    """Every file of tiles and embeddings."""
    files = [path for kind in ("tiles", "embeddings") for path in (run / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, text = finish(run_command(cohort, run), 300)
    assert code == 1, text  # one is broken
    parts = [one.part for one in read_receipts(run / "receipts" / "embed.jsonl", parts=True) if one.slide_id == "a"]
    assert parts == [0, 1, 2, None]
    return run


@pytest.mark.heavy
def test_two_commands_on_one_folder_share_slides_and_their_parts(cohort, undisturbed, tmp_path):
    run = tmp_path / "run"
    ends = [finish(process, 300) for process in [run_command(cohort, run) for _ in range(2)]]
    assert [code for code, _ in ends] == [1, 1], ends
    assert stores(run) == stores(undisturbed)
    assert litter(run) == []
    for stage, units in (("tile", 3), ("embed", 12)):
        done = [one for one in read_receipts(run / "receipts" / f"{stage}.jsonl", parts=True) if one.status == "done"]
        assert len({(one.slide_id, one.part) for one in done}) == len(done) == units
    failed = [one for one in read_receipts(run / "receipts" / "tile.jsonl") if one.status == "failed"]
    assert [one.slide_id for one in failed] == ["broken"]


@pytest.mark.heavy
def test_a_command_killed_at_any_moment_goes_on_to_the_same_bytes(cohort, undisturbed, tmp_path):
    run = tmp_path / "run"
    receipts = run / "receipts"
    moments = (
        lambda: any((run / "tiles").glob("[!.]*.zarr")),
        lambda: any((run / "embeddings").glob("*/.parts/*/part-*")),
        lambda: any_embedded(run),
    )
    for happened in moments:
        process = run_command(cohort, run)
        wait_until(happened, 120)
        kill(process)
        process.communicate()
    code, text = finish(run_command(cohort, run), 300)
    assert code == 1, text
    assert stores(run) == stores(undisturbed)
    assert litter(run) == []
    done = [one for one in read_receipts(receipts / "embed.jsonl", parts=True) if one.status == "done"]
    assert len(done) <= 12 + 2 * len(moments)  # what was at work when it was killed: two units at most


def any_embedded(run: Path) -> bool:
    return any((run / "embeddings").glob("*/[!.]*.zarr"))


def test_other_settings_for_tiles_are_refused_while_a_run_is_at_work(cohort, tmp_path):
    run = tmp_path / "run"
    slow = Faults(shim={"PATH": "/a.svs", "CALLS": "read", "SLEEP_MS": 3_600_000})
    first = start_wsi("tile", cohort, "-o", run, *SETTINGS[:6], scratch=tmp_path, faults=slow)
    wait_until(lambda: any((run / "sessions").glob("2*.json")))
    code, text = finish(start_wsi("tile", cohort, "-o", run, "--tile-px", 512, scratch=tmp_path))
    assert code == 2
    assert re.search(rf"process {first.pid} on \S+ is at work there since 20\d\d-", text), text
    assert "another --out" in text
    kill(first)
    first.communicate()
    shutil.rmtree(run)
