"""The installer must never take several GB of CUDA by accident."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent / "constraints"
SPEC = importlib.util.spec_from_file_location("install", HERE / "install.py")
install = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install)


@pytest.mark.parametrize(
    ("requirements", "cuda"),
    [
        (["filelock", "sympy>=1.13.3"], False),
        (["filelock", "nvidia-cudnn-cu13==9.26; platform_system == 'Linux'"], True),
        (["cuda-toolkit[cublas]==13.2.2; platform_system == 'Linux'"], True),
        (["filelock", "nvidia-ml-py; extra == 'monitor'"], False),
    ],
)
def test_a_cuda_build_is_known_by_its_requirements(requirements, cuda):
    report = {"install": [{"metadata": {"name": "torch", "requires_dist": requirements}}]}
    assert install.needs_cuda(report) is cuda


def test_the_constraints_pin_a_pair_and_nothing_else():
    lines = (HERE / "cpu.txt").read_text().split()
    assert [line.partition("==")[0] for line in lines] == ["torch", "torchvision"]
