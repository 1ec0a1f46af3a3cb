"""A real SLURM of this machine: workers as its jobs, and job arrays of plain commands that share one run folder."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.receipts import read_receipts
from jobs.workers import Limits
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

from .slurm_node import NoSlurm, Slurm, slurm_node

pytest.importorskip("dask_jobqueue")

from jobs.cluster.connection import open_cluster
from jobs.cluster.fleet import ClusterError

from .test_jobs_dask import act, drain, recipe, starts, wait_for

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    try:
        with slurm_node(tmp_path_factory.mktemp("slurm")) as node:
            yield node
    except NoSlurm as error:
        pytest.skip(str(error))


@pytest.fixture
def here(slurm: Slurm, monkeypatch):
    """This process's own sbatch speaks to the test's cluster."""
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return slurm


RECIPE = """
kind: slurm
interface: lo
dashboard: null
idle_s: 1
groups:
  readers:
    stages: [tile]
    slots: 2
    maximum: 2
    options: {queue: low, cores: 1, memory: 1GB, walltime: "0:20:00"%s}
"""


def jobs_of(slurm: Slurm) -> dict[str, str]:
    return dict(line.split() for line in slurm.run("squeue", "-h", "-o", "%i %T", "-t", "PD,R,CG").splitlines())


def test_workers_are_jobs_asked_for_with_the_work_and_given_back_after_it(here, tmp_path):
    jobs = ExecSpec(executor="dask", cluster=recipe(tmp_path, RECIPE % ""))
    with open_cluster(jobs, RunFolder(tmp_path)) as connection:
        assert jobs_of(here) == {}
        pool = connection.pool("tile", partial(act, tmp_path), Limits(deadline_s=20, memory_mib=512))
        pool.expect(30)
        names = [f"short-{number}" for number in range(24)] + ["segfault-0"] + [f"slow-{n}" for n in range(6)]
        found = drain(pool, names, 180)
        assert [name for name in names if found[name] != f"{name} is done"] == ["segfault-0"]
        assert len({parent for _, parent in starts(tmp_path)}) == 2
        assert len(jobs_of(here)) == 2
        pool.expect(0)
        wait_for(lambda: not pool.results(0.2) and jobs_of(here) == {})
    assert list((tmp_path / "cluster-logs").glob("wsi-readers-*.err"))


def test_a_preempted_job_costs_what_it_was_at_and_another_takes_its_place(here, tmp_path):
    jobs = ExecSpec(executor="dask", cluster=recipe(tmp_path, RECIPE % ""))
    with open_cluster(jobs, RunFolder(tmp_path)) as connection:
        pool = connection.pool("tile", partial(act, tmp_path), Limits(deadline_s=20))
        pool.expect(20)
        names = [f"slow-{number}" for number in range(10)]
        for name in names[:6]:
            pool.submit(name, name)
            pool.results(0)
        found = {}
        wait_for(lambda: found.update(pool.results()) or len(pool.at_work()) == 4)
        first = sorted(job for job, state in jobs_of(here).items() if state == "RUNNING")[0]
        here.run("scontrol", "requeue", first)  # as SLURM does when a job of higher priority needs the node
        while len(found) < 6:
            found.update(pool.results())
        found |= drain(pool, names[6:], 180)
        assert found == {name: f"{name} is done" for name in names}
        assert 10 <= len(starts(tmp_path, "slow-*")) <= 12
        pool.close(kill=False)
    wait_for(lambda: jobs_of(here) == {})


def test_jobs_that_are_refused_or_never_begin_end_the_run_with_the_reason(here, tmp_path, monkeypatch):
    def run_with(text: str) -> None:
        with open_cluster(ExecSpec(executor="dask", cluster=recipe(tmp_path, text)), RunFolder(tmp_path)) as connection:
            pool = connection.pool("tile", partial(act, tmp_path), Limits())
            pool.expect(20)
            pool.submit("good-0", "good-0")
            wait_for(pool.results, 120)

    with pytest.raises(ClusterError, match="invalid partition specified: nowhere"):
        run_with((RECIPE % "").replace("queue: low", "queue: nowhere"))
    monkeypatch.setattr("jobs.cluster.fleet._LOOK_S", 1.0)
    with pytest.raises(ClusterError, match=r"[5-9] jobs in a row ended before their worker began; see what they wrote"):
        run_with(RECIPE % ", python: /nowhere/python")
    assert "/nowhere/python" in "".join(path.read_text() for path in (tmp_path / "cluster-logs").glob("*.err"))
    wait_for(lambda: jobs_of(here) == {})


def test_a_command_tiles_its_slides_in_jobs_of_slurm(slurm, tmp_path, slides):
    run, path = tmp_path / "run", recipe(tmp_path, (RECIPE % "").replace("slots: 2", "slots: 1"))
    words = [Path(sys.executable).parent / "wsi", "tile", slides, "--tile-mpp", "1", "--out", run, "--cluster", path]
    done = subprocess.run(list(map(str, words)), env=slurm.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 done" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    check_whole(run, slides)
    assert list((run / "cluster-logs").glob("*.err"))
    wait_for(lambda: jobs_of(slurm) == {})


ARRAY = ROOT / "configs" / "slurm-array.sh"


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(12):
        write_synthetic_slide(folder / f"s{number}.svs", SyntheticSpec(seed=number, width_px=1024, height_px=1024))
    return folder


def submit_array(slurm: Slurm, run: Path, slides: Path, *options: str) -> str:
    """Submit the shipped script as an array whose tasks tile the slides; its job number."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["tile", slides, "--tile-mpp", "1", "--out", run, "--workers", "1"]
    command = ["sbatch", "--parsable", "--mem=1G", "--cpus-per-task=1", "--chdir", run.parent, *options, ARRAY, *words]
    done = subprocess.run(list(map(str, command)), env={**slurm.environment, "PATH": path}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    return done.stdout.strip()


def said(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("wsi-*.log"))


def check_whole(run: Path, slides: Path, killed: int = 0) -> None:
    """Every slide is there, was done by one session only, and nothing else lies there.

    killed  sessions that were ended, each perhaps between a slide's result and the receipt of it
    """
    names = sorted(path.stem for path in slides.glob("*.svs"))
    receipts = read_receipts(RunFolder(run).receipts("tile"))
    done = [receipt.slide_id for receipt in receipts if receipt.status in ("done", "empty")]
    assert len(names) - killed <= len(done) == len(set(done)), said(run.parent)
    assert {receipt.slide_id for receipt in receipts} == set(names)
    assert {receipt.status for receipt in receipts} <= {"done", "empty", "skipped"}
    assert sorted(path.stem for path in (run / "tiles").glob("*.zarr")) == names
    assert not list(run.rglob(".draft-*"))


def test_the_tasks_of_a_job_array_share_one_run_folder(slurm, tmp_path, slides):
    job = submit_array(slurm, tmp_path / "run", slides, "--array=0-2")
    assert set(slurm.wait(job).values()) == {"COMPLETED"}, said(tmp_path)
    check_whole(tmp_path / "run", slides)
    receipts = read_receipts(RunFolder(tmp_path / "run").receipts("tile"))
    assert len({receipt.worker for receipt in receipts if receipt.status == "done"}) == 3


def exit_codes(slurm: Slurm, job: str) -> list[str]:
    return re.findall(r"ExitCode=(\d+):", slurm.run("scontrol", "show", "job", job))


def test_a_task_that_is_told_to_end_does_so_at_once_and_another_goes_on(slurm, tmp_path, slides):
    run = tmp_path / "run"
    job = submit_array(slurm, run, slides, "--array=0-0")
    wait_for(lambda: list(run.glob("tiles/*.zarr")))
    slurm.run("scancel", "--signal=TERM", "--full", f"{job}_0")
    assert set(slurm.wait(job, 30).values()) == {"FAILED"}  # so SLURM calls what ends with another code than 0
    assert exit_codes(slurm, job) == ["143"], said(tmp_path)
    assert 0 < len(list(run.glob("tiles/*.zarr"))) < 12
    again = submit_array(slurm, run, slides, "--array=0-1")
    assert set(slurm.wait(again).values()) == {"COMPLETED"}, said(tmp_path)
    check_whole(run, slides, killed=1)


def test_a_preempted_task_and_one_whose_time_is_up_go_on_by_themselves(slurm, tmp_path, slides):
    run = tmp_path / "run"
    job = submit_array(slurm, run, slides, "--array=0-1", "--partition=low", "--cpus-per-task=2")
    wait_for(lambda: list(run.glob("tiles/*.zarr")))
    slurm.run("scancel", "--signal=USR1", "--batch", f"{job}_0")  # as SLURM does two minutes before the time is up
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/sh\nsleep 1\n")
    slurm.run("sbatch", "--partition=high", "--cpus-per-task=4", "--mem=100M", f"--chdir={tmp_path}", urgent)
    wait_for(lambda: slurm.run("scontrol", "show", "job", job).count("Restarts=1") == 2)
    assert set(slurm.wait(job, 300).values()) == {"COMPLETED"}, said(tmp_path)
    restarts = re.findall(r"Restarts=(\d+)", slurm.run("scontrol", "show", "job", job))
    assert restarts == ["1", "1"], restarts
    check_whole(run, slides, killed=2)
