"""The browser viewer's built pages: whole, from here alone, and in the wheel without their libraries."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
WEB = REPOSITORY / "viewer" / "web"
STATIC = REPOSITORY / "viewer" / "static"


@pytest.fixture(scope="module")
def static() -> Path:
    if not (STATIC / "index.html").is_file():
        pytest.skip("the viewer's pages are not built; `make viewer` builds them")
    return STATIC


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("viewer_web_build", WEB / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_loads_only_files_that_lie_beside_it(static):
    page = (static / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert named
    for name in named:
        assert name.startswith("./"), name
        assert (static / name).is_file(), name
    assert "<script>" not in page  # the security policy runs no script that stands in the page
    assert "<style" not in page


def test_styles_load_nothing_from_elsewhere(static):
    sheets = list(static.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet.name


def test_licences_of_all_that_may_be_bundled_are_kept(static):
    """Every library of the lock file that is not only for building, and of the largest the words of its licence."""
    text = (static / "licenses.txt").read_text()
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    shipped = [place.removeprefix("node_modules/") for place, of in packages.items() if place and not of.get("dev")]
    assert {"openseadragon", "@annotorious/openseadragon"} <= set(shipped)
    missing = [name for name in shipped if not name.startswith("@types/") and f"{name} " not in text]
    assert not missing
    assert "OpenSeadragon contributors" in text
    assert "svelte" in text


def test_the_lock_file_names_versions_and_checksums_and_no_registry():
    entries = json.loads((WEB / "package-lock.json").read_text())["packages"]
    libraries = [entry for place, entry in entries.items() if place]
    assert libraries
    for entry in libraries:
        assert entry["version"]
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
    wanted = json.loads((WEB / "package.json").read_text())
    assert entries[""]["dependencies"] == wanted["dependencies"]


@pytest.mark.parametrize(
    ("said", "enough"), [("v18.20.4", False), ("v20.18.3", False), ("v20.19.0", True), ("v24.1.0", True), ("", False)]
)
def test_an_old_node_is_not_taken(builder, tmp_path, said, enough):
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho {said}\n")
    node.chmod(0o755)
    assert builder.is_new_enough(str(node)) is enough


def test_libraries_count_as_installed_only_in_the_versions_of_the_lock_file(builder, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "WEB", tmp_path)
    (tmp_path / "node_modules").mkdir()
    locked = {
        "": {"name": "viewer"},
        "node_modules/a": {"version": "1.2.3"},
        "node_modules/elsewhere": {"version": "1.0.0", "optional": True},
    }
    (tmp_path / "package-lock.json").write_text(json.dumps({"packages": locked}))
    kept = tmp_path / "node_modules" / ".package-lock.json"
    assert not builder.are_libraries_installed()
    for packages, whole in (
        ({"node_modules/a": {"version": "1.2.3"}}, True),
        ({"node_modules/a": {"version": "1.2.4"}}, False),
        ({}, False),
        ({"node_modules/a": {"version": "1.2.3"}, "node_modules/left-over": {"version": "1.0.0"}}, False),
    ):
        kept.write_text(json.dumps({"packages": packages}))
        assert builder.are_libraries_installed() is whole, packages


@pytest.mark.parametrize(
    ("noise", "flags", "code", "words"),
    [
        ("npm error code ECONNREFUSED", ["--optional"], 0, "is not built"),
        ("npm error code ECONNREFUSED", [], 1, "is not built"),
        ("npm error code EINTEGRITY", ["--optional"], 1, "EINTEGRITY"),  # a wrong checksum is no matter of reach
    ],
)
def test_only_a_registry_that_is_not_reached_excuses_a_missing_build(tmp_path, noise, flags, code, words):
    """With an npm in the path that fails as the real one does, on a copy without libraries."""
    web, tools = tmp_path / "web", tmp_path / "bin"
    web.mkdir()
    tools.mkdir()
    for name in ("build.py", "package.json", "package-lock.json"):
        (web / name).write_bytes((WEB / name).read_bytes())
    for name, script in (("node", "echo v24.0.0"), ("npm", f"echo '{noise}' >&2; exit 1")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(web / "build.py"), *flags],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_package_brings_the_built_pages_and_none_of_the_libraries(static, tmp_path, kind):
    pytest.importorskip("hatchling", reason="hatchling is in the extra dev")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (package,) = tmp_path.iterdir()
    if kind == "wheel":
        with zipfile.ZipFile(package) as wheel:
            names = wheel.namelist()
    else:
        with tarfile.open(package) as archive:
            names = [name.partition("/")[2] for name in archive.getnames()]
    built = {path.relative_to(REPOSITORY).as_posix() for path in static.rglob("*") if path.is_file()}
    assert built <= set(names)
    assert not [name for name in names if "node_modules" in name or name.startswith(".venv")]
    assert any(name.startswith("viewer/web/src/") for name in names) is (kind == "sdist")
