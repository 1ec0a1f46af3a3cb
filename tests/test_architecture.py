"""The rules of the house: imports only downwards, heavy libraries only where they belong, small files and functions."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "wsi": set(),
    "tiling": {"wsi"},
    "embedding": {"wsi", "tiling"},
    "mil": {"wsi", "tiling", "embedding"},
    "heatmaps": {"wsi"},
    "jobs": {"wsi", "tiling", "embedding", "mil", "heatmaps", "configs"},
    "viewer": {"wsi", "tiling", "heatmaps", "jobs"},
    "cli": {"wsi", "tiling", "embedding", "mil", "heatmaps", "jobs", "viewer", "configs"},
}
ONLY_IN = {
    "torch": {"embedding", "mil", "jobs/doctor.py", "wsi/_compat.py"},
    "timm": {"embedding", "jobs/doctor.py"},
    "dask": {"tiling/patches.py", "jobs/cluster"},
    "distributed": {"jobs/cluster"},
    "typer": {"cli"},
    "rich": {"cli"},
    "tifffile": {"wsi", "heatmaps/ome_tiff.py"},
    "fastapi": {"viewer"},
    "starlette": {"viewer"},
    "uvicorn": {"viewer"},
    "openslide": {"wsi", "jobs/doctor.py"},
    "simplejpeg": {"wsi", "tiling/codecs.py", "viewer/pixels.py"},
}
SOURCES = sorted(path for package in MAY_IMPORT for path in (REPOSITORY / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all absolute imports, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_downwards_and_heavy_libraries_stay_at_home(path):
    place = path.relative_to(REPOSITORY).as_posix()
    package = place.partition("/")[0]
    names = set(imported(ast.parse(path.read_text())))
    assert names & set(MAY_IMPORT) - {package} <= MAY_IMPORT[package]
    for library, homes in ONLY_IN.items():
        assert library not in names or any(place == home or place.startswith(f"{home}/") for home in homes), library


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments = [argument for argument in given if argument.arg not in ("self", "cls")]
            assert len(arguments) <= 6 or path.parent.name == "cli", node.name  # a command's arguments are its options


def test_whatever_a_slide_throws_is_caught_in_one_place_only():
    broad = [
        path.relative_to(REPOSITORY).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    assert broad == ["jobs/attempt.py"]


def loaded_after(code: str, tmp_path: Path) -> set[str]:
    """Names in sys.modules after running `code` in a fresh interpreter."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=open('modules', 'w'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    return {name.partition(".")[0] for name in (tmp_path / "modules").read_text().split()}


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], {"torch", "torchvision", "timm", "pandas", "dask", "zarr", "sklearn", "skimage", "scipy", "cv2"}),
        (["info", "SLIDE"], {"torch", "torchvision", "timm", "pandas", "dask", "zarr", "sklearn", "skimage", "scipy"}),
    ],
)
def test_help_and_info_load_nothing_heavy(arguments, forbidden, real_slide, tmp_path):
    arguments = [str(real_slide) if word == "SLIDE" else word for word in arguments]
    code = f"from cli.main import main; sys.argv = {['wsi', *arguments]!r}; main()"
    assert not loaded_after(code, tmp_path) & forbidden


def test_importing_the_packages_loads_no_torch(tmp_path):
    modules = loaded_after("import wsi, tiling, embedding, mil, heatmaps, jobs, viewer, cli", tmp_path)
    assert not modules & {"torch", "timm", "dask", "openslide", "tifffile", "fastapi"}


def test_no_other_distribution_owns_our_package_names():
    from jobs.doctor import GOOD, _names

    assert _names().state == GOOD
