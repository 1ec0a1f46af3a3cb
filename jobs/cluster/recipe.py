"""Cluster recipes: which workers there are, how many, and which stages each takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from wsi.errors import SpecError

LOCAL, CUDA = "local", "cuda"
BATCH = ("slurm", "pbs", "lsf", "sge")
KINDS = (LOCAL, CUDA, *BATCH)
STAGES = ("tile", "embed", "encode", "zero_shot", "predict", "heatmap")
MODEL_STAGES = ("embed", "encode")  # those that a GPU does
USUAL = "cluster-laptop"


@dataclass(frozen=True, slots=True)
class Group:
    """Workers of one sort.

    stages   what they do; a stage that no group names runs on any worker
    slots    units of work that one worker does at a time
    minimum  workers that are always there; maximum: that are asked for when there is work for them
    gpus     of this machine, shared out to the group's workers one each; under a batch system the job's options say it
    options  of the batch system's jobs (queue, cores, memory, walltime, job_extra_directives…), as dask-jobqueue names
             them; of a worker on this machine as distributed.Nanny does
    """

    stages: tuple[str, ...] = STAGES
    slots: int = 1
    minimum: int = 0
    maximum: int = 1
    gpus: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise SpecError("stages", f"{stage!r} is unknown", f"choose of {', '.join(STAGES)}")
        for name, least in (("slots", 1), ("minimum", 0), ("maximum", max(1, self.minimum)), ("gpus", 0)):
            if not getattr(self, name) >= least:
                raise SpecError(name, f"{getattr(self, name)} is out of range", f"give at least {least}")


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A cluster that a run starts and ends.

    kind       local: this machine; cuda: this machine, a worker a GPU, by dask-cuda; slurm, pbs, lsf, sge: jobs of that
               batch system, by dask-jobqueue
    groups     name → workers of one sort
    interface  network interface on which scheduler and workers listen (ib0, eth0, see `ip address`); None is loopback.
               Who reaches the scheduler's port can run any program as the user who started it
    port       of the scheduler, 0 for any that is free; dashboard: its address, None for none
    security   tls_ca_file, tls_client_cert, tls_client_key and so on, as distributed.Security names them
    idle_s     a worker beyond the minimum without work for so long is given back
    wait_s     the run ends when for so long there is no worker for its work and, under a batch system, no job waits
    """

    kind: str
    groups: Mapping[str, Group]
    interface: str | None = None
    port: int = 0
    dashboard: str | None = "127.0.0.1:8787"
    security: Mapping[str, Any] = field(default_factory=dict)
    idle_s: float = 60.0
    wait_s: float = 300.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError("kind", f"{self.kind!r} is unknown", f"choose {', '.join(KINDS)}")
        if not self.groups:
            raise SpecError("groups", "there is none", "describe at least one group of workers")
        if self.kind in BATCH and self.interface is None:
            problem = "workers on other machines do not reach a scheduler on loopback"
            raise SpecError(
                "interface", problem, "name the network interface of the cluster's own network, such as ib0"
            )
        for name, group in self.groups.items():
            missing = [key for key in ("cores", "memory") if key not in group.options]
            if self.kind in BATCH and missing:
                raise SpecError(f"groups: {name}: options", f"no {missing[0]}", "say what a job may take")

    def groups_for(self, stage: str) -> dict[str, Group]:
        """Those whose workers may do the stage: those that name it, or all where none does."""
        named = {name: group for name, group in self.groups.items() if stage in group.stages}
        return named or dict(self.groups)


def load_cluster(path: Path | str) -> ClusterSpec:
    """A cluster recipe: a file, or the name of one that ships with the package, such as cluster-slurm.

    Raises SpecError for a missing file, for bad YAML, and for keys and values that mean nothing here.
    """
    shipped = files("configs") / f"{path}.yaml"
    try:
        text = shipped.read_text(encoding="utf-8") if shipped.is_file() else Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        names = sorted(entry.name[:-5] for entry in files("configs").iterdir() if entry.name.startswith("cluster-"))
        raise SpecError(path, "there is no such recipe", f"give a YAML file or one of {', '.join(names)}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(path, f"it is not valid YAML ({reason})", "see configs/cluster-slurm.yaml") from error
    return _read_cluster(content, str(path))


def _read_cluster(content: Any, where: str) -> ClusterSpec:
    values = _table(content, ClusterSpec, where)
    groups = values.get("groups")
    if not isinstance(groups, Mapping):
        raise SpecError(where, "it has no table of groups", "see configs/cluster-slurm.yaml")
    values["groups"] = {
        str(name): _build(Group, _table(group or {}, Group, f"{where}: {name}"), f"{where}: {name}")
        for name, group in groups.items()
    }
    return _build(ClusterSpec, values, where)


def _table(content: Any, spec: type, where: str) -> dict[str, Any]:
    """The mapping with its keys checked."""
    if not isinstance(content, Mapping):
        raise SpecError(where, f"a table of settings is expected, not {content!r}", "see configs/cluster-slurm.yaml")
    known = [item.name for item in fields(spec)]
    for key in content:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}"
            raise SpecError(where, f"the key {key!r} is unknown", hint)
    if spec is ClusterSpec and "kind" not in content:
        raise SpecError(where, "it does not say its kind", f"add `kind:` with one of {', '.join(KINDS)}")
    return dict(content)


def _build(spec: type, values: dict[str, Any], where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(spec).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ": ".join(str(part) for part in (where, *first["loc"]))
        raise SpecError(place, f"it does not fit ({first['msg'].lower()})", "see configs/cluster-slurm.yaml") from None
