"""Cluster recipes: what is shipped is valid, and what means nothing is refused with the place."""

from pathlib import Path

import pytest

from embedding.devices import find_devices
from jobs.cluster.connection import open_cluster
from jobs.cluster.fleet import ClusterError
from jobs.cluster.recipe import BATCH, ClusterSpec, Group, load_cluster
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from wsi.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["cluster-laptop", "cluster-gpu-box", "cluster-slurm"])
def test_every_shipped_cluster_recipe_is_valid_and_says_what_it_is_for(name):
    spec = load_cluster(name)
    assert {stage for group in spec.groups.values() for stage in group.stages} >= {"tile", "embed", "predict"}
    header = (ROOT / "configs" / f"{name}.yaml").read_text()
    for word in ("# Recipe:", "# Command:", "# Cost:", "# Result:"):
        assert word in header
    for command in BATCH:
        assert ClusterSpec(command, {"all": Group(options={"cores": 1, "memory": "1GB"})}, interface="lo")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: slum\ngroups: {a: {}}", "'slum' is unknown; choose local"),
        ("groups: {a: {}}", "does not say its kind"),
        ("kind: local", "no table of groups"),
        ("kind: local\ngroups: {}", "groups: there is none"),
        ("kind: local\ngroops: {}", "'groops' is unknown; did you mean 'groups'"),
        ("kind: local\ngroups: {a: {slot: 2}}", "'slot' is unknown; did you mean 'slots'"),
        ("kind: local\ngroups: {a: {slots: many}}", "a: slots: it does not fit"),
        ("kind: local\ngroups: {a: {slots: 0}}", "slots: 0 is out of range"),
        ("kind: local\ngroups: {a: {minimum: 3, maximum: 2}}", "maximum: 2 is out of range; give at least 3"),
        ("kind: local\ngroups: {a: {stages: [tyle]}}", "'tyle' is unknown; choose of tile, embed"),
        ("kind: slurm\ngroups: {a: {options: {cores: 1, memory: 1GB}}}", "do not reach a scheduler on loopback"),
        ("kind: slurm\ninterface: lo\ngroups: {a: {options: {cores: 1}}}", "a: options: no memory"),
        ("kind: [", "not valid YAML"),
    ],
)
def test_a_cluster_recipe_with_a_mistake_is_refused(tmp_path, text, problem):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=problem):
        load_cluster(path)


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(SpecError, match="there is no such recipe; give a YAML file or one of cluster-gpu-box"):
        load_cluster("cluster-that-is-not")


def test_what_cannot_be_reached_or_started_is_said(tmp_path):
    jobs = ExecSpec(executor="dask", scheduler="nonsense://x")
    with pytest.raises(ClusterError, match="no scheduler answers"), open_cluster(jobs, RunFolder(tmp_path)):
        pass
    path = tmp_path / "recipe.yaml"
    path.write_text("kind: local\ndashboard: null\ninterface: nowhere0\ngroups: {a: {}}")
    jobs = ExecSpec(executor="dask", cluster=str(path))
    with pytest.raises(ClusterError, match="the scheduler does not start"), open_cluster(jobs, RunFolder(tmp_path)):
        pass
    path.write_text("kind: cuda\ndashboard: null\ngroups: {a: {stages: [embed], minimum: 1}}")
    jobs = ExecSpec(executor="dask", cluster=str(path))
    if not find_devices()[0].startswith("cuda"):
        with pytest.raises(ClusterError, match=r"dask-cuda is not installed|no GPU can be used"):
            open_cluster(jobs, RunFolder(tmp_path)).__enter__()
