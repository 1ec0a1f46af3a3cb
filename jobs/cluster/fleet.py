"""The scheduler of a run's own cluster and its groups of workers, which grow and shrink with the work there is.

dask-jobqueue's jobs are used, not its clusters: one of them starts workers of one sort only, and its adaptive scaling
counts all tasks, also those that its workers may not do.
"""

import asyncio
import getpass
import importlib
import logging
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Security, SpecCluster, Status

from wsi.errors import EngineError, SpecError

from .recipe import BATCH, CUDA, MODEL_STAGES, ClusterSpec, Group

DEATH_S = 60  # a worker that has lost its scheduler ends after so long
LOST_WORKERS = 10  # with which a unit of work may go down before it is given up
_STILLBORN = 5  # jobs in a row that end before their worker came: something is wrong with all of them
_LOOK_S = 20.0  # between two looks at the batch system's queue
_JOBS = {"slurm": "SLURMJob", "pbs": "PBSJob", "lsf": "LSFJob", "sge": "SGEJob"}
_QUEUES = {"slurm": "squeue --me -h -o %A", "pbs": "qstat -u {user}", "lsf": "bjobs -noheader -o jobid", "sge": "qstat"}
_log = logging.getLogger(__name__)

# Dask's defaults lose or hang a long run: docs/cluster.md says what each of these prevents
SETTINGS = {
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.scheduler.allowed-failures": LOST_WORKERS,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": "5m",
    "distributed.scheduler.no-workers-timeout": None,  # `wait_s` of the recipe, which knows of jobs that still queue
    "distributed.worker.daemon": False,  # its children read the slides
    "distributed.worker.profile.enabled": False,  # the work is in their children
    "distributed.admin.tick.limit": "30s",
    # one thread for every library is Dask's choice for its own tasks, not for a model in a child
    "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": None,
    "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": None,
    "distributed.nanny.pre-spawn-environ.OPENBLAS_NUM_THREADS": None,
}


class ClusterError(EngineError):
    """A cluster cannot be started or reached, or has no workers for the work; no slide is at fault."""


class Fleet:
    """A scheduler in this process and the workers of a recipe. `open_fleet` makes and ends it.

    logs  folder for what batch jobs say
    """

    def __init__(self, spec: ClusterSpec, logs: Path):
        self.spec, self._logs = spec, logs
        self.security = _security(spec)
        self._made = 0
        self._seen: dict[str, float] = {}  # worker name → when it was there last
        self._gpus: dict[str, int] = {}  # worker name → which of the machine's GPUs is its own
        self._stillborn = 0
        self._looked = time.monotonic()
        self._change: Future[None] | None = None
        protocol = "tls://" if spec.security else "tcp://"
        place = {"interface": spec.interface} if spec.interface else {"host": "127.0.0.1"}
        dashboard = _free_address(spec.dashboard)  # without one, the scheduler still answers there how it is
        options = {"port": spec.port, "protocol": protocol, "security": self.security, **place,
                   "dashboard": spec.dashboard is not None, "dashboard_address": dashboard}  # fmt: skip
        self.cluster = SpecCluster(
            workers={},
            scheduler={"cls": Scheduler, "options": options},
            security=self.security,
            name="wsi",
            silence_logs=logging.WARNING,
        )

    def scale(self, wanted: Mapping[str, int], workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Bring every group to its wanted number of workers, as far as they may end now, and replace lost ones.

        workers  name → what the scheduler says of each worker that is there now
        Raises ClusterError where the batch system refuses jobs, or all end before their workers begin.
        """
        self._check_change()
        names = self.cluster.worker_spec
        now = time.monotonic()
        self._seen.update(dict.fromkeys(workers, now))
        if any(name in names for name in workers):
            self._stillborn = 0
        ending = self._lost(workers, now)
        for group, count in wanted.items():
            own = [name for name in names if name.rpartition("-")[0] == group and name not in ending]
            idle = [name for name in own if name not in workers] + [name for name in own if _is_idle(workers.get(name))]
            ending += idle[: max(0, len(own) - count)]
            for _ in range(count - len(own)):
                self._made += 1
                names[f"{group}-{self._made}"] = self._worker(group, self.spec.groups[group])
        for name in ending:
            names.pop(name, None)
        if self._change is None and set(names) != set(self.cluster.workers):
            loop = self.cluster.loop.asyncio_loop  # type: ignore[union-attr]
            self._change = asyncio.run_coroutine_threadsafe(self._correct(), loop)

    def settle(self) -> None:
        """Wait until what was asked for has been started, or handed to the batch system."""
        if self._change is not None:
            self._check_change(wait=True)

    def pending(self) -> bool:
        """Whether a job that was handed to a batch system has yet to bring its worker."""
        return self.spec.kind in BATCH and any(name not in self._seen for name in self.cluster.worker_spec)

    async def _correct(self) -> None:
        await self.cluster._correct_state()

    def _check_change(self, wait: bool = False) -> None:
        if self._change is None or not (wait or self._change.done()):
            return
        change, self._change = self._change, None
        error = change.exception()
        if error is not None:
            said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            problem = f"workers cannot be started: {' '.join(said)[-500:]}"
            raise ClusterError(self.spec.kind, problem, "see the options of the recipe's groups") from error

    def _lost(self, workers: Mapping[str, Any], now: float) -> list[str]:
        """Names to be given up: workers that do not come back, jobs that ended. Others take their place."""
        missing = [name for name in self.cluster.worker_spec if name not in workers]
        lost = [name for name in missing if name in self._seen and now - self._seen[name] > DEATH_S]
        if self.spec.kind in BATCH and missing and now - self._looked > _LOOK_S:
            self._looked = now
            queued = self._queued()
            ids = {name: getattr(self.cluster.workers.get(name), "job_id", None) for name in missing}
            ended = [name for name, number in ids.items() if queued is not None and number and number not in queued]
            self._stillborn += sum(name not in self._seen for name in ended)
            lost += [name for name in ended if name not in lost]
        if self._stillborn >= _STILLBORN:
            problem = f"{self._stillborn} jobs in a row ended before their worker began"
            raise ClusterError(self.spec.kind, problem, f"see what they wrote to {self._logs}")
        if lost:
            _log.warning("workers lost, others are asked for: %s", ", ".join(sorted(lost)))
        return lost

    def _queued(self) -> set[str] | None:
        """Numbers of this user's jobs that the batch system knows, None where it does not answer."""
        command = shlex.split(_QUEUES[self.spec.kind].format(user=getpass.getuser()))
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        return set(re.findall(r"^\s*(\d+)", said, flags=re.MULTILINE))

    def _worker(self, name: str, group: Group) -> dict[str, Any]:
        """What SpecCluster needs to start one worker of a group."""
        resources: dict[str, float] = {stage: group.slots for stage in group.stages}
        if self.spec.kind in BATCH:
            return {"cls": _job_class(self.spec.kind), "options": self._job(name, group, resources)}
        options: dict[str, Any] = {"nthreads": group.slots, "resources": resources, "death_timeout": DEATH_S}
        options |= {"dashboard": False, "silence_logs": logging.ERROR, "security": self.security, **group.options}
        options |= {"interface": self.spec.interface} if self.spec.interface else {"host": "127.0.0.1"}
        gpu = self._free_gpu(f"{name}-{self._made}", name)
        if self.spec.kind == CUDA and set(group.stages) & set(MODEL_STAGES):
            return {"cls": Nanny, "options": {**_cuda_options(gpu), **options}}
        if group.gpus:
            options["env"] = {"CUDA_VISIBLE_DEVICES": str(gpu % group.gpus), **group.options.get("env", {})}
        return {"cls": Nanny, "options": options}

    def _free_gpu(self, worker: str, group: str) -> int:
        """The first number that no other worker of its group has."""
        names = [name for name in self.cluster.worker_spec if name.rpartition("-")[0] == group]
        taken = {self._gpus[name] for name in names}
        self._gpus[worker] = next(number for number in range(len(taken) + 1) if number not in taken)
        return self._gpus[worker]

    def _job(self, name: str, group: Group, resources: Mapping[str, float]) -> dict[str, Any]:
        announced = " ".join(f"{stage}={slots}" for stage, slots in resources.items())
        own = ["--nthreads", group.slots, "--resources", shlex.quote(announced), "--no-dashboard"]
        options = {"log_directory": str(self._logs), "job_name": f"wsi-{name}", **group.options}
        extra = [*options.pop("worker_extra_args", []), *own]
        security = self.security if self.spec.security else None
        return {**options, "processes": 1, "death_timeout": DEATH_S, "interface": self.spec.interface,
                "protocol": "tls://" if security else None, "security": security,
                "worker_extra_args": extra}  # fmt: skip


@contextmanager
def open_fleet(spec: ClusterSpec, logs: Path) -> Iterator[Fleet]:
    """Start a recipe's scheduler; its workers come with the first `scale`. All end with the block.

    Raises ClusterError where the address cannot be listened at, or a library that the recipe needs is not installed.
    """
    with dask.config.set(SETTINGS):
        try:
            fleet = Fleet(spec, logs)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                spec.kind, f"the scheduler does not start: {error}", "see the recipe's interface and port"
            ) from error
        try:
            yield fleet
        finally:
            fleet.cluster.close(timeout=30)


def _free_address(wanted: str | None) -> str:
    """The address wanted for a dashboard, with another port where a second run has that one."""
    host, _, port = (wanted or "127.0.0.1:0").rpartition(":")
    try:
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, int(port)))
    except (OSError, ValueError):
        return f"{host}:0"
    return f"{host}:{port}"


def _security(spec: ClusterSpec) -> Security:
    if not spec.security:
        return Security()
    try:
        return Security(**{"require_encryption": True, **spec.security})
    except TypeError as error:
        raise SpecError("security", str(error), "see distributed.Security for the names") from error


def _job_class(kind: str) -> type:
    try:
        job = getattr(importlib.import_module(f"dask_jobqueue.{kind}"), _JOBS[kind])
    except ImportError as error:
        raise ClusterError(kind, "dask-jobqueue is not installed", "pip install 'slidestream[cluster]'") from error
    return type(job.__name__, (_SaysThatItFailed, job), {})


class _SaysThatItFailed:
    """A job that the batch system refused is known to be none, or the cluster could not be closed afterwards."""

    status: Status

    async def start(self) -> None:
        try:
            await super().start()  # type: ignore[misc]
        finally:
            if self.status != Status.running:
                self.status = Status.failed


def _cuda_options(number: int) -> dict[str, Any]:
    """What dask-cuda gives the worker of one GPU: the device, and the processors and memory that are near it.

    Not its context on the device: models are in children of the worker, and each context takes hundreds of MB.
    """
    remedy = "or take kind: local with `gpus:`"
    try:
        from dask_cuda.worker_spec import worker_spec
        from pynvml import NVMLError
    except ImportError as error:
        raise ClusterError(CUDA, f"dask-cuda is not installed ({error})", f"pip install dask-cuda, {remedy}") from error
    try:
        specs = list(worker_spec().values())
    except NVMLError as error:
        raise ClusterError(CUDA, f"no GPU can be used ({error})", f"see nvidia-smi, {remedy}") from error
    options = specs[number % len(specs)]["options"]
    return {key: options[key] for key in ("env", "plugins", "memory_limit")}


def _is_idle(worker: Mapping[str, Any] | None) -> bool:
    """Whether a worker that is there has nothing to do."""
    if worker is None:
        return False
    metrics = worker.get("metrics", {})
    return not metrics.get("executing") and not metrics.get("ready")
