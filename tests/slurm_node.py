"""A SLURM cluster of this one machine, for tests: its own munged, slurmctld and slurmd (Debian: slurm-wlm, munge).

All files lie in a folder of the test; nothing is written to /etc. It takes root, as slurmd does.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_START_S = 30


class NoSlurm(Exception):
    """SLURM cannot be started here; the text says why."""


@dataclass(frozen=True)
class Slurm:
    """environment: with it, sbatch and its like speak to this cluster."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: object, timeout_s: float = 30) -> str:
        """Run a command of SLURM's; what it wrote. Raises CalledProcessError."""
        done = subprocess.run(
            list(map(str, words)), env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
        return done.stdout

    def states(self, job: str) -> dict[str, str]:
        """Job or array task → PENDING, RUNNING, COMPLETED, …: of those that the controller still remembers."""
        lines = self.run("squeue", "-h", "-t", "all", "-r", "-o", "%i %T", "-j", job).splitlines()
        return dict(line.split() for line in lines)

    def wait(self, job: str, seconds: float = 120) -> dict[str, str]:
        """The states of a job's tasks when all have ended. One that was queued again need not wait its two minutes."""
        until = time.monotonic() + seconds
        while True:
            states = self.states(job)
            if not set(states.values()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}:
                return states
            if time.monotonic() > until:
                raise TimeoutError(f"still {states}: {self.log()}")
            for line in self.run("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r", "-j", job).splitlines():
                if line.endswith(" BeginTime"):
                    self.run("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")
            time.sleep(0.5)

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2_000:] for path in sorted(self.folder.glob("*.log")))


def missing() -> str:
    """Why SLURM cannot run here, or ""."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "slurmd needs root"
    absent = [name for name in _PROGRAMS if _find(name) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


@contextmanager
def slurm_node(folder: Path, cpus: int = 4) -> Iterator[Slurm]:
    """Start the cluster, with `cpus` processors whatever the machine has; all of it ends with the block.

    Raises NoSlurm with the reason where it cannot be.
    """
    if missing():
        raise NoSlurm(missing())
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    begun: list[subprocess.Popen] = []
    try:
        socket_path = _start_munge(folder, begun)
        settings = _write_settings(folder, socket_path, cpus)
        slurm = Slurm(folder, {**os.environ, "SLURM_CONF": str(settings)})
        for name in ("slurmctld", "slurmd"):
            begun.append(_start(folder, name, [name, "-D", "-f", settings], slurm.environment))
        _await_node(slurm, begun)
        yield slurm
    finally:
        _end(folder, begun)


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _start(folder: Path, name: str, words: list[object], environment: dict[str, str]) -> subprocess.Popen:
    with (folder / f"{name}.out").open("wb") as out:
        command = [_find(str(words[0])), *map(str, words[1:])]
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def _start_munge(folder: Path, begun: list[subprocess.Popen]) -> Path:
    """A munged with a key of its own, as root; its socket."""
    place = folder / "munge"
    place.mkdir()
    place.chmod(0o755)
    key, reached = place / "key", place / "socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    words = ["munged", "--foreground", "--force", "--key-file", key, "--socket", reached, "--pid-file", place / "pid",
             "--log-file", place / "log", "--seed-file", place / "seed"]  # fmt: skip
    begun.append(_start(folder, "munged", words, dict(os.environ)))
    until = time.monotonic() + _START_S
    while not reached.exists():
        if time.monotonic() > until or begun[-1].poll() is not None:
            raise NoSlurm(f"munged does not start: {(folder / 'munged.out').read_text()[-500:]}")
        time.sleep(0.1)
    return reached


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _write_settings(folder: Path, munge: Path, cpus: int) -> Path:
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    text = f"""
ClusterName=wsitest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=15
MinJobAge=600
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib}
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""
    path = folder / "slurm.conf"
    path.write_text(text)
    return path


def _await_node(slurm: Slurm, begun: list[subprocess.Popen]) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            if slurm.run("sinfo", "-h", "-p", "low", "-o", "%T").strip() == "idle":
                return
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pass  # the controller has not opened its port yet
        dead = [process.args[0] for process in begun if process.poll() is not None]
        if dead or time.monotonic() > until:
            raise NoSlurm(f"{dead or 'the node'} does not come up: {slurm.log()[-1_500:]}")
        time.sleep(0.3)


def _end(folder: Path, begun: list[subprocess.Popen]) -> None:
    for process in reversed(begun):
        process.terminate()
    for process in reversed(begun):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
