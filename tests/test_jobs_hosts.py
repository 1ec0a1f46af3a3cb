"""Dask over several hosts, which are network namespaces: units run on all of them, and a lost host loses nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .hosts import Host, NoHosts, network
from .test_jobs_dask import processes, starts, wait_for

ROOT = Path(__file__).resolve().parent.parent

# the run itself: on a host of its own, as no other is reached from here
RUN = """
import json, sys
from functools import partial
from pathlib import Path
from jobs.cluster.connection import open_cluster
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.workers import Limits
from tests.test_jobs_dask import act, drain, wait_for_workers

if __name__ == "__main__":
    folder, address, kind, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    with open_cluster(ExecSpec(executor="dask", scheduler=address), RunFolder(folder)) as connection:
        wait_for_workers(connection, 2)
        pool = connection.pool("tile", partial(act, folder), Limits(deadline_s=60))
        found = drain(pool, [f"{kind}-{number}" for number in range(count)], 200)
        (folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture
def hosts():
    try:
        with network(4) as made:
            yield made
    except NoHosts as error:
        pytest.skip(str(error))


def on(host: Host, *words: object) -> subprocess.Popen:
    # workers that are silent for ten seconds are lost: by default it takes five minutes
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s",
                   "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10"}  # fmt: skip
    return subprocess.Popen(
        host.command(sys.executable, *words),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_run_over_several_hosts_survives_the_loss_of_one(hosts, tmp_path):
    first, second, third, fourth = hosts
    (tmp_path / "run.py").write_text(RUN)
    with processes() as begun:
        address = f"tcp://{first.address}:8786"
        begun.append(on(first, "-m", "dask", "scheduler", "--host", first.address, "--port", 8786, "--no-dashboard"))
        for host in (second, third):
            begun.append(on(host, "-m", "dask", "worker", address, "--name", host.name, "--host", host.address,
                            "--nthreads", 1, "--no-dashboard", "--death-timeout", 20))  # fmt: skip
        run = on(fourth, tmp_path / "run.py", tmp_path, address, "slow", 8)
        begun.append(run)
        wait_for(lambda: len({parent for _, parent in starts(tmp_path)}) == 2)
        time.sleep(1)
        third.unplug()
        assert run.wait(150) == 0
        found = json.loads((tmp_path / "found.json").read_text())
        assert found == {f"slow-{number}": f"slow-{number} is done" for number in range(8)}
        assert 8 <= len(starts(tmp_path)) <= 10  # what the lost host was at, and what waited there
        # the lost host ends by itself: nobody reaches it
        wait_for(lambda: begun[2].poll() is not None, 90)
