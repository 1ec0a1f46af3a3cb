"""Units of work on a real Dask scheduler and real workers: what dies, hangs or is killed costs itself, and is told."""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs import progress
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.last_words import Death
from jobs.workers import Limits
from wsi.errors import EngineError

distributed = pytest.importorskip("distributed")

from jobs.cluster.connection import Connection, open_cluster, this_machine  # noqa: E402
from jobs.cluster.fleet import SETTINGS, ClusterError  # noqa: E402
from jobs.cluster.pool import DaskPool  # noqa: E402
from wsi.machine import is_alive  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children die with their worker by Linux's own way")


def act(folder: Path, name: str) -> str:
    """A unit of work that does what its name says, and leaves a file for each start."""
    (folder / f"started-{name}-{os.getpid()}-{os.getppid()}-{time.monotonic_ns()}").touch()
    kind = name.partition("-")[0]
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(7)
    if kind == "raise":
        raise ZeroDivisionError("on purpose")
    if kind == "hog":
        np.ones(700 * MIB, np.uint8)
    if kind == "hang":
        time.sleep(3_600)
    if kind == "loop":
        re.match(r"(a*)*b", "a" * 64)  # holds the interpreter for hours, as a decoder in an endless loop does
    if kind == "short":
        time.sleep(0.1)
    if kind == "slow":
        for done in range(1, 41):
            progress.advance(done, 40)
            time.sleep(0.1)
    return f"{name} is done"


def starts(folder: Path, name: str = "*") -> list[tuple[int, int]]:
    """(process, its parent) of each start."""
    found = [path.name.split("-") for path in folder.glob(f"started-{name}-*")]
    return [(int(words[-3]), int(words[-2])) for words in found]


@contextmanager
def processes() -> Iterator[list[subprocess.Popen]]:
    """Started in groups of their own; killed at the end, group by group."""
    begun: list[subprocess.Popen] = []
    try:
        yield begun
    finally:
        for process in begun:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def dask_command(*words: object) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
    environment |= {"PYTHONPATH": str(ROOT), **{f"DASK_{name}": value for name, value in _settings().items()}}
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, words)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _settings() -> dict[str, str]:
    """Those that docs/cluster.md asks of a scheduler that is not ours."""
    allowed = str(SETTINGS["distributed.scheduler.allowed-failures"])
    return {"DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": allowed, "DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0"}


@contextmanager
def dask_cluster(folder: Path, workers: int, *options: object) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """(address of a scheduler in a process of its own, [it, its workers…])."""
    with processes() as begun:
        file = folder / "scheduler.json"
        begun.append(dask_command("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard",
                                  "--scheduler-file", file))  # fmt: skip
        until = time.monotonic() + 60
        while not (file.exists() and "address" in file.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        address = re.search(r"tcp://[\d.:]+", file.read_text())[0]
        for number in range(workers):
            begun.append(dask_worker(address, f"w{number}", *options))
        yield address, begun


def dask_worker(address: str, name: str, *options: object) -> subprocess.Popen:
    return dask_command("worker", address, "--name", name, "--host", "127.0.0.1", "--no-dashboard",
                        "--death-timeout", 20, *options)  # fmt: skip


def drain(pool: DaskPool, names: list[str], seconds: float = 120) -> dict[str, object]:
    """What became of each; fails where one has two results, or does not end."""
    waiting, found, until = list(names), {}, time.monotonic() + seconds
    while len(found) < len(names):
        assert time.monotonic() < until, f"{set(names) - set(found)} never ended"
        while waiting and pool.busy < pool.room:
            name = waiting.pop(0)
            pool.submit(name, name)
        for name, result in pool.results():
            assert name not in found
            found[name] = result
    assert pool.busy == 0
    return found


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.1)


def connect(address: str, folder: Path):
    return open_cluster(ExecSpec(executor="dask", scheduler=address), RunFolder(folder))


def wait_for_workers(connection: Connection, count: int) -> None:
    wait_for(lambda: connection.workers() == count)


BAD = {
    "segfault": "^crashed: SIGSEGV, in string_at of ",
    "exit": "^crashed: its process ended with exit code 7",
    "raise": "^crashed: its process ended with exit code 1",
    "hog": r"^memory: .*Unable to allocate 700. MiB",
    "hang": r"^timeout: no tile for [23] s, in act of tests/test_jobs_dask.py",
    "loop": r"^timeout: no tile for [23] s, in match of re/__init__.py",
}


def test_what_a_unit_does_to_its_process_is_told_and_its_worker_lives_on(tmp_path):
    names = [f"good-{number}" for number in range(6)] + [f"{kind}-0" for kind in BAD]
    with dask_cluster(tmp_path, 1, "--nthreads", 2) as (address, begun), connect(address, tmp_path) as connection:
        wait_for_workers(connection, 1)
        pool = connection.pool("tile", partial(act, tmp_path), Limits(deadline_s=2, memory_mib=512))
        found = drain(pool, names)
        for kind, problem in BAD.items():
            assert isinstance(found[f"{kind}-0"], Death)
            assert re.search(problem, found[f"{kind}-0"].problem), found[f"{kind}-0"].problem
        assert all(found[name] == f"{name} is done" for name in names if name.startswith("good"))
        assert {len(starts(tmp_path, name)) for name in names} == {1}
        assert len({parent for _, parent in starts(tmp_path)}) == 1  # one Dask worker, from the first to the last
        pool.submit("again-0", "again-0", alone=True)
        wait_for(lambda: pool.results() == [("again-0", "again-0 is done")])
        child, parent = starts(tmp_path, "again-0")[0]
        assert child not in {pid for name in names for pid, _ in starts(tmp_path, name)}
        assert is_alive(parent)
        pool.close(kill=False)
        wait_for(lambda: not any(is_alive(pid) for pid, _ in starts(tmp_path)))
        assert begun[1].poll() is None
        assert _remembered(connection) == 0


def _remembered(connection: Connection) -> int:
    """Tasks that the scheduler still knows."""
    time.sleep(0.5)
    return connection.client.run_on_scheduler(_count_tasks)


def _count_tasks(dask_scheduler) -> int:
    return len(dask_scheduler.tasks)


def test_a_unit_that_was_stopped_leaves_no_process_on_a_cluster_that_lives_on(tmp_path):
    with dask_cluster(tmp_path, 1, "--nthreads", 2) as (address, _), connect(address, tmp_path) as connection:
        wait_for_workers(connection, 1)
        pool = connection.pool("tile", partial(act, tmp_path), Limits())
        pool.submit("hang-0", "hang-0")
        pool.submit("slow-0", "slow-0")
        wait_for(lambda: pool.tiles().get("slow-0", (0, 0))[0] > 3)
        assert pool.tiles()["slow-0"][1] == 40
        assert set(pool.at_work()) == {"hang-0", "slow-0"}
        children = [pid for pid, _ in starts(tmp_path)]
        pool.close(kill=True)
        wait_for(lambda: not any(is_alive(pid) for pid in children))
        assert drain(connection.pool("tile", partial(act, tmp_path), Limits()), ["good-1"])["good-1"]


def test_workers_killed_at_random_lose_nothing_and_do_nothing_twice_to_the_end(tmp_path):
    """200 units; SIGKILL of a Dask worker, or of its nanny and all, every second."""
    chance, stop, kills = random.Random(7), threading.Event(), []
    with dask_cluster(tmp_path, 3, "--nthreads", 1) as (address, begun), connect(address, tmp_path) as connection:
        wait_for_workers(connection, 3)

        def strike() -> None:
            while not stop.wait(1.0):
                place = chance.randrange(1, 4)
                child = _child_of(begun[place].pid)
                if chance.random() < 0.7 and child:
                    os.kill(child, signal.SIGKILL)  # its nanny starts another
                else:
                    os.killpg(begun[place].pid, signal.SIGKILL)
                    begun[place].wait()
                    begun[place] = dask_worker(address, f"w{place}-{len(kills)}", "--nthreads", 1)
                kills.append(place)

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            names = [f"short-{number}" for number in range(200)]
            found = drain(connection.pool("tile", partial(act, tmp_path), Limits(deadline_s=30)), names, 300)
        finally:
            stop.set()
            striker.join()
        assert Counter(map(type, found.values())) == {str: 200}
        assert len(kills) >= 5
        done = len(starts(tmp_path))
        assert 200 <= done <= 200 + 2 * len(kills) * 2, (done, len(kills))  # what a killed worker was at, no more
        wait_for_workers(connection, 3)  # every slot is there again


def _child_of(pid: int) -> int | None:
    said = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    found = [line.split()[0] for line in said.stdout.splitlines() if "spawn_main" in line]
    return int(found[0]) if found else None


def test_children_die_with_their_worker_and_workers_with_their_scheduler(tmp_path):
    with dask_cluster(tmp_path, 2, "--nthreads", 1) as (address, begun), connect(address, tmp_path) as connection:
        wait_for_workers(connection, 2)
        pool = connection.pool("tile", partial(act, tmp_path), Limits())
        pool.submit("loop-0", "loop-0")
        pool.submit("hang-0", "hang-0")
        wait_for(lambda: len(starts(tmp_path)) == 2)
        (first, worker), (second, _) = starts(tmp_path)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: not is_alive(first), 10)
        os.killpg(begun[0].pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(second) and all(process.poll() is not None for process in begun[1:]), 60)
        with pytest.raises(ClusterError, match="what is done stays done"):
            wait_for(lambda: pool.results() == ["never"], 60)
        pool.close(kill=True)


def test_units_go_to_the_workers_that_announce_what_they_need(tmp_path):
    with dask_cluster(tmp_path, 1, "--nthreads", 2, "--resources", "GPU=1") as (address, begun):
        begun.append(dask_worker(address, "reader", "--nthreads", 2))
        with connect(address, tmp_path) as connection:
            wait_for_workers(connection, 2)
            connection.refresh()
            assert connection.requirement("embed", 2) == {"GPU": 0.5}  # two units share a device
            assert connection.requirement("tile", 1) == {}
            embed = connection.pool("embed", partial(act, tmp_path), Limits(), slots=2)
            assert embed.room == 2 + 2
            drain(embed, [f"short-{number}" for number in range(12)])
            with_gpu = {parent for _, parent in starts(tmp_path)}
            drain(connection.pool("tile", partial(act, tmp_path), Limits()), [f"short-t{n}" for n in range(12)])
            assert len(with_gpu) == 1
            assert len({child for child, parent in starts(tmp_path, "short-[0-9]*") if parent in with_gpu}) == 1
            assert len({parent for _, parent in starts(tmp_path, "short-t*")}) == 2


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_groups_of_workers_grow_with_their_work_and_go_when_it_is_done(tmp_path):
    text = """
kind: local
dashboard: null
idle_s: 1
groups:
  readers: {stages: [tile], slots: 1, minimum: 0, maximum: 3}
  models: {stages: [embed], slots: 2, minimum: 1, maximum: 1}
"""
    jobs = ExecSpec(executor="dask", cluster=recipe(tmp_path, text))
    with open_cluster(jobs, RunFolder(tmp_path)) as connection:
        assert set(connection.workers_now()) == {"models-1"}
        tile = connection.pool("tile", partial(act, tmp_path), Limits())
        embed = connection.pool("embed", partial(act, tmp_path), Limits(), slots=2)
        assert (tile.room, embed.room) == (1, 4)
        tile.expect(20)
        found = drain(tile, [f"short-{number}" for number in range(20)] + [f"slow-{number}" for number in range(3)])
        assert len(found) == 23
        assert len({parent for _, parent in starts(tmp_path)}) == 3
        assert drain(embed, ["good-0"]) == {"good-0": "good-0 is done"}
        tile.expect(0)
        wait_for(lambda: not embed.results(0.1) and set(connection.workers_now()) == {"models-1"})
        parents = {parent for _, parent in starts(tmp_path)}
    wait_for(lambda: not any(is_alive(pid) for pid in parents))


def see_gpu(name: str) -> str | None:
    time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_workers_of_a_machine_with_gpus_have_one_each(tmp_path):
    text = """
kind: local
dashboard: null
groups:
  readers: {stages: [tile], minimum: 1}
  models: {stages: [embed], minimum: 2, maximum: 2, gpus: 2}
"""
    with open_cluster(ExecSpec(executor="dask", cluster=recipe(tmp_path, text)), RunFolder(tmp_path)) as connection:
        wait_for_workers(connection, 3)
        embed = connection.pool("embed", see_gpu, Limits())
        assert set(drain(embed, [f"{number}" for number in range(8)]).values()) == {"0", "1"}
        tile = connection.pool("tile", see_gpu, Limits())
        assert set(drain(tile, ["0"]).values()) == {os.environ.get("CUDA_VISIBLE_DEVICES")}


def test_a_cluster_of_this_machine_needs_no_recipe_and_ends_with_its_run(tmp_path):
    jobs = ExecSpec(executor="dask", workers=2)
    assert {stage for group in this_machine(jobs).groups.values() for stage in group.stages} >= {"tile", "embed"}
    script = f"""
import os
from functools import partial
from pathlib import Path
from jobs.cluster.connection import open_cluster
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.workers import Limits
from tests.test_jobs_dask import act
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    with open_cluster(ExecSpec(executor="dask", workers=2), RunFolder(folder)) as connection:
        pool = connection.pool("tile", partial(act, folder), Limits())
        pool.submit("loop-0", "loop-0")
        while True:
            pool.results()
"""
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: starts(tmp_path))
    finally:
        run.kill()
        run.wait()
    ((child, parent),) = starts(tmp_path)
    wait_for(lambda: not is_alive(child) and not is_alive(parent), 60)


def test_encrypted_connections_go_through(tmp_path):
    """Certificates of our own: the scheduler answers nobody without one."""
    names = {"tls_ca_file": "ca.pem", "tls_client_cert": "ca.pem", "tls_client_key": "key.pem",
             "tls_scheduler_cert": "ca.pem", "tls_scheduler_key": "key.pem", "tls_worker_cert": "ca.pem",
             "tls_worker_key": "key.pem"}  # fmt: skip
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key.pem",
                           "-out", tmp_path / "ca.pem", "-days", "2", "-subj", "/CN=wsi-test"],
                          capture_output=True, check=False)  # fmt: skip
    if made.returncode:
        pytest.skip(f"no openssl to make certificates with: {made.stderr[-200:]!r}")
    lines = "".join(f"  {name}: {tmp_path / file}\n" for name, file in names.items())
    text = f"kind: local\ndashboard: null\nsecurity:\n{lines}groups:\n  all: {{stages: [tile], minimum: 1}}\n"
    with open_cluster(ExecSpec(executor="dask", cluster=recipe(tmp_path, text)), RunFolder(tmp_path)) as connection:
        assert connection.address.startswith("tls://127.0.0.1:")
        assert drain(connection.pool("tile", partial(act, tmp_path), Limits()), ["good-0"])
        address = connection.address.replace("tls", "tcp")
        with pytest.raises(EngineError, match="no scheduler answers"), connect(address, tmp_path):
            pass


def test_a_cluster_without_workers_ends_the_run_instead_of_hanging(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.cluster.connection._WAIT_S", 2.0)
    with dask_cluster(tmp_path, 0) as (address, _), connect(address, tmp_path) as connection:
        pool = connection.pool("tile", partial(act, tmp_path), Limits())
        assert pool.room
        pool.submit("good-0", "good-0")
        with pytest.raises(ClusterError, match="for 2 s there has been no worker that does 'tile'"):
            wait_for(pool.results)
