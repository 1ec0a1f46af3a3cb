"""Stages over many slides: faults stay with their slide, and nothing is done twice."""

import json
import os
import time
from pathlib import Path

import pytest

from jobs import progress
from jobs.config import RunSpec
from jobs.executors import ExecSpec, cpu_count, cpu_quota
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.receipts import Receipt, append_receipt, latest, read_receipts
from jobs.run import Outcome, Watcher, run_stage
from wsi import SlideError, StoreError
from wsi.machine import machine_id


def records(*names: str) -> list[SlideRecord]:
    return [SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names]


def sort_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """A stage whose slides do what their names say."""
    (folder.root / "started").mkdir(exist_ok=True)
    (folder.root / "started" / f"{record.slide_id}-{os.getpid()}-{time.monotonic_ns()}").touch()
    kind = record.slide_id.partition("-")[0]
    if kind == "refuse":
        raise SlideError(record.path, "it is damaged", "copy it again")
    if kind == "fault":
        raise ZeroDivisionError("division by zero")
    if kind == "kill":
        os.abort()
    if kind == "slow":
        for done in range(20):
            progress.advance(done, 20)
            time.sleep(0.1)
    return Outcome("done", "mark", 5)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_failed_slide_is_a_receipt_and_the_others_go_on(tmp_path, executor):
    spec = RunSpec(jobs=ExecSpec(executor, workers=2))
    seen = []
    found = run_stage(
        sort_slide, records("a", "refuse", "fault", "b"), spec, RunFolder(tmp_path), Watcher(receipt=seen.append)
    )
    assert [receipt.status for receipt in found] == ["done", "failed", "failed", "done"]
    assert (found[1].problem, found[1].remedy) == ("it is damaged", "copy it again")
    assert found[2].problem == "ZeroDivisionError: division by zero"
    assert "stage=sort slide=fault" in found[2].trace
    assert sorted(receipt.slide_id for receipt in seen) == ["a", "b", "fault", "refuse"]
    assert latest(read_receipts(tmp_path / "receipts" / "sort.jsonl"))["a"].tiles == 5


def test_a_slide_that_kills_its_process_fails_alone_after_two_attempts(tmp_path):
    spec = RunSpec(jobs=ExecSpec("processes", workers=2))
    names = ["a", "b", "kill", "c", "d", "e", "f"]
    found = run_stage(sort_slide, records(*names), spec, RunFolder(tmp_path))
    assert {receipt.slide_id: receipt.status for receipt in found} == {
        name: "failed" if name == "kill" else "done" for name in names
    }
    assert "crashed: SIGABRT" in next(receipt for receipt in found if receipt.slide_id == "kill").problem
    starts = [path.name.rpartition("-")[0].rpartition("-")[0] for path in (tmp_path / "started").iterdir()]
    assert starts.count("kill") == 2
    assert max(starts.count(name) for name in names if name != "kill") <= 2


def test_tiles_done_are_told_while_a_slide_is_at_work(tmp_path):
    told = []
    spec = RunSpec(jobs=ExecSpec("processes", workers=1))
    run_stage(sort_slide, records("slow"), spec, RunFolder(tmp_path), Watcher(tiles=told.append))
    assert any(0 < counts.get("slow", (0, 0))[0] < 20 for counts in told)


def test_a_receipt_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "tile.jsonl"
    append_receipt(path, Receipt("a", "tile", "done"))
    with path.open("a") as stream:
        stream.write(json.dumps({"slide_id": "b"})[:-3])
    assert [receipt.slide_id for receipt in read_receipts(path)] == ["a"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="nothing can be written there"):
        RunFolder(tmp_path / "file" / "run").prepare()
    with pytest.raises(StoreError, match="nothing can be written there"):
        RunFolder(tmp_path / "file").prepare()


def test_drafts_of_dead_processes_are_cleared_and_those_of_the_living_stay(tmp_path):
    tiles = tmp_path / "tiles"
    dead, alive = (tiles / f".draft-{machine_id()}-{pid}-ab-s.zarr" for pid in (999_999_999, os.getpid()))
    dead.mkdir(parents=True)
    alive.mkdir()
    RunFolder(tmp_path).prepare()
    assert not dead.exists()
    assert alive.exists()


def test_keeping_pixels_or_another_limit_of_failures_does_not_embed_again(tmp_path):
    from jobs.config import resolve
    from jobs.stages import embed_slide
    from jobs.tile_stage import tile_slide
    from wsi.synthetic import SyntheticSpec, write_synthetic_slide

    write_synthetic_slide(tmp_path / "s.svs", SyntheticSpec(width_px=1024, height_px=1024))
    record = SlideRecord("s", tmp_path / "s.svs", "s", "s")

    def statuses(**tile: float) -> list[str]:
        settings = {
            "jobs": {"executor": "serial"},
            "patches": "raw" if tile.pop("patches", 0) else "none",
            "tile": tile,
        }
        stages = (tile_slide, embed_slide)
        return [
            run_stage(stage, [record], resolve(settings), RunFolder(tmp_path / "run"))[0].status for stage in stages
        ]

    assert statuses() == ["done", "done"]
    assert statuses(max_failed_tiles=0.5) == ["skipped", "skipped"]
    assert statuses(patches=1) == ["done", "skipped"]
    assert statuses(patches=1, min_tissue=0.5) == ["done", "done"]


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "250000 100000"}, 2.5),
        ("0::/elsewhere/on/the/host\n", {"cpu.max": "400000 100000"}, 4.0),
        ("4:cpu,cpuacct:/slurm\n0::/\n", {"cpu/slurm/cpu.cfs_quota_us": "300000",
                                          "cpu/slurm/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/slurm\n", {"cpu/slurm/cpu.cfs_quota_us": "-1", "cpu/slurm/cpu.cfs_period_us": "100000"}, None),
        ("2:memory:/x\n", {"x/cpu.max": "100000 100000"}, None),
    ],
)  # fmt: skip
def test_a_containers_share_of_the_processors_is_known(tmp_path, groups, limits, expected):
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{at}": text for at, text in limits.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected


def test_a_batch_system_may_grant_fewer_processors(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cpu_count() == 1
