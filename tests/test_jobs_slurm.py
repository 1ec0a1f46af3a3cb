"""A real SLURM of this machine: workers as its jobs, and job arrays of plain commands that share one run folder."""

from functools import partial
from pathlib import Path

import pytest

from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.workers import Limits

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
