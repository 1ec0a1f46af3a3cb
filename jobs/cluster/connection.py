"""A run's connection to a Dask cluster: one that is there, one of a recipe, or workers on this machine."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed import Client

from embedding.devices import find_devices

from ..executors import ExecSpec, cpu_count
from ..folder import RunFolder
from ..workers import Limits
from .fleet import ClusterError, Fleet, open_fleet
from .pool import DaskPool
from .recipe import LOCAL, MODEL_STAGES, STAGES, ClusterSpec, Group, load_cluster

_REFRESH_S = 1.0  # between two looks at the workers
_WAIT_S = 300.0  # without any worker of an existing scheduler, the run ends
_CONNECT_S = 30
_log = logging.getLogger(__name__)


class Connection:
    """Pools on a cluster, and what there is to say of it. `open_cluster` makes it."""

    def __init__(self, client: Client, fleet: Fleet | None):
        self.client, self._fleet = client, fleet
        self.address = str(client.scheduler.address)  # type: ignore[union-attr]
        self._pools: list[DaskPool] = []
        self._workers: dict[str, dict[str, Any]] = {}
        self._looked = self._tended = -math.inf
        self._wanted_since: dict[str, float] = {}  # group → when it had work for all its workers last
        self._unserved: dict[str, float] = {}  # stage → since when it has had no worker

    def pool(self, stage: str, work: Callable[..., Any], limits: Limits, slots: int = 1) -> DaskPool:
        """Where units of a stage run.

        work   importable function, or a partial of one, that the workers can load
        slots  units that share one child process, as two do an embedding model
        """
        pool = DaskPool(self, stage, work, limits, slots)
        self._pools.append(pool)
        return pool

    @property
    def dashboard(self) -> str | None:
        """Address of the Dask dashboard, None where there is none."""
        return self.client.dashboard_link or None if find_spec("bokeh") else None

    def describe(self) -> str:
        """One line on the cluster for the log."""
        kind = "a Dask scheduler" if self._fleet is None else f"a {self._fleet.spec.kind} cluster"
        return f"{kind} at {self.address}, {self.workers()} workers"

    def workers(self) -> int:
        """Workers that are there now."""
        return len(self.workers_now())

    def workers_now(self) -> Mapping[str, dict[str, Any]]:
        """Worker name → what the scheduler says of it, a second old at most."""
        self.refresh()
        return self._workers

    def refresh(self) -> None:
        """Look again at the workers, if the last look was a while ago.

        Raises ClusterError where the scheduler is gone.
        """
        if time.monotonic() - self._looked < _REFRESH_S:
            return
        scheduler = self.client.scheduler
        try:
            if self.client.status not in ("running", "connecting") or scheduler is None:
                raise self._gone()
            if self.client.status == "connecting":
                return  # it tries for a while
            info = self.client.sync(scheduler.identity, n_workers=-1)
        except OSError as error:
            if self.client.status == "connecting":
                return
            raise self._gone() from error
        self._workers = {str(worker["name"]): worker for worker in info["workers"].values()}
        self._looked = time.monotonic()

    def room(self, stage: str, slots: int) -> int:
        """Tasks of a stage that may be submitted: the workers' slots for it, a quarter more, and a worker's more."""
        live = self._live(stage, slots)
        if self._fleet is None:
            return live + max(2, live // 4)
        groups = self._fleet.spec.groups_for(stage).values()
        most = sum(group.maximum * group.slots for group in groups)
        ahead = max(max(group.slots for group in groups), live // 4)
        return min(live, most) + ahead

    def requirement(self, stage: str, slots: int) -> dict[str, float]:
        """What a worker must announce to get a task of the stage, and how much of it the task takes."""
        if self._fleet is not None:
            named = any(stage in group.stages for group in self._fleet.spec.groups.values())
            return {stage: 1} if named else {}
        usual = "GPU" if stage in MODEL_STAGES else "READ" if stage == "tile" else stage
        announced = {name for worker in self.workers_now().values() for name in worker.get("resources", {})}
        if stage in announced:
            return {stage: 1}
        return {usual: 1 / slots} if usual in announced else {}

    def tend(self) -> None:
        """Look after the cluster once a second: ask for workers, give some back. Called while results are awaited.

        Raises ClusterError where there is work and has been no worker for it for too long.
        """
        if time.monotonic() - self._tended < _REFRESH_S:
            return
        self._tended = time.monotonic()
        self.refresh()
        if self._fleet is not None:
            self._fleet.scale(self._wanted(self._fleet.spec), self._workers)
        self._mind_absence()

    def forget(self, pool: DaskPool) -> None:
        self._pools = [other for other in self._pools if other is not pool]

    def _gone(self) -> ClusterError:
        return ClusterError(self.address, "the scheduler does not answer", "run again: what is done stays done")

    def _live(self, stage: str, slots: int) -> int:
        """Tasks of a stage that the workers which are there can do at a time."""
        needs = self.requirement(stage, slots)
        live = 0
        for worker in self.workers_now().values():
            places = worker["nthreads"]
            for name, amount in needs.items():
                places = min(places, round(worker.get("resources", {}).get(name, 0) / amount))
            live += places
        return live

    def _wanted(self, spec: ClusterSpec) -> dict[str, int]:
        """Group → workers that it should have."""
        now = time.monotonic()
        wanted = {}
        for name, group in spec.groups.items():
            pools = [pool for pool in self._pools if name in spec.groups_for(pool.stage)]
            demand = math.ceil(sum(pool.busy + pool.expected for pool in pools) / group.slots)
            there = sum(other.rpartition("-")[0] == name for other in self._fleet_names())
            if demand >= there:
                self._wanted_since[name] = now
            elif now - self._wanted_since.get(name, now) < spec.idle_s:
                demand = there  # they may be needed again in a moment
            wanted[name] = min(max(demand, group.minimum), group.maximum)
        return wanted

    def _fleet_names(self) -> list[str]:
        return list(self._fleet.cluster.worker_spec) if self._fleet is not None else []

    def _mind_absence(self) -> None:
        now = time.monotonic()
        waits = _WAIT_S if self._fleet is None else self._fleet.spec.wait_s
        for pool in self._pools:
            queued = self._fleet is not None and self._fleet.pending()
            if not pool.busy or queued or self._live(pool.stage, 1):
                self._unserved.pop(pool.stage, None)
            elif now - self._unserved.setdefault(pool.stage, now) > waits:
                problem = f"for {waits:.0f} s there has been no worker that does {pool.stage!r}"
                raise ClusterError(self.address, problem, "see why workers do not come; what is done stays done")


@contextmanager
def open_cluster(jobs: ExecSpec, folder: RunFolder) -> Iterator[Connection]:
    """Connect to `jobs.scheduler`, or start the recipe `jobs.cluster`, or workers on this machine.

    What was started ends with the block; workers and children also when this process is killed.
    Raises ClusterError where that fails or the workers do not see the run folder, SpecError for a bad recipe.
    """
    if jobs.scheduler:
        with _connect(jobs.scheduler) as client:
            _check_workers(client, folder.root)
            yield Connection(client, None)
        return
    spec = load_cluster(jobs.cluster) if jobs.cluster else this_machine(jobs)
    with open_fleet(spec, folder.root / "cluster-logs") as fleet:
        fleet.scale({name: group.minimum for name, group in spec.groups.items()}, {})
        fleet.settle()
        with Client(fleet.cluster, security=fleet.security, set_as_default=False) as client:
            yield Connection(client, fleet)


def this_machine(jobs: ExecSpec) -> ClusterSpec:
    """What there is where no recipe is named: a worker for all that reads, and one a device for what models do."""
    devices = len(find_devices())
    slots = jobs.workers or cpu_count()
    readers = Group(tuple(stage for stage in STAGES if stage not in MODEL_STAGES), slots, minimum=1)
    models = Group(MODEL_STAGES, 2, minimum=devices, maximum=devices, gpus=devices if devices > 1 else 0)
    return ClusterSpec(LOCAL, {"readers": readers, "models": models})


@contextmanager
def _connect(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(address, f"no scheduler answers ({error})", "give --scheduler tcp://HOST:PORT") from error
    with client:
        yield client


def _look(root: str) -> tuple[str, bool]:
    """Runs on a worker."""
    return version("slidestream"), os.path.isdir(root)


def _check_workers(client: Client, root: Path) -> None:
    """Raises ClusterError for a worker that has no slidestream, another version, or does not see the run folder."""
    seen = client.run(_look, str(root.resolve()), on_error="return")
    for worker, found in seen.items():
        if isinstance(found, ImportError):
            raise ClusterError(worker, f"it cannot load slidestream ({found})", "install it on all machines")
        if isinstance(found, BaseException):
            continue  # it died just now
        installed, sees_folder = found
        if installed != version("slidestream"):
            problem = f"it has slidestream {installed}, this is {version('slidestream')}"
            raise ClusterError(worker, problem, "install the same version on all machines")
        if root.is_dir() and not sees_folder:
            raise ClusterError(
                worker, f"it does not see {root}", "put the run folder on a disk that all machines share"
            )
